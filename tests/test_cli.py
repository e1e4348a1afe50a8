"""The command line: what goes wrong is one line that names it and an exit code; what goes right ends in a table."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import grain  # noqa: F401  (it defines flags when it is first imported, which must not be while flags are saved)
import pytest
from absl.testing import flagsaver
from conftest import FAST_COMPILATION

from input_pipeline.reading import images
from input_pipeline.synthesize import synthesize
from jax_mmreid import main

ROOT = Path(__file__).parent.parent
SMALL = (
    "--config.data.image_size=(32,16)",
    "--config.data.identities=2",
    "--config.data.instances=2",
    "--config.data.eval_batch_size=8",
    "--config.data.threads=0",
    "--config.model.image.layers=1",
    "--config.mesh.data=1",
    "--config.epochs=2",
)
QUICKSTART = f"--config={ROOT}/configs/quickstart.py:row=A"


def run(*args):
    """The command in a process of its own, on one device."""
    env = os.environ | {"XLA_FLAGS": FAST_COMPILATION, "COLUMNS": "80"}
    command = [sys.executable, "-m", "jax_mmreid.main", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def complaint(done):
    """(exit code, the one line that a failed process says about it)."""
    assert "Traceback" not in done.stderr and done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("jax_mmreid: ")]
    assert done.stderr.endswith(line + "\n")
    return done.returncode, line


@pytest.fixture
def called(monkeypatch, capsys, tmp_path):
    """A function like `run` in this process, (exit code, stdout, stderr); an exception that gets out fails the test."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        argv = ["main", *args]
        monkeypatch.setattr(main, "_log_to_stderr", lambda: None)
        with flagsaver.flagsaver():
            try:
                code = main.main(main.parse(argv))
            except SystemExit as end:
                code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(called):
    """A function like `run` and `complaint` together, in this process."""

    def call(*args):
        code, out, err = called(*args)
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("jax_mmreid: ")
        return code, line

    return call


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """4 training and 3 test identities before 2 cameras, in the layout of RGBNT201."""
    folder = tmp_path_factory.mktemp("pictures") / "RGBNT201"
    synthesize(folder, num_train_ids=4, num_test_ids=3, cameras=2, images_per_camera=2, height=32)
    return folder


@pytest.fixture
def copy(pictures, tmp_path):
    """A copy of the pictures that a test may break."""
    return shutil.copytree(pictures, tmp_path / "RGBNT201")


def on(folder, workdir):
    """Arguments of a small run on a folder of pictures."""
    return (f"{QUICKSTART},dataset=rgbnt201", *SMALL, f"--config.data.data_dir={folder}", f"--workdir={workdir}")


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """(workdir, results.json, the finished process) of a run of two epochs, changed from the quickstart by flags."""
    workdir = tmp_path_factory.mktemp("runs") / "a"
    done = run(*on(pictures, workdir))
    assert done.returncode == 0, done.stderr
    return workdir, json.loads((workdir / "results.json").read_text()), done


def assert_only_ours(stderr):
    for line in stderr.splitlines():
        ours = r"jax \d|training data: \d|training in |step \d+/\d+  |evaluated checkpoint |Search your own "
        assert re.match(ours, line), line


def test_training_ends_with_results_in_the_order_of_the_papers_table(trained):
    workdir, results, done = trained
    table = (workdir / "results.md").read_text()
    assert done.stdout.strip() == table.strip()
    assert "| setting | RNT | -R | -N | -T | -RN | -RT | -NT | Mean |" in table
    rows = re.findall(r"^\| (\S+)(?: \| \d+\.\d){8} \|", table, re.MULTILINE)
    assert rows == ["mAP", "R-1", "R-5", "R-10", "R-20", "mINP"]
    config = json.loads((workdir / "config.json").read_text())
    assert (
        config["epochs"] == 2 and config["data"]["image_size"] == [32, 16] and config["model"]["image"]["layers"] == 1
    )
    assert results["step"] == json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"]


def test_the_console_shows_our_messages_alone(trained):
    *_, done = trained
    assert_only_ours(done.stderr)
    assert re.search(r"^step 8/8  loss \d", done.stderr, re.MULTILINE)


def test_a_finished_run_ends_with_the_command_that_tries_it(trained, pictures, tmp_path):
    workdir, _, done = trained
    last = done.stderr.splitlines()[-1]
    command, page = re.fullmatch(r"Search your own pictures: (python -m .*) FOLDER; see (.*)", last).groups()
    assert (ROOT / page).is_file()
    module, *flags = shlex.split(command)[2:]
    assert f"--workdir={workdir}" in flags
    store = [flag.replace("=gallery", f"={tmp_path / 'gallery'}") for flag in flags]
    assert importlib.import_module(module).main([*store, str(pictures / "test")]) == 0


