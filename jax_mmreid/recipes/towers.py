"""The published CLIP towers as fields of `config.model`, and how their wide matrices are split over devices."""

from typing import NamedTuple


class Tower(NamedTuple):
    """A published CLIP: sizes of its towers, and a picture of a person in whole patches."""

    image: dict  # config.model.image
    text: dict  # config.model.text
    dim: int  # config.model.dim, the joint space
    image_size: tuple[int, int]  # config.data.image_size: H, W


def _image(patch: int, width: int, layers: int, heads: int) -> dict:
    return dict(patch=patch, width=width, layers=layers, heads=heads, position_std=0.0)


def _text(width: int, heads: int) -> dict:
    return dict(vocab=49408, context=77, width=width, layers=12, heads=heads)


TEXT = _text(512, 8)  # of ViT-B and of RN50
TOWERS = {
    "vit_b16": Tower(_image(16, 768, 12, 12), TEXT, 512, (256, 128)),
    "vit_b32": Tower(_image(32, 768, 12, 12), TEXT, 512, (256, 128)),
    "vit_l14": Tower(_image(14, 1024, 24, 16), _text(768, 12), 768, (252, 126)),
}

# Tensor parallelism over the axis "model": a matrix is split by columns and the one after it by rows. Attention whose
# heads do not divide stays whole.
TOWER_SHARDING = (
    (r"attention/qkv/kernel$", (None, None, "model", None)),
    (r"attention/qkv/bias$", (None, "model", None)),
    (r"attention/out/kernel$", ("model", None, None)),
    (r"attention/(qkv|out)/(kernel|bias)$", ()),
    (r"/fc/kernel$", (None, "model")),
    (r"/fc/bias$", ("model",)),
    (r"/proj/kernel$", ("model", None)),
)
