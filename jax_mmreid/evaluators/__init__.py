"""Kinds of evaluation. A kind is a module of this package with one class, a subclass of `Evaluator`.

The field `kind` of a row of `config.evals` names the module; `runner` finds it, checks the rows and runs them, and
`encoder` gives them what the towers make of a split.
"""

import dataclasses
import functools
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import jax

from jax_mmreid.batch import Data
from jax_mmreid.errors import ConfigError, DataError
from jax_mmreid.methods import Features, Method

if TYPE_CHECKING:
    from jax_mmreid.evaluators.encoder import Encoder

Use = tuple[str, ...]  # modalities whose pictures are read; "text/rgb" for captions of RGB pictures, "text" for all
Result = dict  # metrics as floats, fractions in [0, 1] but for those in NOT_FRACTIONS; and what they were measured on

TEXT = "text"  # in `Use`, and in `Data.present`
LABELS = ("group", "setting")  # of any row: the table that prints it, and its label there


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One row of `config.evals`. Errors do not name the row; `runner` puts its name in front of them."""

    row: dict

    COLUMNS: ClassVar[dict[str, str]] = {}  # {heading: metric} of tables, which print fractions in percent
    NOT_FRACTIONS: ClassVar[tuple[str, ...]] = ()  # metrics in COLUMNS that are no fractions, and better if lower
    LEARNED: ClassVar[bool] = True  # whether the result depends on the weights; if not, `method` makes the vectors

    def check(self, data: Data) -> None:
        """Raises ConfigError if the row names what does not exist, DataError for data that it cannot be measured on."""
        raise NotImplementedError

    def uses(self) -> list[tuple[str, Use]]:
        """[(split, what the row reads of it)]; nothing else is decoded and encoded."""
        raise NotImplementedError

    def method(self, data: Data) -> Method:
        """The method, without variables, whose vectors are compared if the kind is not LEARNED; of pixels in [0, 1]."""
        raise NotImplementedError

    def check_method(self, method: Method, variables: Any, features: Mapping[str, Features]) -> None:
        """Raises ConfigError if the method has no vector that the row needs, as far as shapes tell; no tower runs.

        `variables` and `features`, those of `encode` by split, may be shapes.
        """
        method = method.with_options(self.row.get("options", {}), "options")
        for split, use in self.uses():
            method.imputer(use)  # raises for a `use` that the method does not know
            jax.eval_shape(functools.partial(method.embed, use=use), variables, features[split])

    def run(self, encoder: "Encoder") -> Result:
        """The metrics, and "protocol" and "feature" in words; "note" for what a table has no room for.

        A note continues a sentence that begins with the row's label. Raises ConfigError for a row that the method
        cannot do, DataError for data that it cannot be measured on.
        """
        raise NotImplementedError

    def check_keys(self, required: Collection[str], optional: Collection[str] = ()) -> None:
        """Raises ConfigError for a field of the row that does not exist, and for one that is required and absent."""
        check_keys("the row", self.row, required, ("kind", *LABELS, *optional))


def check_keys(what: str, given: Collection[str], required: Collection[str], optional: Collection[str] = ()) -> None:
    """Raises ConfigError for a key that does not exist, and for one that is required and absent."""
    known = (*required, *optional)
    for key in given:
        if key not in known:
            raise ConfigError(f"{what} has a key {key!r}; there are {', '.join(known)}")
    for key in required:
        if key not in given:
            raise ConfigError(f"{what} lacks the key {key!r}")


def check_use(split: str, use: Iterable[str], data: Data) -> None:
    """Raises ConfigError unless the split exists, and the modalities in `use` and the captions that it asks for."""
    present, modalities = data.present(split), tuple(data.spec.modalities)
    described = [key.removeprefix(f"{TEXT}/") for key in present if key.startswith(f"{TEXT}/")]
    for name in use:
        kind, _, modality = name.partition("/")
        if name not in modalities and kind != TEXT:
            raise ConfigError(
                f"use names {name!r}; there are the modalities {', '.join(modalities)}, captions of one ('text/rgb') "
                "and all captions ('text')"
            )
        if kind == TEXT and name not in present:
            lack = f"captions of {modality}" if described else "captions"
            have = f"it has captions of {', '.join(described)}; " if described else ""
            raise ConfigError(
                f"{lack} are used, and split {split!r} has none; {have}set data.text.tokenizer, and "
                f"data.options.captioner or data.options.query_captions, or take {name!r} out of this row"
            )


def check_pictures(split: str, modality: str, data: Data) -> None:
    """Raises DataError if the split has no picture of a modality that `check_use` has found to exist."""
    if not data.present(split)[modality].any():
        raise DataError(f"split {split!r} has no picture of {modality}; name another modality or split")
