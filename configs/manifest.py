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
size=small: as in quickstart.py. Stage lfm reads the columns caption_rgb and caption_ir, _nir or
_tir. A batch pairs 8 identities x 4 pictures of each modality.
The table of results has the same rows without learning: raw pixels, mean-free pixels, gradient directions.
"""  # noqa: E501

from jax_mmreid.config import check_choices, parse_arg, parse_seconds, take_arg
from jax_mmreid.recipes.miss_reid import MISS_REID_ARGS, miss_reid
from jax_mmreid.recipes.own_pictures import small_miss_reid
from jax_mmreid.recipes.tvi_lfm import own_tvi_lfm, small

STEPS = 600  # of training, of size=small
OWN = dict(splits="test", junk="same_camera", incomplete="error", object="person")


def get_config(arg: str = ""):
    method, arg = take_arg(arg, method="miss_reid")
    check_choices(("method", method, RECIPES))
    return RECIPES[method](arg)


def _miss_reid(arg: str):
    size, arg = take_arg(arg, size="full")
    check_choices(("size", size, ("full", "small")))
    if size == "small":
        return _small_miss_reid(arg)
    arg = parse_arg(arg, **MISS_REID_ARGS, **OWN).to_dict()
    kind = _object(arg)
    config = miss_reid("manifest", baselines=True, **arg)
    config.data.options = dict(file="manifest.csv")
    config.model.template_kind = kind
    if kind == "vehicle":
        config.data.image_size = config.data.image_size[::-1]
        config.model.structure.queries = 8
    return config


def _small_miss_reid(arg: str):
    own = dict(row="A", eta="0", modalities="rgb/nir/tir", pairs=True, rerank=False, robustness=False)
    arg = parse_arg(arg, **own, **OWN, steps=0, budget="").to_dict()
    kind, seconds = _object(arg), parse_seconds(arg.pop("budget"))
    arg["steps"] = arg["steps"] or (0 if seconds else STEPS)
    config = small_miss_reid("manifest", baselines=True, seconds=seconds, **arg)
    config.data.options = dict(file="manifest.csv")
    config.model.template_kind = kind
    if kind == "vehicle":
        config.data.image_size = config.data.image_size[::-1]
    return config


def _tvi_lfm(arg: str):
    size, arg = take_arg(arg, size="full")
    check_choices(("size", size, ("full", "small")))
    own = dict(stage="lfm", row="+MER", modalities="rgb/ir", epochs=12 if size == "small" else 120)
    arg = parse_arg(arg, **own, **OWN).to_dict()
    kind, rates = _object(arg), dict(lr_visual=1e-3, lr_text=1e-3) if size == "small" else {}
    config = own_tvi_lfm(**arg, **rates)
    if size == "small":
        small(config)
        config.optim.b2 = 0.98
        config.eval_every, config.save_every = 0, 3
    if kind == "vehicle":
        config.data.image_size = config.data.image_size[::-1]
    return config


def _object(arg: dict) -> str:
    """Takes `object` out of the arguments; raises ConfigError for one that does not exist."""
    kind = arg.pop("object")
    check_choices(("object", kind, ("person", "vehicle")))
    return kind


RECIPES = {"miss_reid": _miss_reid, "tvi_lfm": _tvi_lfm}
