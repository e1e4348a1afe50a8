"""Pictures to their captions and back: R@1, R@5, R@10 and the median rank, as CLIP's successors report them.

    row = dict(
        kind="image_text",
        split="test",
        modality="rgb",             # whose pictures, and the captions that describe them
        direction="image_to_text",  # or "text_to_image"
    )

Pairs are the rows of the split that have the picture and a caption of it. Captions with equal token ids are one: a
picture searches the distinct captions for its own, a caption searches the pictures for any that it describes, of which
the best ranked counts. The higher dot product ranks first, and of equal ones the candidate that comes first in the
split.
"""

import numpy as np

from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.evaluators import TEXT, Evaluator, Result, Use, check_pictures, check_use
from jax_mmreid.evaluators.encoder import Encoder, check_vectors
from jax_mmreid.metrics import device_ranking, ranking

DIRECTIONS = ("image_to_text", "text_to_image")
RANKS = (1, 5, 10)


class ImageText(Evaluator):
    """See the module. The result has "rank1", "rank5", "rank10", "median_rank" and "chance", and three counts.

    A median rank counts from 1. "chance" is the rank1 of a random order, 1 / captions in both directions: a caption
    has P/C of P pictures on average. Counted are "pictures", the distinct "captions" and "left_out", the pictures
    without a caption.
    """

    COLUMNS = {"R@1": "rank1", "R@5": "rank5", "R@10": "rank10", "median rank": "median_rank", "chance": "chance"}
    NOT_FRACTIONS = ("median_rank",)

    def check(self, data: Data) -> None:
        self.check_keys(("split", "modality", "direction"))
        if self.row["direction"] not in DIRECTIONS:
            raise ConfigError(f"direction={self.row['direction']!r}, expected one of {', '.join(DIRECTIONS)}")
        check_use(self.row["split"], self._use, data)
        check_pictures(self.row["split"], self.row["modality"], data)

    def uses(self) -> list[tuple[str, Use]]:
        return [(self.row["split"], self._use)]

    def run(self, encoder: Encoder) -> Result:
        split, direction = self.row["split"], self.row["direction"]
        shown, described = (encoder.data.present(split)[name] for name in self._use)
        rows = np.flatnonzero(shown & described)
        if not len(rows):
            raise DataError(f"no picture of {self.row['modality']} in split {split!r} has a caption")
        first, caption = _distinct(encoder.captions(split, self.row["modality"])[rows])
        sides, chosen = [], (rows, rows[first])
        for name, mine in zip(self._use, chosen):
            found = encoder.vectors(split, (name,), {})
            check_vectors(found, mine, split, (name,))
            sides.append(found[mine])
        keys, names = [caption, np.arange(len(first))], [self.row["modality"], TEXT]
        if direction == "text_to_image":
            sides, keys, names = sides[::-1], keys[::-1], names[::-1]
        relevance = ranking.relevance("none", *({"pid": key} for key in keys))
        ranks = device_ranking.ranks(*sides, relevance, encoder.mesh).first
        left_out = int(np.sum(shown & ~described))
        note = {"note": f"leaves out {left_out} pictures, which have no caption."} if left_out else {}
        return {
            **{f"rank{r}": float(np.mean(ranks <= r)) for r in RANKS},
            "median_rank": float(np.median(ranks)),
            "chance": 1 / len(first),
            "pictures": len(rows),
            "captions": len(first),
            "left_out": left_out,
            "protocol": f"split {split}, {direction.replace('_', ' ')}",
            "feature": ">".join(names),
            **note,
        }

    @property
    def _use(self) -> Use:
        return self.row["modality"], f"{TEXT}/{self.row['modality']}"


def _distinct(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of captions ids [n,L]: the rows [C] that equal none before them, and which of those each row equals, [n]."""
    _, first, which = np.unique(ids, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[which.reshape(-1)]
