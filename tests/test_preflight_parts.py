"""The parts of preflight against loops: hashes, shifts, cameras and labels."""

import numpy as np
import pytest
from PIL import Image

from input_pipeline.preflight import alignment, cameras, copies, labels, scan
from input_pipeline.preflight.scan import Look, Rows


def bits(hashes):
    return np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1)


def random_hashes(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 63, (n, 4), np.uint64)


def test_distances_are_those_of_bits():
    a, b = random_hashes(5), random_hashes(7, 1)
    expected = [[int(np.sum(x != y)) for y in bits(b)] for x in bits(a)]
    np.testing.assert_array_equal(copies.distances(a, b), expected)


def test_candidates_are_those_of_all_pairs(monkeypatch):
    """In blocks of three rows; the cropped hash of one row is the whole one of another, and a flat row is left out."""
    monkeypatch.setattr(copies, "BLOCK", 30)
    hashes = np.stack([random_hashes(11), random_hashes(11, 1)], axis=1)
    hashes[7, 0] = hashes[2, 0] ^ np.uint64(0b1011)
    hashes[9, 1] = hashes[0, 0]
    hashes[3, 0] = hashes[10, 1] ^ np.uint64(1 << 40)
    hashes[5, 0] = hashes[4, 0]
    textured = np.arange(11) != 5
    look = Look(np.ones(11, bool), textured, hashes, None, None)
    assert set(copies.candidates(look, 12)) == {(2, 7), (0, 9), (3, 10)}
    assert set(copies.candidates(look, 11)) == {(0, 9), (3, 10)}  # three bits in each of four words


def test_the_hash_ignores_brightness_and_knows_the_picture():
    rng = np.random.default_rng(0)
    one, other = rng.integers(40, 200, (2, 32, 32, 3))
    first = scan.perceptual_hash(one)[None]
    assert copies.distances(first, scan.perceptual_hash(1.2 * one + 3)[None]) == 0
    assert copies.distances(first, scan.perceptual_hash(other)[None]) > 90


def test_which_pairs_are_findings():
    split = np.array(["train", "train", "train", "query", "gallery", "gallery"])
    rows = Rows(split, np.array([1, 1, 2, 7, 7, 8]), np.zeros(6), {})
    kinds = {(a, b): copies._kind(rows, a, b) for a in range(6) for b in range(a + 1, 6)}
    assert {kinds[a, b] for a in range(3) for b in range(3, 6)} == {copies.LEAK}
    assert kinds[0, 1] == copies.DUPLICATE and kinds[0, 2] == kinds[4, 5] == kinds[3, 5] == copies.TWO_IDENTITIES
    assert kinds[3, 4] == ""  # a query that is in the gallery


def test_the_correlation_at_each_shift_is_that_of_the_overlap(monkeypatch):
    monkeypatch.setattr(alignment, "REACH", 3)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 14, 9))
    surface = alignment.correlation(a, b)
    assert surface.shape == (7, 7)
    for y in range(-3, 4):
        for x in range(-3, 4):
            left = a[max(0, -y) : 14 - max(0, y), max(0, -x) : 9 - max(0, x)]
            right = b[max(0, y) : 14 - max(0, -y), max(0, x) : 9 - max(0, -x)]
            expected = np.corrcoef(left.ravel(), right.ravel())[0, 1]
            assert surface[3 + y, 3 + x] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("size", [(40, 80), (80, 40), (60, 60)])
