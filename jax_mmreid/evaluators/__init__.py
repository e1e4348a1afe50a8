"""From `config.evals` to results: rows are handed to the evaluator module their `kind` names, means taken after.

A row is a dict. `kind` (default "retrieval") is a module of this package; a row with `mean_of=(names)` is the mean of
other rows' results, all of one kind. A row NAME with `pairs_of=(names)` stands for rows NAME/QUERY>GALLERY, the query
of every named row against the gallery of every one, which must be retrieval rows that differ in nothing else; they are
called by the last part of their names. A module of this package has

    check(name, row, data)                                      raises what is wrong with a row
    uses(row)                                                   [(split, what of it the row reads)]
    run(rows, encoder)                                          results of its rows by name
    COLUMNS = {heading: metric}                                 what tables print, fractions in percent
    NOT_FRACTIONS = (metric, ...)                                       which of them are no fractions, and better if less
    note(row, result)                                           what a table has no room for
"""

import itertools
from collections.abc import Mapping
from types import ModuleType

from jax.sharding import Mesh

from jax_mmreid.batch import Data
from jax_mmreid.config import ConfigDict, find
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import retrieval
from jax_mmreid.evaluators.encoder import Encoder, check_keys
from jax_mmreid.methods import Method

Result = dict  # metrics, as fractions in [0, 1] but for those in NOT_FRACTIONS, and what they were measured on
DERIVED = {"mean_of", "pairs_of", "same_as"}  # a row with one of these takes its result from those of others


def check(config: ConfigDict, data: Data) -> None:
    """Raises ConfigError or DataError for a row that cannot be measured on this data, before any time is spent."""
    rows = config.evals.to_dict()
    for name, row in rows.items():
        for key in ("mean_of", "pairs_of"):
            for part in row.get(key, ()):
                if part not in rows or DERIVED & rows[part].keys():
                    raise ConfigError(f"evals.{name}: {key} names {part!r}, which is no measured row")
        if "pairs_of" in row:
            _check_pairs(name, rows)
        elif "mean_of" not in row:
            evaluator(rows, name).check(name, row, data)
        elif len({evaluator(rows, part) for part in row["mean_of"]}) != 1:
            raise ConfigError(f"evals.{name}: mean_of={row['mean_of']}, expected rows of one kind")
    if config.eval_every:
        _check_best(config.best, rows)


def run(config: ConfigDict, method: Method, variables: dict, data: Data, mesh: Mesh) -> dict[str, Result]:
    """Results of `config.evals` by name, in the order of the config."""
    rows, results = _with_pairs(config.evals.to_dict()), {}
    measured = {name: row for name, row in rows.items() if not DERIVED & row.keys()}
    modules = {name: evaluator(measured, name) for name in measured}
    uses = [use for name, row in measured.items() for use in modules[name].uses(row)]
    encoder = Encoder(method, variables, data, mesh, mean=config.aug.mean, std=config.aug.std, uses=uses)
    for module in dict.fromkeys(modules.values()):
        results |= module.run({name: measured[name] for name in measured if modules[name] is module}, encoder)
    for name, row in rows.items():
        if "mean_of" in row:
            results[name] = _average([results[part] for part in row["mean_of"]])
        elif "same_as" in row:
            results[name] = results[row["same_as"]]
    return {name: results[name] for name in rows}


def evaluator(rows: Mapping[str, dict], name: str) -> ModuleType:
    """The module of a row's kind; a mean is of the kind of what it averages. Raises ConfigError if there is none."""
    row = rows[name]
    if "mean_of" in row:
        return evaluator(rows, row["mean_of"][0])
    return find("jax_mmreid.evaluators", row.get("kind", "retrieval"))


def numbers(results: Mapping[str, Result]) -> dict[str, float]:
    """Everything that was measured, as ROW/METRIC, as a log wants it."""
    return {f"{name}/{key}": x for name, row in results.items() for key, x in row.items() if isinstance(x, float)}


def watched(config: ConfigDict, results: Mapping[str, Result]) -> float | None:
    """The number that picks the best checkpoint, None if it was not measured."""
    name, _, metric = config.best.rpartition("/")
    return results.get(name, {}).get(metric)


def _with_pairs(rows: Mapping[str, dict]) -> dict[str, dict]:
    """The rows, with those of all pairs in the place of one with `pairs_of`; a row and itself are `same_as` the row."""
    found = {}
    for name, row in rows.items():
        if "pairs_of" not in row:
            found[name] = row
        for query, gallery in itertools.product(row.get("pairs_of", ()), repeat=2):
            pair = {"same_as": query} if query == gallery else rows[query] | {"gallery": rows[gallery]["gallery"]}
            found[f"{name}/{_last(query)}>{_last(gallery)}"] = pair
    return found


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _check_pairs(name: str, rows: Mapping[str, dict]) -> None:
    """Raises ConfigError if the pairs of measured rows are no retrieval rows, or cannot be told apart by name."""
    where, parts = f"evals.{name}", rows[name]["pairs_of"]
    check_keys(where, rows[name], ("pairs_of",))
    ends = {_last(part) for part in parts}
    if len(ends) < max(2, len(parts)) or ">" in "".join(ends):
        raise ConfigError(f"{where}: pairs_of={parts}, expected two rows or more with different last names without '>'")
    for other in rows:
        if other.startswith(f"{name}/") and ">" in other:
            raise ConfigError(f"{where}: evals.{other} is called like one of its results; give one another name")
    for part in parts:
        if evaluator(rows, part) is not retrieval:
            raise ConfigError(f"{where}: pairs_of names {part!r}, which is no row of kind retrieval")
        for key in ("junk", *retrieval.DEFAULTS):
            one, other = ((retrieval.DEFAULTS | rows[x]).get(key) for x in (parts[0], part))
            if one != other:
                raise ConfigError(
                    f"{where}: {key} is {one!r} in {parts[0]!r} and {other!r} in {part!r}; name rows that differ in "
                    "query and gallery alone"
                )


def _check_best(best: str, rows: Mapping[str, dict]) -> None:
    name, _, metric = best.rpartition("/")
    results = _with_pairs(rows)
    if name not in results:
        names = [f"{name}/QUERY>GALLERY" if "pairs_of" in row else name for name, row in rows.items()]
        raise ConfigError(f"best={best!r} names no row of evals; there are {', '.join(names)}")
    module = evaluator(results, name)
    metrics = [x for x in module.COLUMNS.values() if x not in module.NOT_FRACTIONS]
    if metric not in metrics:
        raise ConfigError(f"best={best!r}: what evals.{name} can be best in is {', '.join(metrics)}")


def _average(parts: list[Result]) -> Result:
    numbers = [key for key, value in parts[0].items() if isinstance(value, float)]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in numbers}
    return mean | {"protocol": parts[0]["protocol"], "feature": f"mean of {len(parts)} rows"}
