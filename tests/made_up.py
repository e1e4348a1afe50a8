"""A cross-modality split made by hand and a method of a few sums, for tests of protocols.

Every number can be computed again with a loop.
"""

import dataclasses
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import jax
import numpy as np
import pytest

from input_pipeline.records import Records
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.methods import Method
from jax_mmreid.metrics import galleries, ranking
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


def without_captions(*absent):
    """A `MadeUp` in which these queries have no caption."""
    captioned = np.ones(MadeUp().num_rows("query"), bool)
    captioned[list(absent)] = False
    return MadeUp(captioned)
