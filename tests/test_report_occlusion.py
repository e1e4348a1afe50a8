"""Occlusion: the map of a linear method is its closed form, and pairs are the first of the ranking."""

import numpy as np
import pytest
from looked_at import MEAN, Data, H, Linear, W, normalised, row, subject, variables, vectors

from jax_mmreid.metrics.ranking import Relevance
from jax_mmreid.report import charts, occlusion, sides
from jax_mmreid.report.sides import Sides

GREY = np.round(255 * np.array(MEAN))


def hidden(picture, top, left, side):
    found = picture.copy()
    found[top : top + side, left : left + side] = GREY
    return found


def places(grid):
    return [(top, left) for top in grid.tops for left in grid.lefts]


@pytest.mark.parametrize("size", [(8, 6), (64, 32), (7, 7), (5, 40), (2, 2), (1, 3)])
def test_squares_cover_every_pixel_and_stay_inside(size):
    grid, covered = occlusion.squares(size), np.zeros(size, int)
    for top, left in places(grid):
        assert 0 <= top <= size[0] - grid.side and 0 <= left <= size[1] - grid.side
        covered[top : top + grid.side, left : left + grid.side] += 1
    assert covered.min() >= 1 and grid.side == max(1, min(size) // 3)


def test_a_pixel_has_the_mean_of_the_squares_that_cover_it():
    size = (9, 13)
    grid = occlusion.squares(size)
    drops = np.random.default_rng(0).normal(size=(len(grid.tops), len(grid.lefts)))
    found = occlusion.per_pixel(drops, grid, size)
    flat = dict(zip(places(grid), drops.ravel()))
    for y, x in np.ndindex(size):
        own = [d for (top, left), d in flat.items() if 0 <= y - top < grid.side and 0 <= x - left < grid.side]
        assert found[y, x] == pytest.approx(np.mean(own))


@pytest.mark.parametrize("use", [("rgb", "tir"), ("tir",), ("tir", "text")])
@pytest.mark.parametrize("query", [5, 8])  # the second has no RGB picture
def test_the_map_of_a_linear_method_is_its_closed_form(use, query):
    """A score is a sum over pixels, so a square takes away what its pixels add to it, less what grey would add."""
    one = row(use, ("rgb", "tir"), options={"unit": False})
    whole, weights = subject({"a": one}, method=Linear()), variables()["params"]
    both, chosen = sides.read(one, whole.encoder), np.array([4, 0, 9])
    found = occlusion.measure(whole, one, query, both.vectors[1][chosen])
    assert list(found) == [m for m in ("rgb", "tir") if m in use and whole.data.there["query"][m][query]]
    gallery = vectors(whole.data, "gallery", ("rgb", "tir"), unit=False)[both.rows[1][chosen]]
    grid = occlusion.squares((H, W))
    for m, drops in found.items():
        assert drops.shape == (3, len(grid.tops), len(grid.lefts)) == (3, 7, 5)
        added = normalised(whole.data.images["query"][m][query]) - normalised(np.broadcast_to(GREY, (H, W, 3)))
        added = added[..., None] * weights[m].reshape(H, W, 3, -1)  # [H,W,3,D]
        for i, (top, left) in enumerate(places(grid)):
            square = added[top : top + grid.side, left : left + grid.side].sum(axis=(0, 1, 2))
            np.testing.assert_allclose(drops.reshape(3, -1)[:, i], gallery @ square, rtol=1e-3, atol=1e-4)


def test_pairs_that_are_compared_by_what_both_have_are_hidden_as_they_are_compared():
    one = row(similarity="common")
    whole = subject({"a": one})
    both, place = sides.read(one, whole.encoder), np.array([3])  # a gallery row without an RGB picture
    found = occlusion.measure(whole, one, 5, both.vectors[1][place])
    grid, weights, data = occlusion.squares((H, W)), variables()["params"], whole.data
    other = normalised(data.images["gallery"]["tir"][3]).ravel() @ weights["tir"]
    assert np.abs(found["rgb"]).max() < 1e-6  # which the pair does not have in common

    def cosine(picture):
        own = normalised(picture).ravel() @ weights["tir"]
        return own @ other / np.linalg.norm(own) / np.linalg.norm(other)

    picture = data.images["query"]["tir"][5]
    expected = [cosine(picture) - cosine(hidden(picture, *x, grid.side)) for x in places(grid)]
    np.testing.assert_allclose(found["tir"].ravel(), expected, rtol=1e-3, atol=1e-5)


def test_pairs_are_the_first_and_last_match_and_the_first_other():
    """Rows 1 and 6 are junk of the query; rows 2 and 4 tie."""
    pids, junk = np.array([5, 5, 7, 5, 5, 7, 5, 9]), np.array([0, 1, 0, 0, 0, 0, 1, 0])
    relevance = Relevance(np.array([9, 5]), pids, np.array([2, 1]), junk)
    both = Sides(None, (np.arange(2), 100 + np.arange(8)), None, relevance)
    scores = np.array([0.1, 0.9, 0.5, 0.4, 0.5, 0.3, 0.8, 0.2], np.float32)
    found = occlusion.pairs(both, 1, scores)
    assert [(x.row, x.place, x.rank, x.match) for x in found] == [
        (104, 4, 2, True),
        (100, 0, 6, True),
        (102, 2, 1, False),
    ]
    assert [x.score for x in found] == pytest.approx([0.5, 0.1, 0.5])
    (only, other) = occlusion.pairs(both, 0, scores)
    assert (only.rank, only.match, other.rank, other.match) == (7, True, 1, False)


def test_the_section_shows_chosen_queries():
    rows = {"text": row(("text",), ("rgb",)), "a": row()}
    (chosen,) = occlusion.section(subject(rows), [8]).pictures
    assert chosen.name == "occlusion_8" and "row 8 of query (identity 10" in chosen.caption
    assert "squares of 2 x 2 pixels" in chosen.caption and "by rgb+tir" in chosen.caption
    assert chosen.png.startswith(b"\x89PNG")
    assert occlusion.section(subject({"text": rows["text"]})) is None


def test_random_queries_follow_from_the_seed_and_have_a_match(monkeypatch):
    monkeypatch.setattr(charts, "draw", lambda paint, **size: b"")
    data = Data()
    data.tables["query"]["pid"][1::2] = 99
    found = [occlusion.section(subject({"a": row()}, data, seed=seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2] and [len(x.pictures) for x in found] == [2, 2, 2]
    rows = {int(picture.name.removeprefix("occlusion_")) for x in found for picture in x.pictures}
    assert not any(i % 2 for i in rows)
