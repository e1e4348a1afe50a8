"""The dual-stem ResNet-50 against PyTorch's functions, and the laws of its stems and of what they share."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from flax import traverse_util
from parity import close, init, normal, randomized, shapes, stds, to_torch

from jax_mmreid.models.heads import GeM
from jax_mmreid.models.norm import BatchNorm
from jax_mmreid.models.resnet import Bottleneck, ResNet, Stem

BLOCKS = (3, 4, 6, 3)
IMAGES = {"rgb": normal(1, 5, 64, 32, 3), "ir": normal(2, 3, 64, 32, 3)}
STANDARD = dict(stem_relu=True, last_stride=2)  # the classifier of He et al.
SMALL = dict(blocks=(1, 2, 3, 1), width=11)
SIZES = [pytest.param({}, marks=pytest.mark.slow, id="full"), pytest.param(SMALL, id="small")]


@functools.cache
def abstract_variables(**sizes):
    return jax.eval_shape(lambda: ResNet(**sizes).init(jax.random.PRNGKey(0), IMAGES, train=False))


@functools.cache
def random_variables(**sizes):
    """Weights under which a signal keeps its size, with no scale 1, no bias 0 and no statistics at rest."""
    flat = traverse_util.flatten_dict(abstract_variables(**sizes))
    drawn = {path: normal([3, i], *x.shape) for i, (path, x) in enumerate(flat.items())}
    for path, z in drawn.items():
        if path[-1] == "kernel":
            drawn[path] = z * np.float32((2 / np.prod(z.shape[:-1])) ** 0.5)
        elif path[-1] == "var":
            drawn[path] = 1 + 0.1 * np.abs(z)
        elif path[-1] == "scale":
            drawn[path] = (1 + 0.1 * z) * np.float32(0.2 if path[-2] == "bn3" else 1)
        else:
            drawn[path] = 0.1 * z
    return traverse_util.unflatten_dict(drawn)


def settled(variables):
    """The same with every ReLU open or shut for good.

    Near zero float32 and float64 disagree about a sign now and then. That is no error in the map, but one of 1e-2 in
    the gradients, of PyTorch in float32 as well.
    """
    flat = dict(traverse_util.flatten_dict(variables["params"]))
    for (*path, leaf), x in flat.items():
        if leaf == "scale":
            flat[*path, leaf] = 0.5 * np.sign(x) + 0.1 * (x - 1)
        elif leaf == "bias":
            flat[*path, leaf] = 3 * (np.sign(x) if path[-1] in ("bn1", "bn2") else np.ones_like(x))
    return variables | {"params": traverse_util.unflatten_dict(flat)}


@functools.partial(jax.jit, static_argnames="options")
def _evaluate(variables, images, options):
    return ResNet(**dict(options)).apply(variables, images, train=False)


def evaluate(images, size, **kind):
    return _evaluate(random_variables(**size), images, tuple((size | kind).items()))


@functools.partial(jax.jit, static_argnames="options")
def _train(params, stats, images, options):
    def scalar(params):
        variables = {"params": params, "batch_stats": stats}
        x, updated = ResNet(**dict(options)).apply(variables, images, train=True, mutable=["batch_stats"])
        return (x * normal(4, *x.shape)).sum(), (x, updated["batch_stats"])

    return jax.grad(scalar, has_aux=True)(params)


def train(variables, images, **size):
    """(gradients of a weighted sum of the map, (map, new statistics))."""
    return _train(variables["params"], variables["batch_stats"], images, tuple(size.items()))


# Against PyTorch.


def torch_resnet(torch, tensors, images, *, train, stem_relu=False, last_stride=1, blocks=BLOCKS, width=64):
    """The map [B,32*width,h,w] of the same network in PyTorch's functions; writes running statistics when `train`."""
    F = torch.nn.functional  # noqa: N806

    def conv(x, name, stride=1, padding=0):
        return F.conv2d(x, tensors[f"{name}.weight"], stride=stride, padding=padding)

    def bn(x, name):
        mean, var, weight, bias = (tensors[f"{name}.{leaf}"] for leaf in ("mean", "var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, training=train)

    parts = []
    for name in ("rgb", "ir"):
        x = torch.tensor(images[name]).double().permute(0, 3, 1, 2)
        x = bn(conv(x, f"{name}_stem.conv", stride=2, padding=3), f"{name}_stem.bn")
        parts.append(F.max_pool2d(F.relu(x) if stem_relu else x, 3, stride=2, padding=1))
    x = torch.cat(parts)
    assert x.shape[1] == width
    for layer, count in enumerate(blocks, start=1):
        for i in range(count):
            name, stride = f"layer{layer}_{i}", 1
            shortcut = x
            if i == 0:
                stride = {1: 1, 4: last_stride}.get(layer, 2)
                shortcut = bn(conv(x, f"{name}.downsample_conv", stride), f"{name}.downsample_bn")
            x = F.relu(bn(conv(x, f"{name}.conv1"), f"{name}.bn1"))
            x = F.relu(bn(conv(x, f"{name}.conv2", stride, padding=1), f"{name}.bn2"))
            x = F.relu(bn(conv(x, f"{name}.conv3"), f"{name}.bn3") + shortcut)
    return x


def torch_tensors(torch, variables):
    tensors = {name: torch.tensor(x) for name, x in to_torch(variables["batch_stats"]).items()}
    for name, x in to_torch(variables["params"]).items():
        tensors[name] = torch.tensor(x, requires_grad=True)
    return tensors


def relative(a, b):
    return np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(b)


@pytest.mark.reference
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", [{}, STANDARD], ids=["tvi_lfm", "standard"])
def test_the_map_equals_pytorch_in_evaluation(torch, size, kind):
    tensors = torch_tensors(torch, random_variables(**size))
    with torch.no_grad():
        expected = torch_resnet(torch, tensors, IMAGES, train=False, **size, **kind).permute(0, 2, 3, 1)
    found = evaluate(IMAGES, size, **kind)
    assert found.shape == expected.shape
    assert relative(found, expected) < 1e-5


@pytest.mark.reference
@pytest.mark.parametrize("change, tolerance", [(dict, 0.05), (settled, 1e-3)], ids=["random", "settled"])
@pytest.mark.parametrize("size", SIZES)
def test_map_statistics_and_gradients_equal_pytorch_in_training(torch, size, change, tolerance):
    variables = change(random_variables(**size))
    tensors = torch_tensors(torch, variables)
    expected = torch_resnet(torch, tensors, IMAGES, train=True, **size)
    grads, (found, stats) = train(variables, IMAGES, **size)
    (expected * torch.tensor(normal(4, *found.shape)).permute(0, 3, 1, 2)).sum().backward()
    assert relative(found, expected.detach().permute(0, 2, 3, 1)) < 1e-4
    for name, x in to_torch(stats).items():
        assert relative(x, tensors.pop(name)) < 1e-4, name
    for name, x in to_torch(grads).items():
        expected = tensors.pop(name).grad.numpy()
        # Norms are near 100, or 0 for a bias that passes an open ReLU and is taken off again by the next BatchNorm.
        assert np.linalg.norm(x - expected) < tolerance * (1 + np.linalg.norm(expected)), name
    assert not tensors


# Stems.


def stem(relu, bias=None):
    module, x = Stem(relu=relu), normal(0, 3, 22, 14, 3)
    params = randomized(shapes(module, x, train=False))
    if bias is not None:
        params["bn"]["bias"] = np.full(64, bias, np.float32)
    return jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))({"params": params}, x)[0]


