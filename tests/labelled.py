"""Results as evaluate.py writes them, for tests of tables: a short name stands for the fields that it spells."""

from jax_mmreid.evaluators import runner

KINDS = {kind: dict(kind=kind) for kind in ("retrieval", "image_text", "zero_shot")}


def labelled(evals):
    """Results with their fields: a metric decides the kind, GROUP/SETTING and GROUP/QUERY>GALLERY the others."""
    found = {}
    for name, row in evals.items():
        kind = "retrieval" if "mAP" in row else "zero_shot" if "accuracy" in row else "image_text"
        group, _, last = name.rpartition("/")
        fields = {"kind": kind, "group": group, "setting": last}
        if ">" in last:
            fields = {"kind": kind, "group": group, "pair": last.split(">")} if group else {"kind": kind}
        found[name] = fields | {"protocol": "p", "feature": "f"} | row
    return found


def results(evals, modalities=("rgb", "nir", "tir"), **more):
    """The contents of results.json of a finished run."""
    whole = {"step": 9, "steps": 9, "which": "last", "config_hash": "0123456789ab", "modalities": list(modalities)}
    return whole | runner.columns(KINDS) | {"evals": labelled(evals)} | more
