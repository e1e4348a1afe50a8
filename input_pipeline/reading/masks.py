"""Training masks: which pictures are hidden from the model, drawn once before training (Miss-ReID, Algorithm 1)."""

import zipfile
from collections.abc import Sequence

import numpy as np

from jax_mmreid.errors import DataError

MODES = ("bernoulli", "exact")
ALL_MISSING = ("repair", "reject", "drop_sample")


def draw(
    num_rows: int,
    modalities: Sequence[str],
    *,
    eta: Sequence[float],
    seed: int,
    mode: str = "bernoulli",
    all_missing: str = "repair",
    has_file: np.ndarray | None = None,
) -> np.ndarray:
    """Which pictures are present, [N,M] bool: picture (i, m) is hidden where u[i,m] < eta[m], u from default_rng(seed).

    `mode="exact"` hides the round(eta[m] * n) existing pictures of a modality with the smallest u instead.
    `has_file` [N,M] says which files exist (default: all); what does not exist is never present.
    `all_missing` says what becomes of a row that loses everything: "repair" restores the existing picture with the
    largest u/eta (so a little less is missing than eta says), "reject" draws its u again, "drop_sample" leaves it
    all False for the caller to skip. Raises ValueError for a bad argument, DataError for a row without any file.
    """
    shape = (num_rows, len(modalities))
    has_file = np.ones(shape, bool) if has_file is None else has_file
    eta = _check(modalities, eta, mode, all_missing, has_file)
    rng = np.random.default_rng(seed)
    u = rng.random(shape)
    present = _hide_exactly(u, eta, has_file) if mode == "exact" else has_file & (u >= eta)
    if all_missing == "repair":
        rows = np.flatnonzero(~present.any(axis=1))
        ratio = np.where(has_file, u / np.where(eta > 0, eta, 1), -np.inf)
        present[rows, ratio[rows].argmax(axis=1)] = True
    elif all_missing == "reject":
        while len(rows := np.flatnonzero(~present.any(axis=1))):
            present[rows] = has_file[rows] & (rng.random((len(rows), len(modalities))) >= eta)
    return present


def rates(present: np.ndarray, modalities: Sequence[str]) -> dict[str, float]:
    """The share of rows that lack each modality, from `present` [N,M]."""
    return {name: float(1 - present[:, i].mean()) for i, name in enumerate(modalities)}


def save(path: str, present: np.ndarray, fingerprint: str) -> None:
    """Writes masks [N,M] and the fingerprint of the file list they belong to, as .npz without pickles."""
    with open(path, "wb") as file:  # an open file, since numpy appends .npz to a bare name
        np.savez_compressed(file, present=np.asarray(present, bool), fingerprint=np.array(fingerprint))


def load(path: str, fingerprint: str, shape: tuple[int, int]) -> np.ndarray:
    """Reads masks that `save` wrote; DataError if unreadable, of another file list or not of `shape` (N, M)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            present, found = file["present"], str(file["fingerprint"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"missing: cannot read masks from {path!r} ({error}); check missing.mask_file") from error
    if found != fingerprint:
        raise DataError(
            f"missing: the masks in {path} belong to another list of files ({found}, the data have {fingerprint}); "
            "draw them anew with missing.mask_file=''"
        )
    if present.shape != tuple(shape) or present.dtype != np.bool_:
        raise DataError(f"missing: the masks in {path} are {present.dtype}{present.shape}, expected bool{tuple(shape)}")
    return present


def _hide_exactly(u: np.ndarray, eta: np.ndarray, has_file: np.ndarray) -> np.ndarray:
    present = has_file.copy()
    for column, rate in enumerate(eta):
        rows = np.flatnonzero(has_file[:, column])
        order = rows[np.argsort(u[rows, column], kind="stable")]
        present[order[: round(rate * len(rows))], column] = False
    return present


def _check(
    modalities: Sequence[str], eta: Sequence[float], mode: str, all_missing: str, has_file: np.ndarray
) -> np.ndarray:
    rate = np.asarray(eta, float)
    if rate.shape != (len(modalities),):
        raise ValueError(f"missing.eta={eta}: expected {len(modalities)} rates, one for each of {tuple(modalities)}")
    if not ((rate >= 0) & (rate <= 1)).all():
        raise ValueError(f"missing.eta={eta}: every rate must lie in [0, 1]")
    if mode not in MODES:
        raise ValueError(f"missing.mode={mode!r}: expected one of {', '.join(MODES)}")
    if all_missing not in ALL_MISSING:
        raise ValueError(f"missing.all_missing={all_missing!r}: expected one of {', '.join(ALL_MISSING)}")
    for row in np.flatnonzero(~has_file.any(axis=1)):
        raise DataError(f"missing: row {row} has no file in any of {', '.join(modalities)}; remove it from the data")
    if all_missing == "reject":
        if mode == "exact":
            raise ValueError("missing.all_missing='reject' draws single rows again: it needs missing.mode='bernoulli'")
        if not (has_file & (rate < 1)).any(axis=1).all():
            raise ValueError(
                f"missing.eta={eta}: with all_missing='reject' a row whose pictures all have rate 1 never ends"
            )
    return rate
