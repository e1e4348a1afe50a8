"""The synthetic dataset: drawn once in any layout, read as that layout's dataset reads it, and its options."""

import importlib
import json

import pytest
from PIL import Image
from rgbnt201_tree import ALL, write_tree

from input_pipeline import datasets
from input_pipeline.datasets import synthetic
from input_pipeline.synthetic import layouts
from jax_mmreid.errors import ConfigError, DataError

VISIBLE_INFRARED = ("llcm", "regdb", "sysu_mm01")
PLANS = (  # two cameras are few enough for an identity to miss one; identities 9 and 15 miss more
    dict(num_train_ids=8, num_test_ids=2, cameras=2, images_per_camera=1, height=32),
    dict(num_train_ids=2, num_test_ids=3, cameras=4, images_per_camera=2, height=32),
)


def read(folder, **options):
    modalities = options.pop("modalities", ("rgb", "ir") if options.get("layout") in VISIBLE_INFRARED else ALL)
    return synthetic.load(str(folder), modalities=modalities, allow_missing_files=False, **options)


def test_synthetic_writes_once_and_refuses_other_arguments(tmp_path, monkeypatch):
    written = []

    def write(output, **arguments):
        written.append(arguments)
        write_tree(tmp_path / "syn")
        (tmp_path / "syn" / "synthesized.json").write_text(json.dumps({"height": 256, "cameras": 4, **arguments}))

    def signature(output, *, layout="rgbnt201", seed=0, height=256, cameras=4):
        write(output, layout=layout, seed=seed, height=height)

    monkeypatch.setattr(synthetic, "synthesize", signature)

    def read(**options):
        return synthetic.load(str(tmp_path / "syn"), modalities=ALL, allow_missing_files=False, **options)

    first, second = read(seed=3, height=64), read(seed=3, height=64)
    assert first["train"].fingerprint() == second["train"].fingerprint()
    assert len(read()["test"]) == 2  # arguments that are not asked for may be anything
    assert written == [dict(layout="rgbnt201", seed=3, height=64)]
    with pytest.raises(DataError, match="was drawn with seed=3 not 4, height=64 not 128; delete it or choose another"):
        read(seed=4, height=128, cameras=4)
    with pytest.raises(ConfigError, match="config.data.options of synthetic with layout=rgbnt201: no option 'colour'"):
        read(colour=1)
    for content in ("[1]", "{", None):
        (tmp_path / "syn" / "synthesized.json").unlink()
        if content is not None:
            (tmp_path / "syn" / "synthesized.json").write_text(content)
        with pytest.raises(DataError, match="no readable synthesized.json"):
            read(seed=3)


def test_synthetic_draws_real_pictures(tmp_path):
    options = dict(seed=2, num_train_ids=3, num_test_ids=2, cameras=2, images_per_camera=1, height=32)
    records = synthetic.load(str(tmp_path / "new"), modalities=ALL, allow_missing_files=False, **options)
    assert len(records["train"]) == 6 and len(records["test"]) == 4
    with Image.open(records["test"].path("tir", 0)) as image:
        assert image.size == (16, 32)


def test_synthetic_made_by_a_faster_process_is_read(tmp_path, monkeypatch):
    def synthesize(output, *, layout):
        write_tree(tmp_path / "syn")
        (tmp_path / "syn" / "synthesized.json").write_text(json.dumps({"layout": layout}))
        raise DataError("directory not empty")

    monkeypatch.setattr(synthetic, "synthesize", synthesize)
    assert len(synthetic.load(str(tmp_path / "syn"), modalities=ALL, allow_missing_files=False)["train"]) == 5


