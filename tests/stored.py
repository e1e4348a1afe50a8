"""Stores for tests, and a process that changes one and prints what it has committed until it is killed."""

import itertools
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
from test_similarity import drawn_rows

from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.search import store
from jax_mmreid.search.store import Identity, Store

IDENTITY = Identity("model-a", "spec-b", ("rgb", "nir", "tir"), Packing(3, 5, 7))


def marked(ids):
    """One row per id that holds it in every number, so that a row in the wrong place shows."""
    ids = np.asarray(ids, np.float32)
    present = np.stack([ids >= 0, ids % 2 == 0, ids % 3 == 0], axis=1)
    parts = np.where(present[..., None], np.float32(1) + ids[:, None, None], 0) * np.ones(5, np.float32)
    return Parts(parts.astype(np.float32), present, np.tile(ids[:, None] + 1, 7))


def check(contents):
    """What `marked` wrote is where it belongs."""
    ids, expected = contents.columns.id, marked(contents.columns.id)
    np.testing.assert_array_equal(contents.rows.parts, expected.parts)
    np.testing.assert_array_equal(contents.rows.present, expected.present)
    np.testing.assert_array_equal(contents.rows.fallback, expected.fallback)
    assert contents.columns.path.tolist() == [f"bild/ä{i}.png" for i in ids]
    assert (
        contents.columns.pid.tolist() == (ids // 3).tolist() and contents.columns.camid.tolist() == (ids % 5).tolist()
    )
    np.testing.assert_array_equal(contents.columns.expires, np.where(ids % 4 == 0, 1000.0 + ids, np.nan))


def add(opened, n, caller="adder"):
    """Appends n rows of `marked`, which have to get the next ids."""
    first = store.manifest.read(opened.folder).next_id
    ids = np.arange(first, first + n)
    columns = dict(pids=ids // 3, camids=ids % 5, expires=np.where(ids % 4 == 0, 1000.0 + ids, np.nan))
    found = opened.append(marked(ids), [f"bild/ä{i}.png" for i in ids], **columns, caller=caller)
    assert found.tolist() == ids.tolist()
    return found


def drawn_store(folder, n=11):
    """A store of random rows."""
    made = Store.create(folder, IDENTITY)
    made.append(drawn_rows(0, n), [f"{i}.png" for i in range(n)], caller="test")
    return made


def churn(folder, seed):
    """Appends, deletes and expires for ever; prints the version and the ids after each change."""
    store.SEGMENTS = 4
    rng, opened = np.random.default_rng(seed), Store.open(folder)
    for turn in itertools.count(seed):
        ids = opened.read().columns.id
        if turn % 3 == 0 or len(ids) < 9:
            add(opened, rng.integers(1, 60), "churn")
        elif turn % 3 == 1:
            opened.delete(ids=rng.choice(ids, len(ids) // 3, replace=False), caller="churn")
        else:
            opened.expire(1000.0 + np.quantile(ids, 0.3), "churn")
        contents = opened.read()
        print(contents.version, *contents.columns.id, flush=True)


def kill(folder, kills):
    """Lets a process `churn` and kills it, so many times; after each the store has what was printed, or one change
    more. To be run in a process that uses no threads, as it forks."""
    rng, opened, printed = np.random.default_rng(0), Store.open(folder), folder.with_suffix(".txt")
    version, ids, interrupted = 0, [], 0
    for seed in range(kills):
        printed.write_text("")
        child = os.fork()
        if not child:
            with printed.open("a") as sys.stdout:
                churn(folder, seed)
        wanted = rng.integers(3)
        while printed.read_text().count("\n") < wanted:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        lines = [line for line in printed.read_text().splitlines(keepends=True) if line.endswith("\n")]
        version, *ids = map(int, lines[-1].split()) if lines else (version, *ids)
        contents = opened.read()
        check(contents)
        assert contents.version in (version, version + 1)
        assert contents.version == version + 1 or contents.columns.id.tolist() == ids
        version, ids = contents.version, contents.columns.id.tolist()
        named = {name for name, _ in store.manifest.read(folder).segments}
        interrupted += {path.name for path in folder.iterdir() if path.is_dir()} != named
        log = opened.audit()
        assert [entry["version"] for entry in log] == list(range(1, version + 1))
        assert sum(entry["count"] * (1 if entry["action"] == "add" else -1) for entry in log) == len(opened)
    print(interrupted, "of", kills, "left files of a change that was not committed, or not yet removed")
    assert interrupted


if __name__ == "__main__":
    kill(Path(sys.argv[1]), int(sys.argv[2]))
