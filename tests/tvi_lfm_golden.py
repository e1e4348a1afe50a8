"""Numbers that the official TVI-LFM code gives for weights and inputs that numpy alone can make.

A weight is drawn from a generator seeded with the CRC of its official name, scaled by what kind of tensor it is.
tvi_lfm_goldens.json holds what the code computed from them on a CPU in float32: the first five numbers of a tensor
in PyTorch's axis order, its sum and its L2 norm.
"""

import functools
import json
import re
import zlib
from pathlib import Path

import numpy as np
from flax import traverse_util

from jax_mmreid.weights import layout_entries

GOLDENS = json.loads((Path(__file__).parent / "tvi_lfm_goldens.json").read_text())
CLASSES = 395  # SYSU-MM01
RESNET_BLOCKS = (3, 4, 6, 3)


def names_and_shapes(classes=CLASSES, second_stage=False):
    """Every tensor of the official state dict: 481 of the first stage, 488 of the second."""
    shapes = {"logit_scale": ()}

    def bn(name, dim):
        shapes.update({f"{name}.{leaf}": (dim,) for leaf in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    visual = "base_model.visual"
    for stem in ("rgb", "ir"):
        shapes[f"{visual}.{stem}_model.resnet_conv.0.weight"] = (64, 3, 7, 7)
        bn(f"{visual}.{stem}_model.resnet_conv.1", 64)
    inner = 64
    for stage, blocks in enumerate(RESNET_BLOCKS):
        width = 64 * 2**stage
        for i in range(blocks):
            block = f"{visual}.shared_model.resnet_conv.{stage}.{i}"
            convs = {"conv1": (width, inner, 1, 1), "conv2": (width, width, 3, 3), "conv3": (4 * width, width, 1, 1)}
            for j, (name, shape) in enumerate(convs.items(), start=1):
                shapes[f"{block}.{name}.weight"] = shape
                bn(f"{block}.bn{j}", shape[0])
            if i == 0:
                shapes[f"{block}.downsample.0.weight"] = (4 * width, inner, 1, 1)
                bn(f"{block}.downsample.1", 4 * width)
            inner = 4 * width
    shapes[f"{visual}.GEM.p"] = (1,)
    shapes |= {"base_model.token_embedding.weight": (49408, 512), "base_model.positional_embedding": (77, 512)}
    for i in range(12):
        block = f"base_model.transformer.resblocks.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (1536, 512), f"{block}.attn.in_proj_bias": (1536,)}
        linear = {"attn.out_proj": (512, 512), "mlp.c_fc": (2048, 512), "mlp.c_proj": (512, 2048)}
        for name, shape in linear.items():
            shapes |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.{leaf}": (512,) for leaf in ("weight", "bias")}
    shapes |= {f"base_model.ln_final.{leaf}": (512,) for leaf in ("weight", "bias")}
    shapes["base_model.text_projection"] = (512, 2048)
    for prefix in ("", "backup_")[: 1 + second_stage]:
        bn(f"{prefix}classifier.BN", 2048)
        shapes[f"{prefix}classifier.classifier.weight"] = (classes, 2048)
    if second_stage:
        shapes["backup_pool.p"] = (1,)
    return shapes


def draw(name, shape):
    """The weight of that name; a tensor named backup_* is a copy of that without the prefix."""
    name = name.replace("backup_pool", "base_model.visual.GEM").removeprefix("backup_")
    if name.endswith("num_batches_tracked"):
        return np.zeros((), np.int64)
    z = np.random.RandomState(zlib.crc32(name.encode())).randn(*shape)
    if name == "logit_scale":
        z = np.log(1 / 0.07)
    elif name.endswith("GEM.p"):
        z = np.full(1, 3.0)
    elif "visual" in name and z.ndim == 4:
        z *= np.sqrt(2 / np.prod(shape[1:]))
    elif "visual" in name or name.startswith("classifier.BN"):
        scale = 0.2 if ".bn3." in name else 1.0
        leaf = name.rpartition(".")[2]
        z = {"weight": scale * (1 + 0.1 * z), "running_var": 1 + 0.1 * abs(z)}.get(leaf, 0.1 * z)
    elif "ln_" in name:
        z = 1 + 0.02 * z if name.endswith("weight") else 0.02 * z
    else:
        scales = {
            r"classifier\.classifier\.weight": 0.05,
            r".*positional_embedding": 0.01,
            r".*token_embedding\.weight": 0.02,
            r".*(text_projection|in_proj_weight)": 512**-0.5,
            r".*c_fc\.weight": 1024**-0.5,
            r".*(out_proj|c_proj)\.weight": 0.01,
            r".*bias": 0.02,
        }
        z *= next(scale for pattern, scale in scales.items() if re.fullmatch(pattern, name))
    return np.asarray(z, np.float32)


def state_dict(second_stage=False):
    return {name: draw(name, shape) for name, shape in names_and_shapes(second_stage=second_stage).items()}


@functools.cache
def _entries():
    sizes = layout_entries.Sizes(image_layers=0, text_layers=12, image_heads=0, text_heads=8, base=True)
    return {name: entry for entry in layout_entries.entries("tvi_lfm", sizes) for name in entry.names}


def official(tree, name):
    """The tensor that the official code calls `name`, in its axis order, of our {"params": ..., "batch_stats": ...}.

    The tree needs to hold that leaf alone, so {"params": gradients} will do.
    """
    entry = _entries()[name]
    leaf = traverse_util.flatten_dict(tree, sep="/")[entry.path]
    return entry.write(np.asarray(leaf))[entry.names.index(name)]


def images(view):
    """Eight images [8,96,48,3] float32: view 0 is rgb_ori, 1 rgb_aug, 2 ir."""
    n, h, w, c = np.ogrid[:8, :96, :48, :3]
    wave = np.sin(0.05 * h + 0.11 * w + 0.7 * c + 0.9 * n**2 + view * (1 + 0.1 * n))
    return (wave + 0.5 * np.cos(0.31 * h * (1 + 0.05 * n) - 0.23 * w + view)).astype(np.float32)


def tokens(factor, offset):
    """Eight sequences of ids [8,77]; (1, 0) describe the RGB pictures, (3, 2) the infrared ones."""
    ids = np.zeros((8, 77), np.int32)
    for i in range(8):
        length = 6 + i + offset
        ids[i, 0], ids[i, 1 + length] = 49406, 49407
        ids[i, 1 : 1 + length] = (37 * i * factor + 101 * np.arange(length) + 13 * offset) % 5000 + 300
    return ids


def check(x, golden, tolerance):
    """First five numbers, sum and norm, each to `tolerance` of the tensor's largest or of the norm."""
    x = np.asarray(x, np.float64)
    first = golden["first5"]
    np.testing.assert_allclose(x.reshape(-1)[: len(first)], first, rtol=0, atol=tolerance * np.abs(x).max())
    norm = np.sqrt(np.square(x).sum())
    assert abs(norm - golden["l2"]) <= tolerance * golden["l2"], (norm, golden["l2"])
    assert abs(x.sum() - golden["sum"]) <= tolerance * np.abs(x).sum(), (x.sum(), golden["sum"])