def test_a_stem_has_a_relu_only_on_request():
    linear, positive = stem(False), stem(True)
    assert linear.min() < 0
    assert positive.min() == 0
    close(positive, np.maximum(linear, 0), 0)


def test_padding_is_never_the_maximum():
    assert stem(False, bias=-100.0).max() < 0


def test_pixels_of_one_modality_reach_its_own_stem_and_the_shared_trunk_only():
    changed = IMAGES | {"ir": 3 + 2 * normal(5, *IMAGES["ir"].shape)}
    variables = random_variables(**SMALL)
    (_, (_, before)), (_, (_, after)) = (train(variables, images, **SMALL) for images in (IMAGES, changed))
    jax.tree.map(np.testing.assert_array_equal, after["rgb_stem"], before["rgb_stem"])
    for name in before.keys() - {"rgb_stem"}:
        for path, x in traverse_util.flatten_dict(before[name]).items():
            assert not np.allclose(x, traverse_util.flatten_dict(after[name])[path], atol=1e-4), (name, path)


def test_a_joint_pass_equals_one_pass_for_each_modality_in_the_order_of_the_stems():
    joint = evaluate(dict(reversed(IMAGES.items())), SMALL)
    parts = [evaluate({name: IMAGES[name]}, SMALL) for name in ("rgb", "ir")]
    assert relative(joint, np.concatenate(parts)) < 1e-5