def test_shifts_are_fractions_of_the_longer_side(size):
    w, h = size
    noise = np.random.default_rng(0).integers(0, 256, (h // 5 + 4, w // 5 + 4), np.uint8)
    scene = np.kron(noise, np.ones((5, 5), np.uint8))
    one, other = (Image.fromarray(scene[y : y + h, x : x + w]) for y, x in ((8, 2), (4, 6)))
    found = alignment.surfaces({"rgb": one, "tir": other, "nir": one})
    assert list(found) == [("rgb", "tir"), ("rgb", "nir"), ("tir", "nir")]
    long = max(size)
    np.testing.assert_allclose(alignment.best(found["rgb", "tir"]), (4 / long, -4 / long), atol=1.01 / alignment.LONG)
    assert alignment.best(found["rgb", "nir"]) == (0, 0)


def test_identities_of_one_camera():
    pid, camid = np.array([5, 5, 5, 3, 3, 9]), np.array([1, 1, 2, 2, 2, 4])
    assert cameras.single_camera(pid, camid).tolist() == [3, 9]
    split = np.array(["train"] * 5 + ["query"], "U7")
    looks = {"rgb": Look(np.ones(6, bool), None, None, np.zeros((6, 8, 8, 3), np.uint8), None)}
    found = cameras.cameras(Rows(split, pid, camid, {}), looks)
    assert {c: x[:3] for c, x in found["train"].items()} == {1: (2, 1, 0), 2: (3, 2, 1)}
    assert found["query"] == {4: (1, 1, 1, {})}
    split[3:] = "query", "gallery", "gallery"  # identity 3 is in both, 9 in the gallery
    camid[3:] = 2, 1, 1
    found = cameras.cameras(Rows(split, pid, camid, {}), looks)
    assert {name: {c: x.alone for c, x in each.items()} for name, each in found.items()} == {
        "train": {1: 0, 2: 0},
        "query": {2: 0},
        "gallery": {1: 1},
    }
    assert cameras.cameras(Rows(split, pid, np.full(6, -1), {}), looks) == dict.fromkeys(split.tolist(), {})


def test_cameras_are_recognised_by_means_without_the_picture_itself():
    rng = np.random.default_rng(0)
    camid, there = np.repeat([4, 7, 8], 5), np.arange(15) != 3
    same = rng.integers(0, 256, (15, 8, 8, 3)).astype(np.uint8)
    assert np.mean(list(cameras.recognised(same, camid, there).values())) < 0.67  # noise: by chance
    apart = (same // 8 + 40 * np.repeat([0, 1, 2], 5)[:, None, None, None]).astype(np.uint8)
    assert cameras.recognised(apart, camid, there) == {4: 1, 7: 1, 8: 1}
    assert cameras.recognised(apart, np.full(15, 4), there) == {}


def suspects_by_loops(x, pid, camid):
    """{row: (the nearest other identity, by how much it is nearer)}."""
    x = x - x.mean(axis=0)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    found = {}
    for i in range(len(x)):
        scores, others = {}, [j for j in range(len(x)) if camid[j] != camid[i]]
        for p in {int(pid[j]) for j in others}:
            scores[p] = np.mean(sorted(float(x[i] @ x[j]) for j in others if pid[j] == p)[-2:])
        own = scores.pop(int(pid[i]))
        likely = max(scores, key=scores.get)
        if scores[likely] - own >= labels.MARGIN:
            found[i] = likely, scores[likely] - own
    return found


@pytest.mark.parametrize("wrong", [0, 6])
def test_suspects_are_those_of_loops(monkeypatch, wrong):
    monkeypatch.setattr(labels, "BLOCK", 7)
    rng = np.random.default_rng(0)
    pid, camid = rng.integers(0, 6, 40) * 3 + 2, rng.integers(0, 3, 40)
    x = np.eye(20)[pid] + rng.normal(0, 0.25, (40, 20)) + 5
    pid[:wrong] = np.roll(pid[:wrong], 1)
    expected = suspects_by_loops(x, pid, camid)
    verdict = labels.suspects(x, pid, camid)
    assert verdict.judged == 40 and len(expected) >= wrong // 2
    assert {s.row: s.likely for s in verdict.suspects} == {row: likely for row, (likely, _) in expected.items()}
    for s in verdict.suspects:
        assert s.margin == pytest.approx(expected[s.row][1], abs=2e-3) and s.pid == pid[s.row]
    assert [s.margin for s in verdict.suspects] == sorted((s.margin for s in verdict.suspects), reverse=True)


def test_rows_without_another_camera_are_not_judged():
    x, pid = np.random.default_rng(0).normal(size=(6, 4)), np.array([1, 1, 1, 2, 2, 2])
    assert labels.suspects(x, pid, pid) == ([], 0)
    assert labels.suspects(x, pid, np.full(6, 3)) == labels.suspects(x, pid, np.arange(6))  # no other camera at all
    assert labels.suspects(x, pid, np.full(6, -1)).judged == 6  # unknown cameras are all different
    assert labels.suspects(x, pid, np.array([0, 0, 1, 0, 0, 0])).judged == 3
