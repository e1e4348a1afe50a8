"""Training masks: rates, repair and its alternatives, absent files, saving."""

import numpy as np
import pytest

from input_pipeline.data_config import MODES, MissingConfig
from input_pipeline.reading import masks
from jax_mmreid.errors import ConfigError, DataError

NAMES = ("rgb", "nir", "tir")
N = 4001


def draw(eta, num_rows=N, names=NAMES, has_file=None, **options):
    has_file = np.ones((num_rows, len(names)), bool) if has_file is None else has_file
    return masks.draw(has_file, names, MissingConfig(**dict(eta=eta, seed=3) | options))


def test_bernoulli_masks_follow_the_specified_draw():
    eta = (0.1, 0.3, 0.5)
    present = draw(eta, all_missing="drop_sample")
    np.testing.assert_array_equal(present, np.random.default_rng(3).random((N, 3)) >= eta)
    for rate, want in zip(masks.rates(present, NAMES).values(), eta, strict=True):
        assert abs(rate - want) < 4 * np.sqrt(want * (1 - want) / N)


def test_repair_changes_only_empty_rows_and_restores_the_largest_ratio():
    eta = np.array([0.5, 0.9, 0.7])
    raw, fixed = draw(tuple(eta), all_missing="drop_sample"), draw(tuple(eta))
    empty = ~raw.any(axis=1)
    assert empty.any()
    np.testing.assert_array_equal(fixed[~empty], raw[~empty])
    ratio = np.random.default_rng(3).random((N, 3)) / eta
    np.testing.assert_array_equal(fixed[empty], np.eye(3, dtype=bool)[ratio[empty].argmax(axis=1)])


def test_repair_by_hand(monkeypatch):
    class Fixed:
        def random(self, shape):
            assert shape == (2, 2)
            return np.array([[0.4, 0.5], [0.1, 0.95]])  # ratios of row 0: 0.8 and 0.625

    monkeypatch.setattr(masks.np.random, "default_rng", lambda seed: Fixed())
    present = draw((0.5, 0.8), num_rows=2, names=("rgb", "nir"))
    assert present.tolist() == [[True, False], [False, True]]


def test_repaired_rate_at_one_half_is_the_published_estimate():
    rates = masks.rates(draw((0.5, 0.5, 0.5), num_rows=60_000), NAMES)
    np.testing.assert_allclose(list(rates.values()), 0.458, atol=0.01)


def test_masks_are_static_and_depend_on_the_seed():
    eta = (0.3, 0.3, 0.3)
    np.testing.assert_array_equal(draw(eta), draw(eta))
    assert (draw(eta) != draw(eta, seed=4)).any()


def test_rate_zero_keeps_everything_and_rate_one_nothing():
    present = draw((0.0, 1.0, 0.5))
    assert present[:, 0].all() and not present[:, 1].any()
    assert draw((0.0, 0.0, 0.0)).all()
    assert (draw((1.0, 1.0, 1.0)).sum(axis=1) == 1).all()  # all repaired
    assert not draw((1.0, 1.0, 1.0), all_missing="drop_sample").any()


@pytest.mark.parametrize("eta", [(0.1, 0.3, 0.5), (0.0, 1.0, 0.123)])
def test_exact_hides_the_rounded_count_with_the_smallest_draws(eta):
    present = draw(eta, mode="exact", all_missing="drop_sample")
    u = np.random.default_rng(3).random((N, 3))
    for column, rate in enumerate(eta):
        hidden = ~present[:, column]
        assert hidden.sum() == round(rate * N)
        assert not hidden.any() or hidden.all() or u[hidden, column].max() < u[~hidden, column].min()


def test_exact_with_repair_leaves_no_row_empty():
    assert draw((0.8, 0.8, 0.8), mode="exact").any(axis=1).all()


def test_reject_draws_empty_rows_again():
    eta = (0.7, 0.9, 0.5)
    raw, fixed = draw(eta, all_missing="drop_sample"), draw(eta, all_missing="reject")
    kept = raw.any(axis=1)
    assert not kept.all() and fixed.any(axis=1).all()
    np.testing.assert_array_equal(fixed[kept], raw[kept])
    np.testing.assert_array_equal(fixed, draw(eta, all_missing="reject"))
    with pytest.raises(ConfigError, match="config.missing.eta.*rate 1 loses them in every draw; lower the rate"):
        draw((1.0, 1.0, 1.0), all_missing="reject")


@pytest.mark.parametrize("mode", MODES)
def test_absent_files_are_never_present(mode):
    has_file = np.random.default_rng(0).random((N, 3)) < 0.6
    has_file[~has_file.any(axis=1), 1] = True
    present = draw((0.6, 0.7, 0.8), mode=mode, has_file=has_file)
    assert not (present & ~has_file).any()
    assert present.any(axis=1).all()  # repaired from what exists
    raw = draw((0.6, 0.7, 0.8), mode=mode, has_file=has_file, all_missing="drop_sample")
    if mode == "exact":
        assert [(has_file & ~raw)[:, m].sum() for m in range(3)] == [
            round(rate * has_file[:, m].sum()) for m, rate in enumerate((0.6, 0.7, 0.8))
        ]
    has_file[17] = False
    with pytest.raises(DataError, match="row 17 has no file"):
        draw((0.0, 0.0, 0.0), mode=mode, has_file=has_file)


def test_there_is_a_rate_for_each_modality():
    with pytest.raises(ConfigError, match=r"config.missing.eta=\(0.1, 0.2\): expected 3 rates, one for each of"):
        draw((0.1, 0.2))


def test_saved_masks_come_back_for_the_same_files_only(tmp_path):
    path = str(tmp_path / "masks")
    present = draw((0.2, 0.4, 0.6))
    masks.save(path, present, "abc")
    np.testing.assert_array_equal(masks.load(path, "abc", present.shape), present)
    with pytest.raises(DataError, match="another list of files"):
        masks.load(path, "abd", present.shape)
    with pytest.raises(DataError, match=r"\(4001, 3\), expected bool\(4001, 2\)"):
        masks.load(path, "abc", (N, 2))


def test_unreadable_mask_files_are_named(tmp_path):
    cases = {"absent": None, "empty": b"", "text": b"rgb,nir\n", "half": b"PK\x03\x04 and no more"}
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataError, match=f"cannot read masks from .*{name}"):
            masks.load(str(path), "abc", (2, 3))
    with open(tmp_path / "pickled", "wb") as file:
        np.savez(file, present=np.array([None]), fingerprint=np.array("abc"))
    with pytest.raises(DataError, match="pickled"):
        masks.load(str(tmp_path / "pickled"), "abc", (2, 3))
    np.save(tmp_path / "bare.npy", np.ones((2, 3), bool))
    with pytest.raises(DataError, match="bare"):
        masks.load(str(tmp_path / "bare.npy"), "abc", (2, 3))
