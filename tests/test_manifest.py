"""Manifests: columns, and faults of a table."""

import json
import logging
import os

import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataConfig, describe
from input_pipeline.datasets import manifest
from jax_mmreid.errors import ConfigError, DataError

HEADER = "split,pid,camid,view,rgb,nir,tir,ir,caption_rgb,caption_ir"
ROWS = (
    "train,7,3,,b/1.jpg,b/1n.jpg,,,a man,",
    "train,40,1,5,a/0.jpg,,a/0t.jpg,,,",
    "test,9,2,,t/0.jpg,t/0n.jpg,,,,grey coat",
    "test,9,12,,t/1.jpg,,,,,",
)


def write(root, rows=ROWS, header=HEADER, name="manifest.csv", pictures=True):
    """A table, and a picture for every cell that ends in .jpg."""
    text = "\n".join([header, *rows]) + "\n"
    root.mkdir(exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
    for cell in text.replace("\n", ",").split(",") if pictures else ():
        if cell.endswith(".jpg"):
            (root / cell).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 8)).save(root / cell)
    return root


def load(data_dir, modalities=("rgb", "nir"), allow_missing_files=False, **options):
    return manifest.load(str(data_dir), modalities=modalities, allow_missing_files=allow_missing_files, **options)


def refused(data_dir, **options):
    with pytest.raises(DataError) as error:
        load(data_dir, **options)
    assert "\n" not in str(error.value) and str(data_dir) in str(error.value)
    return str(error.value)


def simple(*columns, splits=("train", "test"), each=2):
    """Rows of the columns split, pid, rgb and those given, which are functions of (split, number)."""
    return [
        ",".join(
            [split, str(n + 50 * (split != "train")), f"{split}/{n}.jpg", *(column(split, n) for column in columns)]
        )
        for split in splits
        for n in range(each)
    ]


def test_columns_of_a_table(tmp_path):
    splits = load(write(tmp_path), modalities=("tir", "rgb"))
    train, test = splits["train"], splits["test"]
    assert list(splits) == ["train", "test"]
    assert {m: column.tolist() for m, column in train.paths.items()} == {
        "tir": ["a/0t.jpg", ""],
        "rgb": ["a/0.jpg", "b/1.jpg"],
    }
    assert (train.pid.tolist(), train.camid.tolist(), train.view.tolist()) == ([40, 7], [1, 3], [5, 0])
    assert (test.pid.tolist(), test.camid.tolist()) == ([9, 9], [2, 12])
    assert {x.dtype for x in (train.pid, train.camid, train.view)} == {np.dtype(np.int32)}
    assert {name: column.tolist() for name, column in train.captions.items()} == {"rgb": ["", "a man"]}
    assert {name: column.tolist() for name, column in test.captions.items()} == {"ir": ["grey coat", ""]}
    assert os.path.isfile(train.path("rgb", 1))


def test_each_modality_has_captions_of_its_own(tmp_path):
    cells = {m: [f"{m} of {n}" if n != i else "" for n in range(4)] for i, m in enumerate(manifest.MODALITIES)}
    columns = [f"caption_{m}" for m in cells][::-1]
    captions = [lambda split, n, m=m: cells[m][n + 2 * (split == "test")] for m in list(cells)[::-1]]
    splits = load(write(tmp_path, simple(*captions), ",".join(["split,pid,rgb", *columns])), modalities=("rgb",))
    for split, numbers in (("train", slice(0, 2)), ("test", slice(2, 4))):
        assert {m: column.tolist() for m, column in splits[split].captions.items()} == {
            m: column[numbers] for m, column in cells.items()
        }


def test_rows_without_a_picture_of_the_modalities_are_left_out(tmp_path, caplog):
    splits = load(write(tmp_path, [*ROWS, "train,7,1,,,,,i/0.jpg,,"]), modalities=("nir",))
    assert [splits[split].paths["nir"].tolist() for split in splits] == [["b/1n.jpg"], ["t/0n.jpg"]]
    assert "3 rows of" in caplog.text and "have no picture of nir; left out" in caplog.text


