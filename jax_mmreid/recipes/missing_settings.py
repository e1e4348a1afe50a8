"""The settings of missing modalities: their names, their order, their labels, and their rows of `config.evals`.

A setting is a choice of the modalities that a side of the evaluation may use. "full" uses all, "no_r" all but RGB,
"no_rn" neither RGB nor NIR, and so on in the order of Table 2 of Miss-ReID (NeurIPS 2025); "mean_missing" is the mean
of all settings but "full".
"""

import itertools
from collections.abc import Sequence

from jax_mmreid.batch import MODALITIES

FULL, MEAN = "full", "mean_missing"


def settings(modalities: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """{setting: the modalities that it uses} in the order of the published tables, without the mean."""
    uses = {FULL: tuple(modalities)}
    for count in range(1, len(modalities)):
        for missing in itertools.combinations(modalities, count):
            name = "no_" + "".join(MODALITIES[m].letter for m in missing)
            uses[name] = tuple(m for m in modalities if m not in missing)
    return uses


def labels(modalities: Sequence[str]) -> dict[str, str]:
    """{setting: how the published tables write it}, with the mean: RNT -R -N -T -RN -RT -NT Mean."""
    found = {}
    for name, used in settings(modalities).items():
        missing = [m for m in modalities if m not in used]
        found[name] = "-" * bool(missing) + "".join(MODALITIES[m].letter for m in missing or modalities).upper()
    return found | {MEAN: "Mean"}


def missing_evals(
    modalities: Sequence[str],
    splits: str,
    junk: str,
    group: str = "",
    *,
    options: dict | None = None,
    incomplete: str = "error",
    pairs: bool = False,
    **fields,
) -> dict[str, dict]:
    """Rows for `config.evals`: every setting, on both sides alike, and their mean.

    Rows are named GROUP/SETTING, or SETTING in the group "", and have both as fields. `splits` is one split for both
    sides, or "query/gallery"; `options` are fields of the method that these rows change; `incomplete` decides what
    happens to test rows without any picture that a row uses; `pairs` adds a row "pairs", every setting of the query
    against every setting of the gallery (appendix A.4 of the paper); `fields` are further fields of these rows, as
    `rerank`. A single modality has the setting "full" and no others.
    """
    query, _, gallery = splits.partition("/")
    prefix, rows = f"{group}/" if group else "", {}
    for setting, use in settings(modalities).items():
        rows[prefix + setting] = dict(
            group=group,
            setting=setting,
            query=dict(split=query, use=use),
            gallery=dict(split=gallery or query, use=use),
            junk=junk,
            options=options or {},
            incomplete=incomplete,
            **fields,
        )
    names = tuple(rows)
    if len(names) > 1:
        rows[prefix + MEAN] = dict(group=group, setting=MEAN, mean_of=names[1:])
        rows |= {prefix + "pairs": dict(pairs_of=names)} if pairs else {}
    return rows
