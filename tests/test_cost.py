"""The plan of a config: the complexity figures of the papers, and beside them what the program itself runs."""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from conftest import load_config

from input_pipeline import DataConfig, describe
from jax_mmreid import experiment
from jax_mmreid import run as running
from jax_mmreid.cost import traced
from jax_mmreid.errors import ConfigError
from jax_mmreid.methods import PublishedPart
from jax_mmreid.recipes.miss_reid import MISS_REID_ROWS

ROOT = Path(__file__).parent.parent
IMAGE = 11_389_519_872  # products of one picture through ViT-B/16 at 256x128, every token projected


def planned(name, arg="", **changes):
    """(config, data, parts) of a config in configs/; `changes` are fields of its model."""
    return _planned(name, arg, json.dumps(changes))


@functools.cache
def _planned(name, arg, changes):
    config = load_config(name, arg)
    config.model.update(json.loads(changes))
    return config, *plan(config)


def plan(config):
    data = describe(DataConfig.from_dict(config.data.to_dict()))
    return data, traced.plan(config, data.spec, data.tokenize)


def printed(config, data, parts):
    return traced.markdown(config, data.spec, data.num_rows("train"), parts)


# Those that have figures of their own; B counts like A, C like D, E like F.
@pytest.fixture(
    scope="module",
    params=[pytest.param(row, marks=[pytest.mark.slow] if row in "BCE" else []) for row in MISS_REID_ROWS],
)
def row(request):
    return request.param, planned("rgbnt201", f"row={request.param}")


def test_every_row_has_its_published_figures(row):
    name, (config, data, parts) = row
    rounded = ("86.4", "34.3") if name in "ABCD" else ("89.6", "43.6")
    text = printed(config, data, parts)
    assert "Counted as the publication counts: {} M parameters, {} G multiply-adds".format(*rounded) in text
    exact = (86_407_680, 34_275_371_616) if name in "ABCD" else (89_579_264, 43_638_566_304)
    assert (parts["total"].published_parameters, parts["total"].published_macs) == exact


def test_every_row_shows_what_it_really_has_beside_them(row):
    name, (_, _, parts) = row
    trained = {"A": 86_407_680, "B": 86_407_680, "C": 88_324_608, "D": 88_324_608, "E": 89_579_264, "F": 89_579_264}
    assert parts["total"].trained == trained[name]
    assert parts["total"].frozen == (63_428_096 if name in "EF" else 0)
    # The class token alone is projected, where the patch tokens are not read behind the projection.
    assert parts["image"].min_macs == parts["image"].max_macs == 3 * (IMAGE - 128 * 768 * 512 + 4 * 768)
    for part in parts.values():
        assert part.min_macs <= part.max_macs
    for column, total in zip(zip(*(part for name, part in parts.items() if name != "total")), parts["total"]):
        assert sum(column) == total


def test_structure_and_its_head_are_no_part_of_the_published_figures_of_rows_without_text():
    _, _, parts = planned("rgbnt201", "row=D")
    assert list(parts) == ["image", "heads", "structure", "total"]
    assert parts["structure"] == (1_784_832, 0, 0, 0, 0, 0)
    assert (parts["heads"].trained, parts["heads"].published_parameters) == (396_288, 264_192)


def test_text_runs_for_missing_modalities_and_in_short_sentences():
    _, _, parts = planned("rgbnt201", "row=F")
    assert list(parts) == ["image", "structure", "inversion", "text", "heads", "prompts", "total"]
    text = parts["text"]
    assert (text.trained, text.frozen, text.published_parameters) == (0, 63_428_096, 0)
    assert text.min_macs == 0 and text.max_macs / 1e9 == pytest.approx(2.05, abs=5e-3)
    assert text.published_macs / 1e9 == pytest.approx(8.87, abs=5e-3)
    assert (parts["structure"].published_macs + parts["inversion"].published_macs) / 1e9 == pytest.approx(
        0.4936, abs=5e-5
    )


