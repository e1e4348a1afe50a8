"""The plan of a config: the complexity figures of the papers, and the count of what the program runs, by hand."""

import dataclasses
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import load_config, open_tiny, tiny_config

from input_pipeline import datasets, describe
from jax_mmreid import experiment
from jax_mmreid.cost import published, traced
from jax_mmreid.errors import ConfigError
from jax_mmreid.models.clip import ImageTower, TextTower
from jax_mmreid.models.language import Inversion
from jax_mmreid.models.structure import StructureQueries
from jax_mmreid.recipes.miss_reid import MISS_REID_ROWS

ROOT = Path(__file__).parent.parent
IMAGE = 11_389_519_872  # products of one picture through ViT-B/16 at 256x128, every token projected


def planned(name, arg="", **changes):
    """(config, data, parts) of a config in configs/; `changes` are fields of its model."""
    config = load_config(name, arg)
    config.model.update(changes)
    data = describe(**config.data.to_dict())
    return config, data, traced.plan(config, data)


@pytest.fixture(scope="module", params=MISS_REID_ROWS)
def row(request):
    return request.param, planned("rgbnt201", f"row={request.param}")


def test_every_row_has_its_published_figures(row):
    name, (config, data, parts) = row
    rounded = ("86.4", "34.3") if name in "ABCD" else ("89.6", "43.6")
    text = traced.markdown(config, data, parts)
    assert "Counted as the publication counts: {} M parameters, {} G multiply-adds".format(*rounded) in text
    exact = (86_407_680, 34_275_371_616) if name in "ABCD" else (89_579_264, 43_638_566_304)
    assert (parts["total"].published_parameters, parts["total"].published) == exact


def test_every_row_shows_what_it_really_has_beside_them(row):
    name, (_, _, parts) = row
    trained = {"A": 86_407_680, "B": 86_407_680, "C": 88_324_608, "D": 88_324_608, "E": 89_579_264, "F": 89_579_264}
    assert parts["total"].trained == trained[name]
    assert parts["total"].frozen == (63_428_096 if name in "EF" else 0)
    # The class token alone is projected, where the patch tokens are not read behind the projection.
    assert parts["image"].least == parts["image"].most == 3 * (IMAGE - 128 * 768 * 512 + 4 * 768)
    for part in parts.values():
        assert part.least <= part.most
    for column, total in zip(zip(*(part for name, part in parts.items() if name != "total")), parts["total"]):
        assert sum(column) == total


def test_structure_and_its_head_are_no_part_of_the_published_figures_of_rows_without_text():
    _, _, parts = planned("rgbnt201", "row=D")
    assert list(parts) == ["image", "heads", "structure", "total"]
    assert parts["structure"] == (1_784_832, 0, 0, 0, 0, 0)
    assert (parts["heads"].trained, parts["heads"].published_parameters) == (396_288, 264_192)


def test_text_runs_for_what_is_missing_and_in_short_sentences():
    _, _, parts = planned("rgbnt201", "row=F")
    assert list(parts) == ["image", "structure", "inversion", "text", "heads", "prompts", "total"]
    text = parts["text"]
    assert (text.trained, text.frozen, text.published_parameters) == (0, 63_428_096, 0)
    assert text.least == 0 and text.most / 1e9 == pytest.approx(2.05, abs=5e-3)
    assert text.published / 1e9 == pytest.approx(8.87, abs=5e-3)
    assert (parts["structure"].published + parts["inversion"].published) / 1e9 == pytest.approx(0.4936, abs=5e-5)


