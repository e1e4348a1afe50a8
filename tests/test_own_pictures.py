"""Own pictures: which files become a row, what a table says of them, and what is listed as ignored."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from input_pipeline import own_pictures
from input_pipeline.reading import images
from input_pipeline.records import Records
from jax_mmreid.batch import DataSpec
from jax_mmreid.errors import DataError

ALL = ("rgb", "nir", "tir")
SPEC = DataSpec("own", "", ALL, (6, 4), (0,), (1,), 1, 1)


def draw(folder, *names, seed=0):
    """Small random pictures, and empty files for names that are no picture's."""
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in own_pictures.FORMATS:
            Image.fromarray(rng.integers(0, 256, (9, 5, 3), np.uint8)).save(path)
        else:
            path.write_bytes(b"")
    return folder


def rows(found, folder):
    """The rows as {modality: path below the folder}."""
    return [
        {m: os.path.relpath(column[i], folder) for m, column in found.records.paths.items() if column[i]}
        for i in range(len(found.records))
    ]


def find(*sources, modalities=ALL, plain="rgb"):
    return own_pictures.find([str(source) for source in sources], modalities, plain)


LAYOUTS = {
    "endings": ("a_rgb.jpg", "a_nir.png", "a_tir.bmp", "b_tir.png"),
    "endings in capitals": ("a_RGB.JPG", "a_Nir.png", "a_TIR.tif", "b_TIR.png"),
    "folders": ("rgb/a.jpg", "nir/a.png", "tir/a.bmp", "tir/b.png"),
    "folders of RGBNT201": ("RGB/a.jpg", "NI/a.jpg", "TI/a.jpg", "TI/b.jpg"),
    "folders above others": ("rgb/cam1/a.jpg", "nir/cam1/a.png", "tir/cam1/a.jpg", "tir/cam2/a.png"),
    "folders below others": ("cam1/rgb/a.jpg", "cam1/nir/a.png", "cam1/tir/a.jpg", "cam2/tir/a.png"),
    "both": ("rgb/a_rgb.jpg", "nir/a_nir.png", "tir/a_tir.jpg", "tir/b_tir.png"),
    "plain ones with endings": ("a.jpg", "a_nir.png", "a_tir.png", "b_tir.png"),
}


@pytest.mark.parametrize("names", LAYOUTS.values(), ids=LAYOUTS)
def test_names_pair_the_pictures_of_a_row_whatever_their_order(tmp_path, names):
    found = find(draw(tmp_path, *names))
    assert rows(found, tmp_path) == [dict(zip(ALL, names[:3])), {"tir": names[3]}]
    assert found.records.pid.tolist() == found.records.camid.tolist() == [-1, -1] and np.isnan(found.time).all()
    assert found.plain == names.count("a.jpg") and not found.ignored
    for name in names[:3]:  # from any of its pictures to the others
        paired = own_pictures.companions(str(tmp_path / name), {})
        assert {m or "rgb": os.path.relpath(file, tmp_path) for m, file in paired.items()} == dict(zip(ALL, names))
        assert own_pictures.name_of_row(str(tmp_path / name)) == own_pictures.name_of_row(str(tmp_path / names[0]))
        assert own_pictures.name_of_row(str(tmp_path / name)) != own_pictures.name_of_row(str(tmp_path / names[3]))


def test_plain_pictures_are_what_the_caller_says_and_a_folder_may_be_named_by_its_modality(tmp_path):
    draw(tmp_path, "x/1.jpg", "x/deep/1.jpg", "Ti/1.jpg", "mono_irr.jpg")
    assert rows(find(tmp_path / "x"), tmp_path) == [{"rgb": "x/1.jpg"}, {"rgb": "x/deep/1.jpg"}]
    assert rows(find(tmp_path / "x", plain="tir"), tmp_path)[0] == {"tir": "x/1.jpg"}
    assert rows(find(tmp_path / "Ti"), tmp_path) == [{"tir": "Ti/1.jpg"}]
    assert rows(find(tmp_path / "Ti" / "1.jpg"), tmp_path) == [{"tir": "Ti/1.jpg"}]
    assert rows(find(tmp_path / "mono_irr.jpg"), tmp_path) == [{"rgb": "mono_irr.jpg"}]


def test_what_is_ignored_is_listed_and_hidden_files_are_not(tmp_path):
    names = ("a_rgb.jpg", "a.png", "rgb/b_tir.jpg", "c_ir.png", "notes.txt", ".hidden.jpg", ".git/d.jpg")
    found = find(draw(tmp_path, *names), tmp_path / "rgb")
    assert rows(found, tmp_path) == [{"rgb": "a.png"}, {"tir": "rgb/b_tir.jpg"}]
    assert {reason: [os.path.relpath(x, tmp_path) for x in files] for reason, files in found.ignored.items()} == {
        "no picture by its name": ["notes.txt"],
        "another file of the same name and modality comes first": ["a_rgb.jpg"],
        "ir, which is not among rgb, nir, tir": ["c_ir.png"],
        "in an earlier source too": ["rgb/b_tir.jpg"],
    }
    lines = own_pictures.summary(found, "x")
    assert lines[:2] == [
        "x: 2 rows, 0 of them with several pictures; pictures: 1 rgb, 1 tir",
        "1 pictures have names that say no modality; taken for rgb",
    ]
    assert len(lines) == 6 and sum("notes.txt" in line for line in lines) == 1


