"""What learned features must be better than: the same rows of `config.evals` without learning."""

from collections.abc import Mapping

from jax_mmreid.ops.descriptors import DESCRIPTORS


def baselines(rows: Mapping[str, dict]) -> dict[str, dict]:
    """Rows DESCRIPTOR/NAME of kind "pixels", in groups named after the descriptors.

    `rows` are retrieval rows whose sides name modalities, and means and pairs of them. Their options, which are those
    of a trained method, are left out.
    """
    found = {}
    for feature in DESCRIPTORS:
        for name, row in rows.items():
            of = {key: tuple(f"{feature}/{part}" for part in row[key]) for key in ("mean_of", "pairs_of") if key in row}
            own = of or dict(kind="pixels", options=dict(feature=feature))
            labels = {} if "pairs_of" in row else dict(group=feature, setting=row.get("setting", name))
            found[f"{feature}/{name}"] = row | labels | own
    return found
