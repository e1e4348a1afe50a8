"""The CLIP towers against PyTorch's own building blocks, and the laws of cameras and sentences."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import assert_trees_close
from parity import close, init, jitted, load, normal, randomized, shapes, stds, to_torch

from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import inject, template

B, PATCH, H, W, WIDTH, LAYERS, HEADS, DIM, C = 3, 2, 6, 10, 14, 2, 2, 11, 5
VOCAB, CONTEXT, LENGTH = 53, 13, 7
IMAGE = dict(patch=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)
TEXT = dict(vocab=VOCAB, context=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)


def image_inputs(camera=(0, 3, 1)):
    return normal(1, B, H, W, 3), np.eye(C, dtype=np.float32)[list(camera)]


@pytest.fixture(scope="module")
def image_params():
    return randomized(shapes(ImageTower(**IMAGE), *image_inputs()))


@pytest.fixture(scope="module")
def text_params():
    return randomized(shapes(TextTower(**TEXT), jnp.zeros((1, LENGTH, WIDTH)), 0))


def encode(params, images, camera=None, **changes):
    return jitted(ImageTower(**IMAGE | changes))(params, images, camera)


def read(params, embeddings, end, **changes):
    return jitted(TextTower(**TEXT | changes))(params, embeddings, end)


def torch_tower(torch, params, **own):
    """A module with one attribute per part: `own` and the blocks."""
    nn = torch.nn
    module = nn.Module()
    for i in range(LAYERS):
        own[f"block_{i}"] = nn.ModuleDict(
            dict(
                ln_1=nn.LayerNorm(WIDTH),
                attention=nn.MultiheadAttention(WIDTH, HEADS, batch_first=True),
                ln_2=nn.LayerNorm(WIDTH),
                fc=nn.Linear(WIDTH, 4 * WIDTH),
                proj=nn.Linear(4 * WIDTH, WIDTH),
            )
        )
    for name, part in own.items():
        setattr(module, name, nn.Parameter(torch.zeros(part)) if isinstance(part, tuple) else part)
    return load(torch, module, params)


def torch_blocks(torch, module, x, mask=None):
    for i in range(LAYERS):
        block = getattr(module, f"block_{i}")
        y = block["ln_1"](x)
        x = x + block["attention"](y, y, y, attn_mask=mask, need_weights=False)[0]
        y = block["fc"](block["ln_2"](x))
        x = x + block["proj"](y * torch.sigmoid(1.702 * y))
    return x


def torch_image(torch, params, images, camera=None):
    """(module, tokens, projected) of the vision transformer."""
    nn = torch.nn
    module = torch_tower(
        torch,
        params,
        patch_embedding=nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False),
        class_embedding=(WIDTH,),
        camera_embedding=(C, WIDTH),
        position_embedding=(1 + H // PATCH * W // PATCH, WIDTH),
        ln_pre=nn.LayerNorm(WIDTH),
        ln_post=nn.LayerNorm(WIDTH),
        projection=nn.Linear(WIDTH, DIM, bias=False),
    )
    x = module.patch_embedding(torch.tensor(images).double().permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
    cls = module.class_embedding.expand(len(images), 1, WIDTH)
    if camera is not None:
        cls = cls + (torch.tensor(camera).double() @ module.camera_embedding)[:, None]
    x = module.ln_pre(torch.cat([cls, x], dim=1) + module.position_embedding)
    tokens = module.ln_post(torch_blocks(torch, module, x))
    return module, tokens, module.projection(tokens)


def torch_text(torch, params, embeddings, end):
    """(module, feature at `end`) of the text transformer."""
    module = torch_tower(
        torch,
        params,
        token_embedding=(VOCAB, WIDTH),
        position_embedding=(CONTEXT, WIDTH),
        ln_final=torch.nn.LayerNorm(WIDTH),
        projection=(WIDTH, DIM),
    )
    length = embeddings.shape[1]
    mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)
    x = module.ln_final(torch_blocks(torch, module, embeddings + module.position_embedding[:length], mask))
    return module, x[torch.arange(len(x)), torch.tensor(end)] @ module.projection


def assert_gradients_equal(ours, module):
    """Every parameter's gradient, to 1e-4 of its norm."""
    ours = to_torch(ours)
    for name, parameter in module.named_parameters():
        theirs = parameter.grad.numpy()
        error = np.linalg.norm(ours.pop(name) - theirs) / np.linalg.norm(theirs)
        assert error < 1e-4, f"{name}: {error:.1e}"
    assert not ours


