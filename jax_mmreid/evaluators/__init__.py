"""From `config.evals` to results: rows are handed to the evaluator module their `kind` names, means taken after.

A row is a dict. `kind` (default "retrieval") is a module of this package with `check` and `run`; a row with
`mean_of=(names)` is the mean of other rows' results.
"""

from types import ModuleType

from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict, ConfigError, find
from jax_mmreid.methods import Method

Result = dict  # metrics as fractions in [0, 1], and what they were measured on


def check(config: ConfigDict, data: Data) -> None:
    """Raises ConfigError or DataError for a row that cannot be measured on this data, before any time is spent."""
    rows = config.evals.to_dict()
    for name, row in rows.items():
        for part in row.get("mean_of", ()):
            if part not in rows or "mean_of" in rows[part]:
                raise ConfigError(f"evals.{name}: mean_of names {part!r}, which is no measured row")
        if "mean_of" not in row:
            _evaluator(row).check(name, row, data)
    if config.eval_every and config.best.rpartition("/")[0] not in rows:
        raise ConfigError(f"best={config.best!r} names no row of evals; there are {', '.join(rows)}")


def run(config: ConfigDict, method: Method, variables: dict, data: Data, mesh: Mesh) -> dict[str, Result]:
    """Results of `config.evals` by name, in the order of the config."""
    rows, results = config.evals.to_dict(), {}
    measured = {name: row for name, row in rows.items() if "mean_of" not in row}
    for evaluator in dict.fromkeys(map(_evaluator, measured.values())):
        mine = {name: row for name, row in measured.items() if _evaluator(row) is evaluator}
        mean, std = config.aug.mean, config.aug.std
        results |= evaluator.run(mine, method=method, variables=variables, data=data, mesh=mesh, mean=mean, std=std)
    for name, row in rows.items():
        if "mean_of" in row:
            results[name] = _average([results[part] for part in row["mean_of"]])
    return {name: results[name] for name in rows}


def _evaluator(row: dict) -> ModuleType:
    return find("jax_mmreid.evaluators", row.get("kind", "retrieval"))


def _average(parts: list[Result]) -> Result:
    numbers = [key for key, value in parts[0].items() if isinstance(value, float)]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in numbers}
    return mean | {"protocol": parts[0]["protocol"], "feature": f"mean of {len(parts)} rows"}
