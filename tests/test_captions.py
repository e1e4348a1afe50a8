"""The caption files: names of pictures, the draw of queries, faults of files."""

import functools
import json

import numpy as np
import pytest

from input_pipeline.datasets import llcm
from input_pipeline.parsing import captions
from input_pipeline.parsing.captions import CaptionFiles, from_folder
from input_pipeline.records import Records
from jax_mmreid.errors import DataError

# Made by the official code: RandomState(1), one choice from each of nine lists of these sizes.
SIZES = (10, 10, 10, 7, 3, 1, 10, 9, 5)
INDEX = [5, 8, 9, 3, 1, 0, 0, 0, 1]
KEY = functools.partial(from_folder, folders=("Visible", "Thermal"))


def refused(function, *args, **options):
    with pytest.raises(DataError) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "path",
    [
        "Visible/193/x.bmp",
        "datasets/regdb/Visible/193/x.bmp",
        "/data0/someone/RegDB//Visible/193/x.bmp",
        "./Visible/193/x.bmp",
        "D:\\RegDB\\Visible\\193\\x.bmp",
        "/Thermal/of/Visible/RegDB/Visible/193/x.bmp",
    ],
)
def test_a_path_counts_from_the_folders_of_the_dataset_on(path):
    assert KEY(path) == "Visible/193/x.bmp"


def test_a_path_outside_of_the_folders_stays():
    assert KEY("a//b/x.bmp") == "a/b/x.bmp"


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/data/cam1/llcm//test_nir/cam4/0005/x.jpg", "nir/0005/x.jpg"),
        ("test_vis/cam9/0005/x.jpg", "vis/0005/x.jpg"),
        ("datasets/llcm/nir/0005/x.jpg", "nir/0005/x.jpg"),
    ],
)
def test_llcm_names_test_pictures_like_training_pictures(path, key):
    assert llcm._key(path) == key


def test_the_draw_is_the_official_one():
    lists = {pid: [f"{pid}:{i}" for i in range(size)] for pid, size in enumerate(SIZES)}
    drawn = captions.draw(lists, np.arange(9, dtype=np.int32), "map.json")
    assert drawn.tolist() == [f"{pid}:{i}" for pid, i in enumerate(INDEX)]
    rng = np.random.RandomState(1)
    pids = [3, 3, 0, 5, 8, 0]
    assert captions.draw(lists, pids, "").tolist() == [rng.choice(lists[pid]) for pid in pids]


def test_the_draw_needs_a_caption_of_every_identity():
    assert refused(captions.draw, {1: ["a"], 2: []}, [1, 2, 3, 3], "map.json") == (
        "captions: map.json has no caption of identity 2 (2 such); add them"
    )


@pytest.mark.parametrize("read", [captions.read_lists, lambda file: captions.read_table(file, KEY)])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"Visible/1/a.bmp": "caf\xe9"}', "'utf-8' codec can't decode"),
        (b'{"Visible/1/a.bmp": ', "should be JSON in UTF-8"),
        (b'["a caption"]', "one JSON object, not a list"),
        (b'{"Visible/1/a.bmp": 3}', "the entry of"),
    ],
)
def test_files_that_are_no_captions(tmp_path, read, content, reason):
    (tmp_path / "c.json").write_bytes(content)
    message = refused(read, str(tmp_path / "c.json"))
    assert message.startswith("captions: ") and str(tmp_path / "c.json") in message and reason in message


def test_pictures_without_a_caption(tmp_path):
    file = save(tmp_path / "c.json", {"/x/Visible/1/a.bmp": "A man.", "Visible/1/b.bmp": {"description": " "}})
    table = captions.read_table(file, KEY)
    assert captions.look_up(table, ["Visible/1/a.bmp"], file, KEY).tolist() == ["A man."]
    message = refused(captions.look_up, table, ["Visible/1/a.bmp", "Visible/1/b.bmp", "Visible/1/c.bmp"], file, KEY)
    assert f"{file} has no 'description' of Visible/1/b.bmp (2 of 3 pictures lack one)" in message
    assert "no 'aug_description'" in refused(captions.look_up, table, ["Visible/1/a.bmp"], file, KEY, "aug_description")


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.array(["a", "b"], object), "Object arrays cannot be loaded"),
        (np.array(["a", "b", "c"]), "holds <U1[3], but there are 2 training pictures"),
        (np.array([1.0, 2.0]), "holds float64[2]"),
        (np.array(["a", ""]), "has an empty caption in row 1 (1 such rows)"),
    ],
)
def test_arrays_that_are_no_captions(tmp_path, array, reason):
    file = tmp_path / "train_text.npy"
    np.save(file, array, allow_pickle=True)
    message = refused(captions.read_array, str(file), ["x", "y"])
    assert str(file) in message and reason in message