# The image tower.


@pytest.mark.reference
@pytest.mark.parametrize("with_camera", [True, False])
def test_the_image_tower_equals_pytorch(torch, image_params, with_camera):
    images, camera = image_inputs()
    camera = camera if with_camera else None
    _, *theirs = torch_image(torch, image_params, images, camera)
    for a, b in zip(encode(image_params, images, camera), theirs):
        close(a, b.detach(), 1e-5)


@pytest.mark.reference
def test_gradients_of_the_image_tower_equal_pytorch(torch, image_params):
    images, camera = image_inputs()
    grid = 1 + H // PATCH * W // PATCH
    weights = normal(2, B, grid, WIDTH), normal(3, B, grid, DIM)

    def scalar(params):
        return sum((w * jnp.tanh(x)).sum() for w, x in zip(weights, encode(params, images, camera)))

    module, *outputs = torch_image(torch, image_params, images, camera)
    sum((torch.tensor(w) * x.tanh()).sum() for w, x in zip(weights, outputs)).backward()
    assert_gradients_equal(jax.jit(jax.grad(scalar))(image_params), module)


def test_a_zero_camera_row_adds_nothing(image_params):
    images, camera = image_inputs()
    for a, b in zip(encode(image_params, images, np.zeros_like(camera)), encode(image_params, images)):
        np.testing.assert_array_equal(a, b)


def test_the_camera_is_added_to_the_class_token_only(image_params):
    images, camera = image_inputs()
    with_camera, _ = encode(image_params, images, camera, layers=0)
    without, _ = encode(image_params, images, layers=0)
    np.testing.assert_array_equal(with_camera[:, 1:], without[:, 1:])
    assert (np.abs(with_camera[:, 0] - without[:, 0]).max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("shape", [(H + 1, W), (H, W - 1)])
def test_an_image_that_is_not_whole_patches_is_refused(image_params, shape):
    with pytest.raises(ValueError, match=f"image {shape[0]}x{shape[1]} is not a whole number of 2x2 patches"):
        encode(image_params, np.zeros((1, *shape, 3), np.float32))


def test_bfloat16_is_close_and_returns_float32(image_params, text_params):
    images, camera = image_inputs()
    embeddings = normal(4, B, LENGTH, WIDTH)
    full = *encode(image_params, images, camera), read(text_params, embeddings, 5)
    half = (
        *encode(image_params, images, camera, dtype=jnp.bfloat16),
        read(text_params, embeddings, 5, dtype=jnp.bfloat16),
    )
    for a, b in zip(half, full):
        assert a.dtype == jnp.float32
        error = np.linalg.norm(a - b) / np.linalg.norm(b)
        assert 1e-4 < error < 0.05, error


def test_the_projection_may_be_that_of_the_class_token_only(image_params):
    images, camera = image_inputs()
    tokens, projected = encode(image_params, images, camera)
    same, alone = encode(image_params, images, camera, project_all=False)
    np.testing.assert_array_equal(same, tokens)
    assert alone.shape == (B, 1, DIM)
    close(alone, projected[:, :1], 1e-6)


@pytest.mark.parametrize(
    "kind, change",
    [("image", dict(remat=True)), ("text", dict(scan=True)), ("image", dict(remat=True, scan=True))],
    ids=str,
)
def test_remat_and_scan_change_neither_parameters_nor_results(image_params, text_params, kind, change):
    if kind == "image":
        plain, params, inputs = ImageTower(**IMAGE), image_params, image_inputs()
    else:
        plain, params, inputs = TextTower(**TEXT), text_params, (normal(4, B, LENGTH, WIDTH), np.array([6, 2, 4]))
    changed = plain.clone(**change)
    for a, b in zip(jax.tree.leaves(init(changed, *inputs)), jax.tree.leaves(init(plain, *inputs)), strict=True):
        np.testing.assert_array_equal(a, b)

    def gradients(tower):
        def scalar(params):
            outputs = tower.apply({"params": params}, *inputs)
            return sum(jnp.tanh(x).sum() for x in jax.tree.leaves(outputs)), outputs

        return jax.jit(jax.grad(scalar, has_aux=True))(params)

    assert_trees_close(gradients(changed), gradients(plain), atol=1e-5, rtol=1e-5)


def test_scan_compiles_one_block_and_remat_recomputes_it():
    def program(**change):
        tower = ImageTower(**IMAGE | dict(layers=5) | change)
        params = shapes(tower, normal(1, B, H, W, 3))
        loss = lambda params: tower.apply({"params": params}, normal(1, B, H, W, 3))[1].sum()  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params))

    products = {name: program(**{name: True}).count("dot_general[") for name in ("scan", "remat")}
    plain = program().count("dot_general[")
    assert products["scan"] < plain / 3
    assert products["remat"] > plain * 1.2


