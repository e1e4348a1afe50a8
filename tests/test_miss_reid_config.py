"""What the config of Miss-ReID decides: the terms of the rows of Table 1, and what is refused in any method's."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import build, load_config, open_tiny, tiny_config
from miss_reid_batch import float_batch, loss_of

from jax_mmreid import experiment
from jax_mmreid.config import find, flat
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.methods import read_fields
from jax_mmreid.models.structure import StructureFields

TERMS = {
    "A": {"triplet", "identity"},
    "B": {"triplet", "identity", "nce"},
    "C": {"triplet", "identity", "structure_triplet", "structure_identity"},
}
TERMS["D"] = TERMS["B"] | TERMS["C"]
TERMS["E"] = TERMS["C"] | {"text_triplet", "text_identity", "text_nce"}
TERMS["F"] = TERMS["D"] | TERMS["E"]


@pytest.mark.parametrize("row", "ABCDEF")
def test_every_row_of_table_1_has_its_terms(drawn, row):
    exp, data, _ = start_shapes(tiny_config(drawn, row=row))
    batch = float_batch(np.random.default_rng(0), 8, data.spec.modalities)
    found = [jax.eval_shape(loss_of(phase.method), exp.abstract, batch) for phase in exp.phases]
    early, late = found[0], found[-1]
    assert set(late.terms) == TERMS[row]
    assert set(early.terms) == {name for name in TERMS[row] if not name.startswith("text_")}
    assert bool(late.updates["memory"]) == (row in "BDEF")


def test_without_a_passive_memory_row_e_has_no_text_contrast(drawn):
    exp, data, _ = start_shapes(tiny_config(drawn, row="E", **{"model.memory.passive": False}))
    batch = float_batch(np.random.default_rng(0), 8, data.spec.modalities)
    out = jax.eval_shape(loss_of(exp.phases[-1].method), exp.abstract, batch)
    assert set(out.terms) == TERMS["E"] - {"text_nce"} and not out.updates["memory"]


def test_captions_are_refused_in_use(drawn):
    """Data with captions: Miss-ReID has no vector of them, alone or beside pictures."""
    words = {"data.options.captioner": "Blip", "data.text.tokenizer": "train", "data.text.vocab_size": 530}
    exp, data, _ = start_shapes(tiny_config(drawn, **words, **{"model.text.vocab": 530, "data.text.context": 60}))
    assert data.spec.text == data.spec.modalities
    method = exp.phases[-1].method
    features = {"present": jnp.ones((2, 3), bool), "feats": jnp.ones((2, 3, 12)), "structure": jnp.ones((2, 3, 16))}
    for use in (("text",), ("rgb", "text"), ("rgb", "text/rgb"), ()):
        for refused in (
            lambda use=use: method.embed({}, features, use),
            lambda use=use: method.imputer(use),
        ):
            with pytest.raises(ConfigError, match="miss_reid has no vector of .*`use` must name some of rgb, nir, tir"):
                refused()
    for use in (("text",), ("rgb", "text")):
        side = dict(split="test", use=use)
        rows = {"words": dict(query=side, gallery=side, junk="same_camera")}
        runner.check(rows, data)
        with pytest.raises(ConfigError, match="evals.words: miss_reid has no vector of"):
            runner.run(rows, method, {}, data, exp.mesh, mean=0.5, std=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.iosm": False}, "config.model.ldmmc=True needs iosm=True"),
        ({"model.structure.tokens": "all"}, "config.model.structure.tokens=all: expected one of pre_proj, proj"),
        ({"model.memory.update": "often"}, "config.model.memory.update=often: expected one of"),
        ({"model.memory.order": "never"}, "config.model.memory.order=never: expected one of"),
        ({"model.missing_fill": "noise"}, "config.model.missing_fill=noise: expected one of"),
        ({"model.template_kind": "dog"}, "config.model.template_kind=dog: expected one of person, vehicle"),
        ({"model.dtype": "int8"}, "config.model.dtype=int8: expected one of"),
        ({"model.image.heads": 3}, "config.model.image.heads=3 does not divide config.model.image.width=16"),
        ({"model.text.heads": 3}, "config.model.text.heads=3 does not divide config.model.text.width=8"),
        ({"model.structure.heads": 3}, "config.model.structure.heads=3 does not divide config.model.structure.width"),
        ({"model.image.patch": 12}, r"config.data.image_size=\(32, 16\) is not a whole number of patches of 12 pixels"),
        ({"model.text.context": 17}, "config.model.text.context=17 is too small for the sentence .* set it to 18"),
        ({"model.text.vocab": 4000}, "config.model.text.vocab=4000 is too small for the sentence"),
        ({"aug.sync": "crop"}, "config.aug.sync is 'crop'; expected one of none, flip, flip_crop, all"),
        ({"model.structure.depth": 1}, "config.model.structure has depth; its fields are heads, out_proj, queries"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(drawn, changes, message):
    with pytest.raises(ConfigError, match=message):
        build(config := tiny_config(drawn, **changes), open_tiny(config))


def test_fields_have_their_types():
    fields = dict(queries=3, width=16, heads=4, out_proj=False, tokens="proj")
    assert read_fields(StructureFields, fields, "model.structure").width == 16
    for key, value, message in (
        ("width", 16.0, "config.model.structure.width=16.0: must be a whole number"),
        ("out_proj", "no", "config.model.structure.out_proj='no': must be True or False"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_fields(StructureFields, fields | {key: value}, "model.structure")
    with pytest.raises(ConfigError, match="config.model.structure lacks heads, width; its fields are heads"):
        read_fields(
            StructureFields, {k: x for k, x in fields.items() if k not in ("heads", "width")}, "model.structure"
        )


def outside(interval, kind):
    """Numbers beyond the finite ends of an interval, and NaN if numbers are floats."""
    low, high = (float(end) for end in interval[1:-1].split(","))
    ends = [low if interval[0] == "(" else low - 1, high if interval[-1] == ")" else high + 1]
    return [kind(x) for x in ends if np.isfinite(x)] + [np.nan] * (kind is float)


@pytest.mark.parametrize("arg", ["", "method=tvi_lfm", "method=clip"])
def test_every_number_of_a_method_has_a_range(arg):
    """A memory.alpha of 3, a tau of 0 or a dropout of 1 is an error that names the field, the value and the range."""
    config = load_config("quickstart", arg)
    ranges = find("jax_mmreid.methods", config.method).RANGES
    count = 0
    for field, value in flat(config.model.to_dict()).items():
        first = value[0] if isinstance(value, tuple) else value
        if isinstance(first, bool) or not isinstance(first, int | float):
            continue
        interval = next(interval for pattern, interval in ranges.items() if re.fullmatch(pattern, field))
        for x in outside(interval, type(first)):
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({f"model.{field}": (x, *value[1:]) if isinstance(value, tuple) else x})
            with pytest.raises(ConfigError, match=rf"config.model.{field}=.*must lie in {re.escape(interval)}"):
                experiment.build(changed, spec=None)
            count += 1
    assert count >= 7


def start_shapes(config):
    """`start` without running the initialiser: the state is its shapes."""
    data = open_tiny(config)
    exp = build(config, data, devices=jax.devices()[:1])
    return exp, data, exp.abstract
