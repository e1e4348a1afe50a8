"""Cross-modality protocols: drawn galleries, captions in queries, skipped rows, identity CMC, against loops."""

from collections import Counter

import numpy as np
import pytest
from made_up import BATCH, MadeUp, assert_means, loop, row, run, without_captions

from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import encoder as encoding
from jax_mmreid.evaluators import retrieval
from jax_mmreid.metrics import protocols


@pytest.mark.parametrize("cameras", [(1, 2, 4, 5), (1, 2)])
@pytest.mark.parametrize("shots", [1, 3])
def test_every_number_is_the_mean_over_the_galleries_that_were_drawn(cameras, shots):
    data = MadeUp()
    result = run(data, a=row(cameras=cameras, shots=shots))["a"]
    drawn = [data.draw("gallery", cameras=cameras, shots=shots, trial=i) for i in range(10)]
    trials = [loop(data, ("ir", "text"), rows) for rows in drawn]
    assert_means(result, trials)
    assert len({scores["mAP"] for scores in trials}) > 5  # they are ten galleries indeed
    assert result["trials"] == 10


def test_the_cmc_of_pictures_is_another_than_that_of_identities():
    data = MadeUp()
    results = run(data, a=row(shots=3), b=row(shots=3, cmc="picture"))
    drawn = [data.draw("gallery", cameras=(1, 2, 4, 5), shots=3, trial=i) for i in range(10)]
    assert_means(results["b"], [loop(data, ("ir", "text"), rows, identity=False) for rows in drawn])
    assert results["a"]["rank5"] > results["b"]["rank5"]
    assert [results["a"][name] for name in ("mAP", "mINP", "rank1")] == [
        results["b"][name] for name in ("mAP", "mINP", "rank1")
    ]


def test_a_gallery_that_is_not_drawn_is_the_whole_split():
    data = MadeUp()
    result = run(data, a=row(("ir",), None))["a"]
    assert_means(result, [loop(data, ("ir",), np.arange(data.num_rows("gallery")))])
    assert "trials" not in result and result["protocol"] == (
        "query query, gallery gallery, junk sysu_cameras, identity CMC"
    )


def test_options_and_use_say_what_a_query_is_made_of():
    data = MadeUp()
    rows = {use: row(use) for use in (("ir",), ("text",), ("ir", "text"))}
    results = run(data, **{"+".join(use): one for use, one in rows.items()}, strong=row(options={"scale": 2.0}))
    drawn = [data.draw("gallery", cameras=(1, 2, 4, 5), shots=1, trial=i) for i in range(10)]
    for use in rows:
        assert_means(results["+".join(use)], [loop(data, use, x) for x in drawn])
    assert_means(results["strong"], [loop(data, ("ir", "text"), x, scale=2.0) for x in drawn])
    assert len({result["mAP"] for result in results.values()}) == 4
    assert [result["feature"] for result in results.values()] == [
        "ir>rgb", "text>rgb", "ir+text>rgb", "ir+text>rgb, scale=2.0"
    ]  # fmt: skip


def test_the_protocol_names_what_was_drawn_and_how_ranks_count():
    results = run(MadeUp(), a=row(), b=row(cameras=(1, 2), shots=3, trials=2, cmc="picture", junk="none"))
    assert results["a"]["protocol"] == (
        "query query, gallery gallery (cameras 1, 2, 4, 5; shots 1; mean of 10 trials), junk sysu_cameras, identity CMC"
    )
    assert results["b"]["protocol"] == (
        "query query, gallery gallery (cameras 1, 2; shots 3; mean of 2 trials), junk none"
    )
    assert results["b"]["trials"] == 2


