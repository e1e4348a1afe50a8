"""The service over a store: what it answers, whom, and what it refuses. No server runs; requests enter the app."""

import asyncio
import json
import os
import re
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served import ALL, Model, client, fill, form, make_engine, png, settings, subsets

pytest.importorskip("fastapi", reason="needs the web extra")

from jax_mmreid.search import engine as engines
from jax_mmreid.search import guard, manifest, service, uploads
from jax_mmreid.search.answers import RefusedError
from jax_mmreid.search.engine import Limits

PAGE = Path(service.__file__).parent / "page"
ROWS = [(seed, ALL) for seed in range(1, 7)]


@pytest.fixture
def six(tmp_path):
    """An engine over six entries with all modalities and with pictures."""
    (tmp_path / "pictures").mkdir()
    return make_engine(tmp_path / "store", ROWS, root=tmp_path / "pictures")


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """The same without pictures, with a client; for requests that are refused."""
    engine = make_engine(tmp_path_factory.mktemp("store"), ROWS)
    with client(engine) as http:
        yield engine, http


def found_ids(answer):
    assert answer.status_code == 200, answer.text
    return [match["entry"]["id"] for match in answer.json()["matches"]]


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


ONE = {"rgb": ("a.png", png(np.zeros((4, 4, 3), np.uint8)))}


@pytest.mark.parametrize(
    ("status", "message", "request_"),
    [
        (422, "there is no picture; send one of rgb, nir, tir", dict(files={"rgb": ("", b"")})),
        (422, r"cannot read rgb 'x\.jpg' \(not a picture of a known format\)", dict(files={"rgb": ("x.jpg", b"no")})),
        (422, "cannot read tir 'x.png' .*truncated", dict(files={"tir": ("x.png", form(1, "tir")["tir"][1][:150])})),
        (422, "rgb 'x.png' is an empty file", dict(files={"rgb": ("x.png", b"")})),
        (422, "no field 'swir'; the model reads rgb, nir, tir$", dict(files={"swir": ONE["rgb"]})),
        (422, "no field 'caption_rgb'", dict(files=ONE, data={"caption_rgb": "a man"})),
        (422, "rgb is given twice", dict(files=[*ONE.items(), *ONE.items()])),
        (422, "nir is not a file", dict(files=ONE, data={"nir": "a.png"})),
        (422, "k=1001 matches are too many; ask for 1000 at most", dict(files=ONE, params={"k": 1001})),
        (422, "k: .*greater than or equal to 1", dict(files=ONE, params={"k": 0})),
        (422, "cameras|0: .*integer", dict(files=ONE, params={"cameras": "door"})),
        (415, "expected multipart/form-data", dict(json={"rgb": "a.png"})),
        (415, "expected multipart/form-data", {}),
        (400, "form cannot be read", dict(content=b"rgb", headers={"content-type": "multipart/form-data"})),
        (400, "Too many files", dict(files=[("rgb", ONE["rgb"])] * 30)),
        (413, "more than 32 MiB", dict(files={"rgb": ("a.png", bytes(33 << 20))})),
    ],
)
def test_a_request_that_cannot_be_answered_gets_one_clear_sentence(unchanged, status, message, request_):
    engine, http = unchanged
    calls = engine.model.calls
    for path in ("/api/search",) if "params" in request_ else ("/api/search", "/api/entries"):
        answer = http.post(path, **request_)
        assert answer.status_code == status, answer.text
        assert list(answer.json()) == ["error"] and re.search(message, answer.json()["error"]), answer.text
        assert "\n" not in answer.json()["error"]
    assert engine.model.calls == calls and len(engine.store) == 6


def test_a_body_without_a_stated_length_is_cut_off_too(tmp_path):
    engine = make_engine(tmp_path / "store", ROWS, limits=Limits(bytes=1 << 20))
    sent = []

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="rgb"; filename="a.png"\r\n\r\n'
        for _ in range(64):
            sent.append(1)
            yield bytes(1 << 16)

    with client(engine) as service:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = service.post("/api/search", content=body(), headers=headers)
        assert answer.status_code == 413 and "more than 1 MiB" in answer.json()["error"]


