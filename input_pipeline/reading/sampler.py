"""Identity batches of P x K rows (Hermans et al., 2017), each a pure function of (seed, step)."""

import bisect
import functools
import logging
import threading
from collections.abc import Mapping, Sequence

import numpy as np

from jax_mmreid.errors import DataError


class IdentitySampler:
    """An endless stream of batches with `identities` (P) different labels and `instances` (K) rows of each.

    The stream consists of passes. In a pass the rows of every label are shuffled, drawn with replacement when there
    are fewer than K, and cut into groups of K (the remainder is left out); then P labels that still have a group are
    drawn again and again, until fewer than P are left. Pass p draws from Philox(key=[seed, p]) and nothing else.
    """

    def __init__(self, labels: np.ndarray, *, identities: int, instances: int, seed: int):
        """`labels` [N] are classes of rows; raises DataError when there are fewer than `identities` different ones."""
        labels = np.asarray(labels)
        self._rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        if len(self._rows) < identities:
            raise DataError(
                f"sampler: the training data have {len(self._rows)} identities, fewer than the {identities} of a "
                f"batch; lower data.identities"
            )
        self._identities, self._instances, self._seed = identities, instances, seed
        self._starts = [0]  # first step of every pass drawn so far; passes differ a little in length
        self._lock = threading.Lock()
        # Reading threads work on two passes at most, and drawing a pass again takes milliseconds.
        self._pass = functools.lru_cache(maxsize=4)(self._draw_pass)

    @property
    def steps_per_epoch(self) -> int:
        """The length of pass 0: the nominal epoch on which schedules are built."""
        return len(self._pass(0))

    def rows(self, step: int) -> np.ndarray:
        """The rows of batch `step`, [P*K] int64, the K rows of a label adjacent; ValueError for a negative step."""
        if step < 0:
            raise ValueError(f"sampler: step {step} is negative")
        with self._lock:
            while self._starts[-1] <= step:
                self._starts.append(self._starts[-1] + len(self._draw_labels(len(self._starts) - 1)[0]))
            number = bisect.bisect_right(self._starts, step) - 1
        return self._pass(number)[step - self._starts[number]]

    def _draw_labels(self, number: int) -> tuple[list[np.ndarray], np.random.Generator]:
        """The P labels of every batch of a pass, and the generator that goes on to draw their rows."""
        rng = np.random.Generator(np.random.Philox(key=[self._seed, number]))
        groups = np.array([max(len(rows) // self._instances, 1) for rows in self._rows])
        batches = []
        while len(left := np.flatnonzero(groups)) >= self._identities:
            batches.append(rng.choice(left, self._identities, replace=False))
            groups[batches[-1]] -= 1
        return batches, rng

    def _draw_pass(self, number: int) -> np.ndarray:
        """All batches of a pass, [steps, P*K]."""
        batches, rng = self._draw_labels(number)
        K = self._instances
        shuffled = [
            rng.permutation(rows) if len(rows) >= K else rng.choice(rows, K, replace=True) for rows in self._rows
        ]
        used = np.zeros(len(shuffled), np.int64)
        out = np.empty((len(batches), self._identities, K), np.int64)
        for step, labels in enumerate(batches):
            for slot, label in enumerate(labels):
                out[step, slot] = shuffled[label][used[label] : used[label] + K]
            used[labels] += K
        out.flags.writeable = False  # cached and handed out
        return out.reshape(len(batches), -1)


class PairSampler:
    """An endless stream of batches that pair pictures of one identity, one of each modality (TVI-LFM, NeurIPS 2024).

    A batch has `identities` (P) different ones and `instances` (K) rows of each; a pass has N // (P*K) + 1 batches,
    where N counts the pictures of the largest modality. Pass p draws from Philox(key=[seed, p]) and nothing else.
    """

    def __init__(
        self, pids: np.ndarray, present: Mapping[str, np.ndarray], *, identities: int, instances: int, seed: int
    ):
        """`pids` [N] of the training rows and, {modality: [N] bool}, which of them have which picture.

        Identities that lack a modality are not drawn, with a warning; raises DataError when fewer than P remain.
        """
        rows = {pid: [np.flatnonzero((pids == pid) & own) for own in present.values()] for pid in np.unique(pids)}
        self._rows = [own for own in rows.values() if all(map(len, own))]
        lacking = [int(pid) for pid, own in rows.items() if not all(map(len, own))]
        if len(self._rows) < identities:
            raise DataError(
                f"sampler: {len(self._rows)} training identities have pictures of each of {', '.join(present)}, fewer "
                f"than the {identities} of a batch; lower data.identities, or set data.pairs=False"
            )
        if lacking:
            shown = ", ".join(map(str, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            message = "sampler: identities without a picture of each of %s are not drawn: %s (%d in all)"
            logging.getLogger(__name__).warning(message, ", ".join(present), shown, len(lacking))
        self._sizes, self._seed = dict(identities=identities, instances=instances), seed
        self.steps_per_epoch = int(max(map(np.count_nonzero, present.values()))) // (identities * instances) + 1
        self._pass = functools.lru_cache(maxsize=4)(self._draw_pass)  # as IdentitySampler

    def rows(self, step: int) -> np.ndarray:
        """The rows of batch `step` by modality, [P*K,M] int64; ValueError for a negative step."""
        if step < 0:
            raise ValueError(f"sampler: step {step} is negative")
        number, batch = divmod(step, self.steps_per_epoch)
        return self._pass(number)[batch]

    def _draw_pass(self, number: int) -> np.ndarray:
        rng = np.random.Generator(np.random.Philox(key=[self._seed, number]))
        out = draw_pairs(rng, self._rows, steps=self.steps_per_epoch, **self._sizes)
        out.flags.writeable = False  # cached and handed out
        return out


def draw_pairs(
    rng: np.random.Generator | np.random.RandomState,
    rows: Sequence[Sequence[np.ndarray]],
    *,
    identities: int,
    instances: int,
    steps: int,
) -> np.ndarray:
    """All batches of a pass, [steps,P*K,M]; rows[i][m] are the rows of identity i with a picture of modality m.

    A batch draws P identities without replacement, then for each of them and each modality K rows with replacement.
    With NumPy's legacy generator these are the draws of the published code.
    """
    out = np.empty((steps, identities, instances, len(rows[0])), np.int64)
    for batch in out:
        for slot, identity in enumerate(rng.choice(len(rows), identities, replace=False)):
            for column, own in enumerate(rows[identity]):
                batch[slot, :, column] = rng.choice(own, instances)
    return out.reshape(steps, identities * instances, -1)
