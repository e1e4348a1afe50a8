"""The command that scores feature files: what it prints, which files it cannot read, and its exit codes."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scored import GALLERY, QF, QUERY, SIDES, assert_same, euclidean, loop

from jax_mmreid.tools import score as tool
from jax_mmreid.tools.score import score

ROOT = Path(__file__).parent.parent


@pytest.fixture
def files(tmp_path, monkeypatch):
    """q.npz and g.npz in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name, side in zip("qg", SIDES):
        np.savez(tmp_path / f"{name}.npz", **side, more=np.array([{}], object))  # other arrays are not read
    return "--query=q.npz", "--gallery=g.npz"


def test_the_command_prints_json_and_nothing_else(files, tmp_path):
    command = [sys.executable, "-m", "jax_mmreid.tools.score", *files, "--protocol=msvr310", "--metric=euclidean"]
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}  # one device, where there are eight above
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert_same(got, loop(QUERY, GALLERY, "msvr310", euclidean))
    assert got == score(*SIDES, "msvr310", metric="euclidean")


def test_every_option_of_the_command(files, capsys):
    options = ("--search=indoor", "--shots=10", "--trials=2", "--rerank", "--k1=5", "--lam=0.1")
    assert tool.main([*files, "--protocol=sysu_mm01", *options]) == 0
    got = json.loads(capsys.readouterr().out)
    expected = score(*SIDES, "sysu_mm01", search="indoor", shots=10, trials=2, rerank=dict(k1=5, lam=0.1))
    assert got == expected
    assert [got["reranked"][name] for name in ("k1", "k2", "lam")] == [5, 6, 0.1]


def test_a_file_that_is_named_twice_is_one(tmp_path, monkeypatch, capsys):
    """Which is known without paths."""
    monkeypatch.chdir(tmp_path)
    np.savez("q.npz", **{key: x for key, x in SIDES[0].items() if key != "paths"})
    for gallery in ([], ["--gallery=./q.npz"]):
        code, line = refused(capsys, "--query=q.npz", *gallery, "--protocol=regdb")
        assert code == 3 and "query: row 0 is a gallery row too" in line


def refused(capsys, *argv):
    """(exit code, the one line of the complaint)."""
    code = tool.main(argv)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("score: ") and err.count("\n") == 1
    return code, err


BROKEN = {
    "absent": (None, "No such file"),
    "no npz": (b"features", "cannot read bad.npz"),
    "empty": (b"", "cannot read bad.npz"),
    "a pickle": (pickle.dumps({"features": 1}), "cannot read bad.npz"),
    "cut off": (lambda whole: whole[:300], "cannot read bad.npz"),
    "damaged": (lambda whole: whole[:200] + b"\xff" * 9 + whole[209:], "cannot read bad.npz"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_cannot_be_read(case, files, tmp_path, capsys):
    contents, message = BROKEN[case]
    if callable(contents):
        contents = contents((tmp_path / "q.npz").read_bytes())
    if contents is not None:
        (tmp_path / "bad.npz").write_bytes(contents)
    for argv in (("--query=bad.npz", files[1]), (files[0], "--gallery=bad.npz")):
        code, line = refused(capsys, *argv, "--protocol=regdb")
        assert code == 3 and "cannot read bad.npz" in line and message in line
        assert "expected an .npz of features, pids, camids, views, paths" in line


def test_files_with_pickles_or_a_single_array(files, tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", **SIDES[0] | {"pids": SIDES[0]["pids"].astype(object)})
    code, line = refused(capsys, "--query=bad.npz", files[1], "--protocol=regdb")
    assert code == 3 and "cannot read bad.npz" in line and "allow_pickle=False" in line
    np.save(tmp_path / "bad.npy", QF)
    code, line = refused(capsys, "--query=bad.npy", files[1], "--protocol=regdb")
    assert code == 3 and "cannot read bad.npy (a single array)" in line


def test_a_damaged_file_that_is_compressed(files, tmp_path, capsys):
    np.savez_compressed(tmp_path / "bad.npz", **SIDES[0])
    whole = (tmp_path / "bad.npz").read_bytes()
    (tmp_path / "bad.npz").write_bytes(whole[:60] + b"\xff" * 9 + whole[69:])
    code, line = refused(capsys, "--query=bad.npz", files[1], "--protocol=regdb")
    assert code == 3 and "cannot read bad.npz" in line


def test_the_exit_codes_of_what_is_refused(files, capsys):
    assert refused(capsys, *files, "--protocol=regdb", "--shots=10")[0] == 2
    code, line = refused(capsys, *files, "--protocol=regdb", "--k2=3")
    assert code == 2 and "--k2 belongs to --rerank" in line
    assert refused(capsys, *files, "--protocol=regdb", "--rerank", "--k1=0")[0] == 2
    with pytest.raises(SystemExit) as end:
        tool.main([*files, "--protocol=rgbnt300"])
    assert end.value.code == 2