# The text tower.


@pytest.mark.reference
def test_the_text_tower_and_its_gradients_equal_pytorch(torch, text_params):
    embeddings, end, weights = normal(4, B, LENGTH, WIDTH), np.array([6, 2, 4]), normal(5, B, DIM)
    inputs = torch.tensor(embeddings, dtype=torch.float64, requires_grad=True)
    module, theirs = torch_text(torch, text_params, inputs, end)
    close(read(text_params, embeddings, end), theirs.detach(), 1e-5)

    (torch.tensor(weights) * theirs).sum().backward()
    by_embeddings = jax.grad(lambda x: (weights * read(text_params, x, end)).sum())(embeddings)
    error = np.linalg.norm(by_embeddings - inputs.grad.numpy()) / np.linalg.norm(inputs.grad.numpy())
    assert error < 1e-4, error


def test_tokens_after_the_end_have_no_influence(text_params):
    embeddings, end = normal(4, B, LENGTH, WIDTH), 3
    other = embeddings.copy()
    other[:, end + 1 :] = 7 * normal(6, B, LENGTH - end - 1, WIDTH)
    expected = read(text_params, embeddings, end)
    close(read(text_params, other, end), expected, 1e-6)
    close(read(text_params, embeddings[:, : end + 1], end), expected, 1e-6)
    other[:, end - 1] *= 2
    assert np.abs(read(text_params, other, end) - expected).max() > 1e-3


def test_eighteen_tokens_give_the_feature_of_seventy_seven():
    tower = TextTower(**TEXT | dict(vocab=49408, context=77))
    short, long = (template("person", prompts=4, length=length) for length in (0, 77))
    words, prompts = normal(7, B, WIDTH), normal(8, 4, WIDTH)
    params = randomized(shapes(tower, jnp.zeros((1, 77, WIDTH)), 0))

    def feature(sentence):
        embedded = tower.apply({"params": params}, jnp.array(sentence.ids), method="embed")
        return jitted(tower)(params, inject(embedded, words, prompts, sentence), sentence.end)

    assert (len(short.ids), len(long.ids)) == (18, 77)
    close(feature(short), feature(long), 1e-5)


def transformers_names(params, tower):
    """Our parameters under the names of transformers' CLIP; `tower` is "vision" or "text"."""
    names = (
        (r"^(token|position)_embedding$", rf"{tower}_model.embeddings.\1_embedding.weight"),
        (r"^(class_embedding|patch_embedding.weight)", rf"{tower}_model.embeddings.\1"),
        (r"^ln_pre", "vision_model.pre_layrnorm"),
        (r"^ln_post", "vision_model.post_layernorm"),
        (r"^ln_final", "text_model.final_layer_norm"),
        (r"^projection\.weight", "visual_projection.weight"),
        (r"^projection$", "text_projection.weight"),
        (r"^block_(\d+)\.", rf"{tower}_model.encoder.layers.\1."),
        (r"\.attention\.", ".self_attn."),
        (r"\.ln_(\d)\.", r".layer_norm\1."),
        (r"\.fc\.", ".mlp.fc1."),
        (r"\.proj\.", ".mlp.fc2."),
    )
    out = {}
    for name, x in to_torch(params).items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if "in_proj_" in name:
            for letter, part in zip("qkv", np.split(x, 3)):
                out[name.replace("in_proj_", f"{letter}_proj.")] = part
        elif name != "camera_embedding":
            out[name] = x.T if name == "text_projection.weight" else x
    return out


