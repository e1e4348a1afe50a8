"""The names and axis orders that PyTorch code gives to weights, and ours, both ways.

A layout is a list of entries: one of our leaves, the tensors of a state dict that it is made of, and the change of
axes between them. Reading and writing go through the same list, so what was read is written back bit by bit.

    transformers   CLIPModel of Hugging Face transformers
    openai         CLIP as OpenAI published it; of its ResNet variants the text tower alone
    torchvision    ResNet-50, its stem for both stems of ours
    tvi_lfm        the official TVI-LFM code, first stage (481 keys) or second (488)
    jax_mmreid     our own paths

Our leaves are paths such as params/image/block_0/fc/kernel; parts are image, text, pool, head, logit_scale, backup.
Tensors that no model of ours has (counters, ImageNet's classifier) stand under extra/<their name> for the way back.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

HEAD_DIM = 64  # of every attention head in the published CLIPs
RESNET_BLOCKS = (3, 4, 6, 3)
OWN = ("params/", "batch_stats/", "extra/")

# A tensor that only this layout has.
MARKS = {
    "transformers": "vision_model.embeddings.class_embedding",
    "tvi_lfm": "base_model.visual.rgb_model.resnet_conv.0.weight",
    "openai": "visual.conv1.weight",
    "torchvision": "layer1.0.conv1.weight",
}
LAYOUTS = (*MARKS, "jax_mmreid")
BLOCKS = {  # where a layout keeps the layers of its (image, text) transformers
    "transformers": (r"vision_model\.encoder\.layers\.(\d+)\..*", r"text_model\.encoder\.layers\.(\d+)\..*"),
    "openai": (r"visual\.transformer\.resblocks\.(\d+)\..*", r"transformer\.resblocks\.(\d+)\..*"),
    "torchvision": ("", ""),
    "tvi_lfm": ("", r"base_model\.transformer\.resblocks\.(\d+)\..*"),
    "jax_mmreid": (r"params/image/block_(\d+)/.*", r"params/text/block_(\d+)/.*"),
}
VISION = ("visual.class_embedding", "vision_model.embeddings.class_embedding", "params/image/class_embedding")
EXTRAS = {
    "transformers": r"(text|vision)_model\.embeddings\.position_ids",
    "openai": r"input_resolution|context_length|vocab_size",
    "torchvision": r".*\.num_batches_tracked|fc\.(weight|bias)",
    "tvi_lfm": r".*\.num_batches_tracked",
}
OPTIONAL = r"(backup_)?classifier\.classifier\.weight"  # testing never needs the classifier of training identities


class LayoutError(ValueError):
    """Tensors that are not in a layout; the message lists what is missing and what is too much."""


class Entry(NamedTuple):
    """`read` makes the leaf at `path` of the tensors called `names`, `write` makes those tensors of the leaf."""

    path: str
    names: tuple[str, ...]
    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], list[np.ndarray]]


class Sizes(NamedTuple):
    """What decides how long a layout's list is."""

    image_layers: int  # 0 without a vision transformer
    text_layers: int
    image_heads: int  # 0: 64 features each
    text_heads: int
    backup: bool


def detect(names: Iterable[str]) -> str:
    """The layout that tensors of these names are in; raises LayoutError if it is none of ours."""
    names = set(names)
    if names and all(name.startswith(OWN) for name in names):
        return "jax_mmreid"
    for layout, mark in MARKS.items():
        if mark in names:
            return layout
    raise LayoutError(f"none of the layouts {', '.join(LAYOUTS)} has tensors named {_some(names)}")


