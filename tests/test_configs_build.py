"""What every file in configs/ builds: phases, parts, published numbers of parameters, groups of the optimizer."""

from pathlib import Path

import jax
import pytest
from conftest import load_config
from flax import traverse_util
from shapes_only import build, count

from jax_mmreid import optim
from jax_mmreid.config import config_hash, difference, to_json
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.miss_reid import MISS_REID_ROWS
from jax_mmreid.state import merge

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.mark.parametrize("arg", ["row=A", "row=F", "method=tvi_lfm,stage=base", "method=tvi_lfm,stage=lfm"])
def test_the_quickstart_may_start_from_aligned_towers(arg):
    plain, config = load_config("quickstart", arg), load_config("quickstart", f"{arg},init=clip")
    exp = build(config)
    before, workdir = config.pretrain.config, config.pretrain.workdir
    assert before.method == "clip" and workdir.endswith(config_hash(before))
    assert before.data.options.seed != config.data.options.seed  # other people, other cameras
    assert config.model.text == before.model.text
    fields = exp.abstract.frozen if arg != "method=tvi_lfm,stage=lfm" else exp.abstract.params
    assert config.init == {
        "row=A": f"{workdir}:image+text",
        "row=F": f"{workdir}:image+text",
        "method=tvi_lfm,stage=base": f"{workdir}:text",
    }.get(arg, "")
    if arg != "row=A":
        assert fields["text"]["token_embedding"].shape == (768, 64)
    if arg in ("row=F", "method=tvi_lfm,stage=lfm"):
        assert config.data.text.tokenizer == f"{workdir}/tokenizer"
    changed = {line.split(" ")[0].split(".")[0] for line in difference(to_json(plain), config)}
    assert changed <= {"init", "pretrain", "model", "data"}
    with pytest.raises(ConfigError, match="init=clip: method=clip starts from random weights"):
        load_config("quickstart", "method=clip,init=clip")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_builds_and_its_best_names_a_row(file):
    """And every number of it has a range: `build` raises KeyError for one that has none."""
    config = load_config(file.stem)
    exp = build(config)
    assert [phase.stop for phase in exp.phases][-1] == config.epochs * 54
    assert config.best.rpartition("/")[0] in config.evals
    for row in config.evals.values():
        assert set(row.get("mean_of", ())) <= set(config.evals)


@pytest.mark.parametrize("stage, trained", [("base", {"image", "pool", "head"}), ("lfm", {"text", "head"})])
def test_the_quickstart_builds_for_both_stages_of_tvi_lfm(stage, trained):
    config = load_config("quickstart", f"method=tvi_lfm,stage={stage}")
    assert set(build(config).abstract.params) == trained
    assert bool(config.requires_init) == (stage == "lfm")
    with pytest.raises(ConfigError, match="method=other: expected one of miss_reid, tvi_lfm"):
        load_config("quickstart", "method=other")


@pytest.mark.parametrize("row", MISS_REID_ROWS)
def test_the_quickstart_builds_for_every_row(row):
    config = load_config("quickstart", f"row={row},eta=0.1/0.3/0.5")
    assert config.missing.eta == (0.1, 0.3, 0.5)
    exp = build(config)
    parts = {"image", "heads"} | ({"structure"} if row in "CDEF" else set())
    parts |= {"inversion", "prompts"} if row in "EF" else set()
    assert set(exp.abstract.params) == parts
    assert set(exp.abstract.frozen) == ({"text"} if row in "EF" else set())
    assert bool(exp.abstract.memory) == (row in "BDEF")
    assert len(exp.phases) == (2 if row in "EF" else 1)


# The count that is published for row A, and those of the pieces that rows C and E add.
@pytest.mark.parametrize(
    "row, trained, frozen",
    [
        ("A", 86_407_680, 0),
        ("B", 86_407_680, 0),
        ("C", 88_324_608, 0),
        ("D", 88_324_608, 0),
        ("E", 89_579_264, 63_428_096),  # CLIP's text tower has one more, its logit scale, which nothing here reads
        ("F", 89_579_264, 63_428_096),
    ],
)
def test_rgbnt201_has_the_published_number_of_parameters(row, trained, frozen):
    state = build(load_config("rgbnt201", f"row={row}")).abstract
    assert (count(state.params), count(state.frozen)) == (trained, frozen)


def test_the_widths_of_the_equations_are_the_other_preset():
    state = build(load_config("rgbnt201", "preset=equations")).abstract
    assert state.params["structure"]["query"].shape == (16, 512)
    assert state.params["inversion"]["fc_1"]["kernel"].shape == (512, 2048)
    assert count(state.params) == 89_662_464


@pytest.mark.parametrize(
    "arg, message",
    [("row=G", "row=G: expected one of A, B, C, D, E, F"), ("preset=x", "expected one of table1, equations")],
)
def test_a_row_or_preset_that_does_not_exist_is_refused(arg, message):
    with pytest.raises(ConfigError, match=message):
        load_config("rgbnt201", arg)


@pytest.fixture(scope="module")
def row_f():
    config = load_config("quickstart")
    return config, build(config).abstract


def test_every_parameter_is_in_the_group_the_paper_gives_it(row_f):
    config, state = row_f
    names = traverse_util.flatten_dict(
        optim.group_names(merge(state.params, state.frozen), config.optim.rules), sep="/"
    )
    expected = {
        "image/block_0/attention/qkv/kernel": "tower",
        "image/block_1/fc/bias": "tower",
        "image/ln_post/norm/bias": "tower",
        "image/projection/kernel": "tower",
        "image/camera_embedding": "new",
        "heads/rgb/classifier/kernel": "new",
        "heads/structure/neck/scale": "new",
        "structure/query": "new",
        "structure/ln_query/norm/bias": "new_bias",
        "inversion/fc_1/kernel": "language",
        "inversion/fc_2/bias": "language_bias",
        "heads/text_tir/classifier/kernel": "language",
        "heads/text_rgb/neck/scale": "language",
        "prompts": "prompts",
        "text/token_embedding": "frozen",
        "text/block_1/attention/out/bias": "frozen",
        "text/ln_final/norm/bias": "frozen",
    }
    assert {path: names[path] for path in expected} == expected
    assert {path for path, group in names.items() if group == "frozen"} == {x for x in names if x.startswith("text/")}
    assert {path for path, group in names.items() if group == "tower"} == {
        x for x in names if x.startswith("image/") and x != "image/camera_embedding"
    }


def test_the_optimizer_holds_two_moments_of_what_is_trained_and_nothing_of_the_text_tower(row_f):
    _, state = row_f
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * count(state.params)
    paths = [[getattr(key, "key", None) for key in path] for path, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert any("heads" in path for path in paths) and not any("text" in path for path in paths)
