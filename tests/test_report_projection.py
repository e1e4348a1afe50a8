"""Projection: which rows are shown, their distances and silhouettes by the definition, the same picture each time."""

import numpy as np
import pytest
from looked_at import MODALITIES, Data, row, subject, vectors

from jax_mmreid.report import projection, sides
from jax_mmreid.report.projection import ROWS

ALONE = {m: row((m,), (m,), setting=m) for m in MODALITIES}
ALL = np.array([10, 13, 16, 19])


def measured(one, data, pids=ALL, seed=0):
    return projection.measure(subject({"a": one}, data).encoder, sides.names(one), pids, seed=seed)


def test_points_are_all_rows_of_the_identities_and_their_cosine_distances():
    data, chosen = Data(), [10, 19]
    found = measured(row(("rgb", "text"), ("rgb", "tir")), data, chosen)
    pids = [data.tables[split]["pid"] for split in ("query", "gallery")]
    queries = [i for pid in chosen for i in range(11) if i % 5 != 3 and i != 2 and pids[0][i] == pid]
    gallery = [i for pid in chosen for i in range(13) if pids[1][i] == pid]
    assert found.pids.tolist() == [*pids[0][queries], *pids[1][gallery]]
    has = [{3: "tir", 4: "rgb"}.get(i % 5, "rgb+tir") for i in gallery]
    assert found.uses.tolist() == ["rgb+text"] * len(queries) + has and len(set(has)) == 3
    whole = np.concatenate(
        [vectors(data, "query", ("rgb", "text"))[queries], vectors(data, "gallery", MODALITIES)[gallery]]
    )
    np.testing.assert_allclose(found.distances, 1 - whole @ whole.T, rtol=0, atol=1e-5)


def test_of_many_rows_some_are_drawn_and_a_side_that_occurs_twice_is_one():
    data = Data(identities=3, rows=(11, 3 * (ROWS + 2)))
    one = row(("tir",), ("tir",))
    one["query"] = one["gallery"]
    data.there["gallery"]["tir"][:] = True
    first, again, other = (measured(one, data, ALL[:3], seed) for seed in (0, 0, 1))
    assert np.unique(first.pids, return_counts=True)[1].tolist() == [ROWS] * 3
    assert np.array_equal(first.distances, again.distances) and not np.array_equal(first.distances, other.distances)


def test_ten_random_identities_have_points_in_every_setting():
    data = Data(identities=15, rows=(30, 45))
    data.tables["gallery"]["pid"][data.tables["gallery"]["pid"] == 13] = 16
    data.there["query"]["tir"][data.tables["query"]["pid"] == 13] = False
    rows = {"a": row(), "b": row(("tir",), ("tir",))}
    first, again, other = (projection.identities(subject(rows, data, seed=seed)) for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() == sorted(set(first)) != other.tolist()
    assert len(first) == 10 and all(
        13 not in projection.identities(subject(rows, data, seed=seed)) for seed in range(9)
    )
    assert projection.identities(subject({"a": row()}, Data(identities=1))).tolist() == [10]


def test_settings_without_a_common_identity_are_shown_with_those_that_they_have():
    data = Data(identities=2)
    data.there = {split: {m: np.zeros(n, bool) for m in MODALITIES} for split, n in (("query", 11), ("gallery", 13))}
    for split in data.there:
        data.there[split]["rgb"][data.tables[split]["pid"] == 10] = True
        data.there[split]["tir"][data.tables[split]["pid"] == 13] = True
    assert projection.identities(subject(ALONE, data)).tolist() == [10, 13]


def test_the_silhouette_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    distances = rng.random((9, 9))
    distances = distances + distances.T
    np.fill_diagonal(distances, 0)
    labels = np.array([1, 1, 2, 2, 2, 5, 5, 5, 9])
    scores = []
    for i, own in enumerate(labels):
        near = distances[i][(labels == own) & (np.arange(9) != i)]
        far = min(distances[i][labels == other].mean() for other in set(labels) - {own})
        scores.append((far - near.mean()) / max(far, near.mean()) if len(near) else 0)
    assert projection.silhouette(distances, labels) == pytest.approx(np.mean(scores))
    assert np.isnan(projection.silhouette(distances, np.zeros(9)))


def test_settings_of_one_modality_share_a_space():
    text = row(("text",), ("rgb",))
    mixed = row(("tir",), ("tir",))
    mixed["gallery"]["mixed"] = 3
    found = projection.single({"a": row(), "b": text, "c": ALONE["tir"], "d": ALONE["tir"], "e": mixed})
    assert [(side.split, side.use) for side in found] == [
        ("query", ("text",)),
        ("gallery", ("rgb",)),
        ("query", ("tir",)),
        ("gallery", ("tir",)),
    ]
    assert projection.single({"a": row(), "c": ALONE["tir"]}) == []
    assert projection.single({"a": ALONE["tir"], "c": ALONE["rgb"] | {"options": {"unit": False}}}) == []


def test_the_section_has_a_picture_for_each_group_and_one_of_the_shared_space():
    rows = {"x/full": row(group="x/y"), "c": row(similarity="common")} | ALONE
    found = projection.section(subject(rows))
    assert [x.name for x in found.pictures] == ["projection_x_y", "projection_all", "projection_shared"]
    points = projection.measure(subject(rows).encoder, projection.single(rows), ALL)
    numbers = [projection.silhouette(points.distances, x) for x in (points.pids, points.uses)]
    assert "{:.2f} and {:.2f}".format(*numbers) in found.pictures[2].caption
    assert set(points.uses.tolist()) == {*MODALITIES}
    assert projection.section(subject({})) is None
    assert projection.section(subject(ALONE, Data(identities=1))) is None


def test_places_follow_from_the_seed():
    distances = measured(row(), Data()).distances
    first, again, other = (projection.plane(distances, seed) for seed in (0, 0, 1))
    assert first.shape == (len(distances), 2) and np.array_equal(first, again) and not np.array_equal(first, other)