def test_another_process_evaluates_to_the_same_numbers(trained, pictures):
    workdir, results, _ = trained
    done = run(*on(pictures, workdir), "--mode=eval")
    assert done.returncode == 0, done.stderr
    again = json.loads((workdir / "results.json").read_text())
    assert again["evals"] == results["evals"] and again["step"] == results["step"]
    assert_only_ours(done.stderr)
    assert again["command"] != results["command"] and again["command"].endswith("--mode=eval")


def test_a_workdir_of_another_config_names_the_field(trained, pictures, refused):
    workdir, *_ = trained
    for mode in ("train", "eval"):
        code, line = refused(*on(pictures, workdir), "--config.seed=7", f"--mode={mode}")
        assert code == 2 and str(workdir) in line and "seed (1111 -> 7)" in line


def test_a_run_of_another_config_can_be_forced(trained, pictures, tmp_path, called):
    workdir, results, _ = trained
    shutil.copytree(workdir, tmp_path / "run")
    code, out, err = called(*on(pictures, tmp_path / "run"), "--config.seed=7", "--mode=eval", "--force")
    assert (code, err) == (0, "") and "another config: seed (1111 -> 7)." in out
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    assert again["evals"] == results["evals"] and again["forced"] == ["seed (1111 -> 7)"]


def test_the_weights_of_a_run_are_measured_in_a_workdir_of_their_own(trained, pictures, tmp_path, called):
    workdir, results, _ = trained
    code, out, err = called(*on(pictures, tmp_path / "new"), f"--config.init={workdir}", "--mode=eval", "--step=init")
    assert (code, err) == (0, "") and out.startswith(f"Weights of {workdir}, config ")
    again = json.loads((tmp_path / "new" / "results_init.json").read_text())
    assert again["evals"] == results["evals"] and not (tmp_path / "new" / "config.json").exists()


def test_a_checkpoint_that_does_not_exist_is_named(trained, pictures, refused):
    workdir, *_ = trained
    code, line = refused(*on(pictures, workdir), "--mode=eval", "--step=3")
    assert code == 2 and "no checkpoint '3'; there are " in line


def test_a_missing_data_folder_is_named_with_the_command_that_makes_one(tmp_path, refused):
    code, line = refused(*on(tmp_path / "nowhere", tmp_path / "run"))
    assert code == 3 and f"no data folder '{tmp_path}/nowhere'" in line
    assert f"python -m input_pipeline.synthesize --layout=rgbnt201 --output={tmp_path}/nowhere" in line


def test_a_modality_folder_that_is_missing_is_named(copy, tmp_path, refused):
    shutil.rmtree(copy / "test" / "NI")
    code, line = refused(*on(copy, tmp_path / "run"))
    assert code == 3 and "no folder 'test/NI'" in line and "expected test/{RGB,NI,TI}" in line


def test_a_file_name_that_does_not_parse_is_named(copy, tmp_path, refused):
    picture = sorted((copy / "test" / "RGB").iterdir())[0]
    picture.rename(picture.with_name("person7_front.jpg"))
    code, line = refused(*on(copy, tmp_path / "run"))
    assert code == 3 and "'test/RGB/person7_front.jpg'" in line and "000287_cam1_0_05.jpg" in line


def test_an_unreadable_picture_is_named_and_not_tried_again(copy, tmp_path, refused, monkeypatch):
    for picture in (copy / "train_171" / "TI").iterdir():
        picture.write_bytes(picture.read_bytes()[:40])
    read, tried = images.read, []
    monkeypatch.setattr(images, "read", lambda path, *args, **named: tried.append(path) or read(path, *args, **named))
    code, line = refused(*on(copy, tmp_path / "run"))
    broken = [path for path in tried if "/TI/" in path]
    assert code == 3 and len(broken) == 1 and f"cannot read {broken[0]} (" in line


def test_identities_with_one_picture_cannot_be_matched(copy, tmp_path, refused):
    seen = set()
    for picture in sorted((copy / "train_171").rglob("*.jpg")):
        who = (picture.parent, picture.name[:6])
        if who in seen:
            picture.unlink()
        seen.add(who)
    code, line = refused(*on(copy, tmp_path / "run"))
    assert code == 3 and "no training identity has two images" in line


def test_a_misspelled_field_is_answered_with_the_right_one(tmp_path):
    code, line = complaint(run(QUICKSTART, f"--workdir={tmp_path}/run", "--config.data.data_dri=x"))
    assert (code, line) == (2, "jax_mmreid: config.data has no field 'data_dri'; did you mean 'data_dir'?")


def test_a_config_file_that_does_not_exist_is_one_sentence(refused):
    code, line = refused("--config=nofile.py", "--workdir=run")
    expected = "jax_mmreid: config file nofile.py does not exist; name one, as in --config=configs/quickstart.py"
    assert (code, line) == (2, expected)


