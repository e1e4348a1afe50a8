"""Miss-ReID or TVI-LFM on your own pictures, listed in a table (input_pipeline/datasets/manifest.py).

python -m jax_mmreid.main --config=configs/manifest.py --config.data.data_dir=FOLDER --workdir=runs/mine
python -m jax_mmreid.main --config=configs/manifest.py:size=small,modalities=rgb/nir --config.data.data_dir=FOLDER --workdir=runs/small
python -m jax_mmreid.main --config=configs/manifest.py:modalities=rgb/tir,splits=query/gallery,incomplete=skip ...
python launch/tvi_lfm.py --config=configs/manifest.py:method=tvi_lfm,modalities=rgb/nir,size=small --config.data.data_dir=FOLDER --workdir=runs/mine_tvi

FOLDER holds manifest.csv; --config.data.options.file=NAME names another file in it, .csv or .jsonl.
method: miss_reid; or tvi_lfm, infrared queries with captions (stage lfm) or without (stage base), visible gallery.
splits: test, or query/gallery where the table has these. junk: same_camera, same_view or none.
incomplete: error, or skip to leave out of a setting the test rows that have none of its pictures, and report how many.
object: person, or vehicle for pictures twice as wide as high.
size: full as published, or small (jax_mmreid/recipes/own_pictures.py), from random weights in minutes.
miss_reid. row, eta, modalities, preset, tower, epochs, text_epoch, pairs, rerank, robustness: as in rgbnt201.py. One
batch is 8 identities x 8 rows; --config.init=DIR starts from CLIP's weights, see docs/weights.md. size=small takes row,
eta, modalities, pairs, rerank and robustness, and its length: steps=600, or budget=10m for minutes (s, m, h).
tvi_lfm. stage, epochs: as in sysu_mm01.py. row: B, B+SFF, B+SFF+MJL or +MER. modalities: rgb/ir, rgb/nir or rgb/tir.
size=small: as in quickstart.py. Stage lfm reads the columns caption_rgb and caption_ir, _nir or _tir. A batch pairs 8
identities x 4 pictures of each modality.
The table of results has the same rows without learning: raw pixels, mean-free pixels, gradient directions.
"""  # noqa: E501

from jax_mmreid.config import check_choices, parse_arg, parse_seconds, take_arg
from jax_mmreid.recipes.miss_reid import MISS_REID_ARGS, miss_reid
from jax_mmreid.recipes.own_pictures import small_miss_reid
from jax_mmreid.recipes.tvi_lfm import own_tvi_lfm, small

STEPS = 600  # of training, of size=small
SIZES = ("full", "small")
OWN = dict(splits="test", junk="same_camera", incomplete="error")


def get_config(arg: str = ""):
    method, arg = take_arg(arg, method="miss_reid")
    size, arg = take_arg(arg, size="full")
    kind, arg = take_arg(arg, object="person")
    check_choices(("method", method, RECIPES), ("size", size, SIZES), ("object", kind, ("person", "vehicle")))
    config = RECIPES[method](arg, size == "small")
    if method == "miss_reid":
        config.data.options = dict(file="manifest.csv")
        config.model.template_kind = kind
    if kind == "vehicle":
        config.data.image_size = config.data.image_size[::-1]
        if (method, size) == ("miss_reid", "full"):
            config.model.structure.queries = 8
    return config


def _miss_reid(arg: str, is_small: bool):
    if not is_small:
        return miss_reid("manifest", baselines=True, **parse_arg(arg, **MISS_REID_ARGS, **OWN))
    own = dict(row="A", eta="0", modalities="rgb/nir/tir", pairs=True, rerank=False, robustness=False)
    arg = parse_arg(arg, **own, **OWN, steps=0, budget="").to_dict()
    seconds = parse_seconds(arg.pop("budget"))
    arg["steps"] = arg["steps"] or (0 if seconds else STEPS)
    return small_miss_reid("manifest", baselines=True, seconds=seconds, **arg)


def _tvi_lfm(arg: str, is_small: bool):
    own = dict(stage="lfm", row="+MER", modalities="rgb/ir", epochs=12 if is_small else 120)
    arg = parse_arg(arg, **own, **OWN)
    if not is_small:
        return own_tvi_lfm(**arg)
    config = small(own_tvi_lfm(**arg, lr_visual=1e-3, lr_text=1e-3))
    config.optim.b2 = 0.98
    config.eval_every, config.save_every = 0, 3
    return config


RECIPES = {"miss_reid": _miss_reid, "tvi_lfm": _tvi_lfm}
