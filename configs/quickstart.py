"""The methods in small on drawn pedestrians: the whole path in minutes on two CPU cores, from JPEG files to the table.

python -m jax_mmreid.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m jax_mmreid.main --config=configs/quickstart.py:row=A,eta=0.5 --workdir=runs/quickstart_a
python -m jax_mmreid.main --config=configs/quickstart.py:init=clip --workdir=runs/quickstart_aligned
python -m jax_mmreid.main --config=configs/quickstart.py:dataset=rgbnt201 --config.data.data_dir=FOLDER --workdir=...
python launch/tvi_lfm.py --config=configs/quickstart.py:method=tvi_lfm --workdir=runs/quickstart_tvi

method: miss_reid; tvi_lfm, of which the last line runs both stages; or clip.
miss_reid. row, eta, modalities, pairs, rerank, robustness: as in rgbnt201.py. dataset: synthetic; rgbnt201 for your
own folder in that layout; manifest for pictures listed in a table. splits, incomplete: as in manifest.py.
tvi_lfm. stage, row: as in sysu_mm01.py.
clip: contrastive training of an image and a text tower. loss: info_nce or sigmoid.
init: empty for random weights; or clip, to start from the towers of a run of method=clip, which is trained first, on
other identities and cameras. That run is in data/quickstart_clip and is trained once. Miss-ReID takes both its towers
and its vocabulary, TVI-LFM the text tower.

The pictures are drawn into data/ on first use: 96 training and 32 test identities, 4 cameras, 2 triples each; for
tvi_lfm 256 and 32 identities, 6 cameras as in SYSU-MM01, captions without errors; for clip 1024 and 64 identities,
4 cameras, a triple each, three captions per triple. See docs/quickstart.md for the results.
"""

from jax_mmreid.config import check_choices, config_hash, parse_arg, take_arg
from jax_mmreid.errors import ConfigError
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.clip import clip
from jax_mmreid.recipes.miss_reid import miss_reid, miss_reid_weights
from jax_mmreid.recipes.tvi_lfm import small, tvi_lfm


def get_config(arg: str = ""):
    method, arg = take_arg(arg, method="miss_reid")
    init, arg = take_arg(arg, init="")
    check_choices(("method", method, RECIPES), ("init", init or "clip", ("clip",)))
    config = RECIPES[method](arg, init)
    config.optim.b2 = 0.98
    config.eval_every = 0
    config.save_every = 3
    return _after_clip(config) if init else config


def _after_clip(config):
    """`config` with the towers of a run of method=clip, which is trained first if it does not exist."""
    before = get_config("method=clip")
    workdir = f"data/quickstart_clip/{config_hash(before)}"
    config.pretrain = dict(config=before, workdir=workdir)
    config.model.text.update(before.model.text)
    if config.method == "miss_reid":
        config.init = f"{workdir}:image+text"
    elif config.model.stage == "base":  # stage lfm gets the text tower from the run of stage base
        config.init = f"{workdir}:text"
    if config.model.get("ldmmc") or config.model.get("stage") == "lfm":
        config.data.text.update(tokenizer=f"{workdir}/tokenizer", context=before.data.text.context)
    return config


def _miss_reid(arg: str, init: str):
    recipe = dict(
        row="F",
        eta="0",
        modalities="rgb/nir/tir",
        splits="test",
        incomplete="error",
        pairs=False,
        rerank=False,
        robustness=False,
    )
    arg = parse_arg(arg, dataset="synthetic", **recipe)
    imputations = ("zero", "alone") if init else ("zero",)
    baselines = arg.dataset == "manifest"
    config = miss_reid(epochs=9, text_epoch=5, imputations=imputations, baselines=baselines, **arg)
    config.data.data_dir = f"data/{arg.dataset}"
    if arg.dataset == "synthetic":
        config.data.options = dict(seed=0, num_train_ids=96, num_test_ids=32, cameras=4, images_per_camera=2, height=64)
    config.data.image_size = (64, 32)
    config.data.instances = 4
    config.aug.update(pad=3, erase=0.0)
    config.model.image.update(patch=8, width=64, layers=2, heads=4, position_std=0.5)
    config.model.text.update(width=64, layers=2, heads=4)
    config.model.dim = 64
    config.model.structure.update(queries=8, width=64, heads=4)
    config.model.inversion.hidden = 64
    config.weights = miss_reid_weights(identity=1.0, contrast=0.1)  # a model of this size needs more cross-entropy
    config.optim.lr = dict.fromkeys(config.optim.lr, 2e-3)
    config.optim.schedule.update(warmup=1, reference=2e-3, per_step=True)
    return config


def _tvi_lfm(arg: str, _: str):
    arg = parse_arg(arg, stage="lfm", row="full")
    shared = protocols.row("sysu_mm01", dict(split="gallery", use=("rgb",)))
    config = tvi_lfm("synthetic", {"all": shared}, epochs=12, lr_visual=1e-3, lr_text=1e-3, **arg)
    config.data.data_dir = "data/synthetic_sysu"
    drawn = dict(seed=0, num_train_ids=256, num_test_ids=32, images_per_camera=2, height=72)
    config.data.options.update(layout="sysu_mm01", **drawn)
    return small(config)


def _clip(arg: str, init: str):
    if init:
        raise ConfigError(f"init={init}: method=clip starts from random weights; leave init out")
    arg = parse_arg(arg, loss="info_nce")
    config = clip("synthetic", epochs=7, batch=64, lr=2e-3, **arg)
    config.data.data_dir = "data/synthetic_clip"
    drawn = dict(seed=1, num_train_ids=1024, num_test_ids=64, cameras=4, images_per_camera=1, height=64)
    config.data.options = drawn | dict(captioner="Blip")
    config.data.image_size = (64, 32)
    config.data.cache = "memory"
    config.data.text.update(tokenizer="train", vocab_size=768, context=40)
    config.aug.update(pad=3)
    config.model.image.update(patch=8, width=64, layers=2, heads=4, position_std=0.5)
    config.model.text.update(vocab=768, context=40, width=64, layers=2, heads=4)
    config.model.dim = 64
    colours = ("black", "white", "red", "blue", "green", "yellow", "purple", "orange")
    coats = {f"{colour} coat": f"A person wearing a long {colour} coat and black trousers." for colour in colours}
    people = {use: dict(split="test", use=use.split("/")) for use in ("text", "rgb/nir/tir")}
    labels = dict(group="rgb", setting="coats")
    config.evals["rgb/coats"] = labels | dict(kind="zero_shot", split="test", modality="rgb", classes=coats)
    for name, query, junk in (("text", "text", "none"), ("full", "rgb/nir/tir", "same_camera")):
        labels = dict(group="people", setting=name)
        config.evals[f"people/{name}"] = labels | dict(query=people[query], gallery=people["rgb/nir/tir"], junk=junk)
    return config


RECIPES = {"miss_reid": _miss_reid, "tvi_lfm": _tvi_lfm, "clip": _clip}
