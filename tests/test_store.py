"""Law: a store holds what was committed, whatever is killed when; nothing that does not fit gets in."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from stored import IDENTITY, add, check, drawn_store, marked
from test_similarity import drawn_rows

from jax_mmreid.errors import DataError
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.search import manifest, segments, store
from jax_mmreid.search.store import Store

HERE = Path(__file__).parent


@pytest.fixture
def filled(tmp_path):
    """A store of 23 entries in three segments."""
    made = Store.create(tmp_path / "store", IDENTITY)
    for n in (10, 1, 12):
        add(made, n)
    return made


def files(opened):
    return {str(path.relative_to(opened.folder)) for path in opened.folder.rglob("*") if path.is_file()}


def test_what_is_appended_is_read_in_another_process(filled):
    opened = Store.open(filled.folder, IDENTITY)
    contents = opened.read()
    check(contents)
    assert contents.columns.id.tolist() == list(range(23)) and len(opened) == 23
    assert opened.version == contents.version == 3 and opened.identity == IDENTITY
    assert [x.dtype for x in contents.columns] == ["int64", object, "int64", "int32", "float64", "float64"]
    assert np.isnan(contents.columns.time).all()


def test_absent_parts_are_stored_as_zeros_and_unknown_columns_as_such(tmp_path):
    made, rows = drawn_store(tmp_path / "store"), drawn_rows(0, 11)
    columns, vectors, _ = made.read()
    assert np.isnan(rows.parts).any()
    np.testing.assert_array_equal(vectors.parts, np.where(rows.present[..., None], rows.parts, 0))
    assert set(columns.pid) == {-1} == set(columns.camid) and np.isnan([columns.time, columns.expires]).all()


def test_vectors_of_one_segment_are_memory_mapped(tmp_path):
    rows = drawn_store(tmp_path / "store").read().rows
    assert all(isinstance(x, np.memmap) for x in rows)


def test_a_store_without_entries_and_without_fallback_can_be_read(tmp_path):
    identity = IDENTITY._replace(packing=Packing(3, 5, 0))
    made = Store.create(tmp_path / "store", identity)
    columns, rows, version = made.read()
    assert len(made) == version == len(columns.id) == 0 and rows.packing == identity.packing
    made.append(drawn_rows(0, 4, fallback=0), list("abcd"), caller="test")
    assert made.read().rows.fallback is None and len(made) == 4
    assert made.append(drawn_rows(0, 0, fallback=0), [], caller="test").tolist() == [] and made.version == 1


def test_deleted_vectors_are_gone_from_the_disk(filled):
    before = files(filled)
    assert filled.delete(ids=[3, 17, 99], paths=["bild/ä10.png", "none.png"], caller="deleter") == 3
    contents = filled.read()
    check(contents)
    assert contents.columns.id.tolist() == [i for i in range(23) if i not in (3, 10, 17)]
    held = [np.load(path) for path in filled.folder.rglob("parts.npy")]
    assert sorted(np.concatenate(held)[:, 0, 0].tolist()) == [i + 1 for i in contents.columns.id]
    assert not before & files(filled) - {"changes.jsonl", "store.json", "lock"}
    assert len(list(filled.folder.glob("*/"))) == 2  # the second segment had one entry
    texts = b"".join(path.read_bytes() for path in filled.folder.rglob("paths.npy"))
    assert "bild/ä11.png".encode() in texts and "bild/ä10.png".encode() not in texts


def test_ids_are_never_used_again(filled):
    assert filled.delete(ids=range(23), caller="deleter") == 23 and len(filled) == 0
    assert add(filled, 2).tolist() == [23, 24]
    check(filled.read())


def test_entries_expire(filled):
    assert filled.expire(999.0, "clock") == 0 and filled.version == 3
    assert filled.expire(1008.0, "clock") == 3
    assert filled.read().columns.id.tolist() == [i for i in range(23) if i not in (0, 4, 8)]
    check(filled.read())


def test_the_audit_log_holds_who_did_what(filled):
    begin = time.time()
    filled.log_search("searcher", matches=[[1, 2], []], note="a query")
    filled.delete(ids=[5], caller="deleter")
    filled.delete(ids=[5], caller="deleter")
    filled.expire(1000.0, "clock")
    filled.log_search("searcher", matches=[np.array([7])])
    big = add(filled, 101)
    log = filled.audit()
    kept = [{key: entry[key] for key in ("caller", "action", "ids")} for entry in log[3:]]
    assert kept == [
        dict(caller="searcher", action="search", ids=[[1, 2], []]),
        dict(caller="deleter", action="delete", ids=[5]),
        dict(caller="clock", action="expire", ids=[0]),
        dict(caller="searcher", action="search", ids=[[7]]),
        dict(caller="adder", action="add", ids=[23, 123]),
    ]
    assert log[1]["ids"] == [10] and log[1]["count"] == 1 and log[-1]["count"] == len(big) == 101
    assert log[3]["note"] == "a query" and [entry["version"] for entry in log] == [1, 2, 3, 3, 4, 5, 5, 6]
    assert all(abs(entry["time"] - begin) < 60 for entry in log)


def test_lines_of_the_log_that_were_not_committed_or_not_whole_do_not_count(filled):
    with open(filled.folder / "changes.jsonl", "a") as file:
        file.write('{"time": 0, "version": 4, "caller": "killed", "action": "add", "ids": [1], "count": 1}\n{"ti')
    with open(filled.folder / "searches.jsonl", "a") as file:
        file.write('{"time": 0, "vers')
    assert [entry["caller"] for entry in filled.audit()] == ["adder"] * 3
    filled.log_search("searcher", matches=[[1]])
    add(filled, 1, "later")
    assert [entry["caller"] for entry in filled.audit()] == ["adder"] * 3 + ["searcher", "later"]
    for name in ("changes", "searches"):
        assert all(json.loads(line) for line in (filled.folder / f"{name}.jsonl").read_text().splitlines())


def test_many_small_appends_are_merged(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SEGMENTS", 4)
    made = Store.create(tmp_path / "store", IDENTITY)
    add(made, 100)
    first = next(made.folder.glob("*/parts.npy"))
    most = 0
    for _ in range(16):
        add(made, 2)
        most = max(most, len(list(made.folder.glob("*/"))))
    check(made.read())
    assert most == 4 and len(made) == 132 and made.version == 17
    assert first.exists()  # a large segment is not copied for a few entries
    sizes = [rows for _, rows in manifest.read(made.folder).segments]
    assert sum(sizes) == 132 and sizes[0] == 100


def test_copies_of_chunks_are_whole(filled, monkeypatch):
    monkeypatch.setattr(segments, "CHUNK", 3)
    filled.delete(ids=[0, 9, 22], caller="deleter")
    check(filled.read())
    assert len(filled) == 20


def test_what_a_killed_process_left_is_removed_before_the_next_change(filled):
    left, mine = filled.folder / "00000004-0", filled.folder / "pictures"
    for folder in (left, mine):
        folder.mkdir()
        (folder / "parts.npy").write_bytes(b"half")
    (filled.folder / "store.json.new").write_text("{")
    check(filled.read())
    assert left.exists()
    add(filled, 1)
    check(filled.read())
    assert (left / "columns.npy").exists()  # the name was free again
    assert (mine / "parts.npy").read_bytes() == b"half"  # a folder that is no segment is not ours


def test_whoever_reads_keeps_a_state_that_others_replace(filled, monkeypatch):
    contents = filled.read()
    filled.delete(ids=range(22), caller="deleter")
    check(contents)
    assert len(contents.columns.id) == 23 and len(filled) == 1
    stale = manifest.read(filled.folder)
    filled.delete(ids=[22], caller="deleter")
    add(filled, 2)
    states = [stale]
    read = manifest.read
    monkeypatch.setattr(manifest, "read", lambda folder: states.pop() if states else read(folder))
    assert filled.read().columns.id.tolist() == [23, 24]  # its first state was gone when it came to the files


def test_one_process_writes_at_a_time(filled, monkeypatch):
    with manifest.locked(filled.folder):
        monkeypatch.setattr(manifest, "PATIENCE", 0.05)
        with pytest.raises(DataError, match="is being written by another process; try again later"):
            add(filled, 1)
        assert len(filled) == 23
        check(filled.read())
    monkeypatch.setattr(manifest, "PATIENCE", 60)
    threads = [threading.Thread(target=filled.delete, kwargs=dict(ids=[i], caller="one")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filled.read().columns.id.tolist() == list(range(8, 23)) and filled.version == 11


def test_a_change_that_cannot_be_written_leaves_the_store_as_it_was(filled, monkeypatch):
    before = files(filled)

    def full(path, rows, sources):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(segments, "_write_array", full)
        with pytest.raises(DataError, match=r"cannot be written \(.*No space left on device\); it is as it was before"):
            add(filled, 1)
    check(filled.read())
    assert filled.version == 3 and files(filled) == before
    assert add(filled, 1).tolist() == [23]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: dict(rows=x._replace(fallback=None)), "rows have the shapes"),
        (lambda x: dict(rows=Parts(x.parts[..., :4], *x[1:])), r"rows have the shapes .*takes parts \(n, 3, 5\)"),
        (lambda x: dict(rows=x._replace(present=x.present[:3])), "rows have the shapes"),
        (lambda x: dict(rows=x._replace(present=np.zeros((4, 3), bool), fallback=0 * x.fallback)), r"row 0 .*\(4 such"),
        (lambda x: dict(rows=x._replace(parts=np.full_like(x.parts, np.inf))), "row 0 is not finite"),
        (lambda x: dict(rows=x._replace(parts=x.parts * np.float32(1e25))), "row 0 is not finite"),
        (lambda x: dict(rows=x._replace(fallback=np.full_like(x.fallback, np.nan))), "row 0 is not finite"),
        (lambda x: dict(paths=["a"]), "there are 4 rows and 1 of path; give one a row"),
        (lambda x: dict(pids=[1, 2]), "there are 4 rows and 2 of pid"),
        (lambda x: dict(pids=[0.5] * 4), "pid is float64; expected whole numbers"),
        (lambda x: dict(camids=[2**40] * 4), "camid has a number that is no int32"),
        (lambda x: dict(times=["now"] * 4), "time is <U3; expected numbers"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, change, message):
    made = drawn_store(tmp_path / "store")
    given = dict(rows=marked(range(4)), paths=list("abcd"))
    given |= change(given["rows"])
    with pytest.raises(DataError, match=message):
        made.append(given.pop("rows"), given.pop("paths"), **given, caller="test")
    assert len(made) == 11 and made.version == 1


def test_a_row_with_a_caption_alone_is_kept(tmp_path):
    made, rows = drawn_store(tmp_path / "store"), drawn_rows(1, 2)
    made.append(rows._replace(present=np.zeros((2, 3), bool)), ["a", "b"], caller="test")
    assert not made.read().rows.present[-2:].any()


def test_stores_of_other_models_are_refused(tmp_path):
    folder = drawn_store(tmp_path / "store").folder
    changes = dict(model="model-z", spec="spec-z", modalities=("rgb", "tir", "nir"), packing=Packing(3, 5, 0))
    for name, value in changes.items():
        with pytest.raises(DataError, match=f"is of another model: {name} is .* use the model that made it"):
            Store.open(folder, IDENTITY._replace(**{name: value}))


def test_folders_that_are_no_store_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"is no store \(it has no store.json\)"):
        Store.open(tmp_path)
    with pytest.raises(DataError, match=r"is no store"):
        Store.open(tmp_path / "none")
    folder = drawn_store(tmp_path / "store").folder
    with pytest.raises(DataError, match="holds something already"):
        Store.create(folder, IDENTITY)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/lock").touch()
    assert len(Store.create(tmp_path / "killed", IDENTITY)) == 0  # what a killed `create` leaves
    text = (folder / "store.json").read_text()
    (folder / "store.json").write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="has format 2, this version reads 1; update jax_mmreid"):
        Store.open(folder)
    for broken in (text[:40], "[]", text.replace("next_id", "next")):
        (folder / "store.json").write_text(broken)
        with pytest.raises(DataError, match="store.json cannot be read"):
            Store.open(folder)


@pytest.mark.parametrize("name", ["columns", "paths", "parts", "present", "fallback"])
def test_files_that_are_cut_or_missing_are_named(filled, name):
    path = next(filled.folder.glob(f"*/{name}.npy"))
    for change in (lambda: path.write_bytes(path.read_bytes()[:-1]), path.unlink):
        change()
        with pytest.raises(DataError, match=f"{path.parent.name} is damaged"):
            filled.read()
        with pytest.raises(DataError, match="is damaged"):
            filled.delete(ids=[1], caller="test")


@pytest.mark.parametrize("kills", [8, pytest.param(50, marks=pytest.mark.slow)])
def test_a_process_killed_at_any_moment_leaves_what_it_committed(tmp_path, kills):
    opened = Store.create(tmp_path / "store", IDENTITY)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parent)))}
    command = [sys.executable, str(HERE / "stored.py"), str(opened.folder), str(kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert {entry["action"] for entry in opened.audit()} == {"add", "delete", "expire"}
    add(opened, 1)
    named = {name for name, _ in manifest.read(opened.folder).segments}
    assert {path.name for path in opened.folder.iterdir() if path.is_dir()} == named
