"""Network parts against PyTorch's own building blocks, and the laws that masks and sentences must keep."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.heads import BatchNorm, Head
from jax_mmreid.models.language import Inversion, inject, template
from jax_mmreid.models.structure import StructureQueries

B, PATCH, H, W, WIDTH, LAYERS, HEADS, DIM, C = 3, 2, 6, 10, 14, 2, 2, 11, 5
VOCAB, CONTEXT, LENGTH = 53, 13, 7
IMAGE = dict(patch=PATCH, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)
TEXT = dict(vocab=VOCAB, context=CONTEXT, width=WIDTH, layers=LAYERS, heads=HEADS, dim=DIM)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="needs the reference extra")


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


def close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=tolerance, rtol=0)


# PyTorch's side: names are ours, layouts are PyTorch's.


def to_torch(params):
    """Our parameters, or their gradients, under the names and in the layouts of the PyTorch modules below."""
    out = {}
    for (*path, leaf), x in traverse_util.flatten_dict(params).items():
        x = np.asarray(x, np.float64)
        if path[-1:] == ["qkv"]:
            path, leaf = path[:-1], {"kernel": "in_proj_weight", "bias": "in_proj_bias"}[leaf]
            x = x.reshape(WIDTH, -1).T if leaf == "in_proj_weight" else x.reshape(-1)
        elif path[-1:] == ["out"]:
            path = [*path[:-1], "out_proj"]
            x = x.reshape(WIDTH, WIDTH).T if leaf == "kernel" else x
        elif leaf == "kernel":
            x = x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T
        leaf = {"kernel": "weight", "scale": "weight"}.get(leaf, leaf)
        out[".".join([part for part in path if part != "norm"] + [leaf])] = x
    return out


def load(torch, module, params):
    module.double().load_state_dict({name: torch.tensor(x) for name, x in to_torch(params).items()})
    return module


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


def test_an_unseen_camera_adds_nothing(image_params):
    images, camera = image_inputs()
    for a, b in zip(encode(image_params, images, np.zeros_like(camera)), encode(image_params, images)):
        np.testing.assert_array_equal(a, b)


def test_the_camera_enters_the_class_token_only(image_params):
    images, camera = image_inputs()
    with_camera, _ = encode(image_params, images, camera, layers=0)
    without, _ = encode(image_params, images, layers=0)
    np.testing.assert_array_equal(with_camera[:, 1:], without[:, 1:])
    assert (np.abs(with_camera[:, 0] - without[:, 0]).max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("shape", [(H + 1, W), (H, W - 1)])
def test_an_image_that_is_not_whole_patches_is_refused(image_params, shape):
    with pytest.raises(ValueError, match=f"image {shape[0]}x{shape[1]} is not a whole number of 2x2 patches"):
        encode(image_params, np.zeros((1, *shape, 3), np.float32))


def test_half_precision_stays_close_and_returns_float32(image_params, text_params):
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


def test_tokens_after_the_end_change_nothing(text_params):
    embeddings, end = normal(4, B, LENGTH, WIDTH), 3
    other = embeddings.copy()
    other[:, end + 1 :] = 7 * normal(6, B, LENGTH - end - 1, WIDTH)
    expected = read(text_params, embeddings, end)
    close(read(text_params, other, end), expected, 1e-6)
    close(read(text_params, embeddings[:, : end + 1], end), expected, 1e-6)
    other[:, end - 1] *= 2
    assert np.abs(read(text_params, other, end) - expected).max() > 1e-3


def test_eighteen_tokens_say_as_much_as_seventy_seven():
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


# The training head.


def neck(x, where, stats, scale=None, *, train=True):
    """(output, new statistics) of the neck."""
    scale = np.ones(x.shape[1], np.float32) if scale is None else scale
    variables = {"params": {"scale": scale}, "batch_stats": stats}
    y, updated = BatchNorm().apply(variables, x, where, train=train, mutable=["batch_stats"])
    return y, updated["batch_stats"]


def fresh_stats(dim):
    return {"mean": jnp.zeros(dim), "var": jnp.ones(dim)}


ROWS = np.array([True, False, True, True, False, True, False])


@pytest.mark.reference
@pytest.mark.parametrize("where", [np.ones(7, bool), ROWS], ids=["all", "some"])
def test_the_neck_equals_pytorch_on_the_rows_that_exist(torch, where):
    reference = torch.nn.BatchNorm1d(5)
    scale = 1 + normal(0, 5)
    reference.weight.data = torch.tensor(scale)
    stats = fresh_stats(5)
    for step in range(4):
        x = 2 + 3 * normal(step, 7, 5)
        y, stats = neck(x, where, stats, scale)
        close(y[where], reference(torch.tensor(x[where])).detach(), 1e-5)
        close(stats["mean"], reference.running_mean, 1e-5)
        close(stats["var"], reference.running_var, 1e-5)
    x = normal(9, 7, 5)
    y, after = neck(x, where, stats, scale, train=False)
    close(y[where], reference.eval()(torch.tensor(x[where])).detach(), 1e-5)
    np.testing.assert_array_equal(after["mean"], stats["mean"])


def test_a_neck_without_rows_keeps_its_statistics_and_stays_finite():
    x, none = normal(0, 7, 5), np.zeros(7, bool)
    _, stats = neck(x, np.ones(7, bool), fresh_stats(5))

    def scalar(scale, x):
        y, after = neck(x, none, stats, scale)
        return jnp.square(y).sum(), (y, after)

    grads, (y, after) = jax.grad(scalar, argnums=(0, 1), has_aux=True)(jnp.ones(5), x)
    for name in stats:
        np.testing.assert_array_equal(after[name], stats[name])
    assert all(np.isfinite(leaf).all() for leaf in (y, *grads))


@pytest.mark.parametrize("filler", [np.nan, np.inf, 1e4])
def test_what_masked_rows_hold_reaches_neither_statistics_nor_gradients(filler):
    head, stats = Head(11), {"neck": fresh_stats(5)}
    params = randomized(shapes(head, jnp.zeros((1, 5)), jnp.ones(1, bool), train=False))
    clean = normal(0, 7, 5) * ROWS[:, None]

    def scalar(params, x):
        variables = {"params": params, "batch_stats": stats}
        logits, updated = head.apply(variables, x, ROWS, train=True, mutable=["batch_stats"])
        return jnp.square(jnp.where(ROWS[:, None], logits, 0)).sum(), updated["batch_stats"]

    expected = jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, clean)
    found = jax.grad(scalar, argnums=(0, 1), has_aux=True)(params, np.where(ROWS[:, None], clean, np.float32(filler)))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_the_head_has_no_bias():
    x = normal(0, 7, 5)
    logits, variables = Head(11).init_with_output(jax.random.PRNGKey(0), x, ROWS, train=False)
    found = {"/".join(path): leaf.shape for path, leaf in traverse_util.flatten_dict(variables["params"]).items()}
    assert found == {"neck/scale": (5,), "classifier/kernel": (5, 11)}
    assert logits.shape == (7, 11)


# The structure queries.

STRUCTURE = dict(queries=5, width=14, heads=2)


def structure(**changes):
    """(module, random parameters, tokens [B,17,11])."""
    module, tokens = StructureQueries(**STRUCTURE | changes), normal(0, B, 17, 11)
    return module, randomized(shapes(module, tokens)), tokens


@pytest.mark.reference
def test_structure_queries_equal_pytorch_attention_with_an_identity_output(torch):
    module, params, tokens = structure()
    reference = torch.nn.MultiheadAttention(14, 2, bias=False, kdim=11, vdim=11, batch_first=True).double()
    weights = {
        f"{x[0]}_proj_weight": np.asarray(params[f"{x}_projection"]["kernel"]) for x in ("query", "key", "value")
    }
    weights = {name: torch.tensor(x.reshape(len(x), -1).T) for name, x in weights.items()}
    reference.load_state_dict(weights | {"out_proj.weight": torch.eye(14)})

    def layer_norm(x, name):
        scale, bias = (torch.tensor(params[name]["norm"][leaf]).double() for leaf in ("scale", "bias"))
        return torch.nn.functional.layer_norm(torch.tensor(x).double(), x.shape[-1:], scale, bias)

    query = layer_norm(params["query"], "ln_query").expand(B, -1, -1)
    keys = layer_norm(tokens, "ln_tokens")
    with torch.no_grad():
        out, attention = reference(query, keys, keys, average_attn_weights=False)
    found, found_attention = jitted(module)(params, tokens)
    close(found, out.mean(dim=1), 1e-5)
    close(found_attention, attention.transpose(1, 2), 1e-5)


def test_every_query_spreads_an_attention_of_one():
    module, params, tokens = structure()
    _, attention = jitted(module)(params, tokens)
    assert attention.shape == (B, 5, 2, 17)
    close(attention.sum(-1), np.ones((B, 5, 2)), 1e-6)
    assert np.abs(attention - 1 / 17).max() > 1e-2


def test_the_output_projection_is_one_dense_layer_on_the_mean():
    _, params, _ = structure()
    module, projected, tokens = structure(out_proj=True)
    assert projected.keys() - params.keys() == {"out_projection"}
    added = projected["out_projection"]
    assert {name: x.shape for name, x in added.items()} == {"kernel": (14, 14), "bias": (14,)}
    mean, _ = StructureQueries(**STRUCTURE).apply({"params": {name: projected[name] for name in params}}, tokens)
    found, _ = module.apply({"params": projected}, tokens)
    close(found, mean @ added["kernel"] + added["bias"], 1e-5)


# The language side.

SENTENCES = {
    "person": (49406, 550, 2867, 539, 320, 343, 2533, 267, 822, 2665, 518, 343, 343, 343, 343, 40763, 269, 49407),
    "vehicle": (49406, 550, 2867, 539, 320, 343, 5299, 267, 1448, 2665, 518, 343, 343, 343, 343, 40763, 269, 49407),
}


@pytest.mark.parametrize("kind", SENTENCES)
def test_the_sentence_is_the_published_one(kind):
    assert template(kind, prompts=4) == (SENTENCES[kind], 5, 11, 17)


def test_without_its_period_the_sentence_ends_one_token_earlier():
    found = template("person", prompts=4, period=False)
    assert found.ids == tuple(token for token in SENTENCES["person"] if token != 269)
    assert found.end == 16


def test_padding_keeps_the_end():
    found = template("vehicle", prompts=4, length=77)
    assert found == (SENTENCES["vehicle"] + (0,) * 59, 5, 11, 17)


@pytest.mark.parametrize("prompts", [1, 7])
def test_the_number_of_prompts_moves_the_end(prompts):
    found = template("person", prompts=prompts)
    assert found.prompt == 11
    assert found.ids[11 : 11 + prompts] == (343,) * prompts
    assert found.ids[11 + prompts :] == (40763, 269, 49407)
    assert found.end == 13 + prompts


def test_injection_fills_the_gaps_and_nothing_else():
    sentence = template("person", prompts=2, length=19)
    embedded, words, prompts = normal(0, 19, 5), normal(1, 3, 5), normal(2, 2, 5)
    expected = np.stack([embedded] * 3)
    expected[:, 5] = words
    expected[:, 11:13] = prompts
    np.testing.assert_array_equal(inject(jnp.array(embedded), words, prompts, sentence), expected)


def inversion(**changes):
    """(module, random parameters, inputs [B,7])."""
    module, x = Inversion(**dict(hidden=13, dim=5) | changes), normal(0, B, 7)
    return module, randomized(shapes(module, x, train=False)), x


@pytest.mark.reference
def test_inversion_without_dropout_equals_a_pytorch_mlp(torch):
    module, params, x = inversion()
    reference = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.GELU(), torch.nn.Linear(13, 5))
    load(torch, reference, {"0": params["fc_1"], "2": params["fc_2"]})
    expected = reference(torch.tensor(x).double()).detach()
    close(module.apply({"params": params}, x, train=False), expected, 1e-6)


def test_inversion_drops_hidden_units_and_outputs_in_training_only():
    module, params, x = inversion(dim=501)
    still = module.apply({"params": params}, x, train=False)
    moving = module.apply({"params": params}, x, train=True, rngs={"dropout": jax.random.PRNGKey(1)})
    assert still.shape == moving.shape == (B, 501)
    assert (still != 0).all()
    assert 0.06 < (moving == 0).mean() < 0.14
    kept = moving != 0
    assert not np.allclose(moving[kept], still[kept] / 0.9, atol=1e-3)  # hidden units are dropped too


# Initial weights.


def stds(params):
    return {"/".join(path): float(np.std(x)) for path, x in traverse_util.flatten_dict(params).items()}


def test_the_image_tower_starts_as_clip_does():
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


def test_a_position_std_replaces_clips_own():
    tower = ImageTower(patch=4, width=256, layers=1, heads=4, dim=3, position_std=0.5)
    found = stds(init(tower, jnp.zeros((1, 16, 12, 3))))
    assert found["position_embedding"] == pytest.approx(0.5, rel=0.1)
    assert found["class_embedding"] == pytest.approx(256**-0.5, rel=0.13)


def test_the_text_tower_starts_as_clip_does():
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


def test_the_new_parts_start_at_their_published_scales():
    queries = StructureQueries(queries=16, width=128, heads=4)
    found = stds(init(queries, jnp.zeros((1, 5, 96))))
    assert found["query"] == pytest.approx(128**-0.5, rel=0.05)
    xavier = (2 / (96 + 128)) ** 0.5
    assert found["key_projection/kernel"] == pytest.approx(xavier, rel=0.05)
    assert found["value_projection/kernel"] == pytest.approx(xavier, rel=0.05)
    assert found["query_projection/kernel"] == pytest.approx(128**-0.5, rel=0.05)
    found = stds(init(Inversion(hidden=64, dim=128), jnp.zeros((1, 32)), train=False))
    assert found["fc_2/kernel"] == pytest.approx(0.02, rel=0.05)
    found = stds(init(Head(97), jnp.zeros((1, 64)), jnp.ones(1, bool), train=False))
    assert found["classifier/kernel"] == pytest.approx(0.001, rel=0.05)