def test_an_upload_that_takes_too_long_is_given_up(monkeypatch):
    from starlette.requests import Request

    async def never():
        await asyncio.sleep(60)

    monkeypatch.setattr(uploads, "PATIENCE", 0.05)
    scope = {"type": "http", "headers": [(b"content-type", b"multipart/form-data; boundary=x")]}
    with pytest.raises(RefusedError, match="upload took longer than"):
        asyncio.run(uploads.read_query(Request(scope, never), ALL, (), 1 << 20))


def test_a_picture_of_fifty_megapixels_is_refused_before_it_is_decoded(six, monkeypatch):
    from PIL import Image

    data = png(np.broadcast_to(np.uint8(0), (5000, 10000)))
    assert len(data) < 1 << 20
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with client(six) as service:
        answer = service.post("/api/search", files={"nir": ("wide.png", data)})
    assert answer.status_code == 422
    wanted = "nir 'wide.png' has 10000x5000 pixels, 50.0 megapixels, and the limit is 32; make it smaller"
    assert answer.json() == {"error": wanted}


def test_an_empty_gallery_says_so_and_can_be_filled(tmp_path):
    engine = make_engine(tmp_path / "store")
    engine.warm_up()
    with client(engine) as service:
        answer = service.post("/api/search", files=form(1, "rgb"))
        assert answer.status_code == 409 and "gallery is empty" in answer.json()["error"]
        assert service.get("/api/gallery").json()["entries"] == 0
        assert service.post("/api/entries", files=form(1, "rgb")).status_code == 201
        assert found_ids(service.post("/api/search", files=form(1, "rgb"))) == [0]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>.jpg", "a\x1b[2Jb\u202e.jpg", "../../etc/x.png", "ä.png"])
def test_file_names_are_text_and_nothing_else(six, name):
    with client(six) as service:
        added = service.post("/api/entries", files=form(9, "rgb", name=name))
        assert added.headers["content-type"] == "application/json"
        path = added.json()["path"]
        assert path.startswith("upload:") and path.isprintable() and added.json()["thumbnail"] is None
        assert service.get(f"/api/entries/{added.json()['id']}/thumbnail").status_code == 404
        if name.isprintable():
            assert path == f"upload:{name}"


def test_a_name_that_is_no_text_is_shown_with_question_marks(six):
    parts = six.model.parts(six.model.encode({m: [np.zeros((6, 4, 3), np.uint8)] for m in ALL}))
    six.store.append(parts, [b"/x/\xff.png".decode("utf-8", "surrogateescape")], caller="test")
    with client(six) as service:
        assert service.get("/api/entries/6").json()["path"] == "/x/?.png"


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


def test_unknown_addresses_and_methods_are_json_too(six):
    with client(six) as service:
        for method, path, status in (
            ("get", "/x<b>", 404),
            ("put", "/api/gallery", 405),
            ("get", "/api/entries/-1", 422),
        ):
            answer = getattr(service, method)(path)
            assert answer.status_code == status and list(answer.json()) == ["error"]
        assert service.get("/api/entries/9223372036854775808").status_code == 422


def test_a_store_that_another_process_writes_is_a_clear_answer(six, monkeypatch):
    monkeypatch.setattr(manifest, "PATIENCE", 0.0)
    with client(six) as service, manifest.locked(six.store.folder):
        answer = service.delete("/api/entries/0")
        assert answer.status_code == 503 and "being written by another process" in answer.json()["error"]


def test_names_of_uploads_are_kept_short(six):
    with client(six) as http:
        added = http.post("/api/entries", files=form(9, "rgb", name="y" * 500 + ".png")).json()
    assert len(added["path"]) == len("upload:") + engines.LONGEST_NAME
    assert json.loads(json.dumps(added)) == added and Model().calls == 0
