"""Law: what the README and docs/ name exists: commands with their flags, config arguments and fields, files, links,
modules and Python calls. Nothing is trained and no data are read.
"""

import argparse
import ast
import importlib
import importlib.util
import inspect
import itertools
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
from absl import flags

from jax_mmreid.config_file import load_config, set_field
from jax_mmreid.errors import ConfigError
from jax_mmreid.inference import TrainedModel

ROOT = Path(__file__).parent.parent
README, CHANGELOG = ROOT / "README.md", ROOT / "CHANGELOG.md"
PAGES = [README, *sorted(ROOT.glob("docs/*.md"))]
OURS = ("jax_mmreid", "input_pipeline")
FOLDERS = (*OURS, "configs", "launch", "notebooks", "tests", "docs")
# A config of every recipe: a field in running text must exist in one of them.
RECIPES = ("rgbnt201.py", "sysu_mm01.py", "sysu_mm01.py:stage=base", "regdb.py", "clip.py", "manifest.py")
NAMED = {"model": TrainedModel}  # variables of Python examples whose type a reader knows from the text


class ParsedError(Exception):
    """Stops a program once it has parsed its arguments; carries the parser, and those that it does not know."""


def blocks(text, *languages):
    """The fenced blocks of a page in these languages."""
    return [code for language, code in re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S) if language in languages]


def prose(text):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def inline(text):
    """The `code` in the running text and the tables of a page."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def commands(text):
    """Every command line of a page that runs Python, as words from the program on: ["-m", "module", ...] or a file."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    found = []
    for line in [*lines, *inline(text)]:
        words = shlex.split(line, comments=True) if "python " in line and "[" not in line else []
        for chained, part in itertools.groupby(words, lambda word: word != "&&"):
            part = list(part)
            if chained and "python" in part:
                found.append(part[part.index("python") + 1 :])
    return found


ALL = [(page, words) for page in PAGES for words in commands(page.read_text())]


def programs(prefix):
    """The documented commands whose program begins with `prefix`, each with its arguments, for parametrize."""
    cases = []
    for page, words in ALL:
        name, *arguments = words[1:] if words[0] == "-m" else words
        if name.startswith(prefix):
            cases.append(pytest.param(name, arguments, id=f"{page.name}:{' '.join(words)[-90:]}"))
    return cases


def split_overrides(arguments):
    """(`--config.field=value` as field=value, all other arguments)."""
    ours = [x for x in arguments if x.startswith("--config.")]
    return [x.removeprefix("--config.") for x in ours], [x for x in arguments if x not in ours]


def values(arguments):
    """{flag: value} of `--flag=value` and `--flag`."""
    assert all(x.startswith("--") for x in arguments), arguments
    return {name.removeprefix("--"): value for name, _, value in (x.partition("=") for x in arguments)}


def parsed(program, arguments, monkeypatch):
    """Lets a program parse its arguments and no more: its parser, and the arguments that the parser does not know."""
    parse = argparse.ArgumentParser.parse_known_args

    def parse_and_stop(self, args=None, namespace=None):
        raise ParsedError(self, parse(self, args, namespace)[1] if args else [])

    with monkeypatch.context() as patch, pytest.raises(ParsedError) as stopped:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        program.main(arguments)
    return stopped.value.args


def check_config(config, overrides):
    """Loads a documented config with its arguments and fields; "..." in a page stands for what the reader chooses."""
    load_config(ROOT / config, [x for x in overrides if not x.endswith("=...")])


@pytest.mark.parametrize(("name", "arguments"), programs("jax_mmreid.main"))
def test_commands_of_main_name_flags_fields_and_configs_that_exist(name, arguments):
    importlib.import_module(name)
    overrides, rest = split_overrides(arguments)
    given = values(rest)
    for flag, value in given.items():
        assert flags.FLAGS.find_module_defining_flag(flag) is not None, f"main has no flag --{flag}"
        if flag != "config" and value:
            flags.FLAGS[flag].parser.parse(value)
    check_config(given["config"], overrides)
    assert "workdir" in given or given.get("mode") == "plan"


@pytest.mark.parametrize(
    ("name", "arguments"), [*programs("jax_mmreid.tools."), *programs("input_pipeline."), *programs("launch/")]
)
def test_commands_of_tools_parse(name, arguments, monkeypatch):
    is_launcher = name.startswith("launch/")
    program = _load(ROOT / name) if is_launcher else importlib.import_module(name)
    if not arguments:
        return  # named without arguments, in running text
    _, unknown = parsed(program, arguments, monkeypatch)
    if not is_launcher:
        assert not unknown, f"{name} has no {' '.join(unknown)}"
        return
    given = values([x for x in arguments if not x.startswith("--vary")])
    overrides, rest = split_overrides(unknown)
    assert not rest, f"{name} has no {' '.join(rest)}"
    for change in [x.removeprefix("--vary=") for x in arguments if x.startswith("--vary=")] or [""]:
        key, _, choices = change.partition("=")
        for value in choices.split(","):
            field = key.startswith("--config.")
            added = [f"{key.removeprefix('--config.')}={value}"] if field else []
            join = "," if ":" in given["config"] else ":"
            file = given["config"] if field or not key else f"{given['config']}{join}{key}={value}"
            check_config(file, overrides + added)