@pytest.mark.reference
def test_both_towers_equal_the_clip_of_transformers(torch, image_params, text_params):
    import transformers

    common = dict(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        projection_dim=DIM,
    )  # fmt: skip
    text = transformers.CLIPTextConfig(
        vocab_size=VOCAB, max_position_embeddings=CONTEXT, eos_token_id=VOCAB - 1, **common
    )
    vision = transformers.CLIPVisionConfig(image_size=H, patch_size=PATCH, **common)  # square images only
    image_params = image_params | {"position_embedding": image_params["position_embedding"][: 1 + (H // PATCH) ** 2]}

    def build(model, params, tower):
        weights = transformers_names(params, tower)
        model.double().eval().load_state_dict({name: torch.tensor(x) for name, x in weights.items()})
        return model

    images, _ = image_inputs()
    images = images[:, :, :H]
    with torch.no_grad():
        model = build(transformers.CLIPVisionModelWithProjection(vision), image_params, "vision")
        theirs = model(torch.tensor(images).double().permute(0, 3, 1, 2)).image_embeds
    close(encode(image_params, images)[1][:, 0], theirs, 1e-4)

    ids = np.random.default_rng(9).integers(1, VOCAB - 1, (B, LENGTH))
    end = np.array([6, 2, 4])
    ids[np.arange(B), end] = VOCAB - 1
    with torch.no_grad():
        theirs = build(transformers.CLIPTextModelWithProjection(text), text_params, "text")(
            torch.tensor(ids)
        ).text_embeds
    embedded = TextTower(**TEXT).apply({"params": text_params}, ids, method="embed")
    close(read(text_params, embedded, end), theirs, 1e-4)


def test_the_image_tower_is_initialised_like_clip():
    tower = ImageTower(patch=4, width=256, layers=3, heads=4, dim=128)
    found = stds(init(tower, jnp.zeros((1, 16, 12, 3)), jnp.zeros((1, 7))))
    for name, expected in {
        "class_embedding": 256**-0.5,
        "position_embedding": 256**-0.5,
        "camera_embedding": 0.02,
        "block_1/attention/qkv/kernel": 256**-0.5,
        "block_1/attention/out/kernel": 256**-0.5 * 6**-0.5,
        "block_2/fc/kernel": 512**-0.5,
        "block_2/proj/kernel": 256**-0.5 * 6**-0.5,
        "projection/kernel": 256**-0.5,
    }.items():
        assert found[name] == pytest.approx(expected, rel=0.13), name
    assert found["block_0/attention/qkv/bias"] == 0


def test_a_position_std_replaces_that_of_clip():
    tower = ImageTower(patch=4, width=256, layers=1, heads=4, dim=3, position_std=0.5)
    found = stds(init(tower, jnp.zeros((1, 16, 12, 3))))
    assert found["position_embedding"] == pytest.approx(0.5, rel=0.1)
    assert found["class_embedding"] == pytest.approx(256**-0.5, rel=0.13)


def test_the_text_tower_is_initialised_like_clip():
    tower = TextTower(vocab=211, context=77, width=128, layers=2, heads=4, dim=64)
    found = stds(init(tower, jnp.zeros((1, 5, 128)), 0))
    for name, expected in {
        "token_embedding": 0.02,
        "position_embedding": 0.01,
        "block_0/attention/qkv/kernel": 128**-0.5,
        "block_0/attention/out/kernel": 128**-0.5 * 4**-0.5,
        "block_1/fc/kernel": 256**-0.5,
        "block_1/proj/kernel": 128**-0.5 * 4**-0.5,
        "projection": 128**-0.5,
    }.items():
        assert found[name] == pytest.approx(expected, rel=0.05), name