def test_every_modality_has_its_own_stem():
    names = ("nir", "rgb", "tir")
    params = shapes(ResNet(names), dict.fromkeys(names, IMAGES["ir"]), train=False)
    assert {name for name in params if name.endswith("stem")} == {f"{name}_stem" for name in names}


def test_images_without_a_stem_are_refused():
    for images in ({}, {"nir": IMAGES["ir"]}, IMAGES | {"nir": IMAGES["ir"]}):
        with pytest.raises(ValueError, match="stems are for .'rgb', 'ir'"):
            jax.eval_shape(functools.partial(ResNet().apply, train=False), abstract_variables(), images)
    with pytest.raises(ValueError, match="initialisation needs all"):
        shapes(ResNet(), {"rgb": IMAGES["rgb"]}, train=False)


# Shapes and starting values.


@pytest.mark.parametrize(
    "size, last_stride, expected",
    [((288, 144), 1, (18, 9)), ((96, 48), 1, (6, 3)), ((256, 128), 1, (16, 8)), ((256, 128), 2, (8, 4))],
)
def test_the_map_has_the_published_size(size, last_stride, expected):
    images = {"rgb": jnp.zeros((2, *size, 3)), "ir": jnp.zeros((3, *size, 3))}
    model = ResNet(last_stride=last_stride)
    found = jax.eval_shape(functools.partial(model.apply, train=False), abstract_variables(), images)
    assert found.shape == (5, *expected, 2048)


@pytest.mark.parametrize("width", [2, 16])
def test_the_map_has_32_channels_per_unit_of_width(width):
    found = shapes(ResNet(blocks=(1, 1, 1, 1), width=width), IMAGES, train=False)
    assert {name for name in found if name.startswith("layer")} == {f"layer{k}_0" for k in (1, 2, 3, 4)}
    assert found["ir_stem"]["conv"]["kernel"].shape == (7, 7, 3, width)
    assert found["layer1_0"]["conv2"]["kernel"].shape == (3, 3, width, width)
    assert found["layer4_0"]["conv3"]["kernel"].shape == (1, 1, 8 * width, 32 * width)


@pytest.mark.parametrize("blocks", [(1, 1, 1), (1, 1, 1, 1, 1), (1, 0, 1, 1), ()])
def test_another_number_of_layers_is_refused(blocks):
    with pytest.raises(ValueError, match="a ResNet has 4 layers of at least one each"):
        shapes(ResNet(blocks=blocks), IMAGES, train=False)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_numbers_of_parameters_are_the_published_ones():
    params = dict(shapes(ResNet(), IMAGES, train=False))
    pooling = shapes(GeM(), jnp.zeros((1, 2, 2, 2048)))
    assert count([params, pooling]) == 23_517_569
    assert count(params.pop("rgb_stem")) == count(params.pop("ir_stem")) == 9_536
    assert count(params) == 23_498_496


