"""The command that writes a report: from a run's own data, from others, and what it refuses."""

import base64
import functools
import json
import re
import shutil

import numpy as np
import pytest
from browsers import chromium
from conftest import tiny_tvi_config
from own_gallery import write_random_run
from random_run import few

from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.report.page import Picture, Section
from jax_mmreid.tools import report

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
DETAILS = ("ranked", "failures", "pair_scores", "attention", "occlusion", "projection")
CONFIG = """
from jax_mmreid.config import base_config
from jax_mmreid.recipes.missing_settings import missing_evals

def get_config(arg=""):
    config = base_config(method="miss_reid", dataset="manifest")
    rows = missing_evals(("rgb", "nir", "tir"), "test", "same_camera", incomplete="skip")
    config.evals = {name: rows[name] for name in ("full", "no_rn")}
    config.data.eval_batch_size = 16
    return config
"""


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    folder = write_random_run(tmp_path_factory.mktemp("run") / "mine", few(drawn, row="D"))
    lines = [{"step": step, "loss": 1 / step, "accuracy": step / 10} for step in (2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_manifest(drawn, root, cameras=(1, 2, 3)):
    """The drawn pictures as a manifest that lacks every third picture, its cameras with other numbers; the config."""
    root.mkdir(parents=True)
    rows = []
    for folder, split in (("train_171", "train"), ("test", "test")):
        shutil.copytree(drawn / folder, root / folder)
        for i, file in enumerate(sorted((drawn / folder / "RGB").iterdir())):
            pid, camera = file.name.split("_")[:2]
            cells = [
                "" if (i + j) % 3 == 0 else f"{folder}/{name}/{file.name}" for j, name in enumerate(FOLDERS.values())
            ]
            rows.append(",".join([split, pid, str(cameras[int(camera.removeprefix("cam")) - 1]), *cells]))
    (root / "manifest.csv").write_text("\n".join(["split,pid,camid,rgb,nir,tir", *rows]))
    (root / "config.py").write_text(CONFIG)
    return root / "config.py"


def open_other(workdir, config):
    opened = report.open_run(workdir, file=str(config), overrides=[f"data.data_dir={config.parent}"])
    return opened, report.subject_of(opened)


def test_the_page_holds_all_pictures_that_lie_beside_it(workdir, tmp_path, monkeypatch, capsys):
    """Sections that look at rows are replaced: they have tests of their own, and the slow ones below run them."""
    asked = []

    def replaced(name, subject, *queries):
        asked.append((name, list(subject.rows), *queries))
        return None if name == "attention" else Section(name, pictures=[Picture(name, name.encode(), name)])

    for name in DETAILS:
        monkeypatch.setattr(getattr(report, name), "section", functools.partial(replaced, name))
    assert report.main([f"--workdir={workdir}", f"--output={tmp_path}", "--query=3"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'report.html'}: 9 sections, 9 pictures"
    rows = ["full", "no_t", "no_rt"]
    with_queries = ("ranked", "attention", "occlusion")
    assert asked == [(name, rows, [3]) if name in with_queries else (name, rows) for name in DETAILS]
    page = (tmp_path / "report.html").read_text()
    inlined = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert {path.read_bytes() for path in tmp_path.glob("*.png")} == {*inlined} and len({*inlined}) == 9
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    shown = [name for name in DETAILS if name != "attention"]
    assert titles == ["Model and data", "Results", "Pairs of settings", *shown, "Training"]


@pytest.fixture(scope="module")
def opened(workdir):
    return report.open_run(workdir, "6")


@pytest.fixture(scope="module")
def subject(opened):
    return report.subject_of(opened)


def test_results_that_the_workdir_has_are_shown_and_others_measured(workdir, opened, subject, tmp_path):
    evals = opened.config.evals.to_dict()
    found = report.measured(opened, subject, workdir)
    every = (subject.method, subject.variables, subject.data, subject.mesh)
    expected = runner.run(evals, *every, mean=subject.mean, std=subject.std)
    pairs = {f"{group}/{q}>{g}" for group in ("pairs", "common/pairs") for q in evals for g in evals}
    assert found["evals"].keys() == expected.keys() | pairs
    assert {name: found["evals"][name] for name in expected} == expected
    assert found["evals"]["pairs/full>full"]["mAP"] == expected["full"]["mAP"]
    (tmp_path / "config.json").write_text((workdir / "config.json").read_text())
    (tmp_path / "results.json").write_text(json.dumps(found | {"step": 9, "evals": {}}))
    (tmp_path / "results_best.json").write_text(json.dumps(found | {"evals": {"full": {"mAP": 0.125}}}))
    assert report.measured(opened, subject, tmp_path)["evals"]["full"] == {"mAP": 0.125}
    assert report.measured(opened._replace(is_own=False), subject, tmp_path)["evals"]["full"] == expected["full"]


@pytest.mark.slow
def test_other_data_may_lack_pictures_and_number_their_cameras_as_they_like(workdir, drawn, tmp_path):
    found = []
    for i, cameras in enumerate([(1, 2, 3), (3, 1, 7)]):
        opened, subject = open_other(workdir, write_manifest(drawn, tmp_path / str(i), cameras))
        assert not opened.is_own and opened.data.spec.image_size == opened.model.spec.image_size
        assert not subject.data.present("test")["nir"].all()
        found.append(report.measured(opened, subject, workdir)["evals"])
        assert subject.method.tower.cameras == () and opened.model.method.tower.cameras == (1, 2, 3)
    assert found[0] == found[1]
    assert found[0]["no_rn"]["skipped"]["query"] > 0 and np.isfinite(found[0]["full"]["mAP"])


def test_the_same_data_under_another_config_keep_their_cameras(opened, subject):
    assert subject.method == opened.model.method
    assert report.subject_of(opened._replace(is_own=False)).method == opened.model.method


def test_a_query_is_a_row_or_one_of_its_pictures(opened, subject, drawn):
    file = sorted((drawn / "test" / "TI").iterdir())[7]
    assert report.find_queries(["2", str(file)], subject, opened.config) == [2, 7]
    for one in ("30", "-1", "nowhere.png"):
        with pytest.raises(ConfigError, match="split 'test' has no such row; give 0 to 29, or a picture of a row"):
            report.find_queries([one], subject, opened.config)


def test_chosen_rows_are_shown_in_their_order(opened):
    assert list(report.subject_of(opened, ["no_rt", "full"]).rows) == ["no_rt", "full"]
    with pytest.raises(ConfigError, match="there is no row 'other' to show; there are full, no_t, no_rt"):
        report.subject_of(opened, ["full", "other"])


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config.epochs=3"], "without --config, fields of config.data only"),
        (["--step=7"], "has no checkpoint '7'; there are 6, 9"),
        (["--config=configs/quickstart.py:dataset=manifest,modalities=rgb/tir"], "do not fit the model"),
    ],
)
def test_refusals_are_one_line(workdir, tmp_path, drawn, capsys, arguments, words):
    data = [f"--config.data.data_dir={write_manifest(drawn, tmp_path / 'own').parent}"] if "fit" in words else []
    assert report.main([f"--workdir={workdir}", f"--output={tmp_path}", *arguments, *data]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("report: ") and words in line and not list(tmp_path.glob("*.html"))


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


def problems(browser, file):
    """What Chromium reports of a page: messages, errors, requests, and pictures without pixels."""
    page, found = browser.new_page(color_scheme="dark"), []
    page.on("console", lambda message: found.append(message.text))
    page.on("pageerror", lambda error: found.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else found.append(request.url))
    page.goto(f"file://{file}")
    found += page.evaluate("[...document.images].filter(x => !x.naturalWidth || !x.alt).map(x => x.id)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    page.close()
    return found


def check_written(browser, output, *arguments):
    """The report that the command writes, which Chromium shows without errors and requests."""
    assert report.main([*arguments, f"--output={output}"]) == 0
    file = output / "report.html"
    assert problems(browser, file) == [f"file://{file}"]
    pictures = re.findall(r'<img id="([^"]+)"', file.read_text())
    assert len(pictures) == len(set(pictures)) == len(list(output.glob("*.png")))
    return {name.partition("_")[0] for name in pictures}


@pytest.mark.slow
def test_chromium_shows_a_report_without_errors_or_requests(workdir, tmp_path, browser):
    kinds = check_written(browser, tmp_path, f"--workdir={workdir}")
    assert kinds == {"ranked", "failures", "pair", "attention", "occlusion", "projection", "pairs", "curves"}


@pytest.mark.slow
def test_a_report_on_tvi_lfm_and_another_run(workdir, drawn_sysu, tmp_path, browser):
    tvi = write_random_run(tmp_path / "tvi", tiny_tvi_config(drawn_sysu))
    kinds = check_written(browser, tmp_path / "out", f"--workdir={tvi}", f"--workdir={workdir}")
    assert kinds == {"ranked", "failures", "pair", "occlusion", "projection", "curves"}


@pytest.mark.slow
def test_a_report_on_a_manifest_that_lacks_pictures(workdir, drawn, tmp_path, browser):
    config = write_manifest(drawn, tmp_path / "own")
    data = [f"--config={config}", f"--config.data.data_dir={config.parent}"]
    kinds = check_written(browser, tmp_path / "out", f"--workdir={workdir}", *data)
    assert kinds == {"ranked", "failures", "pair", "attention", "occlusion", "projection", "pairs", "curves"}
