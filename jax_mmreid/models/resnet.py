"""A ResNet (He et al., 2016) with a stem for each modality and a trunk that all share, as in TVI-LFM.

The v1.5 bottleneck, whose stride is in the 3x3 convolution. Padding is the same on both sides, which 'SAME' is not with
a stride of 2. Convolutions run in `dtype`; parameters and batch statistics are float32.
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.models.norm import BatchNorm

LAYERS = 4  # each a number of bottlenecks


@dataclasses.dataclass(frozen=True)
class ResNetFields:
    """`config.model.image`; see `ResNet`."""

    blocks: tuple[int, ...]
    width: int


def conv(features: int, size: int, stride: int = 1, *, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution without bias, padded so that only the stride changes the size; He normal by fan-out."""
    return nn.Conv(
        features, (size, size), (stride, stride), padding=size // 2, use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"), dtype=dtype, name=name,
    )  # fmt: skip


class Stem(nn.Module):
    """Convolution, BatchNorm, ReLU if `relu`, and max-pooling: images [B,H,W,3] -> [B,H/4,W/4,width]."""

    width: int = 64
    relu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = conv(self.width, 7, 2, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(use_bias=True, name="bn")(x, train=train)
        if self.relu:
            x = nn.relu(x)
        # max_pool pads with -inf. Zeros would be larger than the negative values that there are without the ReLU.
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride, 1x1 to four times the width, plus the input: [B,h,w,D] -> [B,h/s,w/s,4*width]."""

    width: int
    stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def bn(x, name):
            return BatchNorm(use_bias=True, name=name)(x, train=train)

        out = 4 * self.width
        y = nn.relu(bn(conv(self.width, 1, dtype=self.dtype, name="conv1")(x), "bn1"))
        y = nn.relu(bn(conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y), "bn2"))
        y = bn(conv(out, 1, dtype=self.dtype, name="conv3")(y), "bn3")
        if x.shape[-1] != out:  # the first block of a layer
            x = bn(conv(out, 1, self.stride, dtype=self.dtype, name="downsample_conv")(x), "downsample_bn")
        return nn.relu(x + y)


class ResNet(nn.Module):
    """The tower without pooling: images of each modality {name: [B,H,W,3]} -> [rows of all, H/16, W/16, D] float32.

    ResNet-50 by default. `blocks` are the numbers of bottlenecks in the four layers. `width` is that of the stem and of
    the first bottleneck; it doubles with every layer, so D is 32 * width, 2048 for ResNet-50. Rows come in the order of
    `stems`, and all of them share the trunk's batch statistics. A modality that is not in `images` is left out, except
    at initialisation, which needs all. TVI-LFM's stems have no ReLU. With `last_stride` 2 the map is H/32, as for
    classification. `remat` recomputes a bottleneck in the backward pass instead of keeping its activations. Raises
    ValueError for images without a stem, and for `blocks` of another number of layers.
    """

    stems: tuple[str, ...] = ("rgb", "ir")
    stem_relu: bool = False
    last_stride: int = 1
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def dim(self) -> int:
        """Channels of the map, D."""
        return 4 * self.width * 2 ** (LAYERS - 1)

    @nn.compact
    def __call__(self, images: dict[str, Array], *, train: bool) -> Array:
        names = [name for name in self.stems if name in images]  # not the dict's order: jit sorts its keys
        enough = len(names) == len(self.stems) or not self.is_initializing()
        if not names or len(names) < len(images) or not enough:
            raise ValueError(
                f"images of {sorted(images)}; the stems are for {list(self.stems)}, initialisation needs all"
            )
        strides = (1, 2, 2, self.last_stride)
        if len(self.blocks) != len(strides) or min(self.blocks) < 1:
            raise ValueError(f"blocks {self.blocks}: a ResNet has {len(strides)} layers of at least one each")
        stem = functools.partial(Stem, self.width, self.stem_relu, self.dtype)
        x = jnp.concatenate([stem(name=f"{name}_stem")(images[name], train=train) for name in names])
        bottleneck = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for k, (count, stride) in enumerate(zip(self.blocks, strides)):
            for i in range(count):
                block = bottleneck(self.width * 2**k, stride if i == 0 else 1, self.dtype, name=f"layer{k + 1}_{i}")
                x = block(x, train)
        return x.astype(jnp.float32)
