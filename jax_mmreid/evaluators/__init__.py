"""From `config.evals` to results: rows are handed to the evaluator module their `kind` names, means taken after.

A row is a dict. `kind` (default "retrieval") is a module of this package with `run(rows, ...)`; a row with
`mean_of=(names)` is the mean of other rows' results.
"""

from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict, ConfigError, find
from jax_mmreid.methods import Method

Result = dict  # metrics as fractions in [0, 1], and what they were measured on


def run(config: ConfigDict, method: Method, variables: dict, data: Data, mesh: Mesh) -> dict[str, Result]:
    """Results of `config.evals` by name, in the order of the config."""
    rows, results = config.evals.to_dict(), {}
    measured = {name: row for name, row in rows.items() if "mean_of" not in row}
    for kind in sorted({row.get("kind", "retrieval") for row in measured.values()}):
        mine = {name: row for name, row in measured.items() if row.get("kind", "retrieval") == kind}
        evaluator = find("jax_mmreid.evaluators", kind)
        mean, std = config.aug.mean, config.aug.std
        results |= evaluator.run(mine, method=method, variables=variables, data=data, mesh=mesh, mean=mean, std=std)
    for name, row in rows.items():
        if "mean_of" in row:
            results[name] = _average([_lookup(results, name, part) for part in row["mean_of"]])
    return {name: results[name] for name in rows}


def _lookup(results: dict[str, Result], name: str, part: str) -> Result:
    if part not in results:
        raise ConfigError(f"evals.{name}: mean_of names {part!r}; there are {', '.join(results)}")
    return results[part]


def _average(parts: list[Result]) -> Result:
    numbers = [key for key, value in parts[0].items() if isinstance(value, float)]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in numbers}
    return mean | {"protocol": parts[0]["protocol"], "feature": f"mean of {len(parts)} rows"}
