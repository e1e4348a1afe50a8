"""Searching a store by pictures: against a naive loop over all pairs, with filters, and as table, JSON and HTML."""

import base64
import io
import json
import os
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import tiny_clip_config, tiny_tvi_config
from own_gallery import refused, run, write_random_run
from PIL import Image
from random_run import few

import jax_mmreid
from jax_mmreid.metrics.similarity import Parts
from jax_mmreid.search.calibration import Calibration, Counts, Curve
from jax_mmreid.search.index import Matches
from jax_mmreid.search.store import Store
from jax_mmreid.tools import search

ALL = ("rgb", "nir", "tir")
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}


@pytest.fixture(scope="module")
def workdir(drawn, tmp_path_factory):
    return write_random_run(tmp_path_factory.mktemp("run"), few(drawn, row="A"))


@pytest.fixture(scope="module")
def gallery(drawn, workdir, tmp_path_factory):
    """(folder of pictures, store of them): 30 rows with names, cameras and times, some without RGB or without TIR.

    Entry i is of the pictures i of the drawn test split.
    """
    folder, lines = tmp_path_factory.mktemp("pictures"), ["pid,camid,time,rgb,nir,tir"]
    for i, file in enumerate(sorted((drawn / "test" / "RGB").iterdir())):
        for m in ALL:
            shutil.copy(drawn_picture(drawn, m, i), picture(folder, m, i))
        cells = [str(int(file.name[:6])), re.search(r"cam(\d)", file.name)[1], f"2025-01-{i + 1:02d}" if i < 20 else ""]
        cells += ["" if (i % 5, m) in ((1, "rgb"), (3, "tir")) else picture(folder, m, i).name for m in ALL]
        lines.append(",".join(cells))
    (folder / "own.csv").write_text("\n".join(lines))
    store = tmp_path_factory.mktemp("store") / "s"
    assert run("embed", f"--workdir={workdir}", f"--store={store}", folder / "own.csv", "--caller=test") == 0
    return folder, store


def picture(folder, modality, row):
    return folder / f"{row:02d}_{modality}.jpg"


def drawn_picture(drawn, modality, row):
    return sorted((drawn / "test" / FOLDERS[modality]).iterdir())[row]


@pytest.fixture
def ask(workdir, gallery, capsys):
    """The results of the command with these flags, from its JSON."""

    def ask(*flags, store=gallery[1], workdir=workdir):
        capsys.readouterr()
        assert run("search", f"--workdir={workdir}", f"--store={store}", "--json", *flags) == 0
        return json.loads(capsys.readouterr().out)

    return ask


def naive(query, store):
    """Scores [n] of one query by the definition: the cosine over common modalities, else of the fallback vectors."""
    _, rows, _ = Store.open(store).read()
    scores = []
    for parts, present, fallback in zip(*rows):
        common = present & query.present[0]
        q, g = query.parts[0][common].ravel(), parts[common].ravel()
        cosine = q @ g / np.linalg.norm(q) / np.linalg.norm(g) if common.any() else query.fallback[0] @ fallback
        scores.append(cosine)
    return np.array(scores)


@pytest.mark.parametrize("names", [("rgb",), ("tir",), ("nir", "tir"), ALL])
def test_matches_are_those_of_a_loop_over_all_pairs(workdir, gallery, ask, names):
    folder, store = gallery
    files = {m: picture(folder, m, 6) for m in names}  # row 6 has no RGB in the gallery
    model = jax_mmreid.load_model(workdir)
    scores = naive(model.parts(model.encode({m: [file] for m, file in files.items()})), store)
    (result,) = ask(*(f"--{m}={file}" for m, file in files.items()), "--k=30", "--no-exclude_same_path")
    ids = [match["id"] for match in result["matches"]]
    assert sorted(ids) == list(range(30)) and [match["rank"] for match in result["matches"]] == list(range(1, 31))
    found = np.array([match["score"] for match in result["matches"]])
    np.testing.assert_allclose(found, scores[ids], atol=2e-6)
    assert (np.diff(found) <= 0).all()
    columns, rows, _ = Store.open(store).read()
    for match in result["matches"]:
        row = match["id"]
        common = [m for m, has in zip(ALL, rows.present[row]) if has and m in names]
        assert list(match["shares"]) == common
        assert not common or sum(match["shares"].values()) == pytest.approx(match["score"], abs=1e-5)
        assert (match["path"], match["pid"], match["camid"]) == (
            columns.path[row],
            columns.pid[row],
            columns.camid[row],
        )
        assert match["time"] == (f"2025-01-{row + 1:02d}T00:00:00+00:00" if row < 20 else None)
        assert match["probability"] is None
    if names == ("tir",):
        assert ids[0] == 6 and found[0] == pytest.approx(1, abs=1e-5)


