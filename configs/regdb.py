"""TVI-LFM on RegDB (NeurIPS 2024, Tri-RegDB): thermal queries, visible gallery, ten trials of 206 identities each.

python -m jax_mmreid.main --config=configs/regdb.py:stage=base,trial=3 --config.init=weights/resnet50,weights/clip_rn50 --config.data.data_dir=... --workdir=runs/regdb3_base
python -m jax_mmreid.main --config=configs/regdb.py:stage=lfm,trial=3 --config.init=runs/regdb3_base --config.data.data_dir=... --workdir=runs/regdb3_lfm
python launch/tvi_lfm.py --config=configs/regdb.py --trials=1-10 --init=weights/resnet50,weights/clip_rn50 --config.data.data_dir=... --workdir=runs/regdb

The last line trains both stages of all ten trials and averages them. stage, row, epochs: as in sysu_mm01.py. trial: 1
to 10; each has its own identities, so a model is evaluated on the trial it was trained on, except with --force.
As in the published script, the learning rate is 1e-5 for the blocks of the text tower, without decay of their biases,
and 2e-3 for everything else (the classifier twice that). Rows v2t have visible queries, a thermal gallery and no text.
Hardware of the paper: not stated.

Published, R-1 / mAP / mINP, thermal to visible, mean of ten trials: base 89.51 / 83.51 / 69.65, full 91.38 / 85.92 /
72.73. Ours: not run (the dataset needs a signed agreement).
"""  # noqa: E501

from jax_mmreid.config import parse_arg
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.tvi_lfm import tvi_lfm, tvi_lfm_published

# By stage: R-1, mAP and mINP in percent, mean of ten trials.
PUBLISHED = {"base": {"t2v/ir": (89.51, 83.51, 69.65)}, "lfm": {"t2v/mer": (91.38, 85.92, 72.73)}}


def get_config(arg: str = ""):
    arg = parse_arg(arg, stage="lfm", row="full", trial=1, epochs=120).to_dict()
    trial = arg.pop("trial")
    thermal, visible = dict(split="query", use=("ir",)), dict(split="gallery", use=("rgb",))
    rates = dict(lr_visual=2e-3, lr_text=1e-5, text_bias_decay=0.0)
    config = tvi_lfm("regdb", {"t2v": protocols.row("regdb", visible)}, eval_from=80, **rates, **arg)
    labels = dict(group="v2t", setting="ir")
    config.evals["v2t/ir"] = labels | dict(query=visible, **protocols.row("regdb", thermal))
    config.data.data_dir = "data/RegDB"
    config.data.options.trial = trial
    config.published = tvi_lfm_published(PUBLISHED, **arg)
    return config
