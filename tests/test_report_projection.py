"""Projection: which rows are shown, their distances and silhouettes by the definition, the same picture each time."""

import numpy as np
import pytest
from looked_at import MODALITIES, Data, row, subject, vectors

from jax_mmreid.report import projection, sides
from jax_mmreid.report.projection import ROWS

ALONE = {m: row((m,), (m,), setting=m) for m in MODALITIES}


def measured(one, data=None, seed=0):
    whole = subject({"a": one}, data)
    both = sides.names(one)
    form = "common or available" if one.get("similarity") == "common" else "embed"
    return projection.measure(whole.encoder, both, {}, form=form, seed=seed)


def test_points_are_all_rows_of_the_identities_and_their_cosine_distances():
    data = Data()
    found = measured(row(("rgb", "text"), ("tir",)), data)
    queries = [i for i in range(11) if i % 5 != 3 and i != 2]  # with a picture and a caption
    gallery = [i for i in range(13) if i % 5 != 4]
    assert sorted(found.uses.tolist()) == ["rgb+text"] * len(queries) + ["tir"] * len(gallery)
    rows = [vectors(data, "query", ("rgb", "text"))[queries], vectors(data, "gallery", ("tir",))[gallery]]
    pids = np.concatenate([data.tables["query"]["pid"][queries], data.tables["gallery"]["pid"][gallery]])
    order = np.concatenate(
        [
            np.argsort(pids[: len(queries)], kind="stable"),
            len(queries) + np.argsort(pids[len(queries) :], kind="stable"),
        ]
    )
    whole = np.concatenate(rows)[order]
    assert found.pids.tolist() == pids[order].tolist()
    np.testing.assert_allclose(found.distances, 1 - whole @ whole.T, rtol=0, atol=1e-5)


def test_ten_identities_are_drawn_and_not_too_many_rows_of_each():
    data = Data(identities=12, rows=(36, 12 * (ROWS + 2)))
    data.there["gallery"] = {m: np.ones_like(x) for m, x in data.there["gallery"].items()}
    first, again, other = (measured(row(), data, seed) for seed in (0, 0, 1))
    pids, counts = np.unique(first.pids, return_counts=True)
    assert len(pids) == 10 and (counts == 3 + ROWS).all()
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert np.unique(other.pids).tolist() != pids.tolist()


def test_a_side_that_occurs_twice_is_shown_once():
    one = row(("tir",), ("tir",))
    one["query"] = one["gallery"]
    assert len(measured(one).pids) == sum(i % 5 != 4 for i in range(13))


def test_identities_with_one_row_are_left_out():
    data = Data()
    data.tables["query"]["pid"][:] = 10
    data.tables["gallery"]["pid"][:] = [10, 16, *[13] * 11]
    assert np.unique(measured(row(), data).pids).tolist() == [10, 13]
    assert measured(row(), Data(identities=1)) is None


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
    points = projection.measure(subject(rows).encoder, projection.single(rows), {})
    numbers = [projection.silhouette(points.distances, x) for x in (points.pids, points.uses)]
    assert "{:.2f} and {:.2f}".format(*numbers) in found.pictures[2].caption
    assert projection.section(subject({})) is None


def test_places_follow_from_the_seed():
    distances = measured(row()).distances
    first, again, other = (projection.plane(distances, seed) for seed in (0, 0, 1))
    assert first.shape == (len(distances), 2) and np.array_equal(first, again) and not np.array_equal(first, other)
