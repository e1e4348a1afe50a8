"""What tests of network parts share: random parameters, and our layouts in PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def randomized(params, seed=0):
    """Every parameter drawn anew, so that no bias is 0 and no scale is 1."""
    flat = traverse_util.flatten_dict(params)
    drawn = {path: 0.3 * normal([seed, i], *x.shape) for i, (path, x) in enumerate(flat.items())}
    drawn = {path: jnp.array(x + (path[-1] == "scale")) for path, x in drawn.items()}
    return traverse_util.unflatten_dict(drawn)


def init(module, *args, **kwargs):
    """Initial parameters, compiled at once."""
    return jax.jit(lambda key: module.init(key, *args, **kwargs)["params"])(jax.random.PRNGKey(0))


def shapes(module, *args, **kwargs):
    """Parameters by shape, without computing them."""
    return jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), *args, **kwargs)["params"])


@functools.cache
def jitted(module):
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args))


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance, rtol=0)


def stds(params):
    return {"/".join(path): float(np.std(np.asarray(x))) for path, x in traverse_util.flatten_dict(params).items()}


def to_torch(params):
    """Our parameters, or their gradients, under the names and in the layouts of the PyTorch modules below."""
    out = {}
    for (*path, leaf), x in traverse_util.flatten_dict(params).items():
        x = np.asarray(x, np.float64)
        if path[-1:] == ["qkv"]:
            path, leaf = path[:-1], {"kernel": "in_proj_weight", "bias": "in_proj_bias"}[leaf]
            x = x.reshape(len(x), -1).T if leaf == "in_proj_weight" else x.reshape(-1)
        elif path[-1:] == ["out"]:
            path = [*path[:-1], "out_proj"]
            x = x.reshape(-1, x.shape[-1]).T if leaf == "kernel" else x
        elif leaf == "kernel":
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        out[".".join([part for part in path if part != "norm"] + [leaf])] = x
    return out


def load(torch, module, params):
    module.double().load_state_dict({name: torch.tensor(x) for name, x in to_torch(params).items()})
    return module
