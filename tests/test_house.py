"""Laws of the code itself: who imports whom, what is never loaded, and how long things may be."""

import ast
import graphlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("jax_mmreid/**/*.py"), *ROOT.glob("input_pipeline/**/*.py")])
SCRIPTS = sorted([*ROOT.glob("launch/*.py"), *ROOT.glob("configs/*.py")])

# A file imports from lower ranks only, and from its own package; the small files of rank 0 from each other.
RANKS = (
    "errors ranges batch hub config config_file paths",
    "ops metrics state distributed compilation_cache startup",
    "losses models",
    "weights recipes methods",
    "optim sharding checkpoint writer profiling watchdog",
    "experiment",
    "evaluators cost search captioning export",
    "report",
    "train evaluate inference",
    "watch run_length",
    "run",
    "main tools",
)
RANK = {name: number for number, names in enumerate(RANKS) for name in names.split()}
# None of them imports jax.
FOR_DATA = ("jax_mmreid.batch", "jax_mmreid.errors", "jax_mmreid.hub", "jax_mmreid.paths", "jax_mmreid.ranges")
MAX_FILE, MAX_FUNCTION, MAX_ARGUMENTS = 330, 60, 12


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> list[str]:
    """Every module that a file names in an import, at any depth; `from package import module` counts as the module.

    What is imported for type checkers alone is left out.
    """
    found, tree = [], ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = ROOT / node.module.replace(".", "/") / alias.name
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.append(f"{node.module}.{alias.name}" if is_module else node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    own = module_name(path)
    if own == "jax_mmreid":  # what users import; it opens `run` inside a function
        return
    package, _, rest = own.partition(".")
    part = rest.split(".")[0]
    for name in imports(path):
        if package == "input_pipeline":
            assert name.split(".")[0] not in ("jax", "flax", "torch"), f"{own} imports {name}"
            assert not name.startswith("jax_mmreid") or name in FOR_DATA, f"{own} imports {name}"
        elif name.startswith("jax_mmreid."):
            other = name.split(".")[1]
            same = other == part or RANK[other] == RANK[part] == 0
            assert same or RANK[other] < RANK[part], f"{own} imports {name}"
        elif name.startswith("input_pipeline"):
            assert part in ("run", "tools"), f"{own} imports {name}"
        elif name.startswith("flax."):
            assert name.split(".")[1] in ("linen", "struct", "traverse_util"), f"{own} imports {name}"


def test_there_are_no_circles():
    graph = {module_name(path): set(imports(path)) for path in FILES if module_name(path) != "jax_mmreid"}
    list(graphlib.TopologicalSorter({name: graph[name] & graph.keys() - {name} for name in graph}).static_order())


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_stays_inside_the_functions_of_few_files(path):
    own, torch = module_name(path), [name for name in imports(path) if name.split(".")[0] == "torch"]
    allowed = own.startswith(("jax_mmreid.weights", "jax_mmreid.captioning")) or own == "jax_mmreid.tools.convert"
    assert allowed or not torch
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        assert not any(name and name.split(".")[0] == "torch" for name in names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_packages_of_extras_are_imported_inside_functions(path):
    """Of those that only some commands need, so that all others run without them."""
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        assert not {name.split(".")[0] for name in names if name} & {"matplotlib", "sklearn"}


def test_no_module_loads_nnx():
    """jax 0.11 breaks flax.nnx of some flax versions; linen does not need it."""
    names = [module_name(path) for path in FILES]
    script = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint('flax.nnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_every_package_is_listed_for_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {module_name(p.parent / "__init__.py") for p in FILES}
    assert sorted(listed) == sorted(on_disk)


@pytest.mark.parametrize("path", sorted(ROOT.glob("tests/**/*.py")), ids=lambda path: path.stem)
def test_files_of_tests_stay_short(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_functions_and_argument_lists_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
            assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{node.name}: {node.end_lineno - node.lineno} lines"
            assert count <= MAX_ARGUMENTS, f"{node.name}: {count} arguments"
