"""Folders of finished runs, written without training, for tests of their comparison."""

import json

from conftest import tiny_config
from labelled import results

from jax_mmreid.config import to_json

NAMES = ("full", "no_r", "no_n", "no_t", "no_rn", "no_rt", "no_nt", "mean_missing")


def make(folder, evals, written=None, **changes):
    """A finished run, its config that of `tiny_config` changed in dotted fields (a trial and `published` freely).

    `written` are fields of results.json that differ from those of a finished run.
    """
    trial, published = (changes.pop(name, None) for name in ("trial", "published"))
    config = to_json(tiny_config("data", **changes))
    config["data"]["options"] |= {"trial": trial} if trial else {}
    config["published"] = published or {}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    whole = results(evals, config["data"]["modalities"]) | (written or {})
    (folder / "results.json").write_text(json.dumps(whole))
    return folder


def row(mAP, rank1=None, **others):  # noqa: N803
    """A row's results, of which words and counts are no metric."""
    return {"mAP": mAP, "rank1": mAP if rank1 is None else rank1, "trials": 10, "protocol": "p", **others}


def write_sweep(folder):
    """Rows A and F, the latter scored in two ways, over seeds 1 to 3 and seed 1."""
    for seed, shift in ((1, 0.0), (2, 0.01), (3, -0.03)):
        evals = {name: row(0.5 + shift + i / 100, 0.25) for i, name in enumerate(NAMES)}
        make(folder / "row=A,eta=0" / f"seed{seed}", evals, row="A", seed=seed)
    evals = {name: row(0.75) for name in NAMES} | {f"zero/{name}": row(0.5) for name in NAMES if name != "no_t"}
    published = {"full": {"mAP": 0.769}, "mean_missing": {"mAP": 0.7501, "rank1": 0.557}}
    make(folder / "row=F,eta=0" / "seed1", evals, seed=1, published=published)
    return folder