def test_sentences_of_the_whole_context_cost_what_the_publication_counts_and_the_masked_product():
    _, _, parts = planned("rgbnt201", "row=F", text_len=77)
    assert parts["text"].most == 3 * (8_830_027_776 // 3 + 12 * 77**2 * 512)
    assert parts["text"].published == 8_869_634_112


def test_the_widths_of_the_equations_have_figures_of_their_own():
    _, _, parts = planned("rgbnt201", "preset=equations")
    assert parts["image"].most == 3 * (IMAGE + 4 * 768)
    assert parts["total"].published_parameters == 89_662_464
    assert parts["total"].published / 1e9 == pytest.approx(43.369, abs=5e-4)


def test_an_output_projection_after_the_queries_is_counted_for_each():
    _, _, parts = planned("rgbnt201", structure=dict(out_proj=True))
    assert parts["total"].published_parameters == 90_169_856
    assert parts["total"].published / 1e9 == pytest.approx(43.667, abs=5e-4)


@pytest.mark.parametrize("modalities, count", [("rgb/tir", 2), ("nir", 1)])
def test_fewer_modalities_are_fewer_passes(modalities, count):
    whole = planned("quickstart")[2]
    parts = planned("quickstart", f"modalities={modalities}")[2]
    for name in ("image", "text"):
        assert (3 * parts[name].most, 3 * parts[name].published) == (
            count * whole[name].most,
            count * whole[name].published,
        )
    assert parts["inversion"] == whole["inversion"]
    assert 3 * parts["prompts"].trained == count * whole["prompts"].trained


@pytest.mark.parametrize("row", MISS_REID_ROWS)
def test_the_quickstart_has_a_plan_for_every_row(row):
    config, data, parts = planned("quickstart", f"row={row}")
    assert parts["total"].trained > 0 and parts["total"].published > 0
    lines = traced.markdown(config, data, parts).splitlines()
    assert "synthetic taken as 96 training identities, 4 cameras, 768 rows." in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == len(parts) + 2 and len({len(line) for line in table}) == 1


def test_a_picture_that_stands_for_missing_ones_is_a_pass_more():
    whole = planned("quickstart", "row=A")[2]["image"].most
    assert 3 * planned("quickstart", "row=A", missing_fill="encode_zero_image")[2]["image"].most == 4 * whole


def test_neither_remat_nor_scan_changes_the_count():
    assert planned("quickstart", remat=True, scan=True)[2] == planned("quickstart")[2]


def test_a_config_for_many_devices_is_planned_on_one():
    config = load_config("quickstart")
    data = describe(**config.data.to_dict())
    config.mesh.update(data=64, model=4)
    assert traced.plan(config, data) == planned("quickstart")[2]
    assert config.mesh.to_dict() == {"data": 64, "model": 4}


def test_a_picture_of_no_whole_patches_is_refused():
    config = load_config("quickstart")
    config.data.image_size = (30, 16)
    with pytest.raises(ConfigError, match="30x16"):
        traced.plan(config, describe(**config.data.to_dict()))


# Counts by hand.


def count(f, *shapes, choose=max):
    """Multiply-adds of f on float32 arrays of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return traced.multiply_adds(jax.make_jaxpr(f)(*arrays).jaxpr, choose).total()


def test_matrix_products():
    assert count(jnp.matmul, (2, 3), (3, 5)) == 2 * 3 * 5
    assert count(lambda a, b: jnp.einsum("bhid,bhjd->bhij", a, b), (2, 3, 5, 7), (2, 3, 11, 7)) == 2 * 3 * 5 * 11 * 7
    assert count(lambda a: jnp.tanh(a) + a * a, (2, 3)) == 0


@pytest.mark.parametrize("stride, padding, size", [(1, "VALID", (9, 15)), (2, "VALID", (5, 8)), (2, "SAME", (6, 9))])
def test_convolutions(stride, padding, size):
    conv = nn.Conv(14, (3, 3), strides=stride, padding=padding, feature_group_count=2)
    x = jnp.zeros((5, 11, 17, 6))
    variables = conv.init(jax.random.PRNGKey(0), x)
    assert conv.apply(variables, x).shape == (5, *size, 14)
    assert count(lambda x: conv.apply(variables, x), x.shape) == 5 * size[0] * size[1] * 14 * 3 * 3 * (6 // 2)


def test_scan_counts_every_step():
    def f(x, ws):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0]

    assert count(f, (2, 3), (7, 3, 3)) == 7 * 2 * 3 * 3
    assert count(lambda xs, w: jax.lax.map(lambda x: x @ w, xs), (5, 2, 3), (3, 7)) == 5 * 2 * 3 * 7
    assert count(lambda x, w: jax.lax.fori_loop(0, 11, lambda _, x: x @ w, x), (2, 3), (3, 3)) == 11 * 2 * 3 * 3


def test_a_condition_counts_its_dearest_or_its_cheapest_branch():
    def f(x, w):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda: x @ w, lambda: x, lambda: x @ w @ w])

    assert count(f, (2, 3), (3, 3)) == 2 * 18
    assert count(f, (2, 3), (3, 3), choose=min) == 0


def test_branches_are_weighed_by_all_they_hold():
    def deep(x, w):
        return jax.lax.scan(lambda x, _: (jax.lax.cond(x.sum() > 0, lambda: x @ w, lambda: x), None), x, None, 5)[0]

    def f(x, w):
        return jax.lax.cond(x.sum() > 0, lambda: deep(x, w), lambda: x @ w @ w)

    assert (count(f, (2, 3), (3, 3)), count(f, (2, 3), (3, 3), choose=min)) == (5 * 18, 0)


def test_programs_inside_are_followed():
    product = lambda x, w: x @ w  # noqa: E731
    own = jax.custom_vjp(product)
    own.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
    rule = jax.custom_jvp(product)
    rule.defjvp(lambda primals, tangents: (product(*primals), product(*tangents)))
    for f in (jax.jit(product), jax.jit(jax.jit(product)), jax.checkpoint(product), own, rule):
        assert count(f, (2, 3), (3, 5)) == 30
    assert count(jax.vmap(product, (0, None)), (7, 2, 3), (3, 5)) == 7 * 30
    assert count(jax.grad(lambda x, w: jax.checkpoint(product)(x, w).sum()), (2, 3), (3, 5)) >= 30


def test_a_while_loop_is_counted_once_and_told(monkeypatch):
    told = []
    monkeypatch.setattr(traced.log, "warning", lambda *args: told.append(args))
    assert count(lambda x, w: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x), (2, 3), (3, 3)) == 18
    assert len(told) == 1
    assert count(lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: 2 * x, x), (2, 3)) == 0
    assert len(told) == 1


# The papers' way of counting against ours: the same products, and what that counter overlooks or repeats.


def products(module, *args, **options):
    variables = jax.eval_shape(lambda *args: module.init(jax.random.PRNGKey(0), *args, **options), *args)
    jaxpr = jax.make_jaxpr(lambda variables, *args: module.apply(variables, *args, **options))(variables, *args)
    return traced.multiply_adds(jaxpr.jaxpr).total()


def test_products_of_the_image_tower():
    tower = ImageTower(patch=4, width=10, layers=3, heads=2, dim=7)
    picture = jnp.zeros((1, 20, 12, 3))
    assert published.patches(tower, (20, 12)) == 15
    assert published.image_tower(tower, (20, 12)).products == products(tower, picture)


def test_products_of_the_text_tower_without_the_masked_one():
    tower = TextTower(vocab=23, context=17, width=10, layers=3, heads=2, dim=7)
    masked = 3 * 13**2 * 10
    assert published.text_tower(tower, 13).products + masked == products(tower, jnp.zeros((1, 13, 10)), 11)


@pytest.mark.parametrize("out_proj", [False, True])
def test_products_of_the_structure_queries(out_proj):
    module = StructureQueries(queries=5, width=14, heads=2, out_proj=out_proj)
    # We average over queries before the values and the last projection are read, not after.
    saved = (5 - 1) * (13 * 14 + (14 * 14 if out_proj else 0))
    ours = products(module, jnp.zeros((1, 13, 11)))
    assert published.structure_queries(module, 13, 11).products == ours + saved


def test_products_of_the_inversion_network():
    module = Inversion(hidden=13, dim=7)
    assert published.inversion(module, 11).products == products(module, jnp.zeros((1, 11)), train=False)


# Any method.


@dataclasses.dataclass(frozen=True)
class Inner:
    word: nn.Module
    size: int = 3


@dataclasses.dataclass(frozen=True)
class Toy:
    """Two modules of one class, one in a dataclass inside, and a product of its own."""

    rgb: nn.Module
    ir: nn.Module
    inner: Inner

    def encode(self, variables, batch):
        x = jnp.stack([batch["images"][m].mean((1, 2)) for m in batch["images"]], axis=1)  # [B,M,3]
        params = variables["params"]
        x = self.rgb.apply({"params": params["rgb"]}, x) + self.ir.apply({"params": params["ir"]}, x)
        return jax.lax.map(lambda row: self.inner.word.apply({"params": params["word"]}, row), x)

    def embed(self, variables, features, use):
        return features @ jnp.ones((13, 2))

    def published_cost(self, image_size):
        return {}


def test_parts_are_named_after_the_fields_of_the_method(monkeypatch):
    toy = Toy(nn.Dense(5), nn.Dense(5), Inner(nn.DenseGeneral(13)))
    x = jnp.zeros((1, 3))
    params = {
        "rgb": toy.rgb.init(jax.random.PRNGKey(0), x)["params"],
        "word": toy.inner.word.init(jax.random.PRNGKey(0), jnp.zeros((1, 5)))["params"],
    }
    frozen = {"ir": params["rgb"]}
    state = SimpleNamespace(params=params, frozen=frozen, variables={"params": params | frozen})
    build = SimpleNamespace(phases=[SimpleNamespace(method=toy)], abstract=state)
    monkeypatch.setattr(experiment, "build", lambda *args, **options: build)
    config, data, parts = planned("quickstart", "modalities=rgb/tir")
    assert {name: (part.trained, part.frozen, part.most) for name, part in parts.items()} == {
        "rgb+ir": (0, 0, 2 * 2 * 3 * 5),
        "word": (5 * 13 + 13, 0, 2 * 5 * 13),
        "other": (0, 0, 2 * 13 * 2),
        "ir": (0, 20, 0),
        "rgb": (20, 0, 0),
        "total": (98, 20, 60 + 130 + 52),
    }
    assert "publication" not in traced.markdown(config, data, parts)


# The stand-in for data, and the command.


def test_a_described_dataset_is_the_opened_one(drawn):
    config = tiny_config(drawn)
    opened, described = open_tiny(config), describe(**config.data.to_dict())
    for field in ("modalities", "image_size", "cameras", "batch_size", "text", "text_length", "vocab"):
        assert getattr(described, field) == getattr(opened, field)
    assert len(described.spec.pids) == len(opened.spec.pids)
    assert described.num_rows("train") == opened.num_rows("train")
    assert traced.plan(config, described) == traced.plan(config, opened)
    with pytest.raises(ValueError, match="no split 'test'"):
        described.num_rows("test")


def test_a_described_dataset_of_pairs_and_captions(tmp_path):
    drawing = dict(layout="sysu_mm01", seed=0, num_train_ids=5, num_test_ids=2, images_per_camera=1, height=32)
    config = tiny_config(tmp_path / "drawn", modalities="rgb/ir")
    config.data.update(pairs=True)
    config.data.options = drawing
    config.data.text.update(tokenizer="train", context=60, vocab_size=600)
    described = describe(**config.data.to_dict())
    assert list(tmp_path.iterdir()) == []
    opened = open_tiny(config)
    for field in ("modalities", "image_size", "cameras", "batch_size", "text"):
        assert getattr(described, field) == getattr(opened, field)
    assert len(described.spec.pids) == len(opened.spec.pids) and described.num_rows("train") == opened.num_rows("train")
    assert (
        described.spec.text_length == 60 >= opened.spec.text_length and described.spec.vocab == 600 >= opened.spec.vocab
    )
    for tokenizer in ("builtin", "openai/clip-vit-base-patch16"):
        config.data.text.tokenizer = tokenizer
        assert describe(**config.data.to_dict()).vocab == 49408
    config.data.text.rephrased = 2.0
    with pytest.raises(ValueError, match="data.text.rephrased=2.0"):
        describe(**config.data.to_dict())


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.iter_modules(datasets.__path__)))
def test_every_dataset_tells_its_counts_without_pictures(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(data_dir="", modalities=("rgb",), image_size=(20, 12), identities=2, instances=3)
    if name == "manifest":  # the only one that says nothing without its table
        options["data_dir"] = str(tmp_path / "table.csv")
        rows = [f"{split},{split}{pid % 4},{split}{pid}.jpg" for split in ("train", "test") for pid in range(13)]
        (tmp_path / "table.csv").write_text("\n".join(["split,pid,rgb", *rows]))
    data = describe(name=name, **options)
    assert 1 < len(data.spec.pids) <= data.num_rows("train") and data.spec.batch_size == 6
    assert data.spec.steps_per_epoch == data.num_rows("train") // 6
    assert list(data.spec.cameras) == sorted(set(data.spec.cameras))
    assert [file.name for file in tmp_path.iterdir()] == (["table.csv"] if name == "manifest" else [])
    for changes, message in (
        (dict(modalities=("rgb", "rgb")), "named twice"),
        (dict(modalities=("radar",)), "radar"),
        (dict(identities=0), "data.identities=0"),
        (dict(options={"colour": 1}), "data.options"),
    ):
        with pytest.raises(ValueError, match=message):
            describe(name=name, **options | changes)


def run(*args, cwd):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jax_mmreid.main", "--mode=plan", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_the_command_needs_neither_data_nor_workdir(tmp_path):
    done = run(f"--config={ROOT}/configs/rgbnt201.py:row=F", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rgbnt201 taken as 171 training identities, 4 cameras, 3951 rows." in done.stdout
    assert re.search(
        r"^\| total +\| 89,579,264 \| 63,428,096 \| +89,579,264 \| .* \| +43\.638566 \|$", done.stdout, re.M
    )
    assert "Counted as the publication counts: 89.6 M parameters, 43.6 G multiply-adds" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dataset_that_does_not_exist_is_told(tmp_path):
    done = run(f"--config={ROOT}/configs/quickstart.py", "--config.data.name=rgbn", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert re.match("jax_mmreid: data.name: no dataset 'rgbn'; there are .*, rgbnt201, ", done.stderr.splitlines()[-1])


def test_a_vocabulary_that_is_not_there_yet_is_told(tmp_path):
    """Of a run that goes on from another one; rows without text need no vocabulary."""
    config = load_config("quickstart", "init=clip")
    config.data.text.tokenizer = f"{tmp_path}/a/b/c/tokenizer"
    data = describe(**config.data.to_dict())
    with pytest.raises(ConfigError, match="data.text.tokenizer='.*/a/b/c/tokenizer' is no folder and no Hub id"):
        experiment.build(config, data, devices=jax.devices()[:1])
    config = load_config("quickstart", "init=clip,row=D")
    experiment.build(config, describe(**config.data.to_dict()), devices=jax.devices()[:1])
