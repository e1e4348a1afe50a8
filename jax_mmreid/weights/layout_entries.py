"""The lists of `layouts`: which tensors of PyTorch code make which of our leaves, and in what order of axes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

HEAD_DIM = 64  # of every attention head in the published CLIPs
RESNET_BLOCKS = (3, 4, 6, 3)  # of torchvision's ResNet-50 and TVI-LFM's
TVI_LFM_TEXT_LAYERS = 12


class Entry(NamedTuple):
    """`read` makes the leaf at `path` of the tensors called `names`, `write` makes those tensors of the leaf."""

    path: str
    names: tuple[str, ...]
    read: Callable[..., np.ndarray]
    write: Callable[[np.ndarray], list[np.ndarray]]


class Sizes(NamedTuple):
    """What the length of a layout's list depends on."""

    image_layers: int  # 0 without a vision transformer
    text_layers: int
    image_heads: int  # 0: 64 features each
    text_heads: int
    base: bool  # TVI-LFM's pool and head of the first stage, beside those of the second


def entries(layout: str, sizes: Sizes) -> list[Entry]:
    """Every leaf of weights of these sizes with its tensors in `layout`."""
    if layout == "torchvision":
        stems = [entry for name in ("rgb", "ir") for entry in _stem(name, "conv1", "bn1")]
        return stems + _trunk("layer{}".format)
    if layout == "tvi_lfm":
        return _tvi_lfm(sizes)
    towers = {"transformers": _transformers, "openai": _openai}[layout](sizes)
    return [*towers, _same("params/logit_scale", "logit_scale")]


def _transformers(sizes: Sizes) -> list[Entry]:
    image, text, theirs = "params/image", "params/text", "vision_model.embeddings"
    listed = [
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
        listed += _block(f"{image}/block_{i}", f"vision_model.encoder.layers.{i}", sizes.image_heads, **names)
    for i in range(sizes.text_layers):
        listed += _block(f"{text}/block_{i}", f"text_model.encoder.layers.{i}", sizes.text_heads, **names)
    return listed


OPENAI_BLOCK = dict(ln="ln_{}", out="attn.out_proj", fc="mlp.c_fc", proj="mlp.c_proj", qkv=("attn.in_proj_{}",))


def _openai(sizes: Sizes) -> list[Entry]:
    listed = _openai_text(sizes, "")
    image = "params/image"
    if sizes.image_layers:
        listed += [
            _conv(f"{image}/patch_embedding/kernel", "visual.conv1.weight"),
            _same(f"{image}/class_embedding", "visual.class_embedding"),
            _same(f"{image}/position_embedding", "visual.positional_embedding"),
            *_norm(f"{image}/ln_pre/norm", "visual.ln_pre"),
            *_norm(f"{image}/ln_post/norm", "visual.ln_post"),
            _same(f"{image}/projection/kernel", "visual.proj"),
        ]
    for i in range(sizes.image_layers):
        block = f"visual.transformer.resblocks.{i}"
        listed += _block(f"{image}/block_{i}", block, sizes.image_heads, **OPENAI_BLOCK)
    return listed


def _openai_text(sizes: Sizes, prefix: str) -> list[Entry]:
    text = "params/text"
    listed = [
        _same(f"{text}/token_embedding", f"{prefix}token_embedding.weight"),
        _same(f"{text}/position_embedding", f"{prefix}positional_embedding"),
        *_norm(f"{text}/ln_final/norm", f"{prefix}ln_final"),
        _same(f"{text}/projection", f"{prefix}text_projection"),
    ]
    for i in range(sizes.text_layers):
        block = f"{prefix}transformer.resblocks.{i}"
        listed += _block(f"{text}/block_{i}", block, sizes.text_heads, **OPENAI_BLOCK)
    return listed


def _tvi_lfm(sizes: Sizes) -> list[Entry]:
    visual = "base_model.visual"
    listed = [
        *_stem("rgb", f"{visual}.rgb_model.resnet_conv.0", f"{visual}.rgb_model.resnet_conv.1"),
        *_stem("ir", f"{visual}.ir_model.resnet_conv.0", f"{visual}.ir_model.resnet_conv.1"),
        *_trunk(lambda stage: f"{visual}.shared_model.resnet_conv.{stage - 1}"),
        *_openai_text(sizes._replace(text_layers=TVI_LFM_TEXT_LAYERS), "base_model."),
        _same("params/logit_scale", "logit_scale"),
    ]
    for ours, theirs, pool in (("", "", f"{visual}.GEM.p"), ("base/", "backup_", "backup_pool.p"))[: 1 + sizes.base]:
        listed += [
            _same(f"params/{ours}pool/p", pool),
            *_batch_norm(f"{ours}head/neck", f"{theirs}classifier.BN"),
            _linear(f"params/{ours}head/classifier/kernel", f"{theirs}classifier.classifier.weight"),
        ]
    return listed


def _stem(name: str, conv: str, bn: str) -> list[Entry]:
    return [
        _conv(f"params/image/{name}_stem/conv/kernel", f"{conv}.weight"),
        *_batch_norm(f"image/{name}_stem/bn", bn),
    ]


def _trunk(stage: Callable[[int], str]) -> list[Entry]:
    listed = []
    for k, blocks in enumerate(RESNET_BLOCKS, start=1):
        for i in range(blocks):
            ours, theirs = f"image/layer{k}_{i}", f"{stage(k)}.{i}"
            pairs = [(f"conv{j}", f"bn{j}", f"conv{j}", f"bn{j}") for j in (1, 2, 3)]
            pairs += [("downsample_conv", "downsample_bn", "downsample.0", "downsample.1")] * (i == 0)
            for conv, bn, their_conv, their_bn in pairs:
                listed.append(_conv(f"params/{ours}/{conv}/kernel", f"{theirs}.{their_conv}.weight"))
                listed += _batch_norm(f"{ours}/{bn}", f"{theirs}.{their_bn}")
    return listed


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
