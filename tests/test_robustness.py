"""Rows of kind "robustness": their numbers are those of other rows on pictures that are damaged beforehand."""

import jax
import numpy as np
import pytest
from conftest import load_config, open_tiny, start, tiny_config

from jax_mmreid.config import config_hash
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import robustness, runner
from jax_mmreid.evaluators.pixels import Pictures
from jax_mmreid.ops.damage import KINDS, damage
from jax_mmreid.recipes.missing_settings import missing_evals
from jax_mmreid.recipes.robustness import robustness as every_damage
from jax_mmreid.report import tables
from jax_mmreid.sharding import make_mesh

ALL = ("rgb", "nir", "tir")
METHOD = Pictures(ALL, feature="mean_free")  # without a tower, so that a row takes no time
CLEAN = ("clean", "missing")


def measure(rows, data, devices=1):
    """Results of rows, checked before; nothing moves to a device unasked."""
    runner.check(rows, data)
    mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
    with jax.transfer_guard("disallow"):
        return runner.run(rows, METHOD, {}, data, mesh, mean=0.0, std=1.0)


def sides(query=ALL, gallery=ALL, split="test"):
    return dict(query=dict(split=split, use=query), gallery=dict(split="test", use=gallery), junk="same_camera")


def row(damage, *damaged, **fields):
    return dict(kind="robustness", damage=damage, damaged=damaged) | sides() | fields


def plain(*args, **fields):
    """A retrieval row."""
    return dict(similarity="common") | sides(*args) | fields


class Beforehand:
    """Data with a second test split "damaged", whose pictures are those of {modality: [n,H,W,3]}."""

    def __init__(self, data, pictures):
        self.data, self.pictures, self.spec = data, pictures, data.spec

    def split(self, name):
        for batch in self.data.split("test"):
            shown = {m: x[batch["index"]] for m, x in self.pictures.items()} if name == "damaged" else {}
            yield batch | {"images": batch["images"] | shown}

    def present(self, name):
        return self.data.present("test")

    def columns(self, name):
        return self.data.columns("test")


@pytest.fixture(scope="module")
def whole(drawn):
    return open_tiny(tiny_config(drawn))


@pytest.fixture(scope="module")
def gaps(drawn):
    """Of every five test rows one has no RGB picture, another no TIR picture."""
    data = open_tiny(tiny_config(drawn))
    reader = data._find("test")
    for present in (reader.split.present, reader._present):
        present[::5, 0] = False
        present[2::5, 2] = False
    return data


def pictures(data, modality):
    batches = list(data.split("test"))
    return np.concatenate([batch["images"][modality][batch["valid"]] for batch in batches])


def by_hand(data, kind, damaged, severity, seed=0):
    """What the row shows of the modalities that are damaged, [n,H,W,3] each."""
    found, present = {}, data.present("test")
    for m, other in zip(damaged, damaged[::-1]):
        images, others = pictures(data, m), pictures(data, other)
        if kind == "frozen":
            others = np.broadcast_to(images[present[m]][:1], images.shape)
        both = (present[m] & present[other])[:, None, None, None]
        rows, strength = np.arange(len(images)), np.float32(severity / 5)
        found[m] = np.asarray(damage(images, np.where(both, others, images), rows, strength, kind=kind, seed=seed))
    return found


@pytest.mark.parametrize("kind, damaged", [("swapped", ("rgb", "tir")), ("frozen", ("rgb",)), ("bar", ("nir",))])
def test_numbers_are_those_of_pictures_that_are_damaged_beforehand(gaps, kind, damaged):
    found = measure({"a": row(kind, *damaged, seed=3)}, gaps)["a"]
    rest = tuple(m for m in ALL if m not in damaged)
    plains = measure({"clean": plain(), "missing": plain(rest)}, gaps)
    assert {name: found[name] for name in CLEAN} == {name: plains[name]["mAP"] for name in CLEAN}
    for severity in (2, 5):
        data = Beforehand(gaps, by_hand(gaps, kind, damaged, severity, seed=3))
        expected = measure({"a": plain(ALL, ALL, "damaged")}, data)["a"]["mAP"]
        assert found[f"severity{severity}"] == expected != found["clean"]
    mean = np.mean([found[f"severity{s}"] for s in (1, 2, 3, 4, 5)])
    assert found["relative"] == pytest.approx(mean / found["clean"])
    assert found["gain"] == pytest.approx(found["missing"] - mean)


@pytest.mark.parametrize("kind", ["swapped", "exposure"])
def test_severity_0_changes_no_digit(whole, monkeypatch, kind):
    monkeypatch.setattr(robustness, "SEVERITIES", (0, 5))
    found = measure({"a": row(kind, *(("rgb", "nir") if kind == "swapped" else ("nir",)))}, whole)["a"]
    assert found["severity0"] == found["clean"] != found["severity5"]


