"""The CLIP towers equal PyTorch's own building blocks, with gradients, and the CLIP of transformers."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clip_towers import (
    CONTEXT,
    DIM,
    HEADS,
    LAYERS,
    LENGTH,
    PATCH,
    TEXT,
    VOCAB,
    WIDTH,
    B,
    C,
    H,
    W,
    encode,
    image_inputs,
    read,
)
from clip_towers import image_params as image_params
from clip_towers import text_params as text_params
from parity import close, load, normal, to_torch

from jax_mmreid.models.clip import TextTower


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


# The text tower.


@pytest.mark.reference
def test_the_text_tower_and_its_gradients_equal_pytorch(torch, text_params):
    embeddings, end, weights = normal(4, B, LENGTH, WIDTH), np.array([6, 2, 4]), normal(5, B, DIM)
    inputs = torch.tensor(embeddings, dtype=torch.float64, requires_grad=True)
    module, theirs = torch_text(torch, text_params, inputs, end)
    close(read(text_params, embeddings, end), theirs.detach(), 1e-5)

    (torch.tensor(weights) * theirs).sum().backward()
    by_embeddings = jax.jit(jax.grad(lambda x: (weights * read(text_params, x, end)).sum()))(embeddings)
    error = np.linalg.norm(by_embeddings - inputs.grad.numpy()) / np.linalg.norm(inputs.grad.numpy())
    assert error < 1e-4, error


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
