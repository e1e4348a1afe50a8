"""Records: the pictures of a split with their identities, cameras and captions, as a table of columns.

Every dataset module returns these.
"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jax_mmreid.errors import DataError

REPHRASED = "_rephrased"  # how the names of columns of rephrased captions end


class Counts(NamedTuple):
    """The size of a split, as published or as it is to be drawn; 0 and () for what is not known."""

    identities: int
    cameras: tuple[int, ...]  # ascending
    rows: int


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
    # modality -> [N] int32, which picture of a file that holds several: a third of a strip, a row of an .npy array
    parts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    # "rgb", "nir", ..: captions of the row's picture of that modality; "rgb_rephrased", ..: the same, rephrased
    captions: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # -> [N] str, "" without a caption
    # Where pictures are not files: packed[rows[i]] is {modality: the bytes of a picture file} of row i
    packed: Sequence[dict[str, bytes]] | None = None
    rows: np.ndarray | None = None  # [N] int64

    def __post_init__(self):
        columns = (*self.paths.values(), *self.parts.values(), *self.captions.values())
        lengths = {len(x) for x in (*columns, self.pid, self.camid, self.view)}
        if len(lengths) != 1:
            raise ValueError(f"records: the columns have different lengths: {sorted(lengths)}")
        for row in np.flatnonzero(~self.has_file().any(axis=1)) if self.packed is None else ():
            raise DataError(
                f"records: row {row} (identity {self.pid[row]}, camera {self.camid[row]}) has no picture in any "
                f"of {', '.join(self.paths)}; remove it from the data"
            )

    def __len__(self) -> int:
        return len(self.pid)

    def has_file(self) -> np.ndarray:
        """Which pictures exist, [N,M] bool with the modalities in the order of `paths`."""
        return np.stack([column != "" for column in self.paths.values()], axis=1)

    def take(self, rows: np.ndarray) -> "Records":
        """The given rows, in the given order."""
        return dataclasses.replace(
            self,
            paths={name: column[rows] for name, column in self.paths.items()},
            parts={name: column[rows] for name, column in self.parts.items()},
            captions={name: column[rows] for name, column in self.captions.items()},
            pid=self.pid[rows],
            camid=self.camid[rows],
            view=self.view[rows],
            rows=None if self.rows is None else self.rows[rows],
        )

    def path(self, modality: str, row: int) -> str:
        """The path of the file of one picture."""
        return os.path.join(self.root, str(self.paths[modality][row]))

    def part(self, modality: str, row: int) -> int | None:
        """Which picture of its file a picture is; None for a file of one picture, as all packed ones are."""
        whole = self.packed is not None or modality not in self.parts
        return None if whole else int(self.parts[modality][row])

    def fingerprint(self, *, captions: bool = True) -> str:
        """16 hexadecimal digits that change with relative paths, identities and cameras, and with captions if asked.

        The root does not count.
        """
        digest = hashlib.sha256()
        for name, column in (*self.paths.items(), *(self.captions.items() if captions else ())):
            digest.update("\n".join([f"[{name}]", *column.tolist(), ""]).encode())
        for column in (*self.parts.values(), self.pid, self.camid):
            digest.update(np.asarray(column, "<i8").tobytes())
        return digest.hexdigest()[:16]


def single_identities(records: Records) -> list[int]:
    """The identities with one row only, ascending."""
    counts = collections.Counter(records.pid.tolist())
    return sorted(pid for pid, count in counts.items() if count == 1)
