"""ResNet-50 (He et al., 2016) with a stem for each modality and a trunk that all share, as in TVI-LFM.

The v1.5 bottleneck, which strides in its 3x3. Every convolution pads alike on both sides; 'SAME' would not where it
strides. Convolutions run in `dtype`; parameters and batch statistics are float32.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from jax_mmreid.models.norm import BatchNorm

BLOCKS = (3, 4, 6, 3)


def conv(features: int, size: int, stride: int = 1, *, dtype: jnp.dtype, name: str) -> nn.Conv:
    """A convolution without bias that keeps the size of the map, but for its stride. He normal, by fan-out."""
    return nn.Conv(
        features, (size, size), (stride, stride), padding=size // 2, use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"), dtype=dtype, name=name,
    )  # fmt: skip


class Stem(nn.Module):
    """Convolution, BatchNorm, ReLU if asked for, and max-pooling: images [B,H,W,3] -> [B,H/4,W/4,64]."""

    relu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        x = conv(64, 7, 2, dtype=self.dtype, name="conv")(x)
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
    def __call__(self, x: Array, *, train: bool) -> Array:
        def bn(x, name):
            return BatchNorm(use_bias=True, name=name)(x, train=train)

        out = 4 * self.width
        y = nn.relu(bn(conv(self.width, 1, dtype=self.dtype, name="conv1")(x), "bn1"))
        y = nn.relu(bn(conv(self.width, 3, self.stride, dtype=self.dtype, name="conv2")(y), "bn2"))
        y = bn(conv(out, 1, dtype=self.dtype, name="conv3")(y), "bn3")
        if x.shape[-1] != out:  # the first block of a layer
            x = bn(conv(out, 1, self.stride, dtype=self.dtype, name="downsample_conv")(x), "downsample_bn")
        return nn.relu(x + y)


class ResNet50(nn.Module):
    """The tower without pooling: images of each modality {name: [B,H,W,3]} -> [rows of all, H/16, W/16, 2048] float32.

    Rows come in the order of `stems`, and all of them share the trunk's batch statistics. A modality that is not in
    `images` is left out; initialisation needs all of them. TVI-LFM's stems have no ReLU. With `last_stride` 2 the map
    is the classifier's, H/32.
    """

    stems: tuple[str, ...] = ("rgb", "ir")
    stem_relu: bool = False
    last_stride: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: dict[str, Array], *, train: bool) -> Array:
        names = [name for name in self.stems if name in images]  # not the dict's order: jit sorts its keys
        complete = len(names) == len(self.stems) or not self.is_initializing()
        if not names or len(names) < len(images) or not complete:
            raise ValueError(
                f"images of {sorted(images)}; the stems are for {list(self.stems)}, initialisation needs all"
            )
        parts = [Stem(self.stem_relu, self.dtype, name=f"{name}_stem")(images[name], train=train) for name in names]
        x = jnp.concatenate(parts)
        strides = (1, 2, 2, self.last_stride)
        for layer, count in enumerate(BLOCKS, 1):
            for i in range(count):
                stride = strides[layer - 1] if i == 0 else 1
                x = Bottleneck(32 * 2**layer, stride, self.dtype, name=f"layer{layer}_{i}")(x, train=train)
        return x.astype(jnp.float32)
