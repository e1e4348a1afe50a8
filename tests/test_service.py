"""The service over a store: what it answers, whom, and what it refuses. No server runs; requests enter the app."""

import os
import re
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served import ALL, ROWS, client, fill, form, found_ids, make_engine, png, settings, subsets
from served import six as six
from served import unchanged as unchanged

pytest.importorskip("fastapi", reason="needs the web extra")

from jax_mmreid.search import guard, service

PAGE = Path(service.__file__).parent / "page"


@pytest.mark.parametrize("sent", subsets())
def test_pictures_of_any_combination_find_their_entry_and_say_what_counted(tmp_path, sent):
    rows = [(1, ALL), (2, ("rgb",)), (3, ("nir", "tir")), (4, ("tir",)), (5, ("rgb", "nir"))]
    engine = make_engine(tmp_path / "store", rows)
    with client(engine) as service:
        for i, (seed, has) in enumerate(rows):
            answer = service.post("/api/search", files=form(seed, *sent), params={"k": 5})
            assert answer.json()["modalities"] == list(sent)
            matches = answer.json()["matches"]
            if common := [m for m in ALL if m in sent and m in has]:
                assert matches[0]["entry"]["id"] == i
                assert [share["modality"] for share in matches[0]["shares"]] == common
                assert matches[0]["score"] == pytest.approx(1, abs=1e-5)
            for match in matches:
                assert sum(share["share"] for share in match["shares"]) == pytest.approx(match["score"], abs=1e-5)
            assert all(rows[x][1] and set(rows[x][1]) & set(sent) for x in found_ids(answer))


def test_two_hundred_requests_at_once_get_their_own_answers(tmp_path):
    engine = make_engine(tmp_path / "store", [(seed, ALL) for seed in range(50)])
    engine.warm_up()
    before = engine.model.calls
    with client(engine) as service, ThreadPoolExecutor(64) as pool:

        def ask(i):
            sent = subsets()[i % 7]
            return found_ids(service.post("/api/search", files=form(i % 50, *sent), params={"k": 1 + i % 4}))

        found = list(pool.map(ask, range(200)))
    assert [ids[0] for ids in found] == [i % 50 for i in range(200)]
    assert [len(ids) for ids in found] == [1 + i % 4 for i in range(200)]
    assert engine.model.calls - before == 200
    logged = [line["ids"][0] for line in engine.store.audit() if line["action"] == "search"]
    assert sorted(logged) == sorted(found)


def test_nothing_of_a_search_is_kept_but_a_line_of_the_log(six, monkeypatch):
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: pytest.fail("written to the disk"))
    large = png(np.random.default_rng(0).integers(0, 256, (1000, 1000, 3), np.uint8))
    assert len(large) > 2 << 20
    version, files = six.store.version, sorted(Path(six.store.folder).rglob("*"))
    with client(six) as service:
        assert len(found_ids(service.post("/api/search", files={"rgb": ("a.png", large)}))) == 6
    new = set(Path(six.store.folder).rglob("*")) - set(files)
    assert six.store.version == version and {path.name for path in new} == {"searches.jsonl"}
    line = six.store.audit()[-1]
    assert (line["action"], line["caller"], line["note"]) == ("search", "anna", "service: rgb")
    assert b"a.png" not in (six.store.folder / "searches.jsonl").read_bytes()


def test_filters_leave_out_entries(six):
    with client(six) as service:

        def search(**params):
            answer = service.post("/api/search", files=form(1, "rgb"), params=params)
            assert answer.json()["searched"] == len(found_ids(answer))
            return {number + 1 for number in found_ids(answer)}  # the seed

        assert search() == {1, 2, 3, 4, 5, 6}
        assert search(cameras=[1, 2]) == {1, 2, 4, 5}
        assert search(not_cameras=[1, 2]) == {3, 6}
        assert search(since=200, until=500) == {2, 3, 4, 5}
        assert search(cameras=[0], until=300.5) == {3}
        assert search(cameras=[9]) == set()


def test_an_entry_is_added_found_and_deleted_and_the_log_says_by_whom(six):
    with client(six, tokens={"desk-2": "t" * 16}) as service:
        service.headers["Authorization"] = "Bearer " + "t" * 16
        params = dict(pid=7, camid=4, time=1000.5)
        added = service.post("/api/entries", files=form(9, "nir", "tir"), params=params)
        assert added.status_code == 201
        wanted = dict(id=6, path="upload:a.png", pid=7, camid=4, time=1000.5, expires=None, thumbnail=None)
        assert added.json() == wanted == service.get("/api/entries/6").json()
        assert found_ids(service.post("/api/search", files=form(9, "tir"), params={"k": 1})) == [6]
        assert service.get("/api/gallery").json()["cameras"] == [0, 1, 2, 4]
        assert service.delete("/api/entries/6").json() == {"id": 6}
        assert 6 not in found_ids(service.post("/api/search", files=form(9, "tir")))
        for answer in (service.delete("/api/entries/6"), service.get("/api/entries/6")):
            assert answer.status_code == 404
            assert answer.json() == {"error": "there is no entry 6; it may have been deleted"}
    log = [(line["action"], line["caller"], line["ids"]) for line in six.store.audit()[-4:]]
    assert log[0] == ("add", "desk-2", [6]) and log[2] == ("delete", "desk-2", [6])
    assert [line[:2] for line in log[1::2]] == [("search", "desk-2")] * 2


