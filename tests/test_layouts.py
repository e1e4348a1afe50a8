"""Equality: PyTorch's names -> ours -> PyTorch's names changes no bit; tensors of no layout are refused."""

import functools

import ml_dtypes
import numpy as np
import pytest
import tvi_lfm_golden as golden

from jax_mmreid.weights import layouts

WIDTH, LAYERS, DIM, VOCAB, CONTEXT, PATCH, GRID = 14, 3, 5, 49408, 19, 2, 3  # all of CLIP's ids
HEADS = {"image": 2, "text": 7}
TVI_LFM_HEADS = {"text": 8}


def numbers(shapes, dtype=np.float32):
    """Every tensor at random; counters are counters."""
    rng = np.random.default_rng(0)
    out = {}
    for name, shape in shapes.items():
        counter = name.endswith("num_batches_tracked")
        out[name] = np.array(rng.integers(9)) if counter else rng.standard_normal(shape).astype(dtype)
    return out


def transformer(prefix, width=WIDTH):
    shapes = {}
    for i in range(LAYERS):
        block = f"{prefix}.{i}"
        shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
        for name, (o, n) in {"attn.out_proj": (1, 1), "mlp.c_fc": (4, 1), "mlp.c_proj": (1, 4)}.items():
            shapes |= {f"{block}.{name}.weight": (o * width, n * width), f"{block}.{name}.bias": (o * width,)}
        for name in ("ln_1", "ln_2"):
            shapes |= {f"{block}.{name}.{leaf}": (width,) for leaf in ("weight", "bias")}
    return shapes


