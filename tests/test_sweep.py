"""The driver of many runs: what it runs and where, what it leaves out, and the table it ends with."""

import json
import shlex
import sys
from pathlib import Path

import pytest
from test_launch import load_driver

ETAS = ("0.1/0.3/0.5", "0.1-0.3-0.5")  # as an argument and in a folder's name
PYTHON = [sys.executable, "-m", "jax_mmreid.main"]


@pytest.fixture(scope="module")
def driver():
    return load_driver("sweep")


@pytest.fixture
def commands(driver, monkeypatch):
    """Command lines instead of runs; every run ends with mAP = its seed / 10 and the given code."""
    lines, codes = [], {}

    def run(line):
        lines.append(line)
        code = codes.get(len(lines), 0)
        if not code:
            named = {key: value for key, _, value in (part.partition("=") for part in line[3:])}
            workdir, seed = Path(named["--workdir"]), int(named.get("--config.seed", 5))
            workdir.mkdir(parents=True, exist_ok=True)
            data = {"modalities": ["rgb"], "options": {}}
            chosen = {key: value for key, value in named.items() if key not in ("--workdir", "--config.seed")}
            (workdir / "config.json").write_text(json.dumps({"seed": seed, "data": data, "chosen": chosen}))
            command = shlex.join(["python", *line[1:]])
            results = {"step": 9, "command": command, "evals": {"full": {"mAP": seed / 10, "protocol": "p"}}}
            (workdir / "results.json").write_text(json.dumps(results))
        return type("Done", (), {"returncode": code})

    monkeypatch.setattr(driver.subprocess, "run", run)
    return lines, codes


def test_every_combination_is_run_for_every_seed(driver, commands, tmp_path, capsys):
    lines, _ = commands
    given = ["--config=configs/c.py:init=clip", "--vary=row=F,A", "--vary=eta=0,0.1/0.3/0.5", "--seeds=1-2"]
    assert driver.main([*given, f"--workdir={tmp_path}", "--config.epochs=4"]) == 0
    expected = []
    for row, eta, folder in (("F", "0", "0"), ("F", *ETAS), ("A", "0", "0"), ("A", *ETAS)):
        for seed in (1, 2):
            config = f"--config=configs/c.py:init=clip,row={row},eta={eta}"
            workdir = f"--workdir={tmp_path}/row={row},eta={folder}/seed{seed}"
            expected.append([*PYTHON, config, workdir, f"--config.seed={seed}", "--config.epochs=4"])
    assert lines == expected
    names = ["row=F,eta=0", "row=F,eta=0.1-0.3-0.5", "row=A,eta=0", "row=A,eta=0.1-0.3-0.5"]
    table = json.loads((tmp_path / "results.json").read_text())
    assert list(table) == names
    text = (tmp_path / "results.md").read_text()
    assert f"2 runs, seeds 1, 2: {'; '.join(names)}." in text
    assert text.splitlines()[-4:] == [f"| {name} | full | 15.0 ± 7.1 |" for name in names]
    assert capsys.readouterr().out == text


def test_fields_vary_like_arguments(driver, commands, tmp_path):
    lines, _ = commands
    given = ["--vary=--config.weights.nce=0.1,1.0", "--vary=--config.missing.eta=(0,0),(0.1,0.3)"]
    assert driver.main(["--config=c.py", f"--workdir={tmp_path}", *given, "--config.x=1"]) == 0
    assert [line[3:] for line in lines] == [
        [
            "--config=c.py",
            f"--workdir={tmp_path}/weights.nce={nce},missing.eta={eta}",
            "--config.x=1",
            f"--config.weights.nce={nce}",
            f"--config.missing.eta={eta}",
        ]
        for nce in ("0.1", "1.0")
        for eta in ("(0,0)", "(0.1,0.3)")
    ]
    assert json.loads((tmp_path / "results.json").read_text())["weights.nce=1.0,missing.eta=(0,0)"]["runs"] == 1


def test_seeds_alone_are_one_group(driver, commands, tmp_path):
    lines, _ = commands
    assert driver.main(["--config=c.py:a=1", f"--workdir={tmp_path}/run", "--seeds=3,5"]) == 0
    assert [line[3:] for line in lines] == [
        ["--config=c.py:a=1", f"--workdir={tmp_path}/run/seed{seed}", f"--config.seed={seed}"] for seed in (3, 5)
    ]
    assert "| run | full | 40.0 ± 14.1 |" in (tmp_path / "run" / "results.md").read_text()


def test_the_same_command_goes_on_where_it_stopped(driver, commands, tmp_path):
    lines, codes = commands
    given = ["--config=c.py", f"--workdir={tmp_path}", "--vary=row=A,F", "--seeds=1-2"]
    codes[3] = 75
    assert driver.main(given) == 75
    assert len(lines) == 3 and not (tmp_path / "results.json").exists()
    assert driver.main(given) == 0
    assert len(lines) == 5 and lines[3] == lines[2]
    assert driver.main(given) == 0
    assert len(lines) == 5
    assert driver.main([*given, "--config.epochs=4"]) == 0  # another command, which main goes on with or refuses
    assert len(lines) == 9


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "nothing to vary: give --vary or --seeds"),
        (["--vary=row"], "argument --vary: invalid varied value: 'row'"),
        (["--vary==A"], "argument --vary: invalid varied value: '=A'"),
        (["--seeds=x"], "argument --seeds: invalid numbers value: 'x'"),
    ],
)
def test_what_cannot_be_swept_is_refused(driver, commands, tmp_path, given, message, capsys):
    with pytest.raises(SystemExit) as end:
        driver.main(["--config=c.py", f"--workdir={tmp_path}", *given])
    assert end.value.code == 2 and commands[0] == [] and message in capsys.readouterr().err
