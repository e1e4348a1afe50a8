"""Which rows a report looks at: they are those of the evaluation, and come back from single batches as from splits."""

import numpy as np
import pytest
from looked_at import MODALITIES, Data, row, subject, vectors

from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.metrics import device_ranking
from jax_mmreid.report import rows, sides

DRAWN = {"draw": dict(cameras=(2, 1), shots=1)}


@pytest.mark.parametrize(
    "one", [row(), row(("tir",), ("rgb",)), row(("rgb", "text"), junk="none"), row(similarity="common")], ids=str
)
def test_sides_are_those_that_the_evaluation_ranks(one):
    whole = subject({"a": one})
    both = sides.read(one, whole.encoder)
    found = device_ranking.rank(*both.vectors, both.relevance, whole.mesh)
    assert found["mAP"] == Retrieval(one).run(whole.encoder)["mAP"]


def test_a_drawn_gallery_is_that_of_the_first_trial():
    one = row(junk="none")
    one["gallery"] |= DRAWN
    whole = subject({"a": one | {"trials": 3}}, data := Data(rows=(11, 40)))
    queries, gallery = sides.read(one, whole.encoder).rows
    assert gallery.tolist() == data.draw(**DRAWN["draw"]).tolist() and len(gallery) < 20
    assert queries.tolist() == list(range(11))


def test_rows_that_lack_what_is_used_are_left_out():
    one = row(("rgb", "text"), ("tir",))
    queries, gallery = sides.read(one, subject({"a": one}).encoder).rows
    assert queries.tolist() == [i for i in range(11) if i % 5 != 3 and i != 2]
    assert gallery.tolist() == [i for i in range(13) if i % 5 != 4]


@pytest.mark.parametrize("use", [("rgb",), MODALITIES, ("tir", "text")])
def test_rows_have_the_same_vectors_alone_as_in_their_split(use):
    whole, chosen = subject({"a": row(use)}), [9, 0, 4, 1]
    batch = rows.batch_of(whole, "query", chosen)
    assert set(batch["text"]) == {"rgb"} and batch["present"]["tir"].tolist() != [True] * 4
    found = whole.encoder.of_batch(batch, use, {})
    expected = whole.encoder.vectors("query", use, {})[np.array(chosen)]
    found, expected = (whole.encoder.fetch(x) for x in (found, expected))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    there = expected.any(axis=1)
    np.testing.assert_allclose(found[there], vectors(whole.data, "query", use)[chosen][there], rtol=0, atol=1e-5)


def test_padding_has_no_vectors():
    whole = subject({"a": row()})
    batch = rows.batch_of(whole, "query", [3, 5, 5]) | {"valid": np.array([True, True, False])}
    assert len(whole.encoder.of_batch(batch, MODALITIES, {})) == 2


def test_words_name_identity_and_camera():
    whole = subject({"a": row()})
    camera = whole.data.tables["gallery"]["camid"][7]
    assert rows.words(whole, "gallery", 7) == f"row 7 of gallery (identity 19, camera {camera})"


def test_rows_that_compare_the_same_are_shown_once():
    found = {
        "x/full": row(group="x", setting="full"),
        "x/tir": row(("tir",), ("tir",), group="x", setting="tir"),
        "y/full": row(group="y", setting="full", options={"unit": True}),
        "y/again": row(group="y", setting="again", trials=1, cmc="identity"),
        "y/junk": row(group="y", setting="junk", junk="none"),
        "z": row(similarity="common"),
    }
    labels = {group: list(rows) for group, rows in sides.grouped(found).items()}
    assert labels == {"x": ["full", "tir"], "y": ["full"], "": ["z"]}
    assert list(sides.grouped(found, "junk")["y"]) == ["full", "junk"]


def test_the_widest_row_shows_all_that_its_queries_have():
    mixed = row(("rgb", "tir", "text"))
    mixed["query"]["mixed"] = 0
    assert sides.widest({"a": row(("tir",)), "b": row(), "c": row(("text", "tir")), "d": mixed}) == "b"
    assert sides.widest({"d": mixed}) == "" == sides.widest({})
    assert sides.used(row()) == "rgb+tir" and sides.used(row(("tir", "text"), ("rgb",))) == "tir+text > rgb"