def test_an_array_that_is_cut_off(tmp_path):
    file = tmp_path / "train_text.npy"
    np.save(file, np.array(["a", "b"]))
    file.write_bytes(file.read_bytes()[:-3])
    assert f"cannot read {file}" in refused(captions.read_array, str(file), ["x", "y"])


# A dataset of one visible and two infrared training pictures, two queries and a visible test picture.


def column(*paths):
    return np.array(paths)


def records(rgb, ir, pid):
    pid = np.array(pid, np.int32)
    return Records("", {"rgb": column(*rgb), "ir": column(*ir)}, pid, pid, np.zeros_like(pid))


SPLITS = {
    "train": records(["Visible/1/a.bmp", "", ""], ["", "Thermal/1/b.bmp", "Thermal/1/c.bmp"], [0, 0, 0]),
    "query": records(["", ""], ["Thermal/2/d.bmp", "Thermal/2/e.bmp"], [2, 2]),
    "gallery": records(["Visible/2/f.bmp"], [""], [2]),
}


@pytest.fixture
def files(tmp_path):
    """Caption files of all pictures; a caption is the name of its picture."""

    def table(names, folder, *fields):
        return {f"datasets/regdb/{folder}/{path}.bmp": {f: f"{path} {f[0]}" for f in fields} for path in names}

    for kind, folder, names in (("RGB", "Visible", ("1/a", "2/f")), ("IR", "Thermal", ("1/b", "1/c", "2/d", "2/e"))):
        where = tmp_path / "Text" / f"Blip_{kind}"
        save(where / f"caption_dict_Blip_{kind}.json", table(names, folder, "description"))
        save(where / f"caption_llm_dict_Blip_{kind}.json", table(names, folder, "description", "aug_description"))
    save(tmp_path / "Text" / "Blip_RGB" / "id_caption_map_Blip_RGB.json", {"1": ["one"], "2": ["two", "too"]})
    return tmp_path


def open_files(root, **changes):
    options = dict(captioner="Blip", rephrased=True, query_captions="", key=KEY, allow_missing_files=False) | changes
    return CaptionFiles(str(root), **options)


def test_columns_of_captions(files, caplog):
    splits = open_files(files).add(SPLITS)
    assert {name: x.tolist() for name, x in splits["train"].captions.items()} == {
        "rgb": ["1/a d", "", ""],
        "rgb_rephrased": ["1/a a", "", ""],
        "ir": ["", "1/b d", "1/c d"],
        "ir_rephrased": ["", "1/b a", "1/c a"],
    }
    assert splits["query"].captions["ir"].tolist() == ["2/d d", "2/e d"]
    assert splits["query"].captions["rgb"].tolist() == ["too", "too"]
    assert splits["gallery"].captions == {} and not caplog.records
    assert SPLITS["train"].captions == {}


def test_without_rephrased_captions_and_without_any(files):
    original = open_files(files, rephrased=False).add(SPLITS)
    assert set(original["train"].captions) == {"rgb", "ir"}
    none = open_files(files / "nowhere", captioner="").add(SPLITS)
    assert all(records.captions == {} for records in none.values())


# A dataset of whole rows: of two rows to train on one lacks its near infrared picture, and no test row has one.


def rows(names, pid, **folders):
    """Records with pictures FOLDER/NAME.bmp; a name is "" where there is none."""
    pid = np.array(pid, np.int32)
    paths = {m: column(*(f"Thermal/{x}.bmp" if x else "" for x in names[m])) for m in names}
    return Records("", paths | folders, pid, pid, np.zeros_like(pid))


VISIBLE = [column("Visible/1/a.bmp", "Visible/2/f.bmp"), column("Visible/3/g.bmp")]
WHOLE = {
    "train": rows({"nir": ["", "1/b"], "tir": ["1/c", "2/d"]}, [1, 2], rgb=VISIBLE[0]),
    "test": rows({"nir": [""], "tir": ["2/e"]}, [3], rgb=VISIBLE[1]),
}


@pytest.fixture
def more(files):
    """The caption files with a visible test picture."""
    for stem in ("caption_dict", "caption_llm_dict"):
        file = files / "Text" / "Blip_RGB" / f"{stem}_Blip_RGB.json"
        entry = {"description": " 3/g d\n", "aug_description": "3/g a"}
        save(file, json.loads(file.read_text()) | {"/somewhere/Visible/3/g.bmp": entry})
    return files