def test_sentences_of_the_whole_context_cost_what_the_publication_counts_and_the_masked_product():
    _, _, parts = planned("rgbnt201", "row=F", text_len=77)
    assert parts["text"].max_macs == 3 * (8_830_027_776 // 3 + 12 * 77**2 * 512)
    assert parts["text"].published_macs == 8_869_634_112


def test_the_widths_of_the_equations_have_figures_of_their_own():
    _, _, parts = planned("rgbnt201", "preset=equations")
    assert parts["image"].max_macs == 3 * (IMAGE + 4 * 768)
    assert parts["total"].published_parameters == 89_662_464
    assert parts["total"].published_macs / 1e9 == pytest.approx(43.369, abs=5e-4)


def test_an_output_projection_after_the_queries_is_counted_for_each():
    _, _, parts = planned("rgbnt201", structure=dict(out_proj=True))
    assert parts["total"].published_parameters == 90_169_856
    assert parts["total"].published_macs / 1e9 == pytest.approx(43.667, abs=5e-4)


@pytest.mark.parametrize("modalities, count", [("rgb/tir", 2), ("nir", 1)])
def test_fewer_modalities_are_fewer_passes(modalities, count):
    whole = planned("quickstart")[2]
    parts = planned("quickstart", f"modalities={modalities}")[2]
    for name in ("image", "text"):
        assert (3 * parts[name].max_macs, 3 * parts[name].published_macs) == (
            count * whole[name].max_macs,
            count * whole[name].published_macs,
        )
    assert parts["inversion"] == whole["inversion"]
    assert 3 * parts["prompts"].trained == count * whole["prompts"].trained


@pytest.mark.parametrize("row", MISS_REID_ROWS)
def test_the_quickstart_has_a_plan_for_every_row(row):
    config, data, parts = planned("quickstart", f"row={row}")
    assert parts["total"].trained > 0 and parts["total"].published_macs > 0
    lines = printed(config, data, parts).splitlines()
    assert "synthetic with 96 training identities, 4 cameras, 768 rows." in lines[0]
    lines = [line for line in lines if line.startswith("|")]
    assert len(lines) == len(parts) + 2 and len({len(line) for line in lines}) == 1


def test_an_image_of_zeros_for_missing_ones_is_one_more_pass():
    whole = planned("quickstart", "row=A")[2]["image"].max_macs
    assert 3 * planned("quickstart", "row=A", missing_fill="encode_zero_image")[2]["image"].max_macs == 4 * whole


def test_neither_remat_nor_scan_changes_the_count():
    assert planned("quickstart", remat=True, scan=True)[2] == planned("quickstart")[2]


def test_a_config_for_many_devices_is_planned_on_one():
    config = load_config("quickstart")
    config.mesh.update(data=64, model=4)
    assert plan(config)[1] == planned("quickstart")[2]
    assert config.mesh.to_dict() == {"data": 64, "model": 4}


def test_an_image_that_is_not_whole_patches_is_refused():
    config = load_config("quickstart")
    config.data.image_size = (30, 16)
    with pytest.raises(ConfigError, match=r"image_size=\(30, 16\) is not a whole number of patches"):
        plan(config)


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
    counted: bool = False

    def encode(self, variables, batch):
        x = jnp.stack([batch["images"][m].mean((1, 2)) for m in batch["images"]], axis=1)  # [B,M,3]
        params = variables["params"]
        x = self.rgb.apply({"params": params["rgb"]}, x) + self.ir.apply({"params": params["ir"]}, x)
        return jax.lax.map(lambda row: self.inner.word.apply({"params": params["word"]}, row), x)

    def embed(self, variables, features, use):
        return features @ jnp.ones((13, 2))

    def published_parts(self, image_size):
        return {"rgb": PublishedPart()} if self.counted else {}


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
    config = load_config("quickstart", "modalities=rgb/tir")
    data, parts = plan(config)
    assert {name: (part.trained, part.frozen, part.max_macs) for name, part in parts.items()} == {
        "rgb+ir": (0, 0, 2 * 2 * 3 * 5),
        "word": (5 * 13 + 13, 0, 2 * 5 * 13),
        "other": (0, 0, 2 * 13 * 2),
        "ir": (0, 20, 0),
        "rgb": (20, 0, 0),
        "total": (98, 20, 60 + 130 + 52),
    }
    assert "publication" not in printed(config, data, parts)


def run(*args, cwd):
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jax_mmreid.main", "--mode=plan", *args]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_the_command_needs_neither_data_nor_workdir(tmp_path):
    done = run(f"--config={ROOT}/configs/rgbnt201.py:row=F", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rgbnt201 with 171 training identities, 4 cameras, 3951 rows." in done.stdout
    assert re.search(
        r"^\| total +\| 89,579,264 \| 63,428,096 \| +89,579,264 \| .* \| +43\.638566 \|$", done.stdout, re.M
    )
    assert "Counted as the publication counts: 89.6 M parameters, 43.6 G multiply-adds" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_dataset_that_does_not_exist_is_named():
    config = load_config("quickstart")
    config.data.name = "rgbn"
    with pytest.raises(ConfigError, match="^config.data.name: no dataset 'rgbn'; there are .*, rgbnt201, ") as raised:
        running.plan(config)
    assert "\n" not in str(raised.value)