def test_what_others_change_counts_at_once_and_what_has_expired_is_gone(six):
    with client(six) as service:
        fill(six.store, six.model, [(8, ALL)])
        assert found_ids(service.post("/api/search", files=form(8, "rgb"), params={"k": 1})) == [6]
        six.store.delete(ids=[6], caller="other")
        assert service.get("/api/entries/6").status_code == 404
        added = service.post("/api/entries", files=form(9, "rgb"), params={"expires": 1.0})
        assert added.status_code == 404  # it had expired when it came
        assert service.get("/api/gallery").json()["entries"] == 6
    assert six.store.audit()[-1]["action"] == "expire"


def test_captions_are_read_where_the_model_reads_them(tmp_path):
    engine = make_engine(tmp_path / "store", captions=("rgb",))
    with client(engine) as service:
        assert service.get("/api/gallery").json()["captions"] == ["rgb"]
        for text in ("a b", "c d", "e f"):
            added = service.post("/api/entries", files=form(1, "nir"), data={"caption_rgb": text})
            assert added.status_code == 201, added.text
        answer = service.post("/api/search", data={"caption_rgb": "d c"}, files={"rgb": ("", b"")})
        assert answer.json()["captions"] == ["rgb"] and answer.json()["modalities"] == []
        assert found_ids(answer)[0] == 1 and answer.json()["matches"][0]["shares"] == []


@pytest.mark.parametrize(("chance", "shown"), [(0.25, 0.25), (np.nan, None)])
def test_a_probability_is_there_if_the_calibration_gives_one(tmp_path, chance, shown):
    calibration = settings(probability=lambda scores, common: np.full(scores.shape, chance))
    engine = make_engine(tmp_path / "store", ROWS, calibration=calibration)
    with client(engine) as service:
        assert service.get("/api/gallery").json()["calibrated"]
        matches = service.post("/api/search", files=form(1, "rgb")).json()["matches"]
        assert [match["probability"] for match in matches] == [shown] * 6


def test_thumbnails_are_small_pictures_of_entries_below_the_folder_and_no_others(tmp_path):
    root, outside = tmp_path / "pictures", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    for folder in (root, outside):
        (folder / "a.png").write_bytes(png(np.full((700, 300, 3), 200, np.uint8)))
    (root / "inner.png").symlink_to(root / "a.png")
    (root / "link.png").symlink_to(outside / "a.png")
    (root / "folder").symlink_to(outside)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "broken.png").write_bytes(b"no picture")
    (root / "large.png").write_bytes(png(np.broadcast_to(np.uint8(0), (5000, 10000))))
    os.mkfifo(root / "pipe.png")
    good = [f"{root}/a.png", "a.png", "inner.png", f"{root}/../pictures/a.png"]
    bad = [f"{outside}/a.png", "../outside/a.png", "link.png", "folder/a.png", "loop.png", "pipe.png", "b.png", "", "."]
    bad += [f"{root}/../outside/a.png", "/etc/passwd", "a.png#1", "a\0.png", "upload:a.png", "x" * 5000]
    engine = make_engine(tmp_path / "store", root=root)
    parts = engine.model.parts(engine.model.encode({m: [np.zeros((6, 4, 3), np.uint8)] for m in ALL}))
    for path in [*good, *bad, "broken.png", "large.png"]:
        engine.store.append(parts, [path], caller="test")
    with client(engine) as service:
        for number, path in enumerate([*good, *bad]):
            address = service.get(f"/api/entries/{number}").json()["thumbnail"]
            answer = service.get(f"/api/entries/{number}/thumbnail")
            if path in good:
                assert address == f"/api/entries/{number}/thumbnail"
                assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
            else:
                assert address is None and answer.status_code == 404, path
        for number in (len(good + bad), len(good + bad) + 1):
            answer = service.get(f"/api/entries/{number}/thumbnail")
            assert answer.status_code == 404 and "broken or too large" in answer.json()["error"]


def test_the_interface_is_described_with_types(six):
    with client(six, tokens={"a": "x" * 16}) as service:
        api = service.get("/openapi.json", headers={"authorization": "Bearer " + "x" * 16}).json()
        for page in ("/docs", "/redoc"):
            assert service.get(page, headers={"authorization": "Bearer " + "x" * 16}).status_code == 404
    routes = {(method, path): x for path, methods in api["paths"].items() for method, x in methods.items()}
    names = {x["operationId"] for x in routes.values()}
    assert names == {"gallery", "search", "add", "entry", "thumbnail", "delete"}
    body = routes["post", "/api/search"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert list(body["properties"]) == list(ALL)
    for route in routes.values():
        for status, answer in route["responses"].items():
            if "application/json" in answer["content"]:
                kind = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
                assert (kind == "Problem") == (status[0] != "2") and kind in api["components"]["schemas"]
    assert set(api["components"]["securitySchemes"]) == {"HTTPBearer", "HTTPBasic"}
    used = re.findall(r'"(/api/[^"]*)"|`(/api/[^`]*)`', (PAGE / "page.js").read_text())
    used = {re.sub(r"\$\{[\w.]+\}", "{number}", one or other) for one, other in used}
    assert used == set(api["paths"]) - {"/api/entries/{number}/thumbnail"}


def test_the_page_needs_nothing_from_elsewhere_and_makes_no_markup_of_text(six):
    files = {path.name: path.read_text() for path in PAGE.iterdir()}
    assert set(files) == set(service.PAGE)
    for name, text in files.items():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", text), name
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|\.srcdoc", files["page.js"])
    assert not re.search(r"\son\w+=|style=|<script>|javascript:", files["index.html"])
    assert "unsafe" not in guard.HEADERS["content-security-policy"]
    with client(six) as http:
        for name, kind in service.PAGE.items():
            answer = http.get("/" if name == "index.html" else f"/{name}")
            assert answer.text == files[name] and answer.headers["content-type"] == kind
        assert http.get("/index.html").status_code == 404


def test_the_page_is_in_the_wheel():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["jax_mmreid.search"] == ["page/*"]
