"""Cross-modality protocols: drawn galleries, captions in queries, identity CMC, on a split made by hand.

The method here is a few sums, so that every number can be computed again with a loop.
"""

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.records import Records
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import encoder as encoding
from jax_mmreid.evaluators import retrieval, runner
from jax_mmreid.methods import Method
from jax_mmreid.metrics import galleries, protocols, ranking
from jax_mmreid.ops import masked
from jax_mmreid.sharding import make_mesh

PEOPLE = (3, 5, 8, 11, 20)
H, W, L = 2, 3, 4
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Sums(Method):
    """Vectors are sums of pixels and tokens times `scale` of what a row has and a side uses, of unit length."""

    scale: float = 0.0
    options: ClassVar = {"scale": (0.0, 2.0)}
    init = loss = None  # nothing is trained

    def encode(self, variables, batch):
        pixels = {name: x.reshape(len(x), -1) for name, x in batch["images"].items()}
        text = {"text": batch["text"]["rgb"] @ variables["params"]["words"]} if "text" in batch else {}
        return pixels | text | {"present": batch["present"]}

    def embed(self, variables, features, use):
        if use == ("text", "ir"):
            raise ConfigError("sums: cannot read text before a picture")
        one = {"text": 0.3 + self.scale}
        parts = [one.get(name, 1.0) * features[name] * features["present"][name][:, None] for name in use]
        return masked.unit(sum(parts))


class MadeUp:
    """A `Data` of infrared, captioned queries before cameras 3 and 6 and visible pictures before 1, 2, 4 and 5.

    Cameras do not ascend in the gallery, so that what is drawn from it is in another order than its rows.
    """

    spec = SimpleNamespace(modalities=("rgb", "ir"))

    def __init__(self, captioned=None):
        rng = np.random.default_rng(0)
        center = {pid: rng.normal(0, 1, H * W * 3) for pid in PEOPLE}
        self.tables, self.pixels, self.read = {}, {}, Counter()
        for split, cameras, most in (("query", (3, 6), 4), ("gallery", (5, 2, 4, 1), 6)):
            rows = [(p, c) for p in PEOPLE for c in cameras for _ in range(rng.integers(0 if c == 5 else 1, most))]
            pid, camid = np.array(rows, np.int32).T
            self.tables[split] = Records("", {"rgb": np.full(len(pid), "x")}, pid, camid, np.zeros_like(pid))
            x = np.stack([center[p] for p in pid]) + rng.normal(0, 1.5, (len(pid), H * W * 3))
            self.pixels[split] = np.clip(127 + 40 * x, 0, 255).astype(np.uint8).reshape(-1, H, W, 3)
        self.tokens = rng.integers(0, 50, (self.num_rows("query"), L)).astype(np.int32)
        self.tokens[:, -1] = 99  # the end of a caption
        self.captioned = np.ones(len(self.tokens), bool) if captioned is None else captioned
        self.tokens[~self.captioned, :2] = 98, 99  # the end follows the start

    def num_rows(self, name):
        if name not in self.tables:
            raise ConfigError(f"data: no split {name!r}; there are query, gallery")
        return len(self.tables[name])

    def present(self, name):
        some, none = (f(self.num_rows(name), bool) for f in (np.ones, np.zeros))
        if name == "query":
            return {"ir": some, "rgb": none, "text/rgb": self.captioned, "text": self.captioned}
        return {"ir": none, "rgb": some}

    def columns(self, name):
        return {key: getattr(self.tables[name], key) for key in ("pid", "camid", "view")}

    def draw(self, name, **options):
        return galleries.draw(self.columns(name), **options)

    def split(self, name):
        """Batches with the keys that the split has: no visible pictures in queries, no captions in galleries."""
        mine, table = "ir" if name == "query" else "rgb", self.tables[name]
        for start in range(0, len(table), BATCH):
            self.read[name] += 1
            rows = np.minimum(np.arange(start, start + BATCH), len(table) - 1)
            valid = np.arange(start, start + BATCH) < len(table)
            kept = {m: x[rows] for m, x in self.present(name).items() if m == mine or m.startswith("text")}
            batch = {"images": {mine: self.pixels[name][rows]}, "present": kept, "valid": valid}
            batch |= dict(index=rows.astype(np.int32), pid=table.pid[rows], camid=table.camid[rows])
            batch |= {"view": table.view[rows]}
            yield batch | ({"text": {"rgb": self.tokens[rows]}} if name == "query" else {})


