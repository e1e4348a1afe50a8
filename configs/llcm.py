"""TVI-LFM on LLCM (NeurIPS 2024, Tri-LLCM): near-infrared queries, visible gallery, low light, nine cameras.

python -m jax_mmreid.main --config=configs/llcm.py:stage=base --config.init=weights/resnet50,weights/clip_rn50 --config.data.data_dir=... --workdir=runs/llcm_base
python -m jax_mmreid.main --config=configs/llcm.py:stage=lfm --config.init=runs/llcm_base --config.data.data_dir=... --workdir=runs/llcm_lfm

stage, row, epochs: as in sysu_mm01.py. protocol: llcm leaves out gallery images of the query's own person and camera,
the rule of the dataset, for every kind of query; official leaves them out for text and fusion only, as the published
code does, so its infrared rows are a little easier. Hardware of the paper: not stated.

Published, R-1 / mAP / mINP: base 53.53 / 59.77 / 56.40, full 58.19 / 65.08 / 61.83. Ours: not run (the dataset needs a
signed agreement).
"""  # noqa: E501

from jax_mmreid.config import check_choices, parse_arg
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.tvi_lfm import tvi_lfm, tvi_lfm_published

# By stage: R-1, mAP and mINP in percent; the infrared row with the protocol of the published code.
PUBLISHED = {"base": {"all/ir": (53.53, 59.77, 56.40)}, "lfm": {"all/mer": (58.19, 65.08, 61.83)}}


def get_config(arg: str = ""):
    arg = parse_arg(arg, stage="lfm", row="full", protocol="llcm", epochs=120).to_dict()
    protocol = arg.pop("protocol")
    check_choices(("protocol", protocol, ("llcm", "official")))
    shared = protocols.row("llcm", dict(split="gallery", use=("rgb",)))
    config = tvi_lfm("llcm", {"all": shared}, eval_from=80 if arg["stage"] == "base" else 0, **arg)
    if protocol == "official":
        for name in {"all/ir", "all/ir_base"} & set(config.evals):
            config.evals[name].junk = "none"
    config.data.data_dir = "data/LLCM"
    if arg["stage"] == "lfm" or protocol == "official":
        config.published = tvi_lfm_published(PUBLISHED, **arg)
    return config