def to_ours(tensors: Mapping[str, np.ndarray], layout: str, heads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Our leaves by path, in the dtypes of `tensors`.

    `heads` counts the attention heads of "image" and "text"; where it does not, they are 64 wide. Raises LayoutError
    listing the tensors that are missing, unknown or of a shape that cannot be.
    """
    if layout == "jax_mmreid":
        return dict(tensors)
    sizes = _sizes(tensors, layout, heads)
    entries = _entries(layout, sizes)
    known = {name for entry in entries for name in entry.names}
    extras = {name for name in tensors if re.fullmatch(EXTRAS[layout], name)}
    skipped = {name for name in tensors if layout == "openai" and not sizes.image_layers and name.startswith("visual.")}
    _require(
        f"not the layout {layout!r}",
        missing={name for name in known - tensors.keys() if not re.fullmatch(OPTIONAL, name)},
        unknown=tensors.keys() - known - extras - skipped,
    )
    out = {f"extra/{name}": np.asarray(tensors[name]) for name in sorted(extras)}
    for entry in entries:
        if entry.names[0] not in tensors:
            continue
        try:
            out[entry.path] = entry.read(*(tensors[name] for name in entry.names))
        except ValueError as error:
            shapes = ", ".join(f"{name} {tensors[name].shape}" for name in entry.names)
            raise LayoutError(f"not the layout {layout!r}: mis-shaped {shapes}") from error
    return out


def from_ours(leaves: Mapping[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """The state dict in `layout`; raises LayoutError listing the leaves that it needs or has no name for."""
    if layout == "jax_mmreid":
        return dict(leaves)
    entries = _entries(layout, _sizes(leaves, "jax_mmreid", {}))
    extras = {path for path in leaves if path.startswith("extra/")}
    _require(
        f"cannot be written in the layout {layout!r}",
        missing={e.path for e in entries if e.path not in leaves and not re.fullmatch(OPTIONAL, e.names[0])},
        unknown=leaves.keys() - {entry.path for entry in entries} - extras,
    )
    out = {}
    for entry in entries:
        if entry.path not in leaves:
            continue
        for name, tensor in zip(entry.names, entry.write(np.asarray(leaves[entry.path]))):
            if name in out and not np.array_equal(out[name], tensor):
                raise LayoutError(
                    f"cannot be written in the layout {layout!r}: it has one {name}, our two stems differ"
                )
            out[name] = np.asarray(tensor, order="C")
    means = [name for name in out if name.endswith(".running_mean")]
    out |= {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in means}
    return out | {path.removeprefix("extra/"): np.asarray(leaves[path]) for path in extras}


def _sizes(tensors: Mapping[str, np.ndarray], layout: str, heads: Mapping[str, int]) -> Sizes:
    image, text = (
        len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))}) for pattern in BLOCKS[layout]
    )
    vision = any(name.endswith(VISION) for name in tensors)
    backup = any(name.startswith(("backup_", "params/backup/")) for name in tensors)
    # A tower that is there has a layer, so that a file without any lacks something.
    return Sizes(max(image, vision), max(text, 1), heads.get("image", 0), heads.get("text", 0), backup)


def _entries(layout: str, sizes: Sizes) -> list[Entry]:
    if layout == "torchvision":
        stems = [entry for name in ("rgb", "ir") for entry in _stem(name, "conv1", "bn1")]
        return stems + _trunk("layer{}".format)
    if layout == "tvi_lfm":
        return _tvi_lfm(sizes)
    towers = {"transformers": _transformers, "openai": _openai}[layout](sizes)
    return [*towers, _same("params/logit_scale", "logit_scale")]


def _transformers(sizes: Sizes) -> list[Entry]:
    image, text, theirs = "params/image", "params/text", "vision_model.embeddings"
    entries = [
        _conv(f"{image}/patch_embedding/kernel", f"{theirs}.patch_embedding.weight"),
        _same(f"{image}/class_embedding", f"{theirs}.class_embedding"),
        _same(f"{image}/position_embedding", f"{theirs}.position_embedding.weight"),
        *_norm(f"{image}/ln_pre/norm", "vision_model.pre_layrnorm"),
        *_norm(f"{image}/ln_post/norm", "vision_model.post_layernorm"),
        _linear(f"{image}/projection/kernel", "visual_projection.weight"),
        _same(f"{text}/token_embedding", "text_model.embeddings.token_embedding.weight"),
        _same(f"{text}/position_embedding", "text_model.embeddings.position_embedding.weight"),
        *_norm(f"{text}/ln_final/norm", "text_model.final_layer_norm"),
        _linear(f"{text}/projection", "text_projection.weight"),
    ]
    names = dict(ln="layer_norm{}", out="self_attn.out_proj", fc="mlp.fc1", proj="mlp.fc2")
    names["qkv"] = tuple(f"self_attn.{letter}_proj.{{}}" for letter in "qkv")
    for i in range(sizes.image_layers):
        entries += _block(f"{image}/block_{i}", f"vision_model.encoder.layers.{i}", sizes.image_heads, **names)
    for i in range(sizes.text_layers):
        entries += _block(f"{text}/block_{i}", f"text_model.encoder.layers.{i}", sizes.text_heads, **names)
    return entries


OPENAI_BLOCK = dict(ln="ln_{}", out="attn.out_proj", fc="mlp.c_fc", proj="mlp.c_proj", qkv=("attn.in_proj_{}",))


def _openai(sizes: Sizes) -> list[Entry]:
    entries = _openai_text(sizes, "")
    image = "params/image"
    if sizes.image_layers:
        entries += [
            _conv(f"{image}/patch_embedding/kernel", "visual.conv1.weight"),
            _same(f"{image}/class_embedding", "visual.class_embedding"),
            _same(f"{image}/position_embedding", "visual.positional_embedding"),
            *_norm(f"{image}/ln_pre/norm", "visual.ln_pre"),
            *_norm(f"{image}/ln_post/norm", "visual.ln_post"),
            _same(f"{image}/projection/kernel", "visual.proj"),
        ]
    for i in range(sizes.image_layers):
        block = f"visual.transformer.resblocks.{i}"
        entries += _block(f"{image}/block_{i}", block, sizes.image_heads, **OPENAI_BLOCK)
    return entries


def _openai_text(sizes: Sizes, prefix: str) -> list[Entry]:
    text = "params/text"
    entries = [
        _same(f"{text}/token_embedding", f"{prefix}token_embedding.weight"),
        _same(f"{text}/position_embedding", f"{prefix}positional_embedding"),
        *_norm(f"{text}/ln_final/norm", f"{prefix}ln_final"),
        _same(f"{text}/projection", f"{prefix}text_projection"),
    ]
    for i in range(sizes.text_layers):
        block = f"{prefix}transformer.resblocks.{i}"
        entries += _block(f"{text}/block_{i}", block, sizes.text_heads, **OPENAI_BLOCK)
    return entries


def _tvi_lfm(sizes: Sizes) -> list[Entry]:
    visual = "base_model.visual"
    entries = [
        *_stem("rgb", f"{visual}.rgb_model.resnet_conv.0", f"{visual}.rgb_model.resnet_conv.1"),
        *_stem("ir", f"{visual}.ir_model.resnet_conv.0", f"{visual}.ir_model.resnet_conv.1"),
        *_trunk(lambda stage: f"{visual}.shared_model.resnet_conv.{stage - 1}"),
        *_openai_text(sizes, "base_model."),
        _same("params/logit_scale", "logit_scale"),
    ]
    for ours, theirs, pool in (("", "", f"{visual}.GEM.p"), ("backup/", "backup_", "backup_pool.p"))[
        : 1 + sizes.backup
    ]:
        entries += [
            _same(f"params/{ours}pool/p", pool),
            *_batch_norm(f"{ours}head/neck", f"{theirs}classifier.BN"),
            _linear(f"params/{ours}head/classifier/kernel", f"{theirs}classifier.classifier.weight"),
        ]
    return entries


def _stem(name: str, conv: str, bn: str) -> list[Entry]:
    return [
        _conv(f"params/image/{name}_stem/conv/kernel", f"{conv}.weight"),
        *_batch_norm(f"image/{name}_stem/bn", bn),
    ]


def _trunk(stage: Callable[[int], str]) -> list[Entry]:
    entries = []
    for k, blocks in enumerate(RESNET_BLOCKS, start=1):
        for i in range(blocks):
            ours, theirs = f"image/layer{k}_{i}", f"{stage(k)}.{i}"
            pairs = [(f"conv{j}", f"bn{j}", f"conv{j}", f"bn{j}") for j in (1, 2, 3)]
            pairs += [("downsample_conv", "downsample_bn", "downsample.0", "downsample.1")] * (i == 0)
            for conv, bn, their_conv, their_bn in pairs:
                entries.append(_conv(f"params/{ours}/{conv}/kernel", f"{theirs}.{their_conv}.weight"))
                entries += _batch_norm(f"{ours}/{bn}", f"{theirs}.{their_bn}")
    return entries


def _block(ours: str, theirs: str, heads: int, *, ln: str, qkv: tuple[str, ...], out: str, fc: str, proj: str) -> list:
    def qkv_names(kind):
        # PyTorch's packed projection writes in_proj_weight, its single ones q_proj.weight.
        return tuple(f"{theirs}.{name.format(kind)}" for name in qkv)

    return [
        *_norm(f"{ours}/ln_1/norm", f"{theirs}.{ln.format(1)}"),
        _qkv(f"{ours}/attention/qkv/kernel", qkv_names("weight"), heads),
        _qkv(f"{ours}/attention/qkv/bias", qkv_names("bias"), heads),
        _out(f"{ours}/attention/out/kernel", f"{theirs}.{out}.weight", heads),
        _same(f"{ours}/attention/out/bias", f"{theirs}.{out}.bias"),
        *_norm(f"{ours}/ln_2/norm", f"{theirs}.{ln.format(2)}"),
        _linear(f"{ours}/fc/kernel", f"{theirs}.{fc}.weight"),
        _same(f"{ours}/fc/bias", f"{theirs}.{fc}.bias"),
        _linear(f"{ours}/proj/kernel", f"{theirs}.{proj}.weight"),
        _same(f"{ours}/proj/bias", f"{theirs}.{proj}.bias"),
    ]


def _norm(ours: str, theirs: str) -> list[Entry]:
    return [_same(f"{ours}/scale", f"{theirs}.weight"), _same(f"{ours}/bias", f"{theirs}.bias")]


def _batch_norm(ours: str, theirs: str) -> list[Entry]:
    statistics = {"mean": "running_mean", "var": "running_var"}
    return _norm(f"params/{ours}", theirs) + [
        _same(f"batch_stats/{ours}/{our}", f"{theirs}.{their}") for our, their in statistics.items()
    ]


def _axes(path: str, name: str, read: tuple[int, ...], write: tuple[int, ...]) -> Entry:
    return Entry(path, (name,), lambda x: np.transpose(x, read), lambda x: [np.transpose(x, write)])


def _same(path: str, name: str) -> Entry:
    return Entry(path, (name,), np.asarray, lambda x: [x])


_linear = functools.partial(_axes, read=(1, 0), write=(1, 0))
_conv = functools.partial(_axes, read=(2, 3, 1, 0), write=(3, 2, 0, 1))  # OIHW <-> HWIO


def _qkv(path: str, names: tuple[str, ...], heads: int) -> Entry:
    """Rows of a packed projection, [3D,D] or [3D] whole or in three tensors, as [D,3,heads,d] or [3,heads,d]."""

    def read(*parts: np.ndarray) -> np.ndarray:
        x = np.concatenate(parts).T
        width = x.shape[-1] // 3
        return x.reshape(*x.shape[:-1], 3, heads or width // HEAD_DIM, -1)

    def write(x: np.ndarray) -> list[np.ndarray]:
        return np.split(x.reshape(*x.shape[:-3], -1).T, len(names))

    return Entry(path, names, read, write)


def _out(path: str, name: str, heads: int) -> Entry:
    """The projection of the heads' outputs, [D,D] as [heads,d,D]."""

    def read(x: np.ndarray) -> np.ndarray:
        return x.T.reshape(heads or x.shape[1] // HEAD_DIM, -1, x.shape[0])

    return Entry(path, (name,), read, lambda x: [x.reshape(-1, x.shape[-1]).T])


def _require(what: str, **faults: set[str]) -> None:
    """Raises LayoutError if any of the named sets holds something."""
    found = [f"{name} {_some(names)}" for name, names in faults.items() if names]
    if found:
        raise LayoutError(f"{what}: {'; '.join(found)}")


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
