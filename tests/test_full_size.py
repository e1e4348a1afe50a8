"""Oracle: CLIP ViT-B/16 at its published size, from a file of transformers to our features, logits and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import inject, template
from jax_mmreid.weights import files, layouts, sources

IMAGE = ImageTower(patch=16, width=768, layers=12, heads=12, dim=512, scan=True)  # compiles faster
TEXT = TextTower(vocab=49408, context=77, width=512, layers=12, heads=8, dim=512, scan=True)
B = 2

pytestmark = [pytest.mark.reference, pytest.mark.slow]


@pytest.fixture(scope="module")
def clip(torch, tmp_path_factory):
    """(the PyTorch model, our weights as read from its folder), random, with biases and scales that are not 0 or 1."""
    import transformers

    torch.manual_seed(0)
    vision = dict(hidden_size=768, intermediate_size=3072, num_attention_heads=12, patch_size=16)
    config = transformers.CLIPConfig(vision_config=vision, projection_dim=512)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for x in model.parameters():
            if x.ndim == 1:
                x.add_(0.1 * torch.randn_like(x))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    weights = files.to_weights(sources.read(str(folder)), "auto")
    return model, weights


@pytest.fixture(scope="module")
def inputs():
    """images [B,224,224,3], ids [B,77] whose sentences end at 17 and 76."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, 49406, (B, 77))
    ids[:, 0] = 49406
    ids[0, 17:], ids[0, 17], ids[1, 76] = 0, 49407, 49407
    return rng.standard_normal((B, 224, 224, 3)).astype(np.float32), ids


def tree(weights):
    from flax import traverse_util

    flat = {path: jnp.asarray(x) for path, x in weights.items() if path.startswith("params/")}
    return traverse_util.unflatten_dict(flat, sep="/")["params"]


def logits(params, images, ids):
    """Both towers as CLIP puts them together: (image tokens, projected tokens, text features, image-text logits)."""
    tokens, projected = IMAGE.apply({"params": params["image"]}, images)
    embedded = TEXT.apply({"params": params["text"]}, ids, method="embed")
    text = TEXT.apply({"params": params["text"]}, embedded, ids.argmax(axis=1))
    unit = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (projected[:, 0], text)]
    return tokens, projected, text, jnp.exp(params["logit_scale"]) * unit[0] @ unit[1].T


def scalar(outputs, cos):
    """A number to differentiate that every output moves."""
    return sum(cos(x).mean() for x in outputs)


def reference(torch, model, images, ids):
    """The same four outputs of transformers; patch tokens go through the last LayerNorm and projection too."""
    out = model(pixel_values=torch.tensor(images).permute(0, 3, 1, 2), input_ids=torch.tensor(ids))
    tokens = model.vision_model.post_layernorm(out.vision_model_output.last_hidden_state)
    return tokens, model.visual_projection(tokens), out.text_model_output.pooler_output, out.logits_per_image


def test_features_logits_and_gradients_equal_transformers(torch, clip, inputs):
    model, weights = clip
    params = tree(weights)
    theirs = reference(torch, model, *inputs)
    scalar(theirs, torch.cos).backward()

    def objective(params):
        outputs = logits(params, *inputs)
        return scalar(outputs, jnp.cos), outputs

    grads, ours = jax.jit(jax.grad(objective, has_aux=True))(params)
    for name, a, b in zip(("tokens", "projected", "text", "logits"), ours, theirs):
        difference = np.abs(np.asarray(a) - b.detach().numpy()).max()
        print(f"{name}: largest difference {difference:.1e}")
        assert difference < 1e-4, (name, difference)

    named = {name: x.grad.numpy() for name, x in model.named_parameters()}
    expected = tree(layouts.to_ours(named, "transformers", {"image": 12, "text": 8}))
    worst = {}
    for path, theirs in jax.tree_util.tree_leaves_with_path(expected):
        found = np.asarray(dict(jax.tree_util.tree_leaves_with_path(grads))[path])
        norm = np.linalg.norm(theirs)
        worst[jax.tree_util.keystr(path)] = np.linalg.norm(found - theirs) / norm
    print(f"gradients: largest relative difference {max(worst.values()):.1e}")
    assert all(error < 1e-3 for path, error in worst.items()), {p: e for p, e in worst.items() if e >= 1e-3}


def test_a_text_without_its_padding_has_the_same_feature(clip, inputs):
    """The first sentence ends at 17; without what follows it has the same feature."""
    params = tree(clip[1])["text"]
    ids = inputs[1][:1]

    def feature(ids):
        embedded = TEXT.apply({"params": params}, ids, method="embed")
        return TEXT.apply({"params": params}, embedded, ids.argmax(axis=1))

    np.testing.assert_allclose(feature(ids[:, :18]), feature(ids), atol=1e-5)


@pytest.mark.parametrize("kind", ["person", "vehicle"])
def test_the_template_does_not_depend_on_padding(clip, kind):
    """18 tokens and 77 give the same feature to 1e-5, and the same gradients of word and prompts to 1e-4."""
    params = tree(clip[1])["text"]
    rng = np.random.default_rng(1)
    words, prompts = (0.02 * rng.standard_normal((n, 512)).astype(np.float32) for n in (B, 4))

    def run(length):
        sentence = template(kind, prompts=4, length=length)
        assert len(sentence.ids) == (length or 18)

        def objective(gaps, params):
            embedded = TEXT.apply({"params": params}, jnp.array(sentence.ids), method="embed")
            feature = TEXT.apply({"params": params}, inject(embedded, *gaps, sentence), sentence.end)
            return jnp.sin(feature).sum(), feature

        grads, feature = jax.jit(jax.grad(objective, has_aux=True))((words, prompts), params)
        return feature, *grads

    for a, b, tolerance in zip(run(0), run(77), (1e-5, 1e-4, 1e-4)):
        difference = float(jnp.abs(a - b).max())
        print(f"{kind}: largest difference {difference:.1e} of {float(jnp.abs(b).max()):.1e}")
        assert difference < tolerance