@pytest.mark.parametrize("rephrased", [False, True])
def test_every_picture_of_every_split_has_a_caption(more, rephrased, caplog):
    splits = open_files(more, rephrased=rephrased).of_every_picture(WHOLE)
    original = {"nir": ["", "1/b d"], "tir": ["1/c d", "2/d d"], "rgb": ["1/a d", "2/f d"]}
    other = {f"{m}_rephrased": [x[:-1] + "a" if x else "" for x in column] for m, column in original.items()}
    found = {split: {name: x.tolist() for name, x in records.captions.items()} for split, records in splits.items()}
    assert found == {
        "train": original | (other if rephrased else {}),
        "test": {"tir": ["2/e d"], "rgb": ["3/g d"]},  # no key for what no row has, and no rephrased captions
    }
    assert not caplog.records and all(records.captions == {} for records in WHOLE.values())
    (more / "Text" / "Blip_RGB" / "id_caption_map_Blip_RGB.json").unlink()  # which these datasets do not have
    open_files(more, rephrased=rephrased).of_every_picture(WHOLE)
    assert open_files(more / "nowhere", captioner="").of_every_picture(WHOLE) == WHOLE


def test_one_picture_of_any_split_without_a_caption(more):
    file = more / "Text" / "Blip_IR" / "caption_dict_Blip_IR.json"
    table = json.loads(file.read_text())
    for path in ("1/b", "1/c", "2/e"):
        save(file, {key: entry for key, entry in table.items() if path not in key})
        message = refused(open_files(more, rephrased=False).of_every_picture, WHOLE)
        assert f"{file} has no 'description' of Thermal/{path}.bmp (1 of " in message


def test_a_file_that_two_modalities_share_is_reported_once(more, caplog):
    fewer = {split: records.take(np.array([0])) for split, records in WHOLE.items()}
    message = f"captions: {more}/Text/Blip_IR/caption_dict_Blip_IR.json has captions of Thermal/1/b.bmp (2 such)"
    options = dict(rephrased=False, allow_missing_files=True)
    assert set(open_files(more, **options).of_every_picture(fewer)["train"].captions) == {"rgb", "tir"}
    assert [x.getMessage() for x in caplog.records if "Blip_IR" in x.getMessage()] == [
        f"{message}, which is not in the data; left out"
    ]


def test_a_caption_of_an_absent_picture(files, caplog):
    fewer = {name: SPLITS[name] for name in ("train", "query")}
    fewer["query"] = fewer["query"].take(np.array([0]))
    message = f"captions: {files}/Text/Blip_RGB/caption_llm_dict_Blip_RGB.json has captions of Visible/2/f.bmp (1 such)"
    assert refused(open_files(files).add, fewer).startswith(f"{message}, which is not in the data; add it, or set ")
    open_files(files, allow_missing_files=True).add(fewer)
    assert [record.getMessage().partition(" has captions of ")[2] for record in caplog.records] == [
        "Visible/2/f.bmp (1 such), which is not in the data; left out",
        "Thermal/2/e.bmp (1 such), which is not in the data; left out",
    ]


def test_captions_of_pictures_that_no_split_has_are_allowed(files, caplog):
    for path in ("Visible/2/f.bmp", "Thermal/2/e.bmp"):
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(b"")
    fewer = {name: SPLITS[name] for name in ("train", "query")}
    fewer["query"] = fewer["query"].take(np.array([0]))
    open_files(files).add(fewer)
    assert not caplog.records


@pytest.mark.parametrize(
    ("kind", "stem", "way_out"),
    [
        ("RGB", "caption_llm_dict", "data.options.rephrased=False or captioner=''"),
        ("IR", "caption_dict", "data.options.captioner=''"),
        ("RGB", "id_caption_map", "data.options.captioner=''"),
    ],
)
def test_absent_files(files, kind, stem, way_out):
    path = files / "Text" / f"Blip_{kind}" / f"{stem}_Blip_{kind}.json"
    path.unlink()
    message = refused(open_files(files).add, SPLITS)
    assert message == f"captions: no file {path}; add it, or set {way_out} to go without it"


def test_query_captions_replace_the_draw(files):
    captions = {"/data0/Thermal/2/e.bmp": "second", "Thermal/2/d.bmp": {"description": "first"}}
    file = save(files / "mine.json", captions)
    (files / "Text" / "Blip_RGB" / "id_caption_map_Blip_RGB.json").unlink()
    query = open_files(files, query_captions=file).add(SPLITS)["query"]
    assert query.captions["rgb"].tolist() == ["first", "second"] and query.captions["ir"][0] == "2/d d"
    alone = open_files(files, captioner="", query_captions=file).add(SPLITS)
    assert set(alone["query"].captions) == {"rgb"} and alone["train"].captions == {}
    save(files / "mine.json", captions | {"Thermal/2/g.bmp": "third"})
    assert "has captions of Thermal/2/g.bmp (1 such), which is not a query" in refused(
        open_files(files, query_captions=file).add, SPLITS
    )
    save(files / "mine.json", {"Thermal/2/d.bmp": "first"})
    assert "Thermal/2/e.bmp (1 of 2 pictures" in refused(open_files(files, query_captions=file).add, SPLITS)
    absent = str(files / "no.json")
    assert f"cannot read {absent} (No such file" in refused(open_files(files, query_captions=absent).add, SPLITS)