def row(use=("ir", "text"), cameras=(1, 2, 4, 5), shots=1, **more):
    """A row of SYSU-MM01 with `cameras` to search; None searches the whole split."""
    gallery = dict(split="gallery", use=("rgb",))
    if cameras:
        gallery |= dict(draw=dict(cameras=cameras, shots=shots))
    trials = {"trials": 10} if cameras else {}
    query = dict(split="query", use=use)
    return dict(query=query, gallery=gallery, junk="sysu_cameras", cmc="identity") | trials | more


VARIABLES = {"params": {"words": np.random.default_rng(1).normal(0, 0.01, (L, H * W * 3)).astype(np.float32)}}


def run(data, method=None, variables=VARIABLES, devices=1, **rows):
    """Results of checked rows, without any transfer that is not asked for."""
    runner.check(rows, data)
    mesh = make_mesh(data=devices, model=1, devices=jax.devices()[:devices])
    placed = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
    with jax.transfer_guard("disallow"):
        return runner.run(rows, method or Sums(), placed, data, mesh, mean=0.5, std=0.5)


def loop(data, use, drawn, *, scale=0.0, identity=True):
    """The numbers of one gallery by the definitions, one query at a time, over queries with captions."""
    weight = {"ir": 1.0, "text": 0.3 + scale}
    pixels = {name: (x / 255 - 0.5).reshape(len(x), -1) / 0.5 for name, x in data.pixels.items()}
    parts = {"ir": pixels["query"], "text": data.tokens @ VARIABLES["params"]["words"]}
    query, gallery = sum(weight[name] * parts[name] for name in use), pixels["gallery"][drawn]
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery))
    pid, camid = data.tables["gallery"].pid[drawn], data.tables["gallery"].camid[drawn]
    aps, inps, firsts, own, negatives = [], [], [], [], []
    for vector, p, c in zip(query, data.tables["query"].pid, data.tables["query"].camid):
        ranked = [g for g in np.argsort(-gallery @ vector) if not (c == 3 and camid[g] == 2)]
        hits = [r for r, g in enumerate(ranked, 1) if pid[g] == p]
        if hits:
            aps.append(np.mean([n / r for n, r in enumerate(hits, 1)]))
            inps.append(len(hits) / hits[-1])
            ahead = [pid[g] for g in ranked[: hits[0] - 1]]
            firsts.append(1 + len(set(ahead) if identity else ahead))
            own += [gallery[g] @ vector for g in ranked if pid[g] == p]
            negatives += [gallery[g] @ vector for g in ranked if pid[g] != p]
    cmc = {f"rank{r}": np.mean([first <= r for first in firsts]) for r in (1, 5, 10, 20)}
    negatives.sort(reverse=True)
    tprs = {f"TPR@1e-{n}": np.mean([x > negatives[len(negatives) // 10**n] for x in own]) for n in (2, 3, 4)}
    return {"mAP": np.mean(aps), "mINP": np.mean(inps), **cmc, **tprs}


def assert_means(result, trials):
    assert set(trials[0]) == set(ranking.METRICS)
    for name in ranking.METRICS:
        assert result[name] == pytest.approx(np.mean([scores[name] for scores in trials]), abs=1e-12), name


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


def without_captions(*absent):
    """A `MadeUp` in which these queries have no caption."""
    captioned = np.ones(MadeUp().num_rows("query"), bool)
    captioned[list(absent)] = False
    return MadeUp(captioned)


@pytest.mark.parametrize("caption", ["text", "text/rgb"])
def test_captions_in_use_must_be_there(caption):
    data = without_captions(4, 7)
    for use, lack in (((caption,), ""), (("ir", caption), "no picture of ir, or ")):
        message = rf"evals.a: row 4 of split 'query' has {lack}no caption \({caption}\) \(2 such rows\).*'skip'"
        with pytest.raises(DataError, match=message):
            runner.check({"a": row(use)}, data)
    runner.check({"a": row(("ir",))}, data)  # which needs none


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