@pytest.mark.parametrize(
    ("module", "name"),
    [("jax_mmreid.run", "open_data"), ("jax_mmreid.methods.miss_reid", "create"), ("jax_mmreid.train", "train_step")],
)
@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_defect_of_ours_is_a_traceback(pictures, tmp_path, monkeypatch, module, name, error):
    """A former defect: a ValueError or TypeError anywhere in these became a one-line config error with exit code 2."""

    def broken(*args, **options):
        raise error("a defect")

    monkeypatch.setattr(f"{module}.{name}", broken)
    monkeypatch.setattr(main, "_log_to_stderr", lambda: None)
    with flagsaver.flagsaver(), pytest.raises(error, match="a defect"):
        main.main(main.parse(["main", *on(pictures, tmp_path / "run")]))


WRONG = {
    "a misspelled argument": (["--config=quickstart.py:rwo=A"], "did you mean 'row'?"),
    "a row that does not exist": (["--config=quickstart.py:row=G"], "row=G: expected one of A, B, C, D, E, F"),
    "a rate above 1 as argument": (["--config=quickstart.py:eta=1.5"], "must lie in [0, 1]"),
    "a rate above 1 as flag": (
        ["--config.missing.eta=(0.1,1.5,0.0)"],
        "config.missing.eta=(0.1, 1.5, 0.0): must lie in [0, 1]",
    ),
    "two rates for three modalities": (["--config.missing.eta=(0.1,0.2)"], "expected 3 rates, one for each"),
    "text for a number": (["--config.epochs=many"], "config.epochs=many: expected a value of type int"),
    "a learning rate below 0": (["--config.optim.lr.tower=-1"], "config.optim.lr.tower=-1.0: must lie in [0, inf)"),
    "a tuple with a word": (["--config.data.image_size=(32,x)"], "config.data.image_size=(32,x): expected a value"),
    "a method that does not exist": (["--config.method=miss_ried"], "no methods named 'miss_ried'; there are: "),
    "a dataset that does not exist": (["--config.data.name=rgbn"], "no dataset 'rgbn'; there are "),
    "no workdir": (["--workdir="], "--workdir is required"),
    "a mode that does not exist": (["--mode=test"], "--mode=test"),
    "a misspelled flag": (["--workdri=x"], "workdri"),
    "a word too many": (["again"], "unexpected argument 'again'"),
    "a workdir without a run": (["--mode=eval"], "holds no run; train one first"),
    "no weights to evaluate": (["--mode=eval", "--step=init"], "config.init, which is empty"),
    "force in training": (["--force"], "--step and --force belong to --mode=eval, not to --mode=train"),
    "a step in training": (["--step=best"], "--step and --force belong to --mode=eval"),
    "watching in training": (["--watch"], "--watch belongs to --mode=eval with --step=last and without --force"),
    "watching what costs nothing": (["--watch", "--mode=plan"], "--watch belongs to --mode=eval"),
    "watching a step that stands still": (["--watch", "--mode=eval", "--step=12"], "--watch belongs to --mode=eval"),
    "watching the best": (["--watch", "--mode=eval", "--step=best"], "--watch belongs to --mode=eval with --step=last"),
    "watching a run of another config": (["--watch", "--mode=eval", "--force"], "--watch belongs to --mode=eval"),
    "an image of no whole patches": (
        ["--config.data.image_size=(30,16)"],
        "config.data.image_size=(30, 16) is not a whole number of patches of 8 pixels",
    ),
    "heads that do not divide": (["--config.model.image.heads=3"], "image.heads"),
    "a mesh that does not fit": (["--config.mesh.data=5", "--config.mesh.model=2"], "data=5 x model=2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_command_is_refused_in_one_line(case, pictures, tmp_path, refused):
    args, message = WRONG[case]
    flags = {arg.partition("=")[0]: arg for arg in on(pictures, tmp_path / "run")}
    for arg in args:
        arg = arg.replace("=quickstart.py:", f"={ROOT}/configs/quickstart.py:dataset=rgbnt201,")
        flags[arg.partition("=")[0]] = arg
    code, line = refused(*flags.values())
    assert code == 2 and message in line


def test_a_missing_workdir_flag_is_named(refused):
    code, line = refused(QUICKSTART)
    assert code == 2 and "--workdir is required" in line


def test_a_missing_config_flag_is_named(tmp_path, refused):
    code, line = refused(f"--workdir={tmp_path}")
    assert code == 2 and "--config is required" in line


def test_a_config_that_was_refused_leaves_the_workdir_free(pictures, tmp_path, refused):
    code, _ = refused(*on(pictures, tmp_path / "run"), "--config.method=miss_ried")
    assert code == 2 and not (tmp_path / "run" / "config.json").exists()
