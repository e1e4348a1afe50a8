"""How fast metrics come from features: this project's ranks, next to the loop that papers ship; distances included.

python tests/benchmarks/ranking.py [--queries=5000] [--gallery=20000] [--dim=1536] [--rounds=3] [--json]

Both loops sort the indices of every row of the whole distance matrix and iterate over the queries. `loop` makes the
precision at each rank by a list comprehension, as the code that many papers copied does; `vector_loop` by a division of
arrays. They make CMC and mAP. Ours is timed, compiled before, as `rank`, which adds mINP and TPRs; as `rank_only`,
without the TPRs; and as `numpy`, which ranks distances that numpy made. Ours takes the median of the rounds, a loop
runs once. `rerank` is k-reciprocal re-ranking with its defaults, ranked too, once. Each runs in a process of its own,
whose peak of memory is printed. All but the last must agree: numbers to 1e-4, as two matrix products differ in their
last bits.
"""

import argparse
import functools
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

IDENTITIES, CAMERAS = 1000, 6
OURS, LOOPS = ("rank", "rank_only", "numpy"), ("loop", "vector_loop")
WAYS = (*OURS, *LOOPS, "rerank")
COMPILED_ROWS = 300  # queries of the call that compiles


class Sizes(NamedTuple):
    queries: int = 5000
    gallery: int = 20000
    dim: int = 1536
    rounds: int = 3


def problem(sizes: Sizes) -> list[tuple[np.ndarray, dict]]:
    """Unit vectors of queries and gallery around identities, with their pid and camid."""
    rng = np.random.default_rng(0)
    center = rng.standard_normal((IDENTITIES, sizes.dim), dtype=np.float32)
    sides = []
    for n in (sizes.queries, sizes.gallery):
        pid = rng.integers(0, IDENTITIES, n)
        x = center[pid] + 3 * rng.standard_normal((n, sizes.dim), dtype=np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        sides.append((x, {"pid": pid, "camid": rng.integers(0, CAMERAS, n)}))
    return sides


def loop(query: tuple[np.ndarray, dict], gallery: tuple[np.ndarray, dict], listed: bool) -> dict:
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


def ours(query: tuple[np.ndarray, dict], gallery: tuple[np.ndarray, dict], way: str) -> dict:
    """The same by this project, on all devices."""
    from jax_mmreid.metrics import device_ranking, ranking
    from jax_mmreid.metrics import rerank as reranking
    from jax_mmreid.sharding import make_mesh

    mesh = make_mesh(data=-1, model=1)
    rows = ranking.relevance("same_camera", query[1], gallery[1])
    if way == "numpy":
        return ranking.rank(-(query[0] @ gallery[0].T), rows)
    if way == "rerank":
        return ranking.rank(reranking.rerank(query[0], gallery[0]), rows)
    if way == "rank_only":
        return ranking.scores(device_ranking.ranks(query[0], gallery[0], rows, mesh))
    return device_ranking.rank(query[0], gallery[0], rows, mesh)


def timed(way: str, sizes: Sizes) -> dict:
    """Seconds of every round, the peak of memory and the numbers of one way."""
    rank = functools.partial(loop, listed=way == "loop") if way in LOOPS else functools.partial(ours, way=way)
    sides = problem(sizes)
    if way in OURS:
        x, columns = sides[0]
        rank((x[:COMPILED_ROWS], {key: column[:COMPILED_ROWS] for key, column in columns.items()}), sides[1])
    seconds = []
    for _ in range(sizes.rounds if way in OURS else 1):
        begin = time.perf_counter()
        numbers = rank(*sides)
        seconds.append(time.perf_counter() - begin)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes, on Linux
    return {"seconds": seconds, "peak_gib": peak, "device": _device(way)} | {k: numbers[k] for k in ("mAP", "rank1")}


def _device(way: str) -> str:
    if way in LOOPS:
        return "numpy"
    import jax

    return jax.devices()[0].device_kind


def timed_in_a_process(way: str, sizes: Sizes) -> dict:
    """`timed` in a process of its own."""
    flags = [f"--{name}={value}" for name, value in sizes._asdict().items()]
    command = [sys.executable, str(Path(__file__)), *flags, f"--one={way}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summary(found: dict[str, dict], sizes: Sizes) -> dict:
    """What is printed of the ways; ends the program if their numbers do not agree."""
    for way in (*OURS, "vector_loop"):
        for name in ("mAP", "rank1"):
            if abs(found[way][name] - found["loop"][name]) > 1e-4:
                raise SystemExit(f"{name} is {found[way][name]} by {way} and {found['loop'][name]} by the loop")
    result = sizes._asdict() | {"device": found["rank"]["device"]}
    for way, one in found.items():
        result[f"{way}_seconds"] = round(statistics.median(one["seconds"]), 2)
        result[f"{way}_peak_gib"] = round(one["peak_gib"], 2)
    for way in OURS:
        for other in LOOPS:
            ratio = statistics.median(found[other]["seconds"]) / statistics.median(found[way]["seconds"])
            result[f"{way}_to_{other}"] = round(ratio, 1)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--queries", type=int, default=Sizes().queries)
    parser.add_argument("--gallery", type=int, default=Sizes().gallery, help="gallery rows")
    parser.add_argument("--dim", type=int, default=Sizes().dim, help="width of a vector")
    parser.add_argument("--rounds", type=int, default=Sizes().rounds, help="how often ours is timed")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=WAYS, help="time only this way, in this process, and print JSON")
    arguments = parser.parse_args(argv)
    sizes = Sizes(arguments.queries, arguments.gallery, arguments.dim, arguments.rounds)
    if arguments.one:
        print(json.dumps(timed(arguments.one, sizes)))
        return
    result = summary({way: timed_in_a_process(way, sizes) for way in WAYS}, sizes)
    print(json.dumps(result) if arguments.json else "\n".join(f"{key:24} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
