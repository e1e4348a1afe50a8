"""How fast metrics come from features: this project's ranks, next to the loop that papers ship; distances included.

python tests/benchmarks/ranking.py [--queries=5000] [--gallery=20000] [--dim=1536] [--rounds=3] [--json]

Both loops sort the indices of every row of the whole distance matrix and walk over the queries. `loop` makes the
precision at each rank by a list comprehension, as code that many papers copied does; `vector_loop` by a division of
arrays. They make CMC and mAP. Ours is timed, compiled before, as `rank`, which adds mINP and TPRs; as `rank_only`,
without the TPRs; and as `numpy`, which ranks distances that numpy made. Ours takes the median of the rounds, a loop
runs once. `rerank` is k-reciprocal re-ranking with its defaults, ranked too, once. Each runs in a process of its own,
whose peak of memory is told. All but the last must agree: numbers to 1e-4, as two matrix products differ in their last
bits.
"""

import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags

QUERIES = flags.DEFINE_integer("queries", 5000, "Queries.")
GALLERY = flags.DEFINE_integer("gallery", 20000, "Gallery rows.")
DIM = flags.DEFINE_integer("dim", 1536, "Width of a vector.")
ROUNDS = flags.DEFINE_integer("rounds", 3, "How often ours is timed.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")
ONE = flags.DEFINE_string("one", "", "Only time this way, in this process.")

IDENTITIES, CAMERAS = 1000, 6
OURS, LOOPS = ("rank", "rank_only", "numpy"), ("loop", "vector_loop")


def problem():
    """Unit vectors of queries and gallery around identities, and who is before which camera."""
    rng = np.random.default_rng(0)
    center = rng.standard_normal((IDENTITIES, DIM.value), dtype=np.float32)
    sides = []
    for n in (QUERIES.value, GALLERY.value):
        pid = rng.integers(0, IDENTITIES, n)
        x = center[pid] + 3 * rng.standard_normal((n, DIM.value), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        sides.append((x, {"pid": pid, "camid": rng.integers(0, CAMERAS, n)}))
    return sides


def loop(query, gallery, listed: bool) -> dict:
    """CMC and mAP as they are commonly written."""
    (x, q), (y, g) = query, gallery
    dist = 2 - 2 * x @ y.T
    order = np.argsort(dist, axis=1)
    first, precisions = [], []
    for i, row in enumerate(order):
        junk = (g["pid"][row] == q["pid"][i]) & (g["camid"][row] == q["camid"][i])
        hit = (g["pid"][row] == q["pid"][i])[~junk]
        if not hit.any():
            continue
        found = hit.cumsum()
        if listed:
            precision = np.array([count / (rank + 1.0) for rank, count in enumerate(found)])
        else:
            precision = found / np.arange(1, len(found) + 1)
        precisions.append((precision * hit).sum() / hit.sum())
        first.append(hit.argmax())
    return {"mAP": np.mean(precisions), "rank1": np.mean(np.array(first) == 0)}


def timed(way: str) -> dict:
    """Seconds of every round, the peak of memory and the numbers of one way."""
    if way in LOOPS:
        rank, rounds = functools.partial(loop, listed=way == "loop"), 1
    else:
        import jax

        from jax_mmreid.metrics import device_ranking, ranking
        from jax_mmreid.metrics import rerank as reranking
        from jax_mmreid.sharding import make_mesh

        mesh = make_mesh(data=-1, model=1)

        def rank(query, gallery):
            rows = ranking.relevance("same_camera", query[1], gallery[1])
            if way == "numpy":
                return ranking.rank(-(query[0] @ gallery[0].T), rows)
            if way == "rerank":
                return ranking.rank(reranking.rerank(query[0], gallery[0]), rows)
            if way == "rank_only":
                return ranking.scores(device_ranking.ranks(query[0], gallery[0], rows, mesh))
            return device_ranking.rank(query[0], gallery[0], rows, mesh)

        rounds = 1 if way == "rerank" else ROUNDS.value
    sides = problem()
    if way in OURS:
        x, columns = sides[0]
        rank((x[:300], {key: column[:300] for key, column in columns.items()}), sides[1])  # compiles
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        numbers = rank(*sides)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes, on Linux
    device = "numpy" if way in LOOPS else str(jax.devices()[0].device_kind)
    return {"seconds": seconds, "peak_gib": peak, "device": device} | {k: numbers[k] for k in ("mAP", "rank1")}


def main(_):
    if ONE.value:
        print(json.dumps(timed(ONE.value)))
        return
    sizes = [f"--{flag.name}={flag.value}" for flag in (QUERIES, GALLERY, DIM, ROUNDS)]
    found = {}
    for way in (*OURS, *LOOPS, "rerank"):
        command = [sys.executable, str(Path(__file__)), *sizes, f"--one={way}"]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for way in (*OURS, "vector_loop"):
        for name in ("mAP", "rank1"):
            if abs(found[way][name] - found["loop"][name]) > 1e-4:
                raise SystemExit(f"{way} says {name} {found[way][name]}, the loop {found['loop'][name]}")
    result = {"queries": QUERIES.value, "gallery": GALLERY.value, "dim": DIM.value, "device": found["rank"]["device"]}
    for way, one in found.items():
        result[f"{way}_seconds"] = round(statistics.median(one["seconds"]), 2)
        result[f"{way}_peak_gib"] = round(one["peak_gib"], 2)
    for way in OURS:
        for other in LOOPS:
            result[f"{way}_to_{other}"] = round(result[f"{other}_seconds"] / result[f"{way}_seconds"], 1)
    print(json.dumps(result) if JSON.value else "\n".join(f"{key:24} {value}" for key, value in result.items()))


if __name__ == "__main__":
    app.run(main)
