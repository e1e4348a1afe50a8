"""What a config costs, before anything runs: parameters and multiply-adds of each part, from shapes alone.

No weight is made and no image read. There are two counts:

- ours: the matrix products and convolutions of `encode` and `embed` for one sample, found in the traced program;
- as published: `Method.published_parts`, counted as the method's publication does (`jax_mmreid.cost.published`).
"""

import dataclasses
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from jax_mmreid import experiment
from jax_mmreid.batch import Batch, DataSpec, one_row
from jax_mmreid.config import ConfigDict, config_hash
from jax_mmreid.cost import published
from jax_mmreid.methods import Method

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """The counts of one part of a method, for one sample."""

    trained: int = 0  # parameters
    frozen: int = 0
    published_parameters: int = 0
    min_macs: int = 0  # multiply-adds with the cheapest branch of every condition: nothing is imputed
    max_macs: int = 0  # with the most expensive branch: everything that the method can impute
    published_macs: int = 0


def plan(
    config: ConfigDict, spec: DataSpec, tokenize: Callable[[Sequence[str]], np.ndarray] | None = None
) -> dict[str, Part]:
    """The parts by name, and their sums as "total".

    The vector is that of the first query in `config.evals`. The mesh of the config is ignored, so a config for a pod
    can be planned anywhere. `tokenize` is that of `experiment.build`. Raises ConfigError as that does.
    """
    config = config.copy_and_resolve_references()
    config.mesh.update(data=1, model=1)
    exp = experiment.build(config, spec, tokenize, devices=jax.devices()[:1])
    method, state = exp.phases[-1].method, exp.abstract
    trained, frozen = _sizes(state.params), _sizes(state.frozen)

    use = next((tuple(row.query.use) for row in config.evals.values() if "query" in row), tuple(spec.modalities))

    def program(variables: dict, batch: Batch) -> Array:
        return method.embed(variables, method.encode(variables, batch), use)

    sample = one_row(spec, spec.modalities, spec.text, spec.text_length)
    jaxpr = jax.make_jaxpr(program)(state.variables, sample).jaxpr
    min_macs, max_macs = (_by_part(multiply_adds(jaxpr, choose), method) for choose in (min, max))
    paths = method.published_parts(tuple(spec.image_size))
    published_macs = _top({path: published.multiply_adds(part) for path, part in paths.items()})
    counted = {path: size for path, size in trained.items() if any(f"{path}/".startswith(f"{p}/") for p in paths)}
    columns = [_top(counts) for counts in (trained, frozen, counted)] + [min_macs, max_macs, published_macs]
    names = dict.fromkeys([*max_macs, *sorted(set().union(*columns))])  # in the order of the program, then the rest
    parts = {name: Part(*(column[name] for column in columns)) for name in names}
    return parts | {"total": Part(*(column.total() for column in columns))}


def markdown(config: ConfigDict, spec: DataSpec, rows: int, parts: dict[str, Part]) -> str:
    """The parts as a table, below the sizes of the training data, `rows` rows, that they depend on."""
    total = parts["total"]
    head = ("part", "trained", "frozen", "as papers count", "min, G", "max, G", "as papers count, G")
    cells = [(name, *(f"{n:,}" for n in part[:3]), *map(_giga, part[3:])) for name, part in parts.items()]
    widths = [max(map(len, column)) for column in zip(head, *cells)]
    lines = [
        f"{config.method}, config {config_hash(config)}; {spec.name} with {len(spec.pids)} training identities, "
        f"{len(spec.cameras)} cameras, {rows} rows.",
        "",
        _line(head, widths),
        f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]),
        *(_line(row, widths) for row in cells),
        "",
        f"Parameters: {total.trained / 1e6:.6f} M trained, {total.frozen / 1e6:.6f} M frozen.",
        f"Multiply-adds: matrix products and convolutions of one sample at test ({', '.join(spec.modalities)}, "
        f"{spec.image_size[0]}x{spec.image_size[1]}).",
        "min: nothing is missing; max: the most expensive branch of every condition, with all features imputed.",
    ]
    if total.published_macs:
        millions, billions = (
            f"{n:.1f}" if n >= 1 else f"{n:.3g}" for n in (total.published_parameters / 1e6, total.published_macs / 1e9)
        )
        lines.append(f"Counted as the publication counts: {millions} M parameters, {billions} G multiply-adds.")
    return "\n".join(lines) + "\n"


def multiply_adds(jaxpr: Jaxpr, choose: Callable = max, scope: str = "") -> Counter[str]:
    """Multiply-adds of matrix products and convolutions by the scope that they are in, subprograms included.

    The body of a scan counts once per step. Of a condition the branch that `choose` (max or min) picks by its total
    counts. The body of a while loop, whose length is not known from shapes, counts once, with a warning. `scope` is a
    prefix of the scopes.
    """
    counts = Counter()
    for eqn in jaxpr.eqns:
        here = f"{scope}/{eqn.source_info.name_stack}"
        kind = eqn.primitive.name
        if kind in _OPERATIONS:
            counts[here] += _OPERATIONS[kind](eqn)
            continue
        inner = [multiply_adds(body, choose, here) for body in jaxprs_in_params(eqn.params)]
        if kind == "cond":
            inner = [choose(inner, key=Counter.total)]
        if kind == "while" and any(inner):
            log.warning("a while loop (%s) is counted as if it ran once", here.strip("/") or "in no module")
        for body in inner:
            for name, number in body.items():
                counts[name] += number * (eqn.params["length"] if kind == "scan" else 1)
    return counts


def _dot_general(eqn: JaxprEqn) -> int:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: JaxprEqn) -> int:
    """Each output value is a product with a whole filter, padding included; in groups a filter has fewer channels."""
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    return math.prod(out) * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]


_OPERATIONS = {"dot_general": _dot_general, "conv_general_dilated": _convolution}


def _sizes(tree: Any) -> dict[str, int]:
    return {path: math.prod(x.shape) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}


def _top(counts: dict[str, int]) -> Counter[str]:
    """Counts by path as counts by the first name of the path."""
    tops = Counter()
    for path, number in counts.items():
        tops[path.partition("/")[0]] += number
    return tops


def _by_part(counts: Counter[str], method: Method) -> Counter[str]:
    """Counts by scope as counts by the field of the method whose module opened the scope, or "other".

    linen names the scope of an outermost module by its class; fields of one class are one part, such as "rgb+ir".
    """
    fields = {}
    for scope, field in _modules(method):
        fields[scope] = f"{fields[scope]}+{field}" if scope in fields else field
    parts = Counter()
    for scope, number in counts.items():
        parts[next((fields[word] for word in re.findall(r"\w+", scope) if word in fields), "other")] += number
    return parts


def _modules(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(scope, field) of every module in a dataclass and in the dataclasses inside it."""
    if isinstance(value, nn.Module):
        yield value.name or type(value).__name__, field
    elif dataclasses.is_dataclass(value):
        for inner in dataclasses.fields(value):
            yield from _modules(getattr(value, inner.name), inner.name)


def _giga(number: int) -> str:
    return f"{number / 1e9:.6f}" if number else "0"


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
    return f"| {' | '.join([cells[0].ljust(widths[0]), *numbers])} |"