def openai_text():
    return {
        "token_embedding.weight": (VOCAB, WIDTH),
        "positional_embedding": (CONTEXT, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
        "text_projection": (WIDTH, DIM),
        "logit_scale": (),
        "input_resolution": (),
        "context_length": (),
        "vocab_size": (),
        **transformer("transformer.resblocks"),
    }


def openai_image():
    return {
        "visual.conv1.weight": (WIDTH, 3, PATCH, PATCH),
        "visual.class_embedding": (WIDTH,),
        "visual.positional_embedding": (1 + GRID * GRID, WIDTH),
        "visual.proj": (WIDTH, DIM),
        **{f"visual.{ln}.{leaf}": (WIDTH,) for ln in ("ln_pre", "ln_post") for leaf in ("weight", "bias")},
        **transformer("visual.transformer.resblocks"),
    }


def openai(dtype=np.float16):
    return numbers(openai_text() | openai_image(), dtype)


def transformers_clip():
    """The same model under the names of transformers."""
    text, image = "text_model.", "vision_model."
    shapes = {
        f"{text}embeddings.token_embedding.weight": (VOCAB, WIDTH),
        f"{text}embeddings.position_embedding.weight": (CONTEXT, WIDTH),
        f"{text}embeddings.position_ids": (1, CONTEXT),
        "text_projection.weight": (DIM, WIDTH),
        "visual_projection.weight": (DIM, WIDTH),
        "logit_scale": (),
        f"{image}embeddings.class_embedding": (WIDTH,),
        f"{image}embeddings.patch_embedding.weight": (WIDTH, 3, PATCH, PATCH),
        f"{image}embeddings.position_embedding.weight": (1 + GRID * GRID, WIDTH),
    }
    norms = [f"{text}final_layer_norm", f"{image}pre_layrnorm", f"{image}post_layernorm"]
    for tower in (text, image):
        for i in range(LAYERS):
            layer = f"{tower}encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                attention = f"{layer}.self_attn.{name}"
                shapes |= {f"{attention}.weight": (WIDTH, WIDTH), f"{attention}.bias": (WIDTH,)}
            for name, o, n in (("fc1", 4, 1), ("fc2", 1, 4)):
                shapes |= {
                    f"{layer}.mlp.{name}.weight": (o * WIDTH, n * WIDTH),
                    f"{layer}.mlp.{name}.bias": (o * WIDTH,),
                }
            norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
    shapes |= {f"{norm}.{leaf}": (WIDTH,) for norm in norms for leaf in ("weight", "bias")}
    return numbers(shapes)


def torchvision():
    """Names of a ResNet-50 of torchvision, the trunk's widths cut to a few channels."""
    shapes = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 5), "fc.bias": (1000,)}
    norms = ["bn1"]
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        for i in range(blocks):
            shapes |= {f"layer{layer}.{i}.conv{j}.weight": (3, 2, k, k) for j, k in ((1, 1), (2, 3), (3, 1))}
            norms += [f"layer{layer}.{i}.bn{j}" for j in (1, 2, 3)]
        shapes[f"layer{layer}.0.downsample.0.weight"] = (3, 2, 1, 1)
        norms.append(f"layer{layer}.0.downsample.1")
    for norm in norms:
        shapes |= {f"{norm}.{leaf}": (3,) for leaf in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{norm}.num_batches_tracked"] = ()
    return numbers(shapes)


FIXED = (
    "base_model.visual.rgb_model.resnet_conv.0.weight",
    "base_model.token_embedding.weight",
    "base_model.positional_embedding",
    "base_model.transformer.resblocks.0.attn.in_proj_weight",
    "base_model.text_projection",
)


@functools.cache
def tvi_lfm(second_stage):
    """Every official name, with axes of a few numbers but for the leaves that are of one size only."""
    shapes = golden.names_and_shapes(second_stage=second_stage)
    widths = {512: 16, 1536: 48, 2048: 6}
    small = {name: tuple(widths.get(n, 3 if n > 8 else n) for n in shape) for name, shape in shapes.items()}
    return numbers(small | {name: shapes[name] for name in FIXED})


SOURCES = {
    "transformers": transformers_clip,
    "openai": openai,
    "openai text tower": lambda: numbers(openai_text(), np.float16),
    "torchvision": torchvision,
    "tvi_lfm 481": lambda: dict(tvi_lfm(second_stage=False)),
    "tvi_lfm 488": lambda: dict(tvi_lfm(second_stage=True)),
    "bfloat16": lambda: openai(ml_dtypes.bfloat16),
}


def layout_of(name):
    return "openai" if name == "bfloat16" else name.split()[0]


def read(name, tensors=None):
    """Our leaves of a source, or of other tensors in its layout."""
    layout = layout_of(name)
    tensors = SOURCES[name]() if tensors is None else tensors
    return layouts.to_ours(tensors, layout, TVI_LFM_HEADS if layout == "tvi_lfm" else HEADS)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        assert found[name].dtype == x.dtype and found[name].shape == x.shape, name
        assert found[name].tobytes() == x.tobytes(), name


@pytest.mark.parametrize("name", SOURCES)
def test_there_and_back_changes_no_bit(name):
    assert_same(layouts.from_ours(read(name), layout_of(name)), SOURCES[name]())


@pytest.mark.parametrize("name", ["transformers", "openai", "torchvision", "tvi_lfm 481", "tvi_lfm 488"])
def test_a_layout_is_known_by_its_names(name):
    assert layouts.detect(SOURCES[name]()) == layout_of(name)
    assert layouts.detect(read(name)) == "jax_mmreid"


def test_the_official_checkpoints_have_481_and_488_tensors():
    assert [len(tvi_lfm(stage)) for stage in (False, True)] == [481, 488]


def test_one_clip_in_two_layouts_is_one_clip():
    ours = layouts.to_ours(openai(), "openai", HEADS)
    without = {path: x for path, x in ours.items() if not path.startswith("extra/")}
    again = layouts.to_ours(layouts.from_ours(without, "transformers"), "transformers", HEADS)
    assert_same(again, without)


def test_of_a_resnet_clip_the_text_tower_is_read():
    tensors = numbers(openai_text()) | numbers(
        {"visual.conv1.weight": (3, 3, 3, 3), "visual.layer1.0.conv1.weight": (3, 3, 1, 1)}
    )
    assert layouts.detect(tensors) == "openai"
    ours = layouts.to_ours(tensors, "openai", HEADS)
    assert {path.split("/")[1] for path in ours if path.startswith("params/")} == {"text", "logit_scale"}


def test_both_stems_start_as_torchvisions():
    ours = layouts.to_ours(torchvision(), "torchvision", {})
    for path in [path for path in ours if "/rgb_stem/" in path]:
        np.testing.assert_array_equal(ours[path], ours[path.replace("rgb", "ir")])
    ours["params/image/ir_stem/conv/kernel"] = 2 * ours["params/image/ir_stem/conv/kernel"]
    with pytest.raises(layouts.LayoutError, match="'torchvision': it has one conv1.weight, our two stems differ"):
        layouts.from_ours(ours, "torchvision")


@pytest.mark.parametrize("name", ["transformers", "openai", "torchvision", "tvi_lfm 481", "tvi_lfm 488"])
def test_what_is_missing_or_unknown_is_listed(name):
    tensors = SOURCES[name]()
    written = layouts.from_ours(read(name), layout_of(name))
    gone = [n for n in tensors if n in written and n.endswith("bias")][3]
    tensors["left.over"] = tensors.pop(gone)
    with pytest.raises(layouts.LayoutError) as caught:
        read(name, tensors)
    assert str(caught.value) == f"not the layout {layout_of(name)!r}: missing {gone}; unknown left.over"


def test_a_whole_layer_that_is_missing_is_listed():
    tensors = {name: x for name, x in openai().items() if "transformer.resblocks.1." not in name}
    with pytest.raises(layouts.LayoutError, match=r"missing transformer.resblocks.1.attn.in_proj_bias, .* and 18 more"):
        layouts.to_ours(tensors, "openai", HEADS)
    without = {name: x for name, x in openai().items() if "transformer.resblocks." not in name}
    with pytest.raises(layouts.LayoutError, match=r"missing transformer.resblocks.0.attn.in_proj_bias"):
        layouts.to_ours(without, "openai", HEADS)


def test_a_mis_shaped_tensor_is_named():
    tensors = openai() | {"transformer.resblocks.2.attn.in_proj_weight": np.zeros((3 * WIDTH + 1, WIDTH))}
    with pytest.raises(layouts.LayoutError, match=r"mis-shaped transformer.resblocks.2.attn.in_proj_weight \(43, 14\)"):
        layouts.to_ours(tensors, "openai", HEADS)


def test_a_classifier_of_training_identities_may_be_missing():
    tensors = SOURCES["tvi_lfm 488"]()
    for name in ("classifier.classifier.weight", "backup_classifier.classifier.weight"):
        del tensors[name]
    assert_same(layouts.from_ours(read("tvi_lfm 488", tensors), "tvi_lfm"), tensors)


def test_what_has_no_place_in_a_layout_is_listed():
    ours = layouts.to_ours(openai(), "openai", HEADS)
    ours["params/image/camera_embedding"] = np.zeros((3, WIDTH))
    with pytest.raises(layouts.LayoutError, match="'openai': unknown params/image/camera_embedding"):
        layouts.from_ours(ours, "openai")
    del ours["params/image/camera_embedding"], ours["params/logit_scale"]
    with pytest.raises(layouts.LayoutError, match="'openai': missing params/logit_scale"):
        layouts.from_ours(ours, "openai")


@pytest.mark.parametrize(
    "name, path, shape",
    [
        ("torchvision", "image/rgb_stem/conv/kernel", (7, 7, 3, 16)),
        ("tvi_lfm 481", "image/rgb_stem/conv/kernel", (7, 7, 3, 16)),
        ("tvi_lfm 481", "text/token_embedding", (4096, 512)),
        ("tvi_lfm 481", "text/position_embedding", (40, 512)),
        ("tvi_lfm 481", "text/projection", (512, 1024)),
        # Four heads would be written under the same names and shapes, and mean something else.
        ("tvi_lfm 488", "text/block_0/attention/qkv/kernel", (512, 3, 4, 128)),
    ],
)
def test_towers_of_another_size_than_a_layouts_are_refused(name, path, shape):
    ours = read(name) | {f"params/{path}": np.zeros(shape, np.float32)}
    with pytest.raises(layouts.LayoutError) as caught:
        layouts.from_ours(ours, layout_of(name))
    message = f"cannot be written in the layout {layout_of(name)!r}: mis-shaped params/{path} {shape} instead of ("
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("gone", ["image/layer1_1/", "text/block_11/"])
def test_towers_with_other_layers_than_a_layouts_are_refused(gone):
    ours = {path: x for path, x in read("tvi_lfm 481").items() if gone not in path}
    with pytest.raises(layouts.LayoutError, match=f"'tvi_lfm': missing (params|batch_stats)/{gone}"):
        layouts.from_ours(ours, "tvi_lfm")
    deeper = read("tvi_lfm 481") | {"params/text/block_12/fc/bias": np.zeros(3)}
    with pytest.raises(layouts.LayoutError, match="'tvi_lfm': unknown params/text/block_12/fc/bias"):
        layouts.from_ours(deeper, "tvi_lfm")


def test_names_of_no_layout_are_refused():
    with pytest.raises(layouts.LayoutError, match="has tensors named encoder.weight, which is none of the layouts"):
        layouts.detect({"encoder.weight": np.zeros(1)})