def test_entries_of_the_querys_own_pictures_are_left_out(gallery, ask):
    folder, _ = gallery
    for m in ("nir", "tir"):
        (result,) = ask(f"--{m}={picture(folder, m, 6)}", "--k=30")
        assert sorted(match["id"] for match in result["matches"]) == [*range(6), *range(7, 30)]


def test_filters_choose_entries_and_fewer_may_be_left_than_were_asked_for(gallery, ask):
    folder, store = gallery
    query = f"--rgb={picture(folder, 'rgb', 0)}", "--no-exclude_same_path", "--k=30"
    columns = Store.open(store).read().columns
    for flags, rows in (
        (("--camera=2",), columns.camid == 2),
        (("--camera=2", "--camera=3"), columns.camid >= 2),
        (("--since=2025-01-04",), np.isin(columns.id, range(3, 20))),
        (("--until=2025-01-04T00:00:00Z",), np.isin(columns.id, range(4))),
        (("--since=2025-01-04", "--until=2025-01-06T12:00:00", "--camera=3"), np.isin(columns.id, (4, 5))),
    ):
        (result,) = ask(*query, *flags)
        found = [match["id"] for match in result["matches"]]
        assert sorted(found) == np.flatnonzero(rows).tolist()
    (whole,) = ask(*query)
    assert [x["id"] for x in ask(*query[:2])[0]["matches"]] == [x["id"] for x in whole["matches"][:10]]


def test_a_folder_of_queries_gives_what_single_queries_give(gallery, ask, tmp_path):
    folder, store = gallery
    queries = tmp_path / "q"
    queries.mkdir()
    for name, m, row in (("a_tir.jpg", "tir", 3), ("a.jpg", "rgb", 3), ("b_nir.jpg", "nir", 5)):
        shutil.copy(picture(folder, m, row), queries / name)
    (queries / "c.jpg").write_bytes(b"no picture")
    (queries / "notes.txt").write_text("")
    before = len(Store.open(store).audit())
    results = ask(f"--queries={queries}", "--caller=anna", "--k=4")
    assert [result["pictures"] for result in results] == [
        {"rgb": str(queries / "a.jpg"), "tir": str(queries / "a_tir.jpg")},
        {"nir": str(queries / "b_nir.jpg")},
    ]
    for result in results:
        (one,) = ask(*(f"--{m}={file}" for m, file in result["pictures"].items()), "--k=4")
        assert [x["id"] for x in one["matches"]] == [x["id"] for x in result["matches"]]
        np.testing.assert_allclose(*([x["score"] for x in r["matches"]] for r in (one, result)), atol=1e-5)
    log = Store.open(store).audit()[before:]
    assert [len(entry["ids"]) for entry in log] == [2, 1, 1]
    assert log[0]["caller"] == "anna" and "2 queries" in log[0]["note"]
    assert log[0]["ids"] == [[x["id"] for x in result["matches"]] for result in results]


def test_the_table_leaves_out_what_is_not_known(workdir, gallery, capsys):
    folder, store = gallery
    flags = f"--workdir={workdir}", f"--store={store}", f"--rgb={picture(folder, 'rgb', 2)}"
    assert run("search", *flags, "--k=2", "--until=2025-01-02") == 0
    name, head, *lines, _ = capsys.readouterr().out.splitlines()
    assert name == flags[2][2:]
    assert head.split() == ["rank", "score", "compared", "by", "id", "pid", "camid", "time", "path"]
    assert [line.split()[2] for line in sorted(lines, key=lambda line: line.split()[3])] == ["rgb", "none"]
    everything = search.described(Store.open(store).read(), Matches(*(np.zeros((0, 3)),) * 4), ALL, np.zeros(0))
    assert everything == []


