"""CLIP's image and text transformers (Radford et al., 2021), for any image grid.

Pre-norm blocks, QuickGELU, LayerNorm eps 1e-5. Matrix products run in `dtype`; LayerNorm and softmax in float32.
Parameters are float32 and initialised like CLIP's; the published sizes are in `recipes/towers.py`.

`remat` recomputes a block in the backward pass instead of keeping its activations, `scan` compiles one block for all
layers; neither changes the parameters.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jax_mmreid.errors import ConfigError


def quick_gelu(x: Array) -> Array:
    """x * sigmoid(1.702 x), CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


class LayerNorm(nn.Module):
    """LayerNorm with eps 1e-5, computed in float32, returned in the dtype of its input."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="norm")(x).astype(x.dtype)


class Attention(nn.Module):
    """Multi-head self-attention; if `causal`, a token attends to itself and those before it. [B,N,D] -> [B,N,D]."""

    heads: int
    causal: bool = False
    depth: int = 1  # layers of the tower, which scale the output's initial weights
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        qkv = nn.DenseGeneral(
            (3, self.heads, width // self.heads),
            kernel_init=nn.initializers.normal(width**-0.5),
            dtype=self.dtype,
            name="qkv",
        )(x)
        # One transpose to [3,B,heads,N,d]: products laid out (b,h,i,d) run 2-4 times faster on CPU than (b,i,h,d).
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        logits = jnp.einsum("bhid,bhjd->bhij", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        if self.causal:
            logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -jnp.inf)
        weights = jax.nn.softmax(logits).astype(self.dtype)
        x = jnp.einsum("bhij,bhjd->bhid", weights, v).transpose(0, 2, 1, 3)  # [B,N,heads,d]
        out_init = nn.initializers.normal(width**-0.5 * (2 * self.depth) ** -0.5)
        return nn.DenseGeneral(width, axis=(-2, -1), kernel_init=out_init, dtype=self.dtype, name="out")(x)


class Block(nn.Module):
    """One residual block: attention, then a QuickGELU MLP four times as wide. [B,N,D] -> [B,N,D]."""

    heads: int
    causal: bool = False
    depth: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = x + Attention(self.heads, self.causal, self.depth, self.dtype, name="attention")(LayerNorm(name="ln_1")(x))
        init_in = nn.initializers.normal((2 * width) ** -0.5)
        init_out = nn.initializers.normal(width**-0.5 * (2 * self.depth) ** -0.5)
        y = nn.Dense(4 * width, kernel_init=init_in, dtype=self.dtype, name="fc")(LayerNorm(name="ln_2")(x))
        return x + nn.Dense(width, kernel_init=init_out, dtype=self.dtype, name="proj")(quick_gelu(y))


def run_blocks(tower: nn.Module, x: Array, *, causal: bool) -> Array:
    """The transformer of a tower, with parameters block_0, block_1, ...: [B,N,D] -> [B,N,D]."""
    # Inside the loop of a scan XLA cannot undo the recomputation, so nothing has to prevent it.
    kind = nn.remat(Block, prevent_cse=not tower.scan) if tower.remat else Block
    block = functools.partial(kind, tower.heads, causal, tower.layers, tower.dtype)
    names = [f"block_{i}" for i in range(tower.layers)]
    if not tower.scan or tower.is_initializing():
        for name in names:
            x = block(name=name)(x)
        return x
    layer, params = block(parent=None), tower.variables["params"]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[name] for name in names))
    return jax.lax.scan(lambda x, own: (layer.apply({"params": own}, x), None), x, stacked)[0]


def resize_positions(table: Array, grid: tuple[int, int]) -> Array:
    """A position table for another grid: [1+g*g,D] -> [1+rows*cols,D]; the row of the class token is unchanged.

    Bilinear with half-pixel centres and no antialiasing, as in public code of multi-modality ReID. A table whose grid
    is not square can only be used as it is: ValueError if it has not rows*cols patches.
    """
    rows, cols = grid
    side = math.isqrt(len(table) - 1)
    if (side, side) == grid or (side * side != len(table) - 1 == rows * cols):
        return table
    if side * side != len(table) - 1:
        raise ValueError(f"a position table of {len(table) - 1} patches is neither square nor of a grid {rows}x{cols}")
    patches = jnp.asarray(table[1:], jnp.float32).reshape(side, side, -1)
    patches = jax.image.resize(patches, (rows, cols, patches.shape[-1]), "bilinear", antialias=False)
    return jnp.concatenate([jnp.asarray(table[:1], jnp.float32), patches.reshape(rows * cols, -1)])


def stretch_projection(kernel: np.ndarray, dim: int) -> np.ndarray:
    """A text projection for another joint space, as in the official TVI-LFM code: [width,d] -> [width,dim].

    Each row is interpolated linearly in float32, with half-pixel centres and the outermost columns repeated beyond the
    ends; the result is rounded to float16, the precision of CLIP's files, and returned as float32.
    """
    kernel = np.asarray(kernel, np.float32)
    last, half = kernel.shape[1] - 1, np.float32(0.5)
    column = np.float32(kernel.shape[1] / dim) * (np.arange(dim, dtype=np.float32) + half) - half
    column = np.clip(column, 0, last)
    left = np.floor(column).astype(int)
    weight = (column - left).astype(np.float32)  # of the column on the right
    stretched = (1 - weight) * kernel[:, left] + weight * kernel[:, np.minimum(left + 1, last)]
    return stretched.astype(np.float16).astype(np.float32)


class ImageTower(nn.Module):
    """CLIP's vision transformer with a grid of H/patch x W/patch.

    images [B,H,W,3] float, camera [B,C] one-hot (a zero row adds nothing)
        -> class and patch tokens after the last LayerNorm [B,1+N,width], and the same projected [B,1+N,dim];
        without `project_all` only the class token is projected, as in CLIP: [B,1,dim].
    The camera embedding (TransReID's side information, coefficient 1) is added to the class token only. Raises
    ValueError for images that are not a whole number of patches.
    """

    patch: int
    width: int
    layers: int
    heads: int
    dim: int
    position_std: float = 0.0  # 0: width^-0.5, as CLIP
    project_all: bool = True
    remat: bool = False
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: Array, camera: Array | None = None) -> tuple[Array, Array]:
        rows, height, width_px, _ = images.shape
        if height % self.patch or width_px % self.patch:
            raise ValueError(f"image {height}x{width_px} is not a whole number of {self.patch}x{self.patch} patches")
        scale = self.width**-0.5
        x = nn.Conv(
            self.width, (self.patch, self.patch), (self.patch, self.patch), padding="VALID", use_bias=False,
            dtype=self.dtype, name="patch_embedding",
        )(images)  # fmt: skip
        x = x.reshape(rows, -1, self.width)  # [B,N,width]
        cls = self.param("class_embedding", nn.initializers.normal(scale), (self.width,))
        cls = jnp.broadcast_to(cls, (rows, self.width))
        if camera is not None:
            init = nn.initializers.normal(0.02)
            cls = cls + camera @ self.param("camera_embedding", init, (camera.shape[-1], self.width))
        x = jnp.concatenate([cls[:, None].astype(x.dtype), x], axis=1)  # [B,1+N,width]
        std = self.position_std or scale
        position = self.param("position_embedding", nn.initializers.normal(std), x.shape[1:])
        x = LayerNorm(name="ln_pre")(x + position.astype(x.dtype))
        x = run_blocks(self, x, causal=False)
        x = LayerNorm(name="ln_post")(x)
        projected = nn.Dense(
            self.dim,
            use_bias=False,
            kernel_init=nn.initializers.normal(scale),
            dtype=self.dtype,
            name="projection",
        )(x if self.project_all else x[:, :1])
        return x.astype(jnp.float32), projected.astype(jnp.float32)


class TextTower(nn.Module):
    """CLIP's text transformer; its input are embeddings, those of `embed` or with injected words among them."""

    vocab: int
    context: int
    width: int
    layers: int
    heads: int
    dim: int
    remat: bool = False
    scan: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.token_embedding = self.param("token_embedding", nn.initializers.normal(0.02), (self.vocab, self.width))
        self.position_embedding = self.param(
            "position_embedding", nn.initializers.normal(0.01), (self.context, self.width)
        )
        self.projection = self.param("projection", nn.initializers.normal(self.width**-0.5), (self.width, self.dim))

    def embed(self, ids: Array) -> Array:
        """Token embeddings without positions: ids [...,L] -> [...,L,width]."""
        return self.token_embedding[ids]

    @nn.compact
    def __call__(self, embeddings: Array, end: Array | int) -> Array:
        """The feature at token `end` of each row: embeddings [B,L,width] -> [B,dim].

        Attention is causal, so tokens after `end` have no influence and may be left out. Raises ConfigError if L is
        more than `context`.
        """
        length = embeddings.shape[-2]
        if length > self.context:
            raise ConfigError(
                f"captions of {length} tokens are longer than config.model.text.context={self.context}; lower "
                "config.data.text.context"
            )
        x = (embeddings + self.position_embedding[:length]).astype(self.dtype)
        x = run_blocks(self, x, causal=True)
        x = LayerNorm(name="ln_final")(x[jnp.arange(x.shape[0]), end])  # only the end token is projected
        return jnp.matmul(x, self.projection.astype(self.dtype)).astype(jnp.float32)
