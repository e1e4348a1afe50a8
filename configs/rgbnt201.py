"""Miss-ReID on RGBNT201 (NeurIPS 2025, Tables 1-3): persons in RGB, near infrared and thermal infrared.

python -m jax_mmreid.main --config=configs/rgbnt201.py --config.data.data_dir=data/RGBNT201 --workdir=runs/rgbnt201
python -m jax_mmreid.main --config=configs/rgbnt201.py:row=A,eta=0.1/0.3/0.5 --config.data.data_dir=... --workdir=...

row: A-F of Table 1. eta: how often a training picture is missing, one rate or one each for RGB/NIR/TIR.
modalities: those to use at all, as in rgb/tir.
preset: table1 (widths that give the published complexity) or equations (512 throughout).
tower: vit_b16 as published, vit_b32 or vit_l14 (252x126); --config.init=DIR starts from CLIP's weights, see
docs/weights.md. epochs, text_epoch: the length of the run, and the epoch (from 1) at which the text terms begin.
pairs=1 also evaluates every setting of the query against every setting of the gallery (appendix A.4), rerank=1 the
settings with k-reciprocal re-ranking, robustness=1 queries with damaged pictures. All three may be set for --mode=eval
of a finished run; in training they would be evaluated after every epoch.
Hardware of the paper: not stated. One batch is 8 identities x 8 triples at 256x128.

Published, mAP / R-1, row F, complete training data: RNT 76.9, mean over the six missing settings 54.6 / 55.7;
row A 48.9 / 50.4; eta=0.1: row F 50.1 / 51.3, row A 46.4 / 47.0. Published numbers start from CLIP's weights.
Ours: not run (neither the dataset nor CLIP's weights come with this project).
"""

from jax_mmreid.config import parse_arg
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.miss_reid import MISS_REID_ARGS, miss_reid, miss_reid_published

# By (row, eta): mAP and R-1 in percent of RNT -R -N -T -RN -RT -NT Mean; where not all are printed, the mean only.
PUBLISHED = {
    ("A", (0, 0, 0)): ((48.9,), (50.4,)),
    ("B", (0, 0, 0)): ((51.1,), (51.4,)),
    ("C", (0, 0, 0)): ((50.2,), (52.1,)),
    ("D", (0, 0, 0)): ((53.3,), (54.1,)),
    ("E", (0, 0, 0)): ((52.1,), (53.4,)),
    ("F", (0, 0, 0)): ((76.9, 66.6, 72.4, 63.2, 47.2, 34.5, 43.9, 54.6), (55.7,)),
    ("A", (0.1, 0.1, 0.1)): (
        (67.4, 54.7, 62.9, 51.4, 37.6, 29.9, 41.7, 46.4),
        (70.0, 54.9, 66.0, 52.5, 37.6, 26.4, 44.5, 47.0),
    ),
    ("B", (0.1, 0.1, 0.1)): ((47.4,), (48.0,)),
    ("C", (0.1, 0.1, 0.1)): ((46.9,), (48.7,)),
    ("D", (0.1, 0.1, 0.1)): ((49.4,), (49.8,)),
    ("E", (0.1, 0.1, 0.1)): ((47.4,), (49.7,)),
    ("F", (0.1, 0.1, 0.1)): (
        (72.3, 61.3, 68.8, 55.3, 42.8, 30.9, 41.5, 50.1),
        (73.4, 61.7, 72.6, 55.7, 45.2, 29.7, 42.7, 51.3),
    ),
    ("F", (0.3, 0.3, 0.3)): ((48.4,), (50.6,)),
    ("F", (0.5, 0.5, 0.5)): ((47.3,), (47.9,)),
    ("F", (0.1, 0.3, 0.5)): ((48.1,), (50.1,)),
    ("F", (0.5, 0.3, 0.1)): ((47.7,), (47.8,)),
}
# By row, with eta 0.1: mAP and R-1 in percent (Figure 5), a line per setting of the query, a column per gallery.
PUBLISHED_PAIRS = {
    "A": (
        (
            (67.4, 54.9, 63.1, 50.7, 38.0, 29.1, 41.8),
            (50.3, 54.7, 32.3, 23.2, 37.9, 29.2, 4.1),
            (55.0, 30.9, 62.9, 32.4, 37.9, 4.1, 41.5),
            (47.1, 23.1, 36.5, 51.4, 3.9, 30.0, 42.2),
            (25.4, 30.8, 31.9, 4.0, 37.6, 4.0, 4.0),
            (17.5, 23.5, 4.2, 24.8, 3.7, 29.9, 4.0),
            (27.7, 5.0, 37.1, 33.0, 3.8, 4.2, 41.7),
        ),
        (
            (70.0, 55.6, 66.7, 51.6, 38.2, 26.8, 45.0),
            (49.2, 54.9, 33.6, 23.1, 37.4, 25.5, 1.6),
            (57.4, 29.4, 66.0, 30.7, 37.8, 2.8, 44.7),
            (47.7, 21.5, 40.8, 52.5, 2.4, 27.2, 45.5),
            (26.6, 29.8, 33.3, 1.6, 37.6, 0.7, 1.6),
            (12.8, 21.1, 3.6, 24.8, 2.4, 26.4, 1.6),
            (29.3, 3.6, 40.7, 31.3, 2.4, 2.4, 44.5),
        ),
    ),
    "F": (
        (
            (72.3, 61.7, 67.7, 54.2, 44.5, 32.7, 39.5),
            (59.5, 61.3, 41.4, 30.6, 43.7, 33.4, 8.0),
            (67.5, 42.1, 68.8, 39.5, 43.6, 8.6, 41.3),
            (54.0, 32.5, 40.5, 55.3, 7.0, 33.3, 41.5),
            (36.2, 38.6, 38.7, 6.2, 42.8, 6.5, 6.5),
            (28.6, 30.3, 7.5, 29.4, 5.8, 30.9, 10.2),
            (39.3, 7.3, 41.4, 40.7, 7.9, 12.2, 41.5),
        ),
        (
            (73.4, 62.2, 70.6, 54.3, 47.1, 31.6, 38.3),
            (59.7, 61.7, 42.0, 27.2, 45.0, 32.7, 4.4),
            (72.2, 39.2, 72.6, 38.4, 45.0, 7.1, 41.1),
            (54.8, 30.9, 39.6, 55.7, 4.5, 32.2, 41.7),
            (34.4, 36.8, 36.4, 4.8, 45.2, 4.3, 3.3),
            (25.8, 25.7, 4.4, 26.6, 3.5, 29.7, 6.6),
            (39.7, 5.0, 40.9, 40.9, 7.3, 10.6, 42.7),
        ),
    ),
}


def get_config(arg: str = ""):
    arg = parse_arg(arg, **MISS_REID_ARGS)
    config = miss_reid("rgbnt201", junk=protocols.find("rgbnt201").junk, **arg)
    config.data.data_dir = "data/RGBNT201"
    config.published = miss_reid_published(PUBLISHED, PUBLISHED_PAIRS, **arg)
    return config
