"""Scores of pairs: those of a loop over all pairs, without junk; thresholds let no more pass than they say."""

import numpy as np
import pytest
from looked_at import Data, row, subject, vectors

from jax_mmreid.report import charts, pair_scores
from jax_mmreid.search import thresholds


def loop(data, query=("rgb", "tir"), gallery=("rgb", "tir"), junk="same_camera"):
    """(scores of matching pairs, of other pairs, rows of other pairs) of the two splits, pair by pair."""
    q, g = vectors(data, "query", query), vectors(data, "gallery", gallery)
    queries, candidates = (data.tables[split] for split in ("query", "gallery"))
    same, other, rows = [], [], []
    for i, j in np.ndindex(len(q), len(g)):
        if not q[i].any() or not g[j].any():
            continue
        match = queries["pid"][i] == candidates["pid"][j]
        if match and junk == "same_camera" and queries["camid"][i] == candidates["camid"][j]:
            continue
        (same if match else other).append(q[i] @ g[j])
        rows += [] if match else [(i, j)]
    return np.sort(same), np.sort(other), rows


@pytest.mark.parametrize("junk", ["same_camera", "none"])
@pytest.mark.parametrize(("query", "gallery"), [(("rgb", "tir"), ("rgb", "tir")), (("tir",), ("rgb",))])
def test_pairs_are_those_of_the_loop(query, gallery, junk):
    data = Data()
    one = row(query, gallery, junk=junk)
    found = pair_scores.measure(one, subject({"a": one}, data).encoder)
    same, other, rows = loop(data, query, gallery, junk)
    np.testing.assert_allclose(np.sort(found.pairs.scores[found.pairs.same]), same, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.sort(found.pairs.scores[~found.pairs.same]), other, rtol=0, atol=1e-5)
    assert sorted(map(tuple, found.pairs.rows[~found.pairs.same].tolist())) == rows
    auc = np.mean([(a > b) + 0.5 * (a == b) for a in same for b in other])
    assert found.auc == pytest.approx(auc, abs=1e-9)
    assert "different identities; a false-match rate of 0.01 needs 1000" in found.reason


def test_pairs_of_one_split_are_pairs_of_rows_whichever_comes_first():
    one = row()
    one["query"] = one["gallery"]
    whole = subject({"a": one})
    found = pair_scores.measure(one, whole.encoder).pairs
    pids = whole.data.tables["gallery"]["pid"]
    assert (found.rows[:, 0] < found.rows[:, 1]).all()
    assert len(np.unique(found.rows[~found.same], axis=0)) == sum(
        pids[i] != pids[j] for i in range(13) for j in range(i)
    )


def test_few_of_many_pairs_are_drawn():
    data = Data(identities=6, rows=(60, 90))
    one = row(junk="none")
    encoder = subject({"a": one}, data).encoder
    whole, first, again, other = (
        pair_scores.measure(one, encoder, limit=limit, seed=seed)
        for limit, seed in ((10**6, 0), (700, 0), (700, 0), (700, 1))
    )
    assert first.pairs.scores.tolist() == again.pairs.scores.tolist() != other.pairs.scores.tolist()
    assert len(first.pairs.scores) < 1400 < len(whole.pairs.scores)
    assert first.pairs.weights.sum() == pytest.approx(len(whole.pairs.scores), rel=0.15)
    assert first.auc == pytest.approx(whole.auc, abs=0.05)


def test_a_threshold_lets_as_many_pass_as_it_says(monkeypatch):
    data = Data(identities=60, rows=(120, 180), noise=1.0)
    one = row()
    found = pair_scores.measure(one, subject({"a": one}, data).encoder)
    same, other, rows = loop(data)
    assert found.reason == "" and found.threshold.low <= found.threshold.value <= found.threshold.high
    assert np.mean(other > found.threshold.value + 1e-5) <= 0.01 <= np.mean(other >= found.threshold.value - 1e-5)
    cells = pair_scores._cells(found)
    assert cells[:2] == [str(len(same)), str(len(other))]
    assert cells[4] == f"{100 * np.mean(same > found.threshold.value):.1f} %"
    assert thresholds.find(found.pairs.take(~found.pairs.same), different=len(rows))[0.01][0] == found.threshold


def test_the_section_shows_every_group_and_says_what_it_cannot(monkeypatch):
    rows = {"x/full": row(group="x"), "tir": row(("tir",), ("tir",)), "text": row(("text",), ("rgb",), junk="none")}
    drawn = []
    original = charts.draw
    monkeypatch.setattr(charts, "draw", lambda paint, **size: drawn.append(size) or original(paint, **size))
    data = Data()
    found = pair_scores.section(subject(rows, data))
    assert [x.name for x in found.pictures] == ["pair_scores_x", "pair_scores_all"] and len(drawn) == 2
    ((_, table),) = found.tables
    assert [line[:2] for line in table[1:]] == [["x/full", "rgb+tir"], ["tir", "tir"], ["text", "text > rgb"]]
    same, other, _ = loop(data)
    assert table[1][2:4] == [str(len(same)), str(len(other))] and {line[5] for line in table[1:]} == {"cannot say"}
    assert f"x/full: {len(other)} pairs of different identities; a false-match rate" in found.text
    assert pair_scores.section(subject({})) is None