@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_synthetic_draws_any_layout_and_reads_it_as_its_dataset_does(tmp_path, layout):
    found = read(tmp_path / layout, layout=layout, seed=2, **PLANS[1])
    module = importlib.import_module(f"input_pipeline.datasets.{layout}")
    modalities = tuple(found["train"].paths)
    own = module.load(str(tmp_path / layout), modalities=modalities, allow_missing_files=False)
    assert {split: x.fingerprint() for split, x in found.items()} == {
        split: x.fingerprint() for split, x in own.items()
    }
    assert json.loads((tmp_path / layout / "synthesized.json").read_text())["layout"] == layout
    with pytest.raises(DataError, match=f"was drawn with layout={layout} not {layouts.LAYOUTS[layout == 'llcm']};"):
        read(tmp_path / layout, layout=layouts.LAYOUTS[layout == "llcm"], **PLANS[1])


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_synthetic_counts_are_what_it_draws(tmp_path, layout, plan):
    both = ("rgb", "ir") if layout in VISIBLE_INFRARED else ALL
    more = {"sysu_mm01": dict(source="npy"), "regdb": dict(trial=7), "rgbnt201": dict(captioner="Blip")}.get(layout, {})
    for options in (dict(seed=2, **plan), dict(seed=2, **plan, **more)):
        for modalities in (both, both[:1], both[1:]):
            found = read(tmp_path / layout, layout=layout, modalities=modalities, **options)
            counted = synthetic.counts("", layout=layout, modalities=modalities, **options)
            assert {split: counts._asdict() for split, counts in counted.items()} == {
                split: dict(
                    identities=len(set(records.pid.tolist())),
                    cameras=tuple(sorted(set(records.camid.tolist()))),
                    rows=len(records),
                )
                for split, records in found.items()
            }


def test_synthetic_draws_with_some_options_and_reads_with_the_others(tmp_path):
    options = dict(layout="regdb", seed=2, **PLANS[1])
    first = read(tmp_path / "drawn", captioner="", **options)
    second = read(tmp_path / "drawn", trial=2, rephrased=False, **options)  # the same pictures, read otherwise
    assert first["train"].captions == {} and list(second["train"].captions) == ["rgb", "ir"]
    assert set(first["train"].paths["rgb"]) != set(second["train"].paths["rgb"])
    with pytest.raises(DataError, match="was drawn with seed=2 not 3"):
        read(tmp_path / "drawn", **options | dict(seed=3))


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(layout="sysu"), "config.data.options.layout='sysu': expected one of 'llcm', 'msvr310', .* 'sysu_mm01'"),
        (
            dict(layout="sysu_mm01", trial=1),
            "no option 'trial'; there are layout, seed, .* source, captioner, rephrased, query_captions$",
        ),
        (dict(layout="rgbnt100", captioner="Blip"), "no option 'captioner'; there are layout, seed, .*, height$"),
        (dict(query_captions=""), "no option 'query_captions'; .*, height, captioner, rephrased;"),
        (dict(layout="regdb", trial=11), r"config.data.options.trial=11: must lie in \[1, 10\]"),
        (dict(layout="regdb", trial="1"), "config.data.options.trial='1': must be a whole number"),
        (dict(output="elsewhere"), "no option 'output'"),
        (dict(cameras=0), r"config.data.options.cameras=0: must lie in \[1, 9\]"),
        (dict(height=32.0), "config.data.options.height=32.0: must be a whole number"),
        (dict(num_train_id=3), "no option 'num_train_id'; .*; did you mean 'num_train_ids'"),
    ],
)
def test_impossible_options_of_the_synthetic_dataset(tmp_path, options, message):
    modalities = ("rgb", "ir") if "layout" in options else ALL
    given = dict(data_dir=str(tmp_path / "new"), modalities=modalities)
    for function, more in (("counts", {}), ("load", dict(allow_missing_files=False))):
        with pytest.raises(ConfigError, match=message) as error:
            datasets.find("synthetic", function, options, **given, **more)()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()


def test_modalities_that_the_layout_lacks():
    with pytest.raises(ConfigError, match="config.data.modalities.*regdb has rgb, ir"):
        synthetic.counts("", modalities=ALL, layout="regdb")
