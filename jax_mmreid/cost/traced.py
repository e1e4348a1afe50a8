"""What a config costs, before anything runs: parameters and multiply-adds of each part, from shapes alone.

No weight is made and no picture read. Two counts stand side by side:

- ours: the matrix products and convolutions of `encode` and `embed` for one sample, found in the traced program;
- as published: what `Method.published_cost` counts in the way of the method's publication.
"""

import dataclasses
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from jax_mmreid import experiment
from jax_mmreid.batch import Batch, Data
from jax_mmreid.config import ConfigDict, config_hash
from jax_mmreid.methods import Method

log = logging.getLogger(__name__)


class Part(NamedTuple):
    """The counts of one part of a method, whole numbers; a multiply-add is one."""

    trained: int = 0  # parameters
    frozen: int = 0
    published_parameters: int = 0
    least: int = 0  # multiply-adds, with the cheapest branch of every condition: nothing to fill in
    most: int = 0  # with the dearest: everything that the method can fill in
    published: int = 0  # multiply-adds


def plan(config: ConfigDict, data: Data) -> dict[str, Part]:
    """The parts by name and their "total"; of `data` only the fields are used, no row is read.

    The vector is that of the first query in `config.evals`. The mesh of the config plays no part, so a config for a pod
    can be planned anywhere. Raises ConfigError.
    """
    config = config.copy_and_resolve_references()
    config.mesh.update(data=1, model=1)
    exp = experiment.build(config, data, devices=jax.devices()[:1])
    method, state = exp.phases[-1].method, exp.abstract
    trained, frozen = _sizes(state.params), _sizes(state.frozen)

    use = next((tuple(row.query.use) for row in config.evals.values() if "query" in row), tuple(data.spec.modalities))

    def program(variables: dict, batch: Batch) -> Array:
        return method.embed(variables, method.encode(variables, batch), use)

    jaxpr = jax.make_jaxpr(program)(state.variables, _sample(data)).jaxpr
    least, most = (_by_part(multiply_adds(jaxpr, choose), method) for choose in (min, max))
    published = method.published_cost(tuple(data.spec.image_size))
    counted = {path: size for path, size in trained.items() if any(f"{path}/".startswith(f"{p}/") for p in published)}
    columns = [_top(counts) for counts in (trained, frozen, counted)] + [least, most, _top(published)]
    names = dict.fromkeys([*most, *sorted(set().union(*columns))])  # in the order of the program, then the rest
    parts = {name: Part(*(column[name] for column in columns)) for name in names}
    return parts | {"total": Part(*(column.total() for column in columns))}


def markdown(config: ConfigDict, data: Data, parts: dict[str, Part]) -> str:
    """The plan as a table, under the counts of the training data that it took for granted."""
    total = parts["total"]
    head = ("part", "trained", "frozen", "as papers count", "least, G", "most, G", "as papers count, G")
    rows = [(name, *(f"{n:,}" for n in part[:3]), *map(_giga, part[3:])) for name, part in parts.items()]
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [
        f"{config.method}, config {config_hash(config)}; {config.data.name} taken as {len(data.spec.pids)} training "
        f"identities, {len(data.spec.cameras)} cameras, {data.num_rows('train')} rows.",
        "",
        _line(head, widths),
        f"|{'-' * (widths[0] + 2)}|" + "".join(f"{'-' * (width + 1)}:|" for width in widths[1:]),
        *(_line(row, widths) for row in rows),
        "",
        f"Parameters: {total.trained / 1e6:.6f} M trained, {total.frozen / 1e6:.6f} M frozen.",
        f"Multiply-adds: matrix products and convolutions of one sample at test ({', '.join(data.spec.modalities)}, "
        f"{data.spec.image_size[0]}x{data.spec.image_size[1]}).",
        "Least is for a sample that lacks nothing; most takes the dearest branch of every condition: all filled in.",
    ]
    if total.published:
        millions, billions = (
            f"{n:.1f}" if n >= 1 else f"{n:.3g}" for n in (total.published_parameters / 1e6, total.published / 1e9)
        )
        lines.append(f"Counted as the publication counts: {millions} M parameters, {billions} G multiply-adds.")
    return "\n".join(lines) + "\n"


def multiply_adds(jaxpr: Jaxpr, choose: Callable = max, scope: str = "") -> Counter[str]:
    """Multiply-adds of matrix products and convolutions by the scope they stand in, subprograms included.

    A scan counts its body once a step, a condition the branch that `choose` picks by total (max or min), and a while
    loop, whose length shapes do not tell, its body once, with a warning. `scope` goes before the scopes found.
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
    """Each output value meets one filter whole, padding included; with groups a filter has fewer channels."""
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    return math.prod(out) * math.prod(kernel) // kernel[eqn.params["dimension_numbers"].rhs_spec[0]]


_OPERATIONS = {"dot_general": _dot_general, "conv_general_dilated": _convolution}


def _sample(data: Data) -> Batch:
    """The shapes of one row as evaluation gives it to `encode`."""
    number, flag = jax.ShapeDtypeStruct((1,), jnp.int32), jax.ShapeDtypeStruct((1,), bool)
    image = jax.ShapeDtypeStruct((1, *data.spec.image_size, 3), jnp.float32)
    batch = {"images": dict.fromkeys(data.spec.modalities, image), "present": dict.fromkeys(data.spec.modalities, flag)}
    if data.spec.text:
        captions = jax.ShapeDtypeStruct((1, data.spec.text_length), jnp.int32)
        batch["text"], batch["present"]["text"] = dict.fromkeys(data.spec.text, captions), flag
    return batch | dict.fromkeys(("pid", "camid", "view", "index"), number) | {"valid": flag}


def _sizes(tree: Any) -> dict[str, int]:
    return {path: math.prod(x.shape) for path, x in traverse_util.flatten_dict(tree, sep="/").items()}


def _top(counts: dict[str, int]) -> Counter[str]:
    """Counts by path as counts by the first name of the path."""
    tops = Counter()
    for path, number in counts.items():
        tops[path.partition("/")[0]] += number
    return tops


def _by_part(counts: Counter[str], method: Method) -> Counter[str]:
    """Counts by scope as counts by the field of the method whose module opened the scope, "other" outside of any.

    linen names the scope of an outermost module by its class; fields of one class share a part, "rgb+ir".
    """
    fields = {}
    for scope, field in _modules(method):
        fields[scope] = f"{fields[scope]}+{field}" if scope in fields else field
    parts = Counter()
    for scope, number in counts.items():
        parts[next((fields[word] for word in re.findall(r"\w+", scope) if word in fields), "other")] += number
    return parts


def _modules(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(scope, field) of every module in a dataclass and in the dataclasses it holds."""
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