def test_the_parameter_tree_is_that_of_imported_weights():
    layers = {f"{name}_stem/{part}" for name in ("rgb", "ir") for part in ("conv", "bn")}
    for layer, blocks in enumerate(BLOCKS, start=1):
        layers |= {f"layer{layer}_{i}/{part}{k}" for i in range(blocks) for part in ("conv", "bn") for k in (1, 2, 3)}
        layers |= {f"layer{layer}_0/downsample_{part}" for part in ("conv", "bn")}
    convs = {path for path in layers if "conv" in path}
    expected = {"params": {f"{path}/kernel" for path in convs}, "batch_stats": set()}
    for path in layers - convs:
        expected["params"] |= {f"{path}/scale", f"{path}/bias"}
        expected["batch_stats"] |= {f"{path}/mean", f"{path}/var"}
    found = {name: set(traverse_util.flatten_dict(tree, sep="/")) for name, tree in abstract_variables().items()}
    assert found == expected


def test_weights_are_initialised_he_normal_by_fan_out():
    found = stds(init(Stem(), jnp.zeros((1, 4, 4, 3)), train=False))
    assert found["conv/kernel"] == pytest.approx((2 / (7 * 7 * 64)) ** 0.5, rel=0.05)
    params = init(Bottleneck(64, 2), jnp.zeros((1, 4, 4, 128)), train=False)
    found = stds(params)
    for name, fan_out in (("conv1", 64), ("conv2", 9 * 64), ("conv3", 256), ("downsample_conv", 256)):
        assert found[f"{name}/kernel"] == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
        assert np.abs(params[name]["kernel"]).max() > 3 * found[f"{name}/kernel"], "truncated"
    for name in ("bn1", "bn2", "bn3", "downsample_bn"):
        np.testing.assert_array_equal(params[name]["scale"], np.ones_like(params[name]["scale"]))
        np.testing.assert_array_equal(params[name]["bias"], np.zeros_like(params[name]["bias"]))


# Precision.


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_and_statistics_are_float32():
    @jax.jit
    def forward(variables, images):
        return ResNet(dtype=jnp.bfloat16).apply(variables, images, train=True, mutable=["batch_stats"])

    found, updated = forward(random_variables(), IMAGES)
    _, (expected, stats) = train(random_variables(), IMAGES)
    assert found.dtype == jnp.float32
    assert relative(found, expected) < 0.06
    for path, x in traverse_util.flatten_dict(updated["batch_stats"]).items():
        assert x.dtype == jnp.float32, path
        assert relative(x, traverse_util.flatten_dict(stats)[path]) < 0.01, path


def kept(model, images):
    """Bytes that a training pass keeps for its backward pass, and the gradient of the map's squares."""
    variables = model.init(jax.random.PRNGKey(0), images, train=False)

    def total(params):
        x, _ = model.apply(variables | {"params": params}, images, train=True, mutable=["batch_stats"])
        return jnp.square(x).sum()

    residuals = jax.eval_shape(lambda params: jax.vjp(total, params)[1], variables["params"])
    grads = jax.jit(jax.grad(total))(variables["params"])
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(residuals)), grads


@pytest.mark.slow
def test_remat_keeps_less_with_the_same_gradients():
    images = {name: jax.random.normal(jax.random.PRNGKey(i), (4, 64, 32, 3)) for i, name in enumerate(("rgb", "ir"))}
    (plain, grads), (less, again) = (kept(ResNet(blocks=(2, 2, 2, 2), width=8, remat=x), images) for x in (False, True))
    assert less < plain / 2
    assert_trees_close(grads, again, atol=1e-4, rtol=1e-3)


def test_batch_norm_keeps_its_input_and_moments():
    """In bfloat16, of which a copy in float32 would be twice as large."""
    x = jnp.ones((4, 16, 16, 8), jnp.bfloat16)
    norm = BatchNorm(use_bias=True)
    variables = norm.init(jax.random.PRNGKey(0), x, train=False)

    def total(x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])[0].sum()

    residuals = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(total, x)[1], x))
    assert sum(r.size * r.dtype.itemsize for r in residuals) < 1.1 * x.size * x.dtype.itemsize
