"""Records: what a dataset says about its pictures, as a table of columns. Every dataset module returns these."""

import collections
import dataclasses
import hashlib
import os

import numpy as np

from jax_mmreid.batch import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
    """One split of a dataset: N rows in the order of their file names, N >= 1.

    Raises ValueError when the columns differ in length, DataError when a row has no file at all.
    """

    root: str
    paths: dict[str, np.ndarray]  # modality -> [N] str, relative to root with "/"; "" where there is no file
    pid: np.ndarray  # [N] int32
    camid: np.ndarray  # [N] int32
    view: np.ndarray  # [N] int32, zeros where the dataset has no views

    def __post_init__(self):
        lengths = {len(x) for x in (*self.paths.values(), self.pid, self.camid, self.view)}
        if len(lengths) != 1:
            raise ValueError(f"records: the columns have different lengths: {sorted(lengths)}")
        for row in np.flatnonzero(~self.has_file().any(axis=1)):
            raise DataError(
                f"records: row {row} (identity {self.pid[row]}, camera {self.camid[row]}) has no picture in any "
                f"of {', '.join(self.paths)}; remove it from the data"
            )

    def __len__(self) -> int:
        return len(self.pid)

    def has_file(self) -> np.ndarray:
        """Which files exist, [N,M] bool with the modalities in the order of `paths`."""
        return np.stack([column != "" for column in self.paths.values()], axis=1)

    def take(self, rows: np.ndarray) -> "Records":
        """The given rows, in the given order."""
        return dataclasses.replace(
            self,
            paths={name: column[rows] for name, column in self.paths.items()},
            pid=self.pid[rows],
            camid=self.camid[rows],
            view=self.view[rows],
        )

    def path(self, modality: str, row: int) -> str:
        """Where the file of one picture lies."""
        return os.path.join(self.root, str(self.paths[modality][row]))

    def fingerprint(self) -> str:
        """16 hexadecimal digits that change with relative paths, identities or cameras, and not with the root."""
        digest = hashlib.sha256()
        for name, column in self.paths.items():
            digest.update("\n".join([f"[{name}]", *column.tolist(), ""]).encode())
        for column in (self.pid, self.camid):
            digest.update(np.asarray(column, "<i8").tobytes())
        return digest.hexdigest()[:16]


def single_identities(records: Records) -> list[int]:
    """The identities with one row only, ascending."""
    counts = collections.Counter(records.pid.tolist())
    return sorted(pid for pid, count in counts.items() if count == 1)