@pytest.mark.slow
def test_eight_devices_measure_what_one_does_and_other_rows_what_they_do_alone(gaps):
    rows = {"a": row("dead_pixels", "rgb"), "b": row("frozen", "tir"), "full": plain(), "no_t": plain(ALL[:2], ALL[:2])}
    found = measure(rows, gaps)
    assert measure(rows, gaps, devices=8) == found
    alone = {name: rows[name] for name in ("full", "no_t")}
    assert measure(alone, gaps) == {name: found[name] for name in alone}


def test_queries_that_have_nothing_else_are_left_out_of_all_numbers(drawn):
    data = open_tiny(tiny_config(drawn))
    reader = data._find("test")
    for present in (reader.split.present, reader._present):
        present[1::5, 1:] = False  # RGB alone
    with pytest.raises(DataError, match="evals.a: row 1 of split 'test' has no picture of nir or tir"):
        runner.check({"a": row("noise", "rgb")}, data)
    found = measure({"a": row("noise", "rgb", incomplete="skip")}, data)["a"]
    count = int((~data.present("test")["nir"]).sum())
    assert found["skipped"] == {"query": count, "gallery": 0}
    assert found["note"].startswith(f"leaves out {count} query rows and 0 gallery rows")
    kept = plain(("nir", "tir"), incomplete="skip")  # the same queries
    assert found["missing"] == measure({"a": kept}, data)["a"]["mAP"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"damage": "rain"}, "evals.a: damage='rain', expected one of misaligned, dead_pixels, "),
        ({"damaged": ("rgb", "tir")}, "damages 1 of the modalities in query.use, rgb, nir, tir"),
        ({"damage": "swapped"}, "'swapped' damages 2 of the modalities"),
        ({"damage": "swapped", "damaged": ("rgb", "rgb")}, "'swapped' damages 2 of the modalities"),
        ({"damaged": ("ir",)}, "evals.a: damaged=\\('ir',\\): 'blur' damages 1 of the modalities in query.use"),
        ({"damaged": "rgb"}, "evals.a: damaged='rgb': must be a tuple of strings"),
        ({"query": {"split": "test", "use": ("rgb",)}}, "is all that query.use names; name more there"),
        ({"query": {"split": "test", "use": ALL, "mixed": 0}}, "query.mixed belongs to rows of kind 'retrieval'"),
        ({"seed": -1}, "seed=-1, must be 0 or more"),
        ({"severity": 3}, "evals.a: the row has a key 'severity'; there are query, gallery, junk, damage, damaged,"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(whole, change, message):
    with pytest.raises(ConfigError, match=message):
        runner.check({"a": row("blur", "rgb") | change}, whole)


def test_a_recipe_damages_every_modality_in_every_way(whole):
    full = missing_evals(ALL, "test", "same_camera")["full"]
    rows = every_damage(full, ALL)
    assert len(rows) == 3 * len(KINDS) + 3 + 1 + 1  # 8 and a mean each, three pairs and their mean, the mean of all
    assert len(every_damage(full, ALL[:2])) == 2 * len(KINDS) + 1 and every_damage(full, ALL[:1]) == {}
    runner.check(rows, whole)
    config, without = load_config("quickstart", "robustness=1"), load_config("quickstart")
    assert {*config.evals} - {*without.evals} == {*rows} and config_hash(config) == config_hash(without)
    some = {name: rows[f"robustness/swapped/{name}"] for name in ("rgb+nir", "nir+tir")}
    some["mean"] = dict(setting="mean", group="swapped", mean_of=tuple(some))
    results = dict(step=1, which="best", config_hash="0", modalities=ALL, evals=measure(some, whole))
    table = tables.markdown(results | runner.columns(some))
    assert "| setting | clean | 1 | 2 | 3 | 4 | 5 | relative | missing | gain |" in table
    assert "| nir+tir (swapped) |" in table and "| mean (swapped) |" in table


@pytest.mark.exhaustive
@pytest.mark.parametrize("similarity", ["common", "embed"])
def test_a_trained_method_with_imputed_features(drawn, similarity):
    exp, data, state = start(tiny_config(drawn, row="F"))
    rows = {"a": row("exposure", "rgb", similarity=similarity)}
    rows |= {"clean": plain(similarity=similarity), "missing": plain(ALL[1:], similarity=similarity)}
    runner.check(rows, data)
    runner.check_method(rows, exp.phases[-1].method, exp.abstract.variables, data)
    arguments = exp.phases[-1].method, state.variables, data, exp.mesh
    found = runner.run(rows, *arguments, mean=0.5, std=0.5)
    assert {name: found["a"][name] for name in CLEAN} == {name: found[name]["mAP"] for name in CLEAN}
    assert found["a"]["severity5"] != found["a"]["clean"]
