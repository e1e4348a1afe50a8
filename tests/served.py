"""A model that needs no training, a gallery of its vectors, and a client of the service over them."""

import contextlib
import io
import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from input_pipeline.reading import images
from jax_mmreid.batch import DataSpec
from jax_mmreid.metrics.similarity import Packing, Parts
from jax_mmreid.search.engine import Engine, Limits
from jax_mmreid.search.service import create_app
from jax_mmreid.search.store import Identity, Store
from jax_mmreid.tools.serve import read_picture

ALL = ("rgb", "nir", "tir")
SIZE, WIDTH = (6, 4), 10  # H, W of the model, D
ROWS = [(seed, ALL) for seed in range(1, 7)]


class Model:
    """Parts are random projections of pixels, and as fallback what captions have in common with "a b c ..".

    It refuses to be called by two threads at a time.
    """

    identity = "0123456789ab"

    def __init__(self, captions=()):
        self.spec = DataSpec("drawn", "f", ALL, SIZE, (1,), (1,), 8, 1, text=captions)
        rng = np.random.default_rng(0)
        self.weights = rng.normal(size=(len(ALL), SIZE[0] * SIZE[1] * 3, WIDTH)).astype(np.float32)
        self.calls, self.captions, self.busy = 0, captions, threading.Lock()

    def encode(self, images, captions=None):
        assert self.busy.acquire(blocking=False), "two calls of the model at the same time"
        try:
            assert tuple(images) == ALL and tuple(captions or ()) == self.captions
            self.calls += 1
            return {m: [self._fit(x) for x in column] for m, column in images.items()}, captions
        finally:
            self.busy.release()

    def parts(self, features):
        pixels, captions = features
        present = np.array([[x is not None for x in pixels[m]] for m in ALL]).T
        zeros = np.zeros(self.weights.shape[1], np.float32)
        rows = [[zeros if x is None else x for x in pixels[m]] for m in ALL]
        parts = np.einsum("mnp,mpd->nmd", np.array(rows), self.weights)
        fallback = None
        if self.captions:
            words = [[word in text.split() for word in "abcdefg"] for text in captions[self.captions[0]]]
            fallback = np.array(words, np.float32)
            fallback /= np.maximum(np.linalg.norm(fallback, axis=1, keepdims=True), 1)
        return Parts(parts, present, fallback)

    def _fit(self, pixels):
        if pixels is None:
            return None
        fitted = images.fit(pixels, "x", SIZE, Image.Resampling.BILINEAR)
        return fitted.astype(np.float32).reshape(-1) / 128 - 1


def pixels(seed, modality):
    """Another picture for each seed and modality, [12,8,3]: blocks of 2x2, which resizing keeps apart."""
    rng = np.random.default_rng([seed, ALL.index(modality)])
    return rng.integers(0, 256, (*SIZE, 3), np.uint8).repeat(2, axis=0).repeat(2, axis=1)


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def form(seed, *modalities, name="a.png"):
    """What a client sends as `files` for these pictures."""
    return {m: (name, png(pixels(seed, m)), "image/png") for m in modalities}


def fill(store, model, rows, root=None):
    """Adds a row for each (seed, modalities), camera seed % 3, time 100 * seed; with `root` a file of each is there."""
    for seed, modalities in rows:
        given = {m: [pixels(seed, m) if m in modalities else None] for m in ALL}
        parts = model.parts(model.encode(given, {m: [""] for m in model.captions} or None))
        path = str(Path(root or "/nowhere", f"{seed}.png"))
        if root:
            Path(path).write_bytes(png(pixels(seed, modalities[0])))
        columns = dict(pids=[seed], camids=[seed % 3], times=[100.0 * seed])
        store.append(parts, [path], **columns, caller="test")


def make_engine(folder, rows=(), captions=(), root=None, limits=None, calibration=None):
    """An engine over a new store with these rows of `fill`."""
    model, limits = Model(captions), limits or Limits()
    store = Store.create(
        folder, Identity(model.identity, model.spec.hash, ALL, Packing(len(ALL), WIDTH, 7 if captions else 0))
    )
    fill(store, model, rows, root)
    read = lambda data, name: read_picture(data, name, range16=(0, 65535), max_pixels=limits.pixels)  # noqa: E731
    return Engine(model, store, read, captions=captions, calibration=calibration, pictures=root, limits=limits)


@contextlib.contextmanager
def client(engine, tokens=None, address="127.0.0.1", host="127.0.0.1:8000"):
    """A client of the service at `address`, whose requests name this host."""
    from fastapi.testclient import TestClient

    app = create_app(engine, tokens=tokens, user="anna")
    with TestClient(app, base_url=f"http://{host}", client=(address, 5000)) as found:
        yield found


def subsets(names=ALL):
    return [x for n in range(1, len(names) + 1) for x in itertools.combinations(names, n)]


def settings(**fields):
    """A calibration that gives a probability, or nan, as it is told."""
    return SimpleNamespace(**fields)


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