def test_the_order_of_rows_and_the_form_of_the_table_play_no_part(tmp_path):
    prints = set()
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        prints.add(load(write(tmp_path / name, rows))["train"].fingerprint())
    names = HEADER.split(",")
    lines = [json.dumps({k: v for k, v in zip(names, row.split(",")) if v}) for row in ROWS]
    (tmp_path / "a" / "other.jsonl").write_text("\n\n".join(lines))
    (tmp_path / "a" / "marked.csv").write_text("\ufeff" + "\r\n".join([HEADER, *ROWS, ",,,,,,,,,", ""]))
    for data_dir, options in (
        (tmp_path / "a", dict(file="other.jsonl")),
        (tmp_path / "a" / "other.jsonl", {}),
        (tmp_path / "a", dict(file="marked.csv")),
        (tmp_path / "a" / "manifest.csv", {}),
    ):
        prints.add(load(data_dir, **options)["train"].fingerprint())
    assert len(prints) == 1


def test_cells_of_json_lines_may_be_numbers_and_null(tmp_path):
    rows = [
        dict(split=split, pid=pid, camid=pid + 1, rgb=f"{split}.jpg", nir=None)
        for split, pid in (("train", 0), ("test", 3))
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for split in ("train", "test"):
        Image.new("RGB", (4, 8)).save(tmp_path / f"{split}.jpg")
    splits = load(tmp_path, file="m.jsonl", modalities=("rgb",))
    assert (splits["train"].pid.tolist(), splits["test"].camid.tolist()) == ([0], [4])


def test_quoted_cells_hold_commas_and_lines(tmp_path):
    row = 'train,1,1,,x.jpg,,,,"a man, tall\nand ""old""",'
    root = write(tmp_path, [row, "test,1,1,,y.jpg,,,,,", "best,1,1,,z.jpg,,,,,"])
    assert "line 5: split is 'best'" in refused(root, modalities=("rgb",))
    train = load(write(tmp_path, [row, "test,2,1,,y.jpg,,,,,"]), modalities=("rgb",))["train"]
    assert train.captions["rgb"].tolist() == ['a man, tall\nand "old"']


def test_names_of_identities_are_numbered_in_their_order_over_all_splits(tmp_path, caplog):
    rows = ["train,zoe,z.jpg", "train,12,y.jpg", "test,anna,x.jpg", "test,anna,w.jpg"]
    with caplog.at_level(logging.INFO, logger="input_pipeline"):
        splits = load(write(tmp_path, rows, "split,pid,rgb"), modalities=("rgb",))
    assert (splits["train"].pid.tolist(), splits["test"].pid.tolist()) == ([0, 2], [1, 1])
    assert "0 = 12, 1 = anna, 2 = zoe (3 in all)" in caplog.text


@pytest.mark.parametrize(
    "names, numbers",
    [(("7", "900"), [7, 900]), (("007", "12"), [7, 12]), (("007", "7"), [0, 1]), (("-1", "5"), [0, 1])],
)
def test_identities_keep_their_numbers_unless_one_has_two_spellings(tmp_path, names, numbers):
    rows = [f"train,{name},{name}.jpg" for name in names] + ["test,9999,test.jpg"]
    splits = load(write(tmp_path, rows, "split,pid,rgb"), modalities=("rgb",))
    assert sorted(splits["train"].pid.tolist()) == numbers


@pytest.mark.parametrize("split", ["query", "gallery"])
def test_test_identities_must_be_held_out_from_training(tmp_path, split):
    rows = simple(splits=("train", "query", "gallery")) + [f"{split},1,more.jpg"]
    message = refused(write(tmp_path, rows, "split,pid,rgb"), modalities=("rgb",))
    assert f"line 8: pid '1' is in split {split}, and on line 3 in train; keep each identity on one side" in message


def test_without_cameras_a_test_picture_is_its_own_and_training_has_one(tmp_path, caplog):
    rows = simple(lambda *_: "", splits=("train", "query", "gallery"))
    rows += ["gallery,50,query/0.jpg,", "gallery,55,known.jpg,8"]
    splits = load(write(tmp_path, rows, "split,pid,rgb,camid"), modalities=("rgb",))
    assert set(splits["train"].camid) == {9}
    cameras = {
        path: int(camera)
        for split in ("query", "gallery")
        for path, camera in zip(splits[split].paths["rgb"], splits[split].camid)
    }
    assert cameras.pop("known.jpg") == 8
    assert len(set(cameras.values())) == len(cameras) == 4 and min(cameras.values()) > 9
    assert splits["query"].camid[0] == splits["gallery"].camid[splits["gallery"].paths["rgb"] == "query/0.jpg"]
    assert "7 of 8 rows of" in caplog.text and "no camid" in caplog.text
    rows = simple()  # no such column at all
    assert len(set(load(write(tmp_path / "b", rows, "split,pid,rgb"), modalities=("rgb",))["test"].camid)) == 2


def test_counts_are_those_of_the_table_and_no_picture_is_read(tmp_path):
    root = write(tmp_path, pictures=False)
    counts = manifest.counts(str(root), modalities=("rgb", "nir"))
    assert counts == {"train": (2, (1, 3), 2), "test": (1, (2, 12), 2)}
    assert manifest.counts(str(root), modalities=("nir",)) == {"train": (1, (3,), 1), "test": (1, (2,), 1)}
    assert describe(DataConfig("manifest", str(root), modalities=("rgb",))).spec.cameras == (1, 3)
    with pytest.raises(DataError, match="line 3: no file 'a/0.jpg'"):
        load(root)


@pytest.mark.parametrize(
    "row, message",
    [
        ("valid,7,1,,x.jpg,,,,,", "split is 'valid'; write train, test, query or gallery"),
        ("train,,1,,x.jpg,,,,,", "pid is empty"),
        ("train,1,c1,,x.jpg,,,,,", "camid is 'c1'; write a whole number"),
        ("train,1,-1,,x.jpg,,,,,", "camid is '-1'"),
        ("train,1,1234567890,,x.jpg,,,,,", "camid is '1234567890'"),
        ("train,1,1,1.0,x.jpg,,,,,", "view is '1.0'"),
        ("train,1,1,,,,,,a man,", "no picture in any of rgb, nir, tir, ir"),
        ("train,1,1,,x.jpg,,,,", "9 cells under a header of 10"),
        ("train,1,1,,../x.jpg,,,,,", "rgb is '../x.jpg'; name a file below the folder"),
        ("train,1,1,,a/../../x.jpg,,,,,", "rgb is 'a/../../x.jpg'"),
        ("train,1,1,,,/etc/x.jpg,,,,", "nir is '/etc/x.jpg'"),
        ("train,1,1,,,,C:\\x.jpg,,,", "tir is 'C:"),
        ("train,1,1,,..\\x.jpg,,,,,", "rgb is '..\\"),
        ("train,1,1,,x\0.jpg,,,,,", "rgb holds the character '\\x00'"),
        ("train,7,3,,./b//1.jpg,,,,,", "rgb 'b/1.jpg' is on line 2 too"),
        ("test,9,2,,,b/1n.jpg,,,,", "nir 'b/1n.jpg' is on line 2 too"),
        ('train,1,1,,"x.jpg,,,,,', "unexpected end of data"),
    ],
)
def test_a_faulty_row_is_refused_with_its_line(tmp_path, row, message):
    found = refused(write(tmp_path, [*ROWS, row], pictures=False))
    assert f"{tmp_path}/manifest.csv, line 6: " in found and message in found


def test_a_picture_in_query_and_gallery_has_one_identity_and_camera(tmp_path):
    rows = ["train,1,1,a.jpg", "query,2,1,b.jpg", "gallery,2,1,b.jpg"]
    assert len(load(write(tmp_path, rows, "split,pid,camid,rgb"), modalities=("rgb",))) == 3
    rows[2] = "gallery,3,1,b.jpg"
    assert "line 4: rgb 'b.jpg' has another pid or camid on line 3" in refused(
        write(tmp_path, rows, "split,pid,camid,rgb"), modalities=("rgb",)
    )


@pytest.mark.parametrize(
    "header, message",
    [
        ("split,pid,camid,view,rgbb,nir,tir,ir,caption_rgb,caption_ir", "unknown column 'rgbb'.*did you mean 'rgb'"),
        ("split,pid,camid,view,rgb,nir,rgb,ir,caption_rgb,caption_ir", "column 'rgb' appears twice"),
        (HEADER.replace(",", ";"), "unknown column 'split;pid;"),
    ],
)
def test_faulty_headers(tmp_path, header, message):
    with pytest.raises(DataError, match=f"manifest.csv, line 1: {message}"):
        load(write(tmp_path, header=header, pictures=False))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"split": "train", ', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "holds a list, not an object"),
        ('{"pid": 1.5}', "pid is 1.5; write a string, a whole number or null"),
        ('{"pid": true}', "pid is true"),
        ('{"rgb": ["x.jpg"]}', r'rgb is \["x.jpg"\]'),
        ('{"person": 1}', "unknown column 'person'"),
        ('{"rgb": "\\ud800.jpg"}', "rgb holds the character '.ud800'"),
    ],
)
def test_faulty_lines_of_json(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text('{"split": "train", "pid": 1, "rgb": "x.jpg"}\n\n' + line)
    with pytest.raises(DataError, match=f"m.jsonl, line 3: {message}"):
        load(tmp_path, file="m.jsonl")


def test_incomplete_tables(tmp_path):
    assert "no file" in refused(tmp_path)
    assert "data.options.file" in refused(tmp_path)
    assert "has no rows" in refused(write(tmp_path, []))
    assert "has rows of split train; it needs train, and either test or both" in refused(write(tmp_path, ROWS[:2]))
    extra = [*ROWS, "query,1,1,,q.jpg,,,,,"]
    assert "has rows of split query, test, train" in refused(write(tmp_path, extra))
    (tmp_path / "manifest.csv").write_bytes(f"{HEADER}\n{ROWS[0]}\n".encode() + b"train,M\xfcller,1,,x.jpg,,,,,\n")
    assert "line 3: the bytes are not UTF-8" in refused(tmp_path)
    with pytest.raises(ConfigError, match="config.data.options.file='pictures.txt': a manifest is a .csv or"):
        load(tmp_path, file="pictures.txt")
    with pytest.raises(
        ConfigError, match=r"config.data.modalities=\('rgb', 'ir'\): .*manifest.csv has pictures of rgb, nir, tir"
    ):
        load(write(tmp_path), modalities=("rgb", "ir"))
    assert "no row of split test has a picture of tir" in refused(tmp_path, modalities=("tir",))


def test_files_that_are_absent(tmp_path):
    root = write(tmp_path)
    (root / "b" / "1n.jpg").unlink()
    (root / "t" / "1.jpg").unlink()
    assert "line 2: no file 'b/1n.jpg'; add it" in refused(root)
    splits = load(root, allow_missing_files=True)
    assert splits["train"].has_file().tolist() == [[True, False], [True, False]]
    assert splits["test"].paths["rgb"].tolist() == ["t/0.jpg"]


def test_a_link_out_of_the_folder_is_not_followed(tmp_path):
    root = write(tmp_path / "data")
    (tmp_path / "secret.jpg").write_bytes((root / "a" / "0.jpg").read_bytes())
    (root / "a" / "0.jpg").unlink()
    (root / "a" / "0.jpg").symlink_to(tmp_path / "secret.jpg")
    for allowed in (False, True):
        message = refused(root, allow_missing_files=allowed)
        assert "line 3: rgb 'a/0.jpg' is a link out of the folder" in message
    (root / "a" / "0.jpg").unlink()
    (root / "a" / "0.jpg").symlink_to(root / "b" / "1.jpg")
    (tmp_path / "link").symlink_to(root)
    assert len(load(tmp_path / "link")["train"]) == 2
