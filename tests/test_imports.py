"""Law: a file imports only from lower ranks, and the data side knows nothing of jax or of the models."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("jax_mmreid/**/*.py"), *ROOT.glob("input_pipeline/**/*.py")])

# The longest prefix counts; what is not listed has no place in the house yet.
RANKS = {
    "jax_mmreid": 0,  # the version
    "jax_mmreid.batch": 0,
    "jax_mmreid.config": 0,
    "jax_mmreid.hub": 0,
    "jax_mmreid.ranges": 0,
    "jax_mmreid.report.settings": 0.5,
    "jax_mmreid.recipes": 0.5,
    "jax_mmreid.ops": 1,
    "jax_mmreid.metrics": 1,
    "jax_mmreid.state": 1.5,
    "jax_mmreid.losses": 2,
    "jax_mmreid.models": 2,
    "jax_mmreid.methods": 3,
    "jax_mmreid.methods.": 3.5,
    "jax_mmreid.optim": 4,
    "jax_mmreid.sharding": 4,
    "jax_mmreid.checkpoint": 4,
    "jax_mmreid.writer": 4,
    "jax_mmreid.experiment": 4.5,
    "jax_mmreid.evaluators.encoder": 4.5,
    "jax_mmreid.evaluators": 5,
    "jax_mmreid.report.tables": 5.5,
    "jax_mmreid.train": 6,
    "jax_mmreid.evaluate": 6,
    "jax_mmreid.report.compare": 6,
    "jax_mmreid.cost.traced": 6,
    "jax_mmreid.main": 7,
    "jax_mmreid.tools": 7,
}
# What input_pipeline may import of the rest; none of these imports jax.
FOR_DATA = ("jax_mmreid.batch", "jax_mmreid.errors", "jax_mmreid.hub", "jax_mmreid.ranges")
SAME_PACKAGE = ("ops", "metrics", "losses", "models", "evaluators", "recipes")  # parts of one rank may use each other


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def rank(name: str) -> float:
    if name.startswith("jax_mmreid.methods."):
        return RANKS["jax_mmreid.methods."]
    package = ".".join(name.split(".")[:2])
    assert package in RANKS, f"{name} has no rank"
    return RANKS[package]


def imports(path: Path) -> list[str]:
    """Every module that a file names in an import, at any depth; `from package import module` counts as the module."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                is_module = (ROOT / (name.replace(".", "/") + ".py")).exists() or (
                    ROOT / name.replace(".", "/")
                ).is_dir()
                found.append(name if is_module else node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path):
    own = module_name(path)
    for name in imports(path):
        if own.startswith("input_pipeline"):
            assert not name.startswith(("jax.", "flax", "torch")) and name != "jax", f"{own} imports {name}"
            assert not name.startswith("jax_mmreid") or name in FOR_DATA, f"{own} imports {name}"
        elif name.startswith("jax_mmreid"):
            package = own.split(".")[1] if own.count(".") else ""
            siblings = package in SAME_PACKAGE and name.startswith(f"jax_mmreid.{package}")
            assert rank(name) < rank(own) or siblings, f"{own} imports {name}"
        elif name.startswith("input_pipeline"):
            assert own == "jax_mmreid.main" or own.startswith("jax_mmreid.tools"), f"{own} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_torch_stays_inside_functions(path):
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        assert not any(name and name.split(".")[0] == "torch" for name in names)


def test_every_package_is_listed_for_the_wheel():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    on_disk = {module_name(p.parent / "__init__.py") for p in FILES}
    assert sorted(listed) == sorted(on_disk)