def test_a_calibration_turns_scores_into_probabilities(workdir, gallery, ask, tmp_path, capsys):
    folder, store = gallery
    store = shutil.copytree(store, tmp_path / "store")
    model = jax_mmreid.load_model(workdir).identity
    curves = {"rgb": Curve((-1.0, 1.0), (0.0, 1.0)), "pooled": Curve((-1.0, 1.0), (0.5, 0.5))}
    limits = dict(source="", prior=0.5, counts={"rgb": Counts(200, 200, 9)}, thresholds={}, reasons={})
    Calibration(model=model, modalities=ALL, curves=curves, **limits).save(store)
    flags = f"--rgb={picture(folder, 'rgb', 2)}", "--k=20"
    for match in ask(*flags, store=store)[0]["matches"]:
        expected = (match["score"] + 1) / 2 if match["shares"] else None
        assert match["probability"] == (expected and pytest.approx(expected, abs=1e-5))
    Calibration(model="another", modalities=ALL, curves=curves, **limits).save(store)
    code, line = refused(capsys, "search", f"--workdir={workdir}", f"--store={store}", *flags)
    assert code == 3 and "is of the model another" in line


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.labels = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.labels += [value for key, value in attrs if key == "aria-label"]
        assert {key for key, _ in attrs} <= {"charset", "lang", "class", "role", "aria-label"}

    def handle_data(self, data):
        self.words.append(data)


def test_the_html_report_needs_nothing_else_and_shows_names_as_text(workdir, drawn, tmp_path, capsys):
    folder = tmp_path / '<script>alert("x")<'
    for m, sub in FOLDERS.items():
        for row in range(3):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            Image.open(drawn_picture(drawn, m, row)).resize((90, 300)).save(folder / sub / f"a&b'{row}.png")
    store = tmp_path / "store"
    assert run("embed", f"--workdir={workdir}", f"--store={store}", folder) == 0
    (folder / "RGB" / "a&b'2.png").unlink()  # a picture that is gone since then
    file = tmp_path / "matches.html"
    flags = f"--workdir={workdir}", f"--store={store}", f"--queries={folder}", f"--html={file}"
    assert run("search", *flags) == 0
    text = file.read_text("utf-8")
    page = Page(text)
    assert not {"script", "img", "a", "link", "iframe", "object", "form"} & set(page.tags)
    assert sum('<script>alert("x")<' in words for words in page.words) >= 6
    assert len(page.labels) == 3 * 3 - 1 + 3 * 2 * 3 - 2  # the picture that is gone is in no row
    assert {label for label in page.labels if "a&b'2" in label} == {f"{folder}/{m}/a&b'2.png" for m in ("NI", "TI")}
    (style,) = (words for words in page.words if "figure div" in words)
    addresses = re.findall(r"url\((.*?)\)", style)
    assert len(addresses) == 8 and text.count("url(") == 8 and "@import" not in text  # a picture is inlined once
    for address in addresses:
        head, data = address.split(",")
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == "data:image/jpeg;base64" and image.format == "JPEG" and max(image.size) == 112
    assert len(text) < 200_000
    capsys.readouterr()


@pytest.fixture(scope="module")
def captioned(drawn_sysu, tmp_path_factory):
    """(workdir, store of its gallery, an infrared picture) of TVI-LFM."""
    folder = tmp_path_factory.mktemp("captioned")
    workdir, store = write_random_run(folder / "run", tiny_tvi_config(drawn_sysu)), folder / "store"
    assert run("embed", f"--workdir={workdir}", f"--store={store}", "--split=gallery") == 0
    return workdir, store, sorted((drawn_sysu / "cam3").rglob("*.jpg"))[0]


def test_captions_search_where_the_model_reads_them(captioned, ask):
    workdir, store, _ = captioned
    model = jax_mmreid.load_model(workdir)
    sentence = "a man in a red coat"
    expected = naive(model.parts(model.encode(captions={"rgb": [sentence]})), store)
    (result,) = ask(f"--text={sentence}", f"--k={len(expected)}", store=store, workdir=workdir)
    ids = [match["id"] for match in result["matches"]]
    np.testing.assert_allclose([match["score"] for match in result["matches"]], expected[ids], atol=2e-6)
    assert result["captions"] == {"rgb": sentence} and not any(match["shares"] for match in result["matches"])


