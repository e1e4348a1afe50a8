"""From `config.evals` to results: rows are checked and run one by one, means and pairs come from other rows.

A row is a dict. `kind` (default "retrieval") names a module of this package; its fields are described there. Any row
may have `group`, rows of one group share a table, and `setting`, its label in that table. A row with `mean_of=(names)`
is the mean of other rows' results, all of one kind. A row NAME with `pairs_of=(names)` stands for rows
NAME/QUERY>GALLERY, the query of every named row against the gallery of every one; those must be retrieval rows that
differ in nothing else. In NAME/QUERY>GALLERY a named row is called by its setting, by its name if it has none. The row
may have `similarity` and `fallback`, which then are those of its pairs.
"""

import contextlib
import importlib
import itertools
import pkgutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jax_mmreid import evaluators
from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import LABELS, Evaluator, Result, Use, check_keys
from jax_mmreid.evaluators.encoder import Encoder, one_row_of
from jax_mmreid.evaluators.programs import Level
from jax_mmreid.evaluators.retrieval import Retrieval
from jax_mmreid.methods import Method

NOT_KINDS = ("encoder", "programs", "runner")  # modules of this package that are no kinds of evaluation
OF_PAIRS = ("similarity", "fallback")  # fields of rows that one with `pairs_of` may change
DERIVED = ("mean_of", "pairs_of")  # a row with one of these takes its results from those of others
Rows = Mapping[str, dict]


def check(rows: Rows, data: Data) -> None:
    """Raises ConfigError or DataError for a row that cannot be measured on this data, before any time is spent."""
    measured = [name for name, row in rows.items() if not _is_derived(row)]
    for name, row in rows.items():
        with _named(name):
            if not _is_derived(row):
                _evaluator(row).check(data)
                continue
            (key,) = (key for key in DERIVED if key in row)
            for part in row[key]:
                if part not in measured:
                    raise ConfigError(f"{key} names {part!r}; it can name {', '.join(measured)}")
            if key == "mean_of":
                _check_mean(name, rows)
                continue
            _check_pairs(name, rows)
            for part in row["pairs_of"] if _changed(row) else ():
                _evaluator(rows[part] | _changed(row)).check(data)


def check_method(rows: Rows, method: Method, variables: Any, data: Data) -> None:
    """Raises ConfigError for a row of which the method has no vector, as far as shapes tell; no tower runs.

    `variables` are those of the method or their shapes. Traces the method once per split and once per vector.
    """
    # Pairs have the sides of the rows that they are of, so those of a row with itself stand for all.
    alone = {name: row for name, row in _expand(rows).items() if len(set(row.get("pair", ()))) < 2}
    measured = {name: _evaluator(row) for name, row in alone.items() if not {"mean_of", "same_as"} & row.keys()}
    uses = {}
    for evaluator in (x for x in measured.values() if x.LEARNED):
        for split, use in evaluator.uses():
            uses.setdefault(split, set()).update(use)
    features = {
        split: jax.eval_shape(method.encode, variables, one_row_of(split, names, data)) for split, names in uses.items()
    }
    done = []
    for name, evaluator in measured.items():
        if not evaluator.LEARNED:
            continue
        needs = evaluator.uses(), evaluator.row.get("options"), evaluator.row.get("similarity")
        if needs not in done:
            done.append(needs)
            with _named(name):
                evaluator.check_method(method, variables, features)


def check_best(best: str, rows: Rows) -> None:
    """Raises ConfigError unless `best`, ROW/METRIC, names a metric of these rows that is better if higher."""
    name, _, metric = best.rpartition("/")
    expanded = _expand(rows)
    if name not in expanded:
        names = [f"{name}/QUERY>GALLERY" if "pairs_of" in row else name for name, row in rows.items()]
        raise ConfigError(f"best={best!r}: there is no row {name!r} in evals; the rows are {', '.join(names)}")
    kind = find(_kind(name, expanded))
    if not kind.LEARNED:
        raise ConfigError(f"best={best!r}: training does not change evals.{name}; name a row of another kind")
    metrics = [x for x in kind.COLUMNS.values() if x not in kind.NOT_FRACTIONS]
    if metric not in metrics:
        raise ConfigError(f"best={best!r}: evals.{name} can pick a checkpoint by {', '.join(metrics)}")