def test_ten_trials_of_many_rows_read_encode_and_embed_once(monkeypatch):
    calls = Counter()
    for module, name in ((encoding, "encode"), (encoding, "embed")):
        original = getattr(module, name)

        def counting(*args, name=name, original=original, **settings):
            calls[name] += 1
            return original(*args, **settings)

        monkeypatch.setattr(module, name, counting)
    data = MadeUp()
    run(data, a=row(), b=row(cameras=(1, 2)), c=row(shots=3), d=row(("ir",)))
    batches = {name: -(-data.num_rows(name) // BATCH) for name in ("query", "gallery")}
    assert data.read == batches and min(batches.values()) > 1
    assert calls["encode"] == sum(batches.values())
    assert calls["embed"] == 2 * batches["query"] + batches["gallery"]  # two kinds of queries, one gallery


def test_of_pictures_one_is_enough_beside_the_captions():
    """Queries have no visible picture, as the batches show by having no key for it."""
    present = dict(MadeUp(without_captions(4).captioned).present("query"))
    del present["rgb"]
    assert np.flatnonzero(~retrieval.complete(("rgb", "ir", "text"), present)).tolist() == [4]
    assert not retrieval.complete(("rgb", "text/rgb"), present).any()
    assert retrieval.complete(("rgb", "ir"), present).all()


def test_queries_without_captions_can_be_skipped_and_are_counted():
    data = without_captions(4, 7)
    result = run(data, a=row(incomplete="skip"))["a"]
    assert result["skipped"] == {"query": 2, "gallery": 0}
    assert result["note"] == (
        "leaves out 2 query rows and 0 gallery rows, which have no picture or no caption that it uses."
    )
    drawn = [data.draw("gallery", cameras=(1, 2, 4, 5), shots=1, trial=i) for i in range(10)]
    kept = np.flatnonzero(data.captioned)
    data.pixels["query"], data.tokens = data.pixels["query"][kept], data.tokens[kept]
    data.tables["query"] = data.tables["query"].take(kept)
    assert_means(result, [loop(data, ("ir", "text"), rows) for rows in drawn])


def test_gallery_rows_are_skipped_after_the_draw():
    """What a trial draws does not depend on what is complete, so trials of two settings stay comparable."""
    data = MadeUp()
    hidden = data.draw("gallery", cameras=(1, 2, 4, 5), shots=1, trial=0)[:3]
    complete = np.ones(data.num_rows("gallery"), bool)
    complete[hidden] = False
    found = list(retrieval._galleries(row(), complete, data.columns("gallery")))
    for trial, rows in enumerate(found):
        drawn = data.draw("gallery", cameras=(1, 2, 4, 5), shots=1, trial=trial)
        assert rows.tolist() == [x for x in drawn if x not in set(hidden)]
    assert len(found) == 10 and len(found[0]) == len(drawn) - 3


def test_the_fields_of_a_named_protocol_are_those_of_its_rows():
    gallery = dict(split="gallery", use=("rgb",))
    fields = protocols.row("sysu_mm01", gallery)
    assert dict(query=dict(split="query", use=("ir", "text"))) | fields == row()
    few = protocols.row("sysu_mm01", gallery, search="indoor", shots=10)
    assert few["gallery"] == gallery | dict(draw=dict(cameras=(1, 2), shots=10)) and few["trials"] == 10
    assert protocols.row("msvr310", gallery) == dict(gallery=gallery, junk="same_view")
    assert protocols.row("llcm", gallery)["gallery"]["draw"] == dict(cameras=(1, 2, 3, 4, 5, 6, 7, 8, 9), shots=1)
    for arguments, message in (
        (
            dict(name="sysu"),
            "no protocol named 'sysu'; there are rgbnt201, rgbnt100, market, msvr310",
        ),
        (dict(name="sysu_mm01", search="outdoor"), "search=outdoor: protocol sysu_mm01 has all or indoor"),
        (dict(name="llcm", shots=10), "shots=10: protocol llcm has 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            protocols.row(gallery=gallery, **arguments)
    with pytest.raises(ConfigError, match="protocol regdb draws no galleries"):
        protocols.draw("regdb")
