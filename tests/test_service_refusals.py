"""What the service over a store refuses, in one clear sentence. No server runs; requests enter the app."""

import asyncio
import json
import re

import numpy as np
import pytest
from served import ALL, ROWS, Model, client, form, found_ids, make_engine, png
from served import six as six
from served import unchanged as unchanged

pytest.importorskip("fastapi", reason="needs the web extra")

from jax_mmreid.search import engine as engines
from jax_mmreid.search import manifest, uploads
from jax_mmreid.search.answers import RefusedError
from jax_mmreid.search.engine import Limits

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
