"""From `config.evals` to results: rows are handed to the evaluator module their `kind` names, means taken after.

A row is a dict. `kind` (default "retrieval") is a module of this package; a row with `mean_of=(names)` is the mean of
other rows' results, all of one kind. Such a module has

    check(name, row, data)                                      raises what is wrong with a row
    run(rows, *, method, variables, data, mesh, mean, std)      results of its rows by name
    COLUMNS = {heading: metric}                                 what tables print, fractions in percent
    PLAIN = (metric, ...)                                       which of them are no fractions, and better if less
    note(row, result)                                           what a table has no room for
"""

from collections.abc import Mapping
from types import ModuleType

from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict, ConfigError, find
from jax_mmreid.methods import Method

Result = dict  # metrics, as fractions in [0, 1] but for those in PLAIN, and what they were measured on


def check(config: ConfigDict, data: Data) -> None:
    """Raises ConfigError or DataError for a row that cannot be measured on this data, before any time is spent."""
    rows = config.evals.to_dict()
    for name, row in rows.items():
        for part in row.get("mean_of", ()):
            if part not in rows or "mean_of" in rows[part]:
                raise ConfigError(f"evals.{name}: mean_of names {part!r}, which is no measured row")
        if "mean_of" not in row:
            evaluator(rows, name).check(name, row, data)
        elif len({evaluator(rows, part) for part in row["mean_of"]}) != 1:
            raise ConfigError(f"evals.{name}: mean_of={row['mean_of']}, expected rows of one kind")
    if config.eval_every:
        _check_best(config.best, rows)


def run(config: ConfigDict, method: Method, variables: dict, data: Data, mesh: Mesh) -> dict[str, Result]:
    """Results of `config.evals` by name, in the order of the config."""
    rows, results = config.evals.to_dict(), {}
    measured = {name: row for name, row in rows.items() if "mean_of" not in row}
    for module in dict.fromkeys(evaluator(measured, name) for name in measured):
        mine = {name: row for name, row in measured.items() if evaluator(measured, name) is module}
        mean, std = config.aug.mean, config.aug.std
        results |= module.run(mine, method=method, variables=variables, data=data, mesh=mesh, mean=mean, std=std)
    for name, row in rows.items():
        if "mean_of" in row:
            results[name] = _average([results[part] for part in row["mean_of"]])
    return {name: results[name] for name in rows}


def evaluator(rows: Mapping[str, dict], name: str) -> ModuleType:
    """The module of a row's kind; a mean is of the kind of what it averages. Raises ConfigError if there is none."""
    row = rows[name]
    if "mean_of" in row:
        return evaluator(rows, row["mean_of"][0])
    return find("jax_mmreid.evaluators", row.get("kind", "retrieval"))


def _check_best(best: str, rows: Mapping[str, dict]) -> None:
    name, _, metric = best.rpartition("/")
    if name not in rows:
        raise ConfigError(f"best={best!r} names no row of evals; there are {', '.join(rows)}")
    module = evaluator(rows, name)
    metrics = [x for x in module.COLUMNS.values() if x not in module.PLAIN]
    if metric not in metrics:
        raise ConfigError(f"best={best!r}: what evals.{name} can be best in is {', '.join(metrics)}")


def _average(parts: list[Result]) -> Result:
    numbers = [key for key, value in parts[0].items() if isinstance(value, float)]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in numbers}
    return mean | {"protocol": parts[0]["protocol"], "feature": f"mean of {len(parts)} rows"}