HEADER = "pid,camid,rgb,tir,time,caption_rgb\n"


def test_a_table_says_what_is_known_and_a_folder_with_one_is_read_by_it(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg", "a_t.png", "unlisted.jpg")
    (tmp_path / "manifest.csv").write_text(
        HEADER + "7,3,b.jpg,,2025-03-14T15:09:26+01:00,\nanna,,a.jpg,a_t.png,2025-03-14 14:09:26,a man\n,,,c.png,,\n"
    )
    for source in (tmp_path, tmp_path / "manifest.csv"):
        found = find(source)
        paths = [{"rgb": "a.jpg", "tir": "a_t.png"}, {"rgb": "b.jpg"}, {"tir": "c.png"}]  # c.png does not exist
        assert rows(found, tmp_path) == paths
        assert found.records.camid.tolist() == [-1, 3, -1]
        assert found.records.pid.tolist() == [own_pictures.number_of("anna"), 7, -1]
        np.testing.assert_array_equal(found.time, [1741961366, 1741961366, np.nan])
        assert {m: x.tolist() for m, x in own_pictures.captions(found.records, ALL).items()} == {
            "rgb": ["a man", "", ""]
        }
    assert "known: 2 with an identity, 1 with a camera, 2 with a time" in own_pictures.summary(found, "x")


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8))
def test_the_number_of_an_identity_depends_on_its_name_alone(one, other):
    numbers = [own_pictures.number_of(name) for name in (one, other)]
    assert (numbers[0] == numbers[1]) == (one == other) or all(x < 10**9 for x in numbers)  # 7 and 007
    assert all(0 <= x < 2**63 for x in numbers)
    assert own_pictures.number_of("0042") == 42 and own_pictures.number_of("a42") >= 2**32


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f / "nothing", "no file or folder .*nothing"),
        (lambda f: draw(f, "notes.txt"), r"no pictures of rgb, nir, tir in .* \(1 ignored: no picture by its name\)"),
        (lambda f: draw(f, "x/y/.h.jpg"), "no files there"),
        (lambda f: draw(f, "x_ir.jpg"), "1 ignored: ir, which is not among rgb, nir, tir"),
        (lambda f: table(f, HEADER + "1,1,a.jpg,,yesterday,"), "line 2: time is 'yesterday'; write it as 2025-"),
        (lambda f: table(f, HEADER + "1,x,a.jpg,,,"), "line 2: camid is 'x'"),
        (lambda f: table(f, HEADER + "1,1,../a.jpg,,,"), "line 2: rgb is '../a.jpg'; name a file below"),
        (lambda f: table(f, HEADER + "1,1,,,,"), "line 2: no picture in any of"),
        (lambda f: table(f, "pid,image\n1,a.jpg"), "unknown column 'image'"),
    ],
)
def test_a_source_that_cannot_be_used_is_one_clear_line(tmp_path, write, message):
    with pytest.raises(DataError, match=message) as error:
        find(write(tmp_path))
    assert "\n" not in str(error.value)


def table(folder, text):
    (folder / "own.csv").write_text(text + "\n")
    return folder / "own.csv"


def test_pictures_are_read_as_evaluation_reads_them_and_unreadable_ones_are_named(tmp_path):
    draw(tmp_path, *(f"{n}_{m}.png" for n in range(5) for m in ("rgb", "tir")))
    for name in ("1_tir.png", "3_rgb.png", "3_tir.png"):
        (tmp_path / name).write_bytes(b"no picture")
    records = find(tmp_path).records
    (tmp_path / "4_rgb.png").unlink()
    turns = list(own_pictures.read(records, np.array([0, 1, 3, 4]), SPEC, size=3))
    assert [turn.rows.tolist() for turn in turns] == [[0, 1], [4]]
    assert [[name in fault for name in ("1_tir", "3_rgb", "3_tir", "4_rgb")].index(True) for turn in turns
            for fault in turn.faults] == [0, 1, 2, 3]  # fmt: skip
    shown = {m: [x for turn in turns for x in turn.images[m]] for m in turns[0].images}
    assert list(shown) == ["rgb", "tir"]  # nothing has nir
    assert [x is None for x in shown["rgb"]] == [False, False, True]
    assert [x is None for x in shown["tir"]] == [False, True, False]
    expected = images.fit(images.read(str(tmp_path / "1_rgb.png")), "", (6, 4), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(shown["rgb"][1], expected)


def test_rows_of_one_array_have_different_names(tmp_path):
    one = np.ones(3, np.int32)
    records = Records(
        root=str(tmp_path),
        paths={"rgb": np.array(["x.npy", "x.npy", ""]), "ir": np.array(["", "y.jpg", "z.jpg"])},
        pid=one, camid=one, view=one,
        parts={"rgb": np.array([4, 7, 0], np.int32)},
    )  # fmt: skip
    names = own_pictures.paths(records).tolist()
    assert [os.path.relpath(name, tmp_path) for name in names] == ["x.npy#4", "x.npy#7", "z.jpg"]
    assert len(set(map(own_pictures.name_of_row, names))) == 3
