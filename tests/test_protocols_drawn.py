"""TVI-LFM's rows on drawn SYSU-MM01, from picture and caption files to results: any batch size, any mesh, any order."""

import jax
import numpy as np
import pytest
from conftest import build, load_config, open_tiny

from input_pipeline.synthesize import synthesize
from jax_mmreid.errors import ConfigError
from jax_mmreid.evaluators import runner
from jax_mmreid.metrics import ranking

ROWS = ("ir_base", "ir", "text", "fusion", "mer")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """4 training and 5 test identities before 6 cameras, 3 pictures each, with captions."""
    folder = tmp_path_factory.mktemp("data") / "SYSU-MM01"
    synthesize(folder, layout="sysu_mm01", num_train_ids=4, num_test_ids=5, images_per_camera=3, height=32)
    return folder


def tiny(folder, **changes):
    """The published config on these pictures, every axis small; `changes` override dotted fields."""
    config = load_config("sysu_mm01", "stage=lfm")
    config.data.data_dir = str(folder)
    config.data.update(image_size=(32, 16), identities=4, instances=2, eval_batch_size=16, threads=0)
    config.data.text.update(tokenizer="train", vocab_size=600)
    config.model.image.update(blocks=(1, 1, 1, 1), width=4)
    config.model.text.update(vocab=600, width=16, layers=1, heads=2)
    config.aug.pad = 2
    config.mesh.data = 1
    config.update_from_flattened_dict(changes)
    return config


def draw(abstract):
    """Weights of a seed without `create`, which would have to be compiled: scales, variances and exponents near 1."""
    rng = np.random.default_rng(0)

    def drawn(path, x):
        values = rng.normal(float(path[-1].key in ("scale", "var", "p")), 0.2, x.shape)
        return jax.device_put(values.astype(x.dtype), x.sharding)

    return jax.tree_util.tree_map_with_path(drawn, abstract)


def measure(config):
    """Results of `config.evals` with drawn weights."""
    data, rows = open_tiny(config), config.evals.to_dict()
    runner.check(rows, data)
    exp = build(config, data)
    normal = dict(mean=exp.spec.mean, std=exp.spec.std)
    return runner.run(rows, exp.phases[-1].method, draw(exp.abstract.variables), data, exp.mesh, **normal)


def numbers(results):
    return np.array([[row[name] for name in ranking.METRICS] for row in results.values()])


@pytest.fixture(scope="module")
def measured(pictures):
    return measure(tiny(pictures))


def test_every_row_of_both_searches_is_measured_on_ten_galleries(measured):
    assert list(measured) == [f"{search}/{name}" for search in ("all", "indoor") for name in ROWS]
    values = numbers(measured)
    assert ((values >= 0) & (values <= 1)).all() and (values[:, :6] > 0).all() and len(np.unique(values[:, 0])) >= 8
    for name, row in measured.items():
        cameras = "1, 2, 4, 5" if name.startswith("all") else "1, 2"
        assert row["trials"] == 10 and f"(cameras {cameras}; shots 1; mean of 10 trials)" in row["protocol"]
    assert measured["all/mer"]["feature"] == "ir+text>rgb, ensemble=True"
    # Five people, of each of whom one row counts.
    assert (values[:, ranking.METRICS.index("rank5")] == 1).all()


@pytest.mark.parametrize("changes", [{"data.eval_batch_size": 7}, {"mesh.data": 8}])
@pytest.mark.slow
def test_batch_size_and_devices_change_nothing(pictures, measured, changes):
    np.testing.assert_allclose(numbers(measure(tiny(pictures, **changes))), numbers(measured), atol=1e-6)


def test_rows_that_use_text_are_refused_where_there_are_no_captions(pictures):
    config = tiny(pictures, **{"data.text.tokenizer": ""})
    with pytest.raises(ConfigError, match="evals.all/text: captions are used, and split 'query' has none"):
        runner.check(config.evals.to_dict(), open_tiny(config))
    config = tiny(pictures)
    config.evals["all/ir"].gallery.draw.cameras = (3,)
    with pytest.raises(ConfigError, match=r"evals.all/ir: draw.cameras=\(3,\): the split has pictures by cameras"):
        runner.check(config.evals.to_dict(), open_tiny(config))
