"""Miss-ReID on RGBNT201 (NeurIPS 2025, Tables 1-3): persons in RGB, near infrared and thermal infrared.

python -m jax_mmreid.main --config=configs/rgbnt201.py --config.data.data_dir=data/RGBNT201 --workdir=runs/rgbnt201
python -m jax_mmreid.main --config=configs/rgbnt201.py:row=A,eta=0.1/0.3/0.5 --config.data.data_dir=... --workdir=...

row: A-F of Table 1. eta: how often a training picture is missing, one rate or one each for RGB/NIR/TIR.
modalities: those to use at all, rgb/tir say.
preset: table1 (widths that give the published complexity) or equations (512 throughout).
tower: vit_b16 as published, vit_b32 or vit_l14 (252x126); --config.init=DIR starts from CLIP's weights, see README.
epochs, text_epoch: the length of the run, and the epoch (from 1) at which the text terms begin.
Hardware of the paper: not stated. One batch is 8 identities x 8 triples at 256x128.

Published, mAP / R-1, row F, complete training data: RNT 76.9, mean over the six missing settings 54.6 / 55.7;
row A 48.9 / 50.4; eta=0.1: row F 50.1 / 51.3, row A 46.4 / 47.0. Published numbers start from CLIP's weights.
Ours: not run (the dataset and CLIP's weights are for the user to bring).
"""

from jax_mmreid.config import parse_arg
from jax_mmreid.recipes.miss_reid import miss_reid


def get_config(arg: str = ""):
    arg = parse_arg(
        arg, row="F", eta="0", modalities="rgb/nir/tir", preset="table1", tower="vit_b16", epochs=50, text_epoch=21
    )
    config = miss_reid("rgbnt201", **arg)
    config.data.data_dir = "data/RGBNT201"
    return config