def run(
    rows: Rows,
    method: Method,
    variables: dict,
    data: Data,
    mesh: Mesh,
    *,
    mean: Level,
    std: Level,
    encoder: Encoder | None = None,
) -> dict[str, Result]:
    """Results by name, in the order of the rows, each with its "kind" and where it has them "group", "setting", "pair".

    `variables` are those of the method, `mean` and `std` normalise pixels. An `encoder` of all this that has the uses
    of the rows spares what it has encoded already. Raises ConfigError for a row that the method cannot do, DataError
    for data that it cannot be measured on.
    """
    rows = _expand(rows)
    measured = {name: _evaluator(row) for name, row in rows.items() if not {*DERIVED, "same_as"} & row.keys()}
    learned = {name: evaluator for name, evaluator in measured.items() if evaluator.LEARNED}
    encoder = encoder or Encoder(method, variables, data, mesh, mean=mean, std=std, uses=_uses(learned))
    found = _run(learned, encoder)
    methods = {name: evaluator.method(data) for name, evaluator in measured.items() if not evaluator.LEARNED}
    for own in dict.fromkeys(methods.values()):
        chosen = {name: measured[name] for name in methods if methods[name] == own}
        found |= _run(chosen, Encoder(own, {}, data, mesh, mean=0.0, std=1.0, uses=_uses(chosen)))
    results = {}
    for name, row in rows.items():
        if "mean_of" in row:
            result = _average([found[part] for part in row["mean_of"]])
        else:
            result = found[row.get("same_as", name)]
        labels = {key: row[key] for key in (*LABELS, "pair") if key in row}
        results[name] = {"kind": _kind(name, rows)} | labels | result
    return results


def learned(rows: Rows) -> dict[str, dict]:
    """The rows whose results depend on the weights: what is worth measuring more than once in a run."""
    return {name: row for name, row in rows.items() if find(_kind(name, rows)).LEARNED}


def numbers(results: Mapping[str, Result]) -> dict[str, float]:
    """Everything that was measured, as ROW/METRIC, for a log."""
    return {f"{name}/{key}": x for name, row in results.items() for key, x in row.items() if isinstance(x, float)}


def best_metric(best: str, results: Mapping[str, Result]) -> float | None:
    """The number that picks the best checkpoint, `best` being ROW/METRIC; None if it was not measured."""
    name, _, metric = best.rpartition("/")
    return results.get(name, {}).get(metric)


def columns(rows: Rows) -> dict[str, dict]:
    """What tables must know of kinds: {"columns": {kind: {heading: metric}}, "not_fractions": {kind: [metric]}}."""
    kinds = {kind: find(kind) for kind in dict.fromkeys(_kind(name, rows) for name in rows)}
    return {
        "columns": {kind: dict(found.COLUMNS) for kind, found in kinds.items()},
        "not_fractions": {kind: list(found.NOT_FRACTIONS) for kind, found in kinds.items()},
    }


def find(kind: str) -> type[Evaluator]:
    """The class of a kind; raises ConfigError listing the kinds that exist if there is none of this name."""
    kinds = sorted({m.name for m in pkgutil.iter_modules(evaluators.__path__)} - {*NOT_KINDS})
    if kind not in kinds:
        raise ConfigError(f"kind={kind!r}: there is no such kind of evaluation; there are {', '.join(kinds)}")
    module = importlib.import_module(f"{evaluators.__name__}.{kind}")
    (found,) = (
        x
        for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, Evaluator) and x.__module__ == module.__name__
    )
    return found


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Puts the name of a row in front of its errors."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"evals.{name}: {error}") from error


def _uses(evaluators: Mapping[str, Evaluator]) -> list[tuple[str, Use]]:
    return [use for evaluator in evaluators.values() for use in evaluator.uses()]


