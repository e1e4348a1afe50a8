"""The page in headless Chromium, by clicks and uploads; and the command that serves it, with a trained model."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from browsers import chromium
from conftest import tiny_clip_config
from served import ALL, make_engine, pixels, png, settings
from test_inference import write_run

from jax_mmreid.search.service import create_app
from jax_mmreid.search.store import Store
from jax_mmreid.tools import embed, serve

pytestmark = pytest.mark.slow
uvicorn = pytest.importorskip("uvicorn", reason="needs the web extra")
SCRIPT = "<script>alert(1)<b>.png"


@contextlib.contextmanager
def running(app):
    """The address of a server of this app on a free port of this machine."""
    with serve.bind("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@contextlib.contextmanager
def opened(browser, address, **settings):
    """The page, and what the browser reports of it: errors, dialogs, requests to elsewhere."""
    page, reports = browser.new_page(timezone_id="Europe/Berlin", locale="en-GB", **settings), []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: reports.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: reports.append(f"error {error}"))
    page.on("dialog", lambda dialog: reports.append(f"dialog {dialog.message}"))
    own = (address, f"blob:{address}")
    page.on("request", lambda request: None if request.url.startswith(own) else reports.append(request.url))
    page.goto(address)
    page.wait_for_selector(".slot")
    yield page, reports
    page.close()


def choose(page, seed, modality, name="a.png"):
    page.set_input_files(
        f".slot[data-modality={modality}] input[type=file]",
        {"name": name, "mimeType": "image/png", "buffer": png(pixels(seed, modality))},
    )


def press(page, button="#search"):
    """Presses a button; what the page reports when it is done."""
    page.click(button)
    page.wait_for_selector("#search:enabled")
    return page.inner_text("#status")


def matches(page):
    """[(name, score, modalities that counted)] as shown."""
    found = []
    for item in page.query_selector_all(".match"):
        labels = [label.inner_text().lower() for label in item.query_selector_all(".label")]
        found.append((item.query_selector(".path").inner_text(), item.query_selector(".score").inner_text(), labels))
    return found


@pytest.fixture
def six(tmp_path):
    """An engine over six entries with pictures, one of which has a name like markup, and a calibration."""
    root = tmp_path / "pictures"
    root.mkdir()
    calibration = settings(probability=lambda scores, common: np.where(scores > 0.99, 0.975, np.nan))
    rows = [(1, ALL), (2, ("rgb",)), (3, ("nir", "tir")), (4, ALL), (5, ALL)]
    engine = make_engine(tmp_path / "store", rows, root=root, calibration=calibration)
    shutil.copy(root / "5.png", root / SCRIPT)
    parts = engine.model.parts(engine.model.encode({m: [pixels(6, m)] for m in ALL}))
    engine.store.append(parts, [str(root / SCRIPT)], caller="test")
    return engine


def test_searching_with_one_two_and_three_modalities(browser, six):
    with running(create_app(six)) as address, opened(browser, address) as (page, reports):
        assert page.inner_text("#gallery").startswith("6 entries, 01/01/1970, 01:01:40 to ")
        shown = []
        for sent in (["nir"], ["nir", "tir"], ["nir", "tir", "rgb"]):
            choose(page, 3, sent[-1])
            shown.append(press(page))
            assert matches(page)[0] == ("3.png", "1.0000", sent[:2])
        assert shown == [
            "5 matches for nir among 6 entries",
            "5 matches for nir + tir among 6 entries",
            "6 matches for rgb + nir + tir among 6 entries",
        ]
        first = page.query_selector(".match")
        assert first.query_selector(".probability").inner_text() == "97.5 %"
        assert not page.query_selector_all(".match")[1].query_selector(".chance").is_visible()
        assert "identity 3 · camera 0 · 01/01/1970, 01:05:00 · entry 2" in first.inner_text()
        page.wait_for_selector(".match img:visible")
        assert page.eval_on_selector(".match img", "image => image.naturalWidth") == 8
        total, widths = 0, []
        for share in first.query_selector_all(".share"):
            total += float(share.query_selector(".value").inner_text())
            inner, outer = (share.query_selector(x).bounding_box()["width"] for x in (".bar div", ".bar"))
            widths.append(inner / outer - float(share.query_selector(".value").inner_text()))
        assert total == pytest.approx(1, abs=2e-3) and np.abs(widths).max() < 0.01
        page.click(".slot[data-modality=nir] .remove")
        assert press(page) == "6 matches for rgb + tir among 6 entries"
        press(page, "#clear")
        assert matches(page) == [] and press(page) == "Choose a picture first."
        assert reports == []


def test_filters_by_camera_and_time(browser, six):
    with running(create_app(six)) as address, opened(browser, address) as (page, reports):
        choose(page, 1, "rgb")
        page.check("#cameras input[value='1']")
        press(page)
        assert {name for name, *_ in matches(page)} == {"1.png", "4.png"}
        page.fill("#since", "1970-01-01T01:05:00")  # 300 seconds in Berlin
        press(page)
        assert [name for name, *_ in matches(page)] == ["4.png"]
        page.fill("#until", "1970-01-01T01:05:01")
        assert press(page) == "No match for rgb: 0 entries can be found with these filters."
        page.uncheck("#cameras input[value='1']")
        page.fill("#k", "1")
        press(page)
        assert len(matches(page)) == 0  # entry 3 has no RGB
        page.fill("#k", "1001")
        assert "k=1001 matches are too many" in press(page)
        assert len(reports) == 1 and "status of 422" in reports[0]  # which Chromium itself writes


def test_broken_large_and_strangely_named_pictures(browser, six, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "wide.png").write_bytes(png(np.broadcast_to(np.uint8(0), (5000, 10000))))
    field = ".slot[data-modality=rgb] input[type=file]"
    with running(create_app(six)) as address, opened(browser, address) as (page, reports):
        for name, message in (("broken.jpg", "cannot read rgb 'broken.jpg'"), ("wide.png", "50.0 megapixels")):
            page.set_input_files(field, tmp_path / name)
            assert message in press(page) and page.query_selector("#status.bad") and matches(page) == []
        choose(page, 6, "rgb", name=SCRIPT)
        press(page)
        assert page.inner_text(".slot .file") == SCRIPT and matches(page)[0][0] == SCRIPT
        page.click("summary")
        assert press(page, "#add") == "Added as entry 6."
        press(page)
        assert {name for name, *_ in matches(page)[:2]} == {SCRIPT, f"upload:{SCRIPT}"}
        assert page.query_selector("main script, main b > b") is None
        refused = [text for text in reports if "status of 422" in text]
        assert len(refused) == 2 and len(reports) == 2


def test_dropping_a_picture_on_its_slot(browser, six):
    with running(create_app(six)) as address, opened(browser, address) as (page, reports):
        data = page.evaluate_handle(
            """bytes => {
                const data = new DataTransfer();
                data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
                return data;
            }""",
            list(png(pixels(4, "tir"))),
        )
        page.dispatch_event("header", "drop", {"dataTransfer": data})  # beside the slots: nothing happens
        page.dispatch_event(".slot[data-modality=tir] .drop", "drop", {"dataTransfer": data})
        assert page.inner_text(".slot[data-modality=tir] .file") == "dropped.png"
        press(page)
        assert matches(page)[0] == ("4.png", "1.0000", ["tir"]) and page.url == f"{address}/"
        assert reports == []


def test_deleting_asks_first(browser, six):
    with running(create_app(six)) as address, opened(browser, address) as (page, reports):
        choose(page, 4, "rgb")
        press(page)
        for button, left in (("keep", 6), ("delete", 5)):
            page.click(".match .delete")
            assert "Delete entry 3 (" in page.inner_text("#confirm")
            page.click(f"#confirm button[value={button}]")
            if button == "delete":
                page.wait_for_selector(".match[data-id='3']", state="detached")
            assert len(six.store) == left
        page.wait_for_function("() => document.querySelector('#gallery').textContent.startsWith('5 entries')")
        assert page.inner_text("#status") == "Entry 3 is deleted." and "4.png" not in [x for x, *_ in matches(page)]
        page.click(".match .delete")
        page.keyboard.press("Escape")
        assert len(six.store) == 5 and reports == []


def test_captions_where_the_model_reads_them(browser, tmp_path):
    engine = make_engine(tmp_path / "store", captions=("rgb",))
    with running(create_app(engine)) as address, opened(browser, address) as (page, reports):
        assert [box.is_visible() for box in page.query_selector_all(".slot textarea")] == [True, False, False]
        page.click("summary")
        for text in ("a b", "c d"):
            page.fill(".slot textarea", text)
            choose(page, 1, "tir")
            assert press(page, "#add").startswith("Added as entry")
        press(page, "#clear")
        page.fill(".slot textarea", "d c")
        assert press(page) == "2 matches for caption of rgb among 2 entries"
        assert "compared by all that both have · entry 1" in page.inner_text(".match")
        assert reports == []


def test_a_token_is_asked_for_and_opens_the_page(browser, six):
    app = create_app(six, tokens={"desk": "abcdefgh12345678"})
    with running(app) as address:
        with pytest.raises(urllib.request.HTTPError, match="401"):
            urllib.request.urlopen(address)
        login = {"username": "any", "password": "abcdefgh12345678"}
        with opened(browser, address, http_credentials=login) as (page, reports):
            choose(page, 1, "rgb")
            press(page)
            page.wait_for_selector(".match img:visible")
            assert page.inner_text("#gallery").endswith("you are desk")
            assert matches(page)[0][0] == "1.png" and not [text for text in reports if "401" not in text]


def test_the_command_serves_a_trained_model_to_many_callers(drawn, tmp_path, browser):
    """Captions and pictures; 200 requests at once, each of which finds its own picture first."""
    workdir, store = tmp_path / "run", tmp_path / "store"
    write_run(tiny_clip_config(drawn), workdir)
    assert embed.main([f"--workdir={workdir}", f"--store={store}", str(drawn / "test")]) == 0
    flags = [f"--workdir={workdir}", f"--gallery={store}", f"--pictures={drawn}", "--port=0", "--caller=anna"]
    command = [sys.executable, "-m", "jax_mmreid.tools.serve", *flags]
    files = sorted((drawn / "test" / "RGB").iterdir())
    folders = {"rgb": "RGB", "nir": "NI", "tir": "TI"}

    def ask(address, i):
        sent = (ALL, ("tir",), ("rgb", "nir"))[i % 3]
        path = files[i % len(files)]
        data = {m: (path.name, (drawn / "test" / folders[m] / path.name).read_bytes()) for m in sent}
        return post(f"{address}/api/search?k=2", data)["matches"][0]["entry"]["path"] == str(path)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            lines = [process.stdout.readline(), process.stdout.readline()]
            address = re.search(r"serving (http://127\.0\.0\.1:\d+) ", lines[1])[1]
            assert lines[0].startswith(f"{store}: {len(files)} entries of model ")
            with ThreadPoolExecutor(200) as pool:
                assert all(pool.map(ask, [address] * 200, range(200)))
            with opened(browser, address) as (page, reports):
                page.set_input_files(".slot[data-modality=tir] input[type=file]", drawn / "test" / "TI" / files[4].name)
                page.fill(".slot[data-modality=rgb] textarea", "a person in a red coat")
                press(page)
                assert matches(page)[0][0] == files[4].name and reports == []
                page.wait_for_selector(".match img:visible")
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        assert process.stderr.read() == ""
    log = [line for line in Store.open(store).audit() if line["action"] == "search"]
    assert len(log) == 201 and {line["caller"] for line in log} == {"anna"}


def post(address, files):
    """The JSON answer to a form with these files {field: (name, bytes)}."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for field, (name, data) in files.items()
    ]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    request = urllib.request.Request(address, b"".join([*parts, b"--x--\r\n"]), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)
