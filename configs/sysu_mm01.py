"""TVI-LFM on SYSU-MM01 (NeurIPS 2024, Tri-SYSU-MM01): near-infrared queries, visible gallery.

python -m jax_mmreid.main --config=configs/sysu_mm01.py:stage=base --config.init=weights/resnet50,weights/clip_rn50 --config.data.data_dir=... --workdir=runs/sysu_base
python -m jax_mmreid.main --config=configs/sysu_mm01.py:stage=lfm --config.init=runs/sysu_base --config.data.data_dir=... --workdir=runs/sysu_lfm

stage: base (images alone) or lfm (from the workdir of a base run: the text tower and the fusion).
row: B, B+SFF, B+SFF+MJL, +LLM, +MER or full, the rows of the ablation. +MER is the training of B+SFF+MJL, and full that
of +LLM, evaluated as ensembles.
shots: 1 or 10 pictures of every person and camera in the gallery. epochs: the length of the run.
--config.data.options.source=npy trains on the field's arrays. Hardware of the paper: not stated.

Published, R-1 / mAP / mINP, all search: base 69.89 / 66.74 / 53.34, full 84.90 / 81.47 / 70.85; indoor search: base
76.91 / 80.64 / 76.70, full 89.06 / 90.78 / 88.39. Ours: not run (the dataset needs a signed agreement).
"""  # noqa: E501

from jax_mmreid.config import parse_arg
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.tvi_lfm import tvi_lfm, tvi_lfm_published

# By stage: R-1, mAP and mINP in percent, with one shot.
PUBLISHED = {
    "base": {"all/ir": (69.89, 66.74, 53.34), "indoor/ir": (76.91, 80.64, 76.70)},
    "lfm": {"all/mer": (84.90, 81.47, 70.85), "indoor/mer": (89.06, 90.78, 88.39)},
}


def get_config(arg: str = ""):
    arg = parse_arg(arg, stage="lfm", row="full", shots=1, epochs=120).to_dict()
    shots = arg.pop("shots")
    gallery = dict(split="gallery", use=("rgb",))
    searches = {name: protocols.row("sysu_mm01", gallery, search=name, shots=shots) for name in ("all", "indoor")}
    config = tvi_lfm("sysu_mm01", searches, eval_from=80 if arg["stage"] == "base" else 0, **arg)
    config.data.data_dir = "data/SYSU-MM01"
    config.data.options.source = "folders"
    if shots == 1:
        config.published = tvi_lfm_published(PUBLISHED, **arg)
    return config