def _run(evaluators: Mapping[str, Evaluator], encoder: Encoder) -> dict[str, Result]:
    found = {}
    for name, evaluator in evaluators.items():
        with _named(name):
            found[name] = evaluator.run(encoder)
    return found


def _is_derived(row: dict) -> bool:
    return any(key in row for key in DERIVED)


def _evaluator(row: dict) -> Evaluator:
    return find(row.get("kind", "retrieval"))(row)


def _kind(name: str, rows: Rows) -> str:
    """The kind of a row, that of the first of its parts if it is derived."""
    row = rows[name]
    parts = [row["same_as"]] if "same_as" in row else next((row[key] for key in DERIVED if key in row), ())
    return _kind(parts[0], rows) if parts else row.get("kind", "retrieval")


def _expand(rows: Rows) -> dict[str, dict]:
    """The rows, with all its pairs instead of a row with `pairs_of`; a row against itself is `same_as` that row."""
    found = {}
    for name, row in rows.items():
        found |= _pairs(name, rows) if "pairs_of" in row else {name: row}
    return found


def _pairs(name: str, rows: Rows) -> dict[str, dict]:
    """The pairs that a row with `pairs_of` stands for."""
    found, changed = {}, _changed(rows[name])
    for query, gallery in itertools.product(rows[name]["pairs_of"], repeat=2):
        ends = [_end(rows, query), _end(rows, gallery)]
        same = query == gallery and not changed
        pair = {"same_as": query} if same else rows[query] | {"gallery": rows[gallery]["gallery"]} | changed
        pair = {key: x for key, x in pair.items() if key not in LABELS}
        found[f"{name}/{'>'.join(ends)}"] = pair | {"group": name, "pair": ends}
    return found


def _changed(row: dict) -> dict:
    """What a row with `pairs_of` changes in the rows that it names."""
    return {key: x for key, x in row.items() if key in OF_PAIRS}


def _end(rows: Rows, name: str) -> str:
    """What a row is called in the names of pairs."""
    return rows[name].get("setting", name)


def _check_mean(name: str, rows: Rows) -> None:
    parts = rows[name]["mean_of"]
    check_keys("the row", rows[name], ("mean_of",), LABELS)
    if len({_kind(part, rows) for part in parts}) != 1:
        raise ConfigError(f"mean_of={parts}, expected rows of one kind")


def _check_pairs(name: str, rows: Rows) -> None:
    """Raises ConfigError if the rows are not of one kind of retrieval, or if two of their pairs would have one name."""
    parts = rows[name]["pairs_of"]
    check_keys("the row", rows[name], ("pairs_of",), OF_PAIRS)
    ends = {_end(rows, part) for part in parts}
    if len(ends) < max(2, len(parts)) or ">" in "".join(ends):
        raise ConfigError(f"pairs_of={parts}, expected two rows or more of different settings, without '>' in them")
    for other in rows:
        if other.startswith(f"{name}/") and ">" in other:
            raise ConfigError(f"evals.{other} has the name of one of its results; rename one of the two rows")
    kind = find(_kind(parts[0], rows))
    for part in parts:
        if not issubclass(kind, Retrieval) or find(_kind(part, rows)) is not kind:
            raise ConfigError(f"pairs_of names {part!r} of kind {_kind(part, rows)}, expected rows of kind retrieval")
        for key in ("junk", *kind.DEFAULTS):
            one, other = ((kind.DEFAULTS | rows[x]).get(key) for x in (parts[0], part))
            if one != other:
                raise ConfigError(
                    f"{key} is {one!r} in {parts[0]!r} and {other!r} in {part!r}; name rows that differ in query and "
                    "gallery only"
                )


def _average(parts: list[Result]) -> Result:
    metrics = [key for key in parts[0] if all(isinstance(part.get(key), float) for part in parts)]
    mean = {key: sum(part[key] for part in parts) / len(parts) for key in metrics}
    return mean | {"protocol": parts[0]["protocol"], "feature": f"mean of {len(parts)} rows"}
