"""Law: notebooks are kept without outputs. Story: each runs from top to bottom as a reader runs it, and finds people.

The notebooks run in one folder, as in a reader's copy of the repository, and write into it alone.
"""

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from jax_mmreid.search.index import Index
from jax_mmreid.search.store import Store

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
LINES = 8  # of code in a cell, imports and comments not counted: what takes more belongs into the package
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs_and_name_no_machine(path):
    text = path.read_text()
    found = json.loads(text)
    cells = found["cells"]
    assert found["metadata"] == METADATA and (found["nbformat"], found["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells) > 10
    assert cells[0]["source"][0].startswith("# ") and "pip install" in "".join(cells[1]["source"])
    for cell in cells:
        assert not cell["metadata"]
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            lines = [line for line in cell["source"] if not re.match(r"\s*(#|$|import |from )", line)]
            assert len(lines) <= LINES, lines
    assert not re.search(r"(?<!\w)(/home/|/root/|/work/|/tmp/|/usr/)", text)
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / unquote(link)).exists(), link


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid(path):
    nbformat = pytest.importorskip("nbformat", reason="needs the notebooks extra")
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where notebooks run: a folder beside that of the configs."""
    root = tmp_path_factory.mktemp("repository")
    (root / "configs").symlink_to(ROOT / "configs")
    (root / "notebooks").mkdir()
    return root / "notebooks"


def execute(name, folder):
    """The outputs of a notebook that was run in a folder: [{mime type: content}] of what its cells show."""
    nbclient = pytest.importorskip("nbclient", reason="needs the notebooks extra")
    import nbformat

    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    env = {key: x for key, x in os.environ.items() if key != "XLA_FLAGS"}  # one device, compiled as a reader's
    env["IPYTHONDIR"] = str(folder.parent / "ipython")
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=resources).execute(env=env)
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", [])]
    assert not [x for x in outputs if x.output_type == "error"]
    assert {x.name for x in folder.parent.iterdir()} == {"configs", "ipython", "notebooks"}
    assert {x.name for x in folder.iterdir()} == {"data", "runs"}
    return [x.data for x in outputs if "data" in x]


def pictures(outputs):
    """How many pictures the outputs show."""
    return sum(("image/png" in x) + x.get("text/html", "").count('src="data:image/png') for x in outputs)


def measured(folder, metric="mAP"):
    """{evaluation row: metric} of a workdir."""
    rows = json.loads((folder / "results.json").read_text())["evals"]
    return {name: row[metric] for name, row in rows.items() if metric in row}


@pytest.mark.slow
def test_quickstart(folder):
    outputs = execute("quickstart", folder)
    found = measured(folder / "runs/quickstart")
    assert found["full"] > 0.85 and found["mean_missing"] > 0.6  # chance is 0.04
    assert pictures(outputs) >= 5


@pytest.mark.slow
def test_missing_modalities(folder):
    outputs = execute("missing_modalities", folder)
    for run in ("A", "D", "F", "D_half"):
        found = measured(folder / "runs/missing" / run)
        assert found["full"] > 0.4 and found["full"] > found["mean_missing"] > 0.25  # chance is 0.08
    found = measured(folder / "runs/missing/D")
    ways = [np.mean([x for name, x in found.items() if name.startswith(way)]) for way in ("pairs/", "common/pairs/")]
    assert ways[1] > 1.2 * ways[0]
    assert measured(folder / "runs/missing/A", "gain")["robustness/nir/exposure"] > 0.1
    assert pictures(outputs) >= 5


@pytest.mark.slow
def test_text_and_infrared(folder):
    outputs = execute("text_and_infrared", folder)
    found = measured(folder / "runs/text/lfm")
    assert found["all/text"] > 0.3 and found["all/fusion"] > 1.5 * found["all/ir"] and found["all/mer"] > 0.2
    assert pictures(outputs) >= 6


@pytest.mark.slow
def test_own_pictures(folder):
    outputs = execute("own_pictures", folder)
    contents = Store.open(folder / "runs/gallery").read()
    pids = np.array([int(Path(path).name[:6]) for path in contents.columns.path])
    matches = Index(contents.rows).search(contents.rows, k=2)
    assert np.mean(pids[matches.rows[:, 1]] == pids) > 0.8  # the best match but the row itself; chance is 0.07
    shown = "\n".join(x.get("text/markdown", "") for x in outputs)
    assert "| One picture under two identities | 1 |" in shown and "## Thresholds" in shown
    assert (folder / "runs/quickstart/calibration.json").exists()
    assert any("<iframe" in x.get("text/html", "") for x in outputs)
