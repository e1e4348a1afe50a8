"""What damaged pictures cost: rows of `config.evals` for every damage to every modality, and their means."""

import itertools
from collections.abc import Mapping, Sequence

from jax_mmreid.ops.damage import KINDS

SWAPPED = "swapped"  # the kind that damages two modalities


def robustness(row: Mapping, modalities: Sequence[str]) -> dict[str, dict]:
    """Rows robustness/MODALITY/DAMAGE and robustness/swapped/A+B of kind "robustness", with the mean of each group.

    `row` is the retrieval row whose queries are damaged; its sides use the modalities. Two are swapped where there is a
    third. "robustness/mean" is the mean of all. A single modality has none of these rows.
    """
    if len(modalities) < 2:
        return {}
    groups = {m: {kind: (kind, (m,)) for kind in KINDS if kind != SWAPPED} for m in modalities}
    if len(modalities) > 2:
        groups[SWAPPED] = {"+".join(two): (SWAPPED, two) for two in itertools.combinations(modalities, 2)}
    found = {}
    for group, settings in groups.items():
        prefix = f"robustness/{group}"
        for setting, (kind, damaged) in settings.items():
            own = dict(kind="robustness", group=group, setting=setting, damage=kind, damaged=damaged)
            found[f"{prefix}/{setting}"] = {**row, **own}
        names = tuple(f"{prefix}/{setting}" for setting in settings)
        found[f"{prefix}/mean"] = dict(group=group, setting="mean", mean_of=names)
    names = tuple(name for name, x in found.items() if "mean_of" not in x)
    return found | {"robustness/mean": dict(setting="mean of all", mean_of=names)}
