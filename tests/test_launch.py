"""The driver of both stages: what it runs, what it compares, and the story that the quickstart tells with it."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load_driver(name):
    """launch/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driver():
    return load_driver("tvi_lfm")


@pytest.fixture
def commands(driver, monkeypatch):
    """Command lines instead of runs; every stage ends with rank1 = its trial / 10 and the given code."""
    lines, codes = [], {}

    def run(line):
        lines.append(line)
        named = {key: value for key, _, value in (part.partition("=") for part in line[3:])}
        workdir = Path(named["--workdir"])
        workdir.mkdir(parents=True)
        trial = int(named["--config"].partition("trial=")[2] or 5)
        row = dict.fromkeys(("mAP", "mINP", "rank1", "rank5", "rank10", "rank20"), trial / 10)
        data = {"modalities": ["rgb", "ir"], "options": {"trial": trial}}
        config = {"seed": 1, "init": named.get("--config.init", ""), "model": {"stage": workdir.name}, "data": data}
        (workdir / "config.json").write_text(json.dumps(config))
        results = {"step": 9, "evals": {"t2v/ir": row | {"protocol": "query ..."}}}
        (workdir / "results.json").write_text(json.dumps(results))
        return type("Done", (), {"returncode": codes.get(len(lines), 0)})

    monkeypatch.setattr(driver.subprocess, "run", run)
    return lines, codes


def test_stage_lfm_follows_stage_base_in_every_trial(driver, commands, tmp_path):
    lines, _ = commands
    given = [
        "--config=configs/regdb.py:row=B",
        f"--workdir={tmp_path}",
        "--trials=2-3",
        "--init=w",
        "--config.epochs=4",
    ]
    assert driver.main(given) == 0
    python = [sys.executable, "-m", "jax_mmreid.main"]
    expected = []
    for trial in (2, 3):
        for stage, init in (("base", "w"), ("lfm", str(tmp_path / f"trial{trial}" / "base"))):
            config = f"--config=configs/regdb.py:row=B,stage={stage},trial={trial}"
            workdir = f"--workdir={tmp_path / f'trial{trial}' / stage}"
            expected.append([*python, config, workdir, f"--config.init={init}", "--config.epochs=4"])
    assert lines == expected
    table = json.loads((tmp_path / "results.json").read_text())
    assert list(table) == ["base", "lfm"] and table["lfm"]["trials"] == [2, 3]
    expected = {"mean": pytest.approx(0.25), "std": pytest.approx(0.5**0.5 / 10), "n": 2}
    assert table["base"]["rows"]["t2v/ir"]["rank1"] == table["lfm"]["rows"]["t2v/ir"]["mAP"] == expected
    text = (tmp_path / "results.md").read_text()
    assert "2 runs, seed 1, trials 2, 3: base; lfm." in text and "| lfm | t2v/ir | 25.0 ± 7.1 |" in text


def test_a_stage_that_fails_ends_it(driver, commands, tmp_path):
    lines, codes = commands
    codes[2] = 75
    assert driver.main(["--config=c.py", f"--workdir={tmp_path}", "--seeds=1-2"]) == 75
    assert [line[-2:] for line in lines] == [
        [f"--workdir={tmp_path / 'seed1' / 'base'}", "--config.seed=1"],
        [f"--config.init={tmp_path / 'seed1' / 'base'}", "--config.seed=1"],
    ]
    assert not (tmp_path / "results.json").exists()


@pytest.mark.slow
def test_text_finds_what_infrared_alone_does_not(driver, tmp_path):
    """The quickstart: fusion beats infrared alone by far, the ensemble beats fusion."""
    config = f"--config={ROOT}/configs/quickstart.py:method=tvi_lfm"
    fields = [f"--config.data.data_dir={tmp_path}/data", "--config.mesh.data=1"]
    assert driver.main([config, f"--workdir={tmp_path}", *fields]) == 0
    table = json.loads((tmp_path / "results.json").read_text())
    base, lfm = ({name: row["mAP"]["mean"] for name, row in table[stage]["rows"].items()} for stage in ("base", "lfm"))
    assert base["all/ir"] > 0.1
    assert lfm["all/fusion"] > base["all/ir"] + 0.1
    assert lfm["all/mer"] > lfm["all/fusion"]