@pytest.mark.parametrize(("name", "arguments"), programs("tests/"))
def test_commands_of_benchmarks_parse(name, arguments, monkeypatch):
    program = _load(ROOT / name)
    if not arguments:
        return  # named without arguments, in running text
    _, unknown = parsed(program, arguments, monkeypatch)
    overrides, rest = split_overrides(unknown)
    assert not rest, f"{name} has no {' '.join(rest)}"
    given = values([x for x in arguments if x not in unknown])
    if "config" in given:
        check_config(given["config"], overrides)


@pytest.mark.parametrize(("name", "arguments"), programs("pytest"))
def test_commands_of_pytest_name_files_and_markers_that_exist(name, arguments):
    project = (ROOT / "pyproject.toml").read_text()
    for i, argument in enumerate(arguments):
        if argument.startswith("tests/"):
            assert (ROOT / argument).is_file(), argument
        if argument == "-m":
            assert f'"{arguments[i + 1]}: ' in project, f"no marker {arguments[i + 1]}"


def test_every_command_is_of_a_checked_program():
    known = ("jax_mmreid.main", "jax_mmreid.tools.", "input_pipeline.", "launch/", "tests/", "pytest", "venv")
    for page, words in ALL:
        name = words[1] if words[0] == "-m" else words[0]
        assert name.startswith(known), f"{page.name}: {' '.join(words)}"


@pytest.fixture(scope="module")
def known_flags():
    """The flags of main and of every tool and launch script."""
    importlib.import_module("jax_mmreid.main")
    found = {f"--{name}" for name in flags.FLAGS}
    tools = [*ROOT.glob("jax_mmreid/tools/[a-z]*.py"), *ROOT.glob("launch/*.py")]
    tools += [ROOT / "input_pipeline" / f"{name}.py" for name in ("check", "synthesize", "tfds_builder")]
    with pytest.MonkeyPatch.context() as monkeypatch:
        for path in tools:
            found |= parsed(_load(path), [], monkeypatch)[0]._option_string_actions.keys()
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_and_flags_in_running_text_exist(page, known_flags):
    quickstart = [f"quickstart.py:method={method}" for method in ("miss_reid", "tvi_lfm", "clip")]
    recipes = (*RECIPES, *quickstart)
    for code in inline(page.read_text()):
        if code.startswith("--config.FIELD"):
            continue  # stands for any
        if code.startswith("--config."):
            for override in code.split():
                override = override.removeprefix("--config.")
                assert any(_accepts(recipe, override) for recipe in recipes), f"{page.name}: no config takes {code}"
        elif code.startswith("--"):
            assert re.match(r"--[\w-]+", code)[0] in known_flags, f"{page.name}: no {code}"


def _accepts(recipe, override):
    config = load_config(ROOT / "configs" / recipe).unlock()
    field, sep, value = override.partition("=")
    try:
        if not sep:
            return _has(config, field)
        if value.isupper() and _has(config, field):  # NAME stands for what the reader chooses
            return True
        set_field(config, override)
    except ConfigError:
        return False
    return True


def _has(config, field):
    for name in field.split("."):
        if name not in config:
            return False
        config = config[name]
    return True


@pytest.mark.parametrize("page", [*PAGES, CHANGELOG], ids=lambda page: page.name)
def test_links_files_and_modules_exist(page):
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        if not link.startswith(("https://", "http://")):
            assert (page.parent / unquote(link)).exists(), f"{page.name}: no {link}"
    for code in inline(text):
        path = code.split(":")[0].rstrip("/")
        if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", path) and "NAME" not in path:
            assert (ROOT / path).exists(), f"{page.name}: no {path}"
        if re.fullmatch(rf"({'|'.join(OURS)})(\.[A-Za-z_]\w*)+", code):
            _resolve(code)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_use_names_and_arguments_that_exist(page):
    for block in blocks(page.read_text(), "python"):
        tree, names = ast.parse(block), dict(NAMED)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name: _resolve(f"{node.module}.{alias.name}") for alias in node.names}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = _lookup(call.func, names)
            if function is None or getattr(function, "__module__", "").partition(".")[0] not in OURS:
                continue
            owner = (
                [None]
                if isinstance(call.func, ast.Attribute) and _lookup(call.func.value, names) in NAMED.values()
                else []
            )
            keywords = {keyword.arg: None for keyword in call.keywords}
            inspect.signature(function).bind_partial(*owner, *([None] * len(call.args)), **keywords)


def _lookup(node, names):
    """What a dotted name of an example is; None for one that is not imported."""
    if isinstance(node, ast.Name):
        return names.get(node.id)
    if isinstance(node, ast.Attribute):
        value = _lookup(node.value, names)
        return None if value is None else getattr(value, node.attr)
    return None


def _resolve(dotted):
    """A module, or an attribute of one at any depth; AttributeError if there is none."""
    found, *rest = dotted.split(".")
    value = importlib.import_module(found)
    for name in rest:
        found = f"{found}.{name}"
        if inspect.ismodule(value) and hasattr(value, "__path__") and importlib.util.find_spec(found) is not None:
            value = importlib.import_module(found)
        else:
            value = getattr(value, name)
    return value


def _load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_functions_of_the_api_page_exist():
    from jax_mmreid import run

    for call in inline((ROOT / "docs/api.md").read_text()):
        if found := re.fullmatch(r"run\.(\w+)\(.*\)", call):
            assert hasattr(run, found[1]), call
