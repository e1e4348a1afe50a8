"""Config files: `configs/rgbnt201.py:row=A` and overrides such as `data.data_dir=FOLDER` as a locked config."""

import argparse
import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from jax_mmreid.config import BOOLS
from jax_mmreid.errors import ConfigError

OVERRIDE = "--config."  # of one field on the command line, as in --config.optim.lr.tower=1e-5


def load_config(file: str | Path, overrides: Iterable[str] = ()) -> ConfigDict:
    """The config of a file, with `FILE:ARGUMENT` that of `get_config(ARGUMENT)`, after the overrides, locked.

    An override is `field=value` with a dotted field, as in `optim.lr.tower=1e-5`; the value is read as the type that
    the field has. Raises ConfigError for a file that does not exist or is no config, for a field that the config does
    not have, and for a value of another type; what `get_config` raises passes through.
    """
    path, _, arg = str(file).partition(":")
    if not Path(path).is_file():
        raise ConfigError(f"config file {path} does not exist; name one, as in --config=configs/quickstart.py")
    spec = importlib.util.spec_from_file_location(f"config_{Path(path).stem}", path)
    if spec is None:
        raise ConfigError(f"config file {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file {path} has no function get_config(arg)")
    config = module.get_config(arg)
    for override in overrides:
        set_field(config, override)
    return config.lock()


def set_field(config: ConfigDict, override: str) -> None:
    """Sets one dotted field from `field=value`; raises ConfigError as `load_config` does."""
    field, sep, text = override.partition("=")
    *parents, last = field.split(".")
    place, where = config, "config"
    for name in parents:
        place, where = _child(place, where, name), f"{where}.{name}"
        if not isinstance(place, ConfigDict):
            raise ConfigError(f"{where} is no group of fields, so {where}.{last} does not exist")
    old = _child(place, where, last)
    if not sep:
        raise ConfigError(f"--config.{field} has no value; write --config.{field}=VALUE")
    if isinstance(old, ConfigDict):
        raise ConfigError(f"{where}.{last} is a group of fields; set one of {', '.join(old)}")
    place[last] = _parse(text, old, f"{where}.{last}")


def set_data_fields(config: ConfigDict, overrides: Iterable[str], refusal: str) -> None:
    """Sets fields of `config.data`; raises ConfigError as `set_field` does, and with `refusal` for any other field."""
    for override in overrides:
        if not override.startswith("data."):
            raise ConfigError(f"{OVERRIDE}{override}: {refusal}")
        set_field(config, override)


def split_overrides(arguments: Iterable[str]) -> tuple[list[str], list[str]]:
    """The arguments of a command line without those that override a field, and the overrides, `field=value`."""
    rest, overrides = [], []
    for argument in arguments:
        (overrides if argument.startswith(OVERRIDE) else rest).append(argument.removeprefix(OVERRIDE))
    return rest, overrides


def parse_with_overrides(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """What the parser makes of a command line, by default that of the process, and the overrides, `field=value`."""
    rest, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
    return parser.parse_args(rest), overrides


def _child(place: ConfigDict, where: str, name: str) -> object:
    if name in place:
        return place[name]
    near = difflib.get_close_matches(name, place, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(place) or 'none'}"
    raise ConfigError(f"{where} has no field {name!r}; {hint}")


def _parse(text: str, like: object, field: str) -> object:
    """`text` as a value of the type of `like`."""
    kind = type(like)
    try:
        if kind is bool:
            return BOOLS[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        value = ast.literal_eval(text)
        return tuple(value) if kind is tuple and isinstance(value, list | tuple) else _same(value, kind)
    except (KeyError, ValueError, SyntaxError, TypeError):
        raise ConfigError(f"{field}={text}: expected a value of type {kind.__name__}, such as {like!r}") from None


def _same(value: object, kind: type) -> object:
    if kind is not type(None) and not isinstance(value, kind):
        raise TypeError(kind)
    return value
