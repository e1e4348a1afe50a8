"""Attention: sums to one per query and head, looks where the picture says, and is shown with missing pictures."""

import numpy as np
import pytest
from conftest import build, noise, open_tiny, tiny_config
from looked_at import Data, H, Looking, W, normalised, row, subject

from jax_mmreid.evaluators.encoder import Encoder
from jax_mmreid.report import attention, charts, frames, rows
from jax_mmreid.report.subject import Subject

TEST = dict(split="test", use=("rgb", "nir", "tir"))


def miss_reid(drawn, **changes):
    """What a section looks at, of Miss-ReID with random weights."""
    config = tiny_config(drawn, **changes)
    data = open_tiny(config)
    exp = build(config, data)
    method, variables = exp.phases[-1].method, noise(exp.abstract.variables)
    levels, row = dict(mean=0.5, std=0.5), dict(query=TEST, gallery=TEST, junk="same_camera")
    encoder = Encoder(method, variables, data, exp.mesh, **levels, uses=[("test", TEST["use"])])
    return Subject(method, variables, data, exp.mesh, **levels, rows={"full": row}, encoder=encoder)


@pytest.fixture(scope="module")
def tiny(drawn):
    return miss_reid(drawn)


def test_attention_sums_to_one_for_each_query_and_head(tiny):
    batch = rows.batch_of(tiny, "test", [0, 7, 11, 29, 4])
    found = attention.measure(tiny, batch)
    assert found.shape == (5, 3, 3, 4, 4, 2)  # rows, modalities, queries, heads, 32 x 16 pixels in patches of 8
    np.testing.assert_allclose(found.sum(axis=(-2, -1)), 1, rtol=0, atol=1e-5)
    assert found.min() >= 0 and found.std(axis=(-2, -1)).min() > 0


@pytest.mark.parametrize("cell", [(0, 1), (3, 0), (2, 1)])
def test_a_cell_of_the_map_is_that_of_the_picture(tiny, cell):
    batch = rows.batch_of(tiny, "test", [0, 7, 11, 29, 4])
    before = attention.measure(tiny, batch)
    images = {m: x.copy() for m, x in batch["images"].items()}
    top, left = (8 * x for x in cell)
    images["tir"][:, top : top + 8, left : left + 8] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    change = np.abs(attention.measure(tiny, batch | {"images": images}) - before).mean(axis=(0, 2, 3))
    assert not change[:2].any() and np.unravel_index(change[2].argmax(), (4, 2)) == cell


def test_a_method_without_structure_queries_has_no_section(drawn):
    assert attention.section(miss_reid(drawn, row="A")) is None
    assert attention.section(subject({"a": row()})) is None
    assert attention.section(subject({}, method=Looking())) is None


def test_maps_are_drawn_relative_to_looking_everywhere(monkeypatch):
    """Each line has the picture, the mean and every query; of what is missing nothing but an empty frame."""
    whole, shown, painted = subject({"a": row()}, method=Looking()), [], []
    monkeypatch.setattr(frames, "show", lambda axes, picture, **kw: shown.append((picture, kw)))
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda self, x, **kw: painted.append((x, kw)))
    found = attention.section(whole, [8, 0])
    assert [x.name for x in found.pictures] == ["attention_8", "attention_0"]
    assert "Missing: rgb." in found.pictures[0].caption and "Missing" not in found.pictures[1].caption
    images = whole.data.images["query"]
    lines = [None, images["tir"][8], images["rgb"][0], images["tir"][0]]
    for i, (picture, kw) in enumerate(shown):
        np.testing.assert_array_equal(picture, lines[i // 4])
        assert kw.get("grey", False) == (i % 4 > 0)
    assert len(shown) == 16 and len(painted) == 9
    x = normalised(images["tir"][8]).mean(axis=-1).reshape(H // 2, 2, W // 2, 2).mean(axis=(1, 3))
    queries = [np.mean([softmax(scale * x) for scale in scales], axis=0) for scales in ((0, 1, 2), (3, 4, 5))]
    expected = np.array([np.mean(queries, axis=0), *queries]) * x.size
    for (values, kw), own in zip(painted, expected):
        np.testing.assert_allclose(values, own, rtol=1e-4)
        assert kw["vmax"] == pytest.approx(expected.max(), rel=1e-4) and kw["vmin"] == 0


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_random_rows_follow_from_the_seed_and_show_one_that_lacks_a_picture(monkeypatch):
    monkeypatch.setattr(charts, "draw", lambda paint, **size: b"")
    found = [attention.section(subject({"a": row()}, method=Looking(), seed=seed)) for seed in (3, 3, 4)]
    names = [[x.name for x in one.pictures] for one in found]
    assert found[0] == found[1] and names[0] != names[2]
    for name in (names[0], names[2]):
        numbers = [int(x.removeprefix("attention_")) for x in name]
        assert len(set(numbers)) == 3 and [n % 5 in (3, 4) for n in numbers] == [False, False, True]
    data = Data()
    data.there["query"]["rgb"][:] = False
    found = attention.section(subject({"a": row()}, data, Looking()))
    assert len(found.pictures) == 3 and all("Missing: rgb." in x.caption for x in found.pictures)
    assert attention.section(subject({"a": row()}, data, Looking()), [4]) is None  # it has no picture
