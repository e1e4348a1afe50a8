"""Rows of cross-modality protocols that are refused: fields, captions, options, matches and vectors."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from made_up import MadeUp, Sums, row, run, without_captions

from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import runner


@pytest.mark.parametrize("caption", ["text", "text/rgb"])
def test_captions_in_use_must_be_there(caption):
    data = without_captions(4, 7)
    for use, lack in (((caption,), ""), (("ir", caption), "no picture of ir, or ")):
        message = rf"evals.a: row 4 of split 'query' has {lack}no caption \({caption}\) \(2 such rows\).*'skip'"
        with pytest.raises(DataError, match=message):
            runner.check({"a": row(use)}, data)
    runner.check({"a": row(("ir",))}, data)  # which needs none


def test_skipping_leaves_something():
    with pytest.raises(DataError, match=r"evals.a: row 0 of split 'query' has no caption") as error:
        data = without_captions(*range(MadeUp().num_rows("query")))
        runner.check({"a": row(("text",), incomplete="skip")}, data)
    assert "set incomplete" not in str(error.value)


class Uncaptioned(MadeUp):
    """The same where nothing has captions."""

    def present(self, name):
        return {m: x for m, x in super().present(name).items() if not m.startswith("text")}


def test_captions_that_a_split_does_not_have_are_a_matter_of_the_config():
    message = "evals.all/mer: captions are used, and split 'query' has none;"
    with pytest.raises(ConfigError, match=message) as error:
        runner.check({"all/mer": row()}, Uncaptioned())
    for way_out in ("data.text.tokenizer", "data.options.captioner", "data.options.query_captions"):
        assert way_out in str(error.value)
    with pytest.raises(ConfigError, match="evals.a: captions of ir are used, .*; it has captions of rgb; set"):
        runner.check({"a": row(("ir", "text/rgb", "text/ir"))}, MadeUp())
    gallery = dict(split="gallery", use=("rgb", "text"))
    with pytest.raises(ConfigError, match="captions are used, and split 'gallery' has none"):
        runner.check({"a": row() | dict(gallery=gallery, trials=1)}, MadeUp())


def drawing(**draw):
    return dict(gallery=dict(split="gallery", use=("rgb",), draw=draw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drawing(cameras=(1, 2), shots=0), r"evals.a: draw.shots=0: must lie in \[1, inf\)"),
        (drawing(cameras=(7,), shots=1), r"evals.a: draw.cameras=\(7,\): the split has pictures by cameras 1, 2, 4, 5"),
        (drawing(cameras=(1,)), "evals.a: gallery.draw lacks the key 'shots'"),
        (
            drawing(cameras=(1,), shots=1, mode="all"),
            "gallery.draw has a key 'mode'; there are cameras, shots",
        ),
        (dict(trials=0), "evals.a: trials=0, must be 1 or more"),
        (dict(gallery=dict(split="gallery", use=("rgb",))), "trials=10, .* more than 1 needs gallery.draw"),
        (
            dict(query=dict(split="query", use=("ir",), draw={})),
            "query has a key 'draw'; there are split, use",
        ),
        (dict(cmc="image"), "evals.a: cmc='image', expected one of picture, identity"),
        (
            dict(rank="identity"),
            "the row has a key 'rank'; there are query, gallery, junk, kind, group, setting, trials",
        ),
        (dict(query=dict(split="query", use=("ir", "words"))), "evals.a: use names 'words'; there are"),
        (dict(query=dict(split="query", use="ir")), "evals.a: query.use='ir': must be a tuple of strings"),
        (dict(trials=2.5), "evals.a: trials=2.5: must be a whole number"),
        (dict(rerank=dict(k1=20, k2=6.5, lam=0.3)), "evals.a: rerank.k2=6.5: must be a whole number"),
        (drawing(cameras=(1, "2"), shots=1), "evals.a: gallery.draw.cameras=.*: must be a tuple of whole numbers"),
        (dict(query=dict(split="query", use=())), "evals.a: query.use is empty"),
        (dict(query=dict(split="test", use=("ir",))), "evals.a: data: no split 'test'; there are query, gallery"),
        (dict(rerank=dict(k1=0, k2=6, lam=0.3)), "evals.a: re-ranking: k1=0 and k2=6 must be at least 1"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused_at_once(change, message):
    data = MadeUp()
    with pytest.raises(ConfigError, match=message) as error:
        runner.check({"a": row() | change}, data)
    assert not data.read and "\n" not in str(error.value)


def test_what_the_method_cannot_do_is_named_with_the_row():
    with pytest.raises(ConfigError, match="evals.odd: sums: cannot read text before a picture"):
        run(MadeUp(), odd=row(gallery=dict(split="query", use=("text", "ir")), cameras=None))
    data = MadeUp()
    with pytest.raises(ConfigError, match="evals.odd: options: the method has no option 'neck'; there are: scale"):
        run(data, odd=row(options=dict(neck="base")))
    assert not data.read


def test_a_gallery_without_any_match_is_no_success():
    data = MadeUp()
    data.tables["query"].pid[:] += 100
    message = "evals.a: ranking: no query has a match in the gallery; check the split and the junk rule"
    with pytest.raises(DataError, match=message):
        run(data, a=row())


@pytest.mark.parametrize("rerank", [{}, dict(k1=3, k2=2, lam=0.3)])
@pytest.mark.parametrize(("factor", "use"), [(np.nan, ("ir",)), (0.0, ("text",)), (np.inf, ("text",))])
def test_vectors_without_a_direction_are_no_success(rerank, factor, use):
    """They would rank by chance; a query that does not take part may have one."""

    @dataclasses.dataclass(frozen=True)
    class Failing(Sums):
        def embed(self, variables, features, use):
            bad = (features["index"] == 5) | (features["index"] == 9)
            return super().embed(variables, features, use) * jnp.where(bad, factor, 1)[:, None]

        def encode(self, variables, batch):
            return super().encode(variables, batch) | {"index": batch["index"]}

    rows = {"a": row(use, gallery=dict(split="query", use=("ir",)), cameras=None, rerank=rerank, incomplete="skip")}
    message = rf"evals.a: row 5 of split 'query' has a vector of {use[0]} that is zero or not finite \(2 such rows\)"
    with pytest.raises(DataError, match=message):
        run(MadeUp(), Failing(), **rows)
    query = dict(query=dict(split="query", use=("text",)), gallery=dict(split="gallery", use=("rgb",)), trials=1)
    rows["a"] |= query
    with pytest.raises(DataError, match=r"row 9 of split 'query' has a vector of text .* \(1 such rows\)"):
        run(without_captions(5), Failing(), **rows)
