"""How fast a gallery is searched: `search.index` exactly, next to Faiss's flat index, and `search.approximate`.

python tests/benchmarks/index.py [--rows=1000000] [--dim=512] [--queries=1000] [--k=10] [--rounds=3] [--json]

Needs faiss-cpu. The gallery is a memory-mapped file of unit vectors around identities, one modality. `one` is the time
of a single query, `batch` that of all queries together for each of them, medians of the rounds, all compiled before;
`build` is the time from the file to the first search. Each way runs in a process of its own, whose peak of memory is
printed, pages of the file included. Exact ways must agree; of `lists`, the share of the exact matches that it finds is
printed (recall), too.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

EXACT, WAYS = ("index", "flat"), ("index", "flat", "lists")
PEOPLE = 20  # rows of an identity


class Sizes(NamedTuple):
    rows: int = 1_000_000
    dim: int = 512
    queries: int = 1000
    k: int = 10
    rounds: int = 3


def draw(folder: Path, sizes: Sizes) -> None:
    """Files of the gallery and the queries, unit vectors [n,D]."""
    rng = np.random.default_rng(0)
    centre = rng.standard_normal((max(1, sizes.rows // PEOPLE), sizes.dim), dtype=np.float32)
    for name, n in (("gallery", sizes.rows), ("queries", sizes.queries)):
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (n, sizes.dim))
        for start in range(0, n, 65_536):
            part = file[start : start + 65_536]
            part[:] = centre[rng.integers(len(centre), size=len(part))]
            part += 0.7 * rng.standard_normal(part.shape, dtype=np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)


def opened(way: str, gallery: np.ndarray, k: int):
    """A function of queries [Q,D] that returns rows and scores [Q,k]."""
    if way == "flat":
        import faiss

        flat = faiss.IndexFlatIP(gallery.shape[1])
        flat.add(gallery)
        return lambda query: flat.search(query, k)[::-1]
    from jax_mmreid.metrics.similarity import Parts
    from jax_mmreid.search.approximate import Approximate
    from jax_mmreid.search.index import Index

    def parts(x: np.ndarray) -> Parts:
        return Parts(x[:, None], np.ones((len(x), 1), bool))

    searched = {"index": Index, "lists": Approximate}[way](parts(gallery))
    return lambda query: searched.search(parts(query), k)[:2]


def timed(way: str, folder: Path, sizes: Sizes) -> dict:
    """Seconds, the peak of memory and the matches of one way."""
    gallery, queries = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("gallery", "queries"))
    queries = np.array(queries)
    begin = time.perf_counter()
    search = opened(way, gallery, sizes.k)
    search(queries[:1])
    result = {"build": time.perf_counter() - begin}
    search(queries)
    ones, batches = [], []
    for i in range(sizes.rounds):
        begin = time.perf_counter()
        search(queries[i : i + 1])
        ones.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        rows, scores = search(queries)
        batches.append((time.perf_counter() - begin) / len(queries))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kilobytes, on Linux
    result |= {"one": statistics.median(ones), "batch": statistics.median(batches), "peak_gib": peak}
    return result | {"rows": rows.tolist(), "scores": scores.tolist()}


def timed_in_a_process(way: str, folder: Path, sizes: Sizes) -> dict:
    """`timed` in a process of its own."""
    flags = [f"--{name}={value}" for name, value in sizes._asdict().items()]
    command = [sys.executable, str(Path(__file__)), *flags, f"--one={way}", f"--folder={folder}"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def summary(found: dict[str, dict], sizes: Sizes) -> dict:
    """What is printed of the ways; ends the program if the exact ones do not agree."""
    scores = {way: np.array(one["scores"]) for way, one in found.items()}
    if np.abs(scores["index"] - scores["flat"]).max() > 1e-5:
        raise SystemExit("the scores of `index` and of `flat` differ by more than 1e-5")
    result = sizes._asdict() | {"gallery_gib": round(4 * sizes.rows * sizes.dim / 2**30, 3)}
    for way, one in found.items():
        result |= {f"{way}_build_seconds": round(one["build"], 2), f"{way}_one_seconds": round(one["one"], 6)}
        result |= {f"{way}_batch_ms_per_query": round(1000 * one["batch"], 4)}
        result[f"{way}_peak_gib"] = round(one["peak_gib"], 2)
    shares = [np.isin(exact, rows).mean() for exact, rows in zip(found["index"]["rows"], found["lists"]["rows"])]
    result["lists_recall"] = round(float(np.mean(shares)), 4)
    for name in ("one", "batch"):
        result[f"{name}_flat_to_index"] = round(found["flat"][name] / found["index"][name], 2)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=Sizes().rows, help="of the gallery")
    parser.add_argument("--dim", type=int, default=Sizes().dim, help="width of a vector")
    parser.add_argument("--queries", type=int, default=Sizes().queries, help="of the batch")
    parser.add_argument("--k", type=int, default=Sizes().k, help="matches of a query")
    parser.add_argument("--rounds", type=int, default=Sizes().rounds)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=WAYS, help="time only this way, in this process, and print JSON")
    parser.add_argument("--folder", type=Path, help="of --one: where the vectors are")
    arguments = vars(parser.parse_args(argv))
    sizes = Sizes(*(arguments[name] for name in Sizes._fields))
    if arguments["one"]:
        print(json.dumps(timed(arguments["one"], arguments["folder"], sizes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), sizes)
        result = summary({way: timed_in_a_process(way, Path(folder), sizes) for way in WAYS}, sizes)
    print(json.dumps(result) if arguments["json"] else "\n".join(f"{key:26} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