def test_a_caption_that_does_not_count_is_noticed(captioned, capsys):
    """The fusion of TVI-LFM needs captions of both modalities."""
    workdir, store, picture = captioned
    out, err = {}, {}
    for name, flags in {"ir": (), "rgb": ("--text=x",), "both": ("--text=x", "--caption_ir=a b")}.items():
        flags = f"--workdir={workdir}", f"--store={store}", f"--ir={picture}", *flags, "--json"
        assert run("search", *flags) == 0
        out[name], err[name] = capsys.readouterr()
    scores = {name: [match["score"] for match in json.loads(text)[0]["matches"]] for name, text in out.items()}
    assert scores["ir"] == scores["rgb"] != scores["both"]
    assert [name for name, text in err.items() if "the caption does not count" in text] == ["rgb"]


def test_sides_without_a_common_modality_are_compared_by_all_that_they_have(drawn, tmp_path, capsys):
    workdir = write_random_run(tmp_path / "clip", tiny_clip_config(drawn))
    flags = f"--workdir={workdir}", f"--store={tmp_path / 'store'}"
    assert run("embed", *flags, drawn / "test" / "TI") == 0
    assert run("search", *flags, f"--rgb={picture(drawn / 'test', 'rgb', 0)}", "--text=a man", "--k=3") == 0
    assert capsys.readouterr().out.count("none in common") == 3


def test_names_that_are_no_text_are_shown_as_well_as_they_can_be(workdir, drawn, tmp_path, capsys):
    folder, flags = tmp_path / "p", (f"--workdir={workdir}", f"--store={tmp_path / 'store'}")
    folder.mkdir()
    for row in range(2):
        shutil.copy(drawn_picture(drawn, "tir", row), os.fsencode(folder) + b"/%d\xff_tir.jpg" % row)
    assert run("embed", *flags, folder) == 0
    assert run("search", *flags, f"--queries={folder}", f"--html={tmp_path / 'x.html'}") == 0
    assert "\\udcff_tir.jpg" in capsys.readouterr().out
    assert "1?_tir.jpg" in (tmp_path / "x.html").read_text("utf-8")


def test_expired_entries_are_not_found(gallery, ask, tmp_path):
    folder, store = gallery
    columns, rows, _ = Store.open(store).read()
    copy = Store.create(tmp_path / "store", Store.open(store).identity)
    rows = Parts(*(x[:4] for x in rows))
    copy.append(rows, columns.path[:4], expires=[np.nan, 0, 1e18, 1], caller="x")
    (result,) = ask(f"--nir={picture(folder, 'nir', 9)}", store=copy.folder)
    assert sorted(match["id"] for match in result["matches"]) == [0, 2]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        ((), 2, "give one query by --rgb, --nir, --tir or --text, or --queries=FOLDER"),
        (("--rgb={rgb}", "--queries={folder}"), 2, "and not both"),
        (("--ir={rgb}",), 2, "the model takes no picture of ir; it takes rgb, nir, tir"),
        (("--text=a man",), 2, "the model takes no caption of rgb; it takes none at all"),
        (("--rgb={rgb}", "--k=31"), 2, "--k=31: the gallery has 30 entries; ask for 1 to 30"),
        (("--rgb={rgb}", "--k=0"), 2, "--k=0: the gallery has 30 entries"),
        (("--rgb={rgb}", "--since=monday"), 2, "--since: Invalid isoformat string: 'monday'; write it as 2025-"),
        (("--rgb={rgb}", "--camera=9"), 3, "within --camera, --since and --until"),
        (("--rgb={rgb}", "--store={tmp}/none"), 3, "none is no store"),
        (("--rgb={rgb}", "--store={tmp}/empty"), 3, "is empty; add pictures with python -m jax_mmreid.tools.embed"),
        (("--rgb={rgb}", "--step=6"), 3, "is of another model"),
        (("--rgb={rgb}", "--html={tmp}/no/x.html"), 2, "there is no such folder"),
        (("--rgb={tmp}/no.jpg",), 3, "the query has no picture that can be read"),
        (("--queries={tmp}/broken",), 3, "none of the 1 pictures of the queries can be read"),
        (("--queries={tmp}/none",), 3, "no file or folder"),
    ],
)
def test_what_cannot_be_searched_is_one_clear_line(workdir, gallery, tmp_path, capsys, flags, code, message):
    folder, store = gallery
    Store.create(tmp_path / "empty", Store.open(store).identity)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.jpg").write_bytes(b"")
    names = dict(tmp=tmp_path, folder=folder, rgb=picture(folder, "rgb", 0))
    argv = [flag.format(**names) for flag in flags]
    got = refused(capsys, "search", f"--workdir={workdir}", f"--store={store}", *argv)
    assert got[0] == code and message in got[1]
