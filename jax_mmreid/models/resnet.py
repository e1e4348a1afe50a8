"""A ResNet (He et al., 2016) with a stem for each modality and a trunk that all share, as in TVI-LFM.

The v1.5 bottleneck, which strides in its 3x3. Every convolution pads alike on both sides; 'SAME' would not where it
strides. Convolutions run in `dtype`; parameters and batch statistics are float32.
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.models.norm import BatchNorm


def conv(features: int, size: int, stride: int = 1, *, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution without bias that keeps the size of the map, but for its stride. He normal, by fan-out."""
    return nn.Conv(
        features, (size, size), (stride, stride), padding=size // 2, use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"), dtype=dtype, name=name,
    )  # fmt: skip


class Stem(nn.Module):
    """Convolution, BatchNorm, ReLU if asked for, and max-pooling: images [B,H,W,3] -> [B,H/4,W/4,width]."""

    width: int = 64
    relu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = conv(self.width, 7, 2, dtype=self.dtype, name="conv")(x)
        x = BatchNorm(use_bias=True, name="bn")(x, train=train)
        if self.relu:
            x = nn.relu(x)
        # Pads with -inf: without the ReLU values are negative, and a border of zeros would win.
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

    ResNet-50 by default. `blocks` counts the bottlenecks of the four layers and `width` is the stem's and the first
    bottleneck's; it doubles with every layer, so that D is 32 * width, 2048 for ResNet-50. Rows come in the order of
    `stems`, and all of them share the trunk's batch statistics. A modality that is not in `images` is left out;
    initialisation needs all of them. TVI-LFM's stems have no ReLU. With `last_stride` 2 the map is the classifier's,
    H/32. `remat` recomputes a bottleneck's inside in the backward pass instead of keeping it. Raises ValueError for
    images without a stem, and for `blocks` of another number of layers.
    """

    stems: tuple[str, ...] = ("rgb", "ir")
    stem_relu: bool = False
    last_stride: int = 1
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    remat: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: dict[str, Array], *, train: bool) -> Array:
        names = [name for name in self.stems if name in images]  # not the dict's order: jit sorts its keys
        complete = len(names) == len(self.stems) or not self.is_initializing()
        if not names or len(names) < len(images) or not complete:
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
