"""The drivers in launch/: which runs they chain and where, the table they end with, and the story of TVI-LFM."""

import importlib.util
import json
from pathlib import Path

import pytest

from jax_mmreid.config import to_json
from jax_mmreid.errors import DataError, PreemptedError

ROOT = Path(__file__).parent.parent
QUICKSTART = f"--config={ROOT}/configs/quickstart.py"
TVI = f"{QUICKSTART}:method=tvi_lfm"


def load_driver(name):
    """launch/NAME.py as a module."""
    spec = importlib.util.spec_from_file_location(f"launch_{name}", ROOT / "launch" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sweep():
    return load_driver("sweep")


@pytest.fixture(scope="module")
def tvi_lfm():
    return load_driver("tvi_lfm")


@pytest.fixture
def chained(monkeypatch):
    """The jobs of `run.chain` instead of runs; every run ends with mAP = its seed / 10, unless an error is set."""
    jobs, errors = [], {}

    def chain(given):
        for job in given:
            jobs.append(job)
            if len(jobs) in errors:
                raise errors[len(jobs)]
            workdir = Path(job.workdir)
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / "config.json").write_text(json.dumps(to_json(job.config)))
            row = {"mAP": job.config.seed / 10, "protocol": "p", "feature": "f", "kind": "retrieval"}
            results = {"step": 9, "steps": 9, "evals": {"all/ir": row}, "columns": {"retrieval": {"mAP": "mAP"}}}
            results |= {"not_fractions": {"retrieval": []}, "modalities": ["rgb", "ir"]}
            (workdir / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr("jax_mmreid.run.chain", chain)
    return jobs, errors


def test_sweep_runs_every_combination_for_every_seed(sweep, chained, tmp_path, capsys):
    jobs, _ = chained
    given = [QUICKSTART, "--vary=row=F,A", "--vary=eta=0,0.1/0.3/0.5", "--seeds=1-2", "--config.epochs=4"]
    assert sweep.main([*given, f"--workdir={tmp_path}"]) == 0
    names = ["row=F,eta=0", "row=F,eta=0.1-0.3-0.5", "row=A,eta=0", "row=A,eta=0.1-0.3-0.5"]
    assert [job.workdir for job in jobs] == [tmp_path / name / f"seed{seed}" for name in names for seed in (1, 2)]
    found = [(job.config.model.bhipr, job.config.missing.eta, job.config.seed, job.config.epochs) for job in jobs]
    etas = ((0.0,) * 3, (0.1, 0.3, 0.5))
    assert found == [(bhipr, eta, seed, 4) for bhipr in (True, False) for eta in etas for seed in (1, 2)]
    assert list(json.loads((tmp_path / "results.json").read_text())["groups"]) == names
    text = (tmp_path / "results.md").read_text()
    assert f"2 runs, seeds 1, 2: {'; '.join(names)}." in text
    assert capsys.readouterr().out == text


def test_fields_vary_like_arguments(sweep, chained, tmp_path):
    jobs, _ = chained
    given = ["--vary=--config.weights.nce=0.1,1.0", "--vary=--config.missing.eta=(0,0,0),(0.1,0.3,0)"]
    assert sweep.main([QUICKSTART, f"--workdir={tmp_path}", *given]) == 0
    assert [(job.config.weights.nce, job.config.missing.eta, str(job.workdir.name)) for job in jobs] == [
        (nce, eta, f"weights.nce={nce},missing.eta={str(eta).replace(' ', '')}".replace("0.0,", "0,"))
        for nce in (0.1, 1.0)
        for eta in ((0, 0, 0), (0.1, 0.3, 0))
    ]


@pytest.mark.parametrize(
    "given, message",
    [
        ([], "nothing to vary: give --vary or --seeds"),
        (["--vary=row"], "argument --vary: invalid varied value: 'row'"),
        (["--vary==A"], "argument --vary: invalid varied value: '=A'"),
        (["--workdir=gs://bucket/runs", "--seeds=1"], "argument --workdir: invalid folder value: 'gs://bucket/runs'"),
        (["--seeds=x"], "argument --seeds: invalid numbers value: 'x'"),
        (["--seeds=1", "--sedes=2"], "unrecognized arguments: --sedes=2"),
    ],
)
def test_what_cannot_be_swept_is_refused(sweep, chained, tmp_path, given, message, capsys):
    with pytest.raises(SystemExit) as end:
        sweep.main([QUICKSTART, f"--workdir={tmp_path}", *given])
    assert end.value.code == 2 and chained[0] == [] and message in capsys.readouterr().err


def test_a_wrong_argument_stops_a_sweep_before_its_first_run(sweep, chained, tmp_path, capsys):
    given = [QUICKSTART, f"--workdir={tmp_path}", "--vary=row=A,G"]
    assert sweep.main(given) == 2
    assert chained[0] == [] and "jax_mmreid: row=G: expected one of A, B" in capsys.readouterr().err


def test_stage_lfm_follows_stage_base_in_every_trial(tvi_lfm, chained, tmp_path):
    jobs, _ = chained
    regdb = f"--config={ROOT}/configs/regdb.py:row=B"
    assert tvi_lfm.main([regdb, f"--workdir={tmp_path}", "--trials=2-3", "--init=w", "--config.epochs=4"]) == 0
    found = [(job.workdir, job.config.init, job.config.model.stage, job.config.data.options.trial) for job in jobs]
    assert found == [
        (tmp_path / f"trial{trial}" / stage, init, stage, trial)
        for trial in (2, 3)
        for stage, init in (("base", "w"), ("lfm", str(tmp_path / f"trial{trial}" / "base")))
    ]
    assert {job.config.epochs for job in jobs} == {4}
    table = json.loads((tmp_path / "results.json").read_text())["groups"]
    assert list(table) == ["base", "lfm"] and table["lfm"]["trials"] == [2, 3]


@pytest.mark.parametrize(("error", "code"), [(PreemptedError("stopped"), 75), (DataError("no folder"), 3)])
def test_a_stage_that_fails_ends_the_chain_with_its_exit_code(tvi_lfm, chained, tmp_path, error, code, capsys):
    jobs, errors = chained
    errors[2] = error
    assert tvi_lfm.main([TVI, f"--workdir={tmp_path}", "--seeds=1-2"]) == code
    assert [job.workdir for job in jobs] == [tmp_path / "seed1" / "base", tmp_path / "seed1" / "lfm"]
    assert not (tmp_path / "results.json").exists() and str(error) in capsys.readouterr().err


@pytest.mark.slow
def test_text_finds_what_infrared_alone_does_not(tvi_lfm, tmp_path):
    """The quickstart: fusion beats infrared alone by far, the ensemble beats fusion."""
    fields = [f"--config.data.data_dir={tmp_path}/data", "--config.mesh.data=1"]
    assert tvi_lfm.main([TVI, f"--workdir={tmp_path}", *fields]) == 0
    table = json.loads((tmp_path / "results.json").read_text())["groups"]
    base, lfm = ({name: row["mAP"]["mean"] for name, row in table[stage]["rows"].items()} for stage in ("base", "lfm"))
    assert base["all/ir"] > 0.1
    assert lfm["all/fusion"] > base["all/ir"] + 0.1
    assert lfm["all/mer"] > lfm["all/fusion"]
