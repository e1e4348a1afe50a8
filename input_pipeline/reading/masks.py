"""Training masks: which pictures are hidden from the model, drawn once before training (Miss-ReID, Algorithm 1)."""

import io
import zipfile
from collections.abc import Sequence

import numpy as np

from input_pipeline.data_config import MissingConfig
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.paths import place


def draw(has_file: np.ndarray, modalities: Sequence[str], missing: MissingConfig) -> np.ndarray:
    """Which pictures are present, [N,M] bool: picture (i, m) is hidden where u[i,m] < eta[m], u from default_rng(seed).

    `has_file` [N,M] says which pictures exist; others are never present. mode="exact" hides the round(eta[m] * n)
    existing pictures of a modality with the smallest u instead. `all_missing` says what becomes of a row that loses
    everything: "repair" restores the existing picture with the largest u/eta (so that a little less is missing than
    eta), "reject" draws its u again, "drop_sample" leaves it all False for the caller to skip.
    Raises ConfigError for rates that do not fit the modalities, DataError for a row without any picture.
    """
    eta = np.asarray(missing.eta, float)
    _check(has_file, modalities, missing)
    rng = np.random.default_rng(missing.seed)
    u = rng.random(has_file.shape)
    present = _hide_exactly(u, eta, has_file) if missing.mode == "exact" else has_file & (u >= eta)
    if missing.all_missing == "repair":
        rows = np.flatnonzero(~present.any(axis=1))
        ratio = np.where(has_file, u / np.where(eta > 0, eta, 1), -np.inf)
        present[rows, ratio[rows].argmax(axis=1)] = True
    elif missing.all_missing == "reject":
        while len(rows := np.flatnonzero(~present.any(axis=1))):
            present[rows] = has_file[rows] & (rng.random((len(rows), len(modalities))) >= eta)
    return present


def rates(present: np.ndarray, modalities: Sequence[str]) -> dict[str, float]:
    """The share of rows that lack each modality, from `present` [N,M]."""
    return {name: float(1 - present[:, i].mean()) for i, name in enumerate(modalities)}


def save(path: str, present: np.ndarray, fingerprint: str) -> None:
    """Writes masks [N,M] and the fingerprint of the file list they belong to, as .npz without pickles."""
    content = io.BytesIO()
    np.savez_compressed(content, present=np.asarray(present, bool), fingerprint=np.array(fingerprint))
    place(path).write_bytes(content.getvalue())


def load(path: str, fingerprint: str, shape: tuple[int, int]) -> np.ndarray:
    """Reads masks that `save` wrote; DataError if unreadable, of another file list or not of `shape` (N, M)."""
    try:
        with np.load(io.BytesIO(place(path).read_bytes()), allow_pickle=False) as file:
            present, found = file["present"], str(file["fingerprint"])
    except (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise DataError(f"missing: cannot read masks from {path!r} ({error}); check missing.mask_file") from error
    if found != fingerprint:
        raise DataError(
            f"missing: the masks in {path} belong to another list of files ({found}, the data have {fingerprint}); "
            "set missing.mask_file='' to draw new ones"
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


def _check(has_file: np.ndarray, modalities: Sequence[str], missing: MissingConfig) -> None:
    if len(missing.eta) != len(modalities):
        raise ConfigError(
            f"config.missing.eta={missing.eta}: expected {len(modalities)} rates, one for each of {tuple(modalities)}"
        )
    for row in np.flatnonzero(~has_file.any(axis=1)):
        raise DataError(f"missing: row {row} has no file in any of {', '.join(modalities)}; remove it from the data")
    if missing.all_missing == "reject" and not (has_file & (np.asarray(missing.eta) < 1)).any(axis=1).all():
        raise ConfigError(
            f"config.missing.eta={missing.eta}: a row whose pictures all have rate 1 loses them in every draw; lower "
            "the rate, or set missing.all_missing='repair' or 'drop_sample'"
        )
