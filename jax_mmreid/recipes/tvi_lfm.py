"""The published recipe of TVI-LFM (NeurIPS 2024) as config fields: what the configs of its datasets share."""

import itertools
from collections.abc import Mapping

from jax_mmreid.batch import MODALITIES
from jax_mmreid.config import ConfigDict, base_config, check_choices
from jax_mmreid.recipes.baselines import baselines
from jax_mmreid.recipes.towers import TEXT, TOWER_SHARDING

# Rows of the ablation, all of stage "lfm": semantic filtering fusion, modality joint learning, captions rephrased by a
# language model half of the time, modality ensemble retrieval.
ROWS = {
    "B": dict(sff=False, mjl=False, llm=False, mer=False),
    "B+SFF": dict(sff=True, mjl=False, llm=False, mer=False),
    "B+SFF+MJL": dict(sff=True, mjl=True, llm=False, mer=False),
    "+LLM": dict(sff=True, mjl=True, llm=True, mer=False),
    "+MER": dict(sff=True, mjl=True, llm=False, mer=True),
    "full": dict(sff=True, mjl=True, llm=True, mer=True),
}
STAGES = ("base", "lfm")
PAIRS = tuple(f"rgb/{m}" for m in MODALITIES if m != "rgb")  # visible and infrared

# See methods.tvi_lfm.Config.
MODEL = dict(frozen_bn="train", stem_relu=False, class_multiple=1, mining_blocks=1, dtype="float32", remat=False)
IMAGE = dict(blocks=(3, 4, 6, 3), width=64)  # ResNet-50

# Parts are erased, with constants, after the normalisation; then one channel may replace all three.
AUGMENTATION = dict(
    flip=0.5,
    pad=10,
    erase=0.6,
    fill="constant",
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    views=dict(
        rgb=dict(grey=0.1),
        rgb_strong=dict(of="rgb", channel="exchange"),
    ),
)
INFRARED_VIEW = dict(erase=0.5, channel="adaptive_grey")
BASE_GROUPS = (
    (r"text/.*|logit_scale", "frozen"),
    (r"(image|pool)/.*", "visual"),
    (r"head/.*", "head"),
)
LFM_GROUPS = (
    (r"(image|base)/.*|logit_scale", "frozen"),
    (r"text/block_.*bias", "text_bias"),
    (r"text/block_.*", "text"),
    (r"text/.*", "embedding"),  # with ln_final and the projection; the published code trains them at the visual rate
    (r"head/.*", "head"),
)
SHARDING = (*TOWER_SHARDING, (r"classifier/kernel$", (None, "model")))


def tvi_lfm(
    dataset: str,
    protocols: Mapping[str, dict],
    *,
    stage: str = "lfm",
    row: str = "full",
    epochs: int = 120,
    lr_visual: float = 3.5e-4,
    lr_text: float = 3.5e-4,
    text_bias_decay: float = 5e-4,
    eval_from: int = 0,
    modalities: str = "rgb/ir",
) -> ConfigDict:
    """One stage: ResNet-50, 8 identities x 4 pairs of 288x144, Adam with coupled decay, 120 epochs.

    `row` is a row of the ablation, which stage "base" does not depend on. `protocols` are {group: the fields that its
    evaluation rows share}, as `visible_infrared_evals` takes them; the first group picks the best checkpoint.
    `modalities` are rgb and the infrared one. Raises ConfigError for a stage, row or modality that does not exist.
    """
    check_choices(("stage", stage, STAGES), ("row", row, ROWS), ("modalities", modalities, PAIRS))
    names = tuple(modalities.split("/"))
    parts, lfm = ROWS[row], stage == "lfm"
    config = base_config(method="tvi_lfm", dataset=dataset)
    config.seed = 1
    config.epochs = epochs
    config.data.update(modalities=names, image_size=(288, 144), instances=4, pairs=True, resize=("lanczos", "lanczos"))
    captioner = "Blip" if lfm else ""
    config.data.options = dict(captioner=captioner, rephrased=lfm and parts["llm"], query_captions="")
    config.data.text.update(tokenizer="builtin" if lfm else "", rephrased=0.5 if lfm and parts["llm"] else 0.0)
    config.missing.eta = (0.0, 0.0)
    config.aug = AUGMENTATION | dict(views=AUGMENTATION["views"] | {names[1]: INFRARED_VIEW})
    config.requires_init = ("image", "pool", "head") if lfm else ()
    config.model = MODEL | dict(stage=stage, sff=parts["sff"], mjl=parts["mjl"], image=IMAGE, text=TEXT)
    config.weights = dict(identity=1.0, triplet=1.0)
    config.optim.schedule = dict(kind="multistep", warmup=10, warmup_factor=0.01, milestones=(40, 60, 100), gamma=0.1)
    config.optim.weight_decay = 5e-4
    config.optim.lr = dict(visual=lr_visual, head=2 * lr_visual)
    config.optim.rules = BASE_GROUPS
    if lfm:
        # Without SFF the published code trains the exponent of the pooling, through the fusion.
        config.optim.rules = ((r"pool/.*", "frozen" if parts["sff"] else "visual"), *LFM_GROUPS)
        config.optim.lr.update(text=lr_text, text_bias=2 * lr_text, embedding=lr_visual)
        config.optim.decay = dict(text_bias=text_bias_decay)
        if parts["sff"]:
            del config.optim.lr["visual"]
    config.phases = ((0, {}, tuple(config.optim.lr)),)
    config.sharding = SHARDING
    for name, shared in protocols.items():
        config.evals.update(visible_infrared_evals(name, shared, stage=stage, ensemble=parts["mer"]))
    if protocols:
        config.best = f"{next(iter(protocols))}/{'fusion' if lfm else 'ir'}/rank1"
    config.eval_every = config.save_every = 2
    config.eval_from = eval_from
    return config


def small(config: ConfigDict) -> ConfigDict:
    """The recipe in the size of the quickstart, for two CPU cores: pictures of 72x36, a ResNet of 17 layers."""
    config.data.image_size = (72, 36)
    config.data.cache = "memory"
    if config.model.stage == "lfm":
        config.data.text.update(tokenizer="train", vocab_size=768)
    config.aug.update(pad=3, erase=0.0)
    config.aug.views[config.data.modalities[1]].erase = 0.0
    config.model.image.update(blocks=(1, 1, 1, 1), width=16)
    config.model.text.update(vocab=768, width=64, layers=2, heads=4)
    config.optim.schedule.update(warmup=2, milestones=(9,))
    return config


def own_tvi_lfm(
    *,
    row: str = "+MER",
    splits: str = "test",
    junk: str = "same_camera",
    incomplete: str = "error",
    **arguments,
) -> ConfigDict:
    """The recipe on a manifest, whose test rows are evaluated in both directions, each modality alone, and without
    learning.

    `splits` is one split for both sides, or "query/gallery"; `junk` and `incomplete` are fields of evaluation rows,
    `arguments` those of `tvi_lfm`. A manifest has no rephrased captions: raises ConfigError for a row of the ablation
    that needs them.
    """
    check_choices(("row", row, [name for name, parts in ROWS.items() if not parts["llm"]]))
    config = tvi_lfm("manifest", {}, row=row, **arguments)
    lfm, infrared = config.model.stage == "lfm", config.data.modalities[1]
    config.data.options = dict(file="manifest.csv")
    query, _, gallery = splits.partition("/")

    def named(setting: str, used: tuple[str, ...], searched: str, **options) -> dict[str, dict]:
        sides = dict(query=dict(split=query, use=used), gallery=dict(split=gallery or query, use=(searched,)))
        return {setting: dict(setting=setting, options=options, junk=junk, incomplete=incomplete) | sides}

    images = {}
    for one, other in itertools.product(config.data.modalities, repeat=2):
        images |= named(one if one == other else f"{one}>{other}", (one,), other)
    config.evals.update(images)
    if lfm:
        config.evals.update(named(f"{infrared}_base>rgb", (infrared,), "rgb", neck="base"))
        config.evals.update(named("text>rgb", ("text",), "rgb"))
        config.evals.update(named("fusion>rgb", (infrared, "text"), "rgb"))
        config.evals.update(named("mer>rgb", (infrared, "text"), "rgb", ensemble=True) if ROWS[row]["mer"] else {})
    config.evals.update(baselines(images))
    config.best = f"{'fusion' if lfm else infrared}>rgb/rank1"
    return config


def tvi_lfm_published(table: Mapping, *, stage: str, row: str, epochs: int) -> dict[str, dict[str, float]]:
    """`config.published` for arguments of the recipe, from {stage: {row of evals: (R-1, mAP, mINP) in percent}}.

    Empty for another number of epochs than the published one, and for rows of the ablation other than "full".
    """
    if epochs != tvi_lfm.__kwdefaults__["epochs"] or (stage == "lfm" and row != "full"):
        return {}
    metrics = ("rank1", "mAP", "mINP")
    return {
        name: {key: round(x / 100, 4) for key, x in zip(metrics, numbers)} for name, numbers in table[stage].items()
    }


def visible_infrared_evals(group: str, shared: dict, *, stage: str, ensemble: bool) -> dict[str, dict]:
    """Rows GROUP/SETTING for `config.evals`: infrared queries, in stage "lfm" text, fusion and with `ensemble` mer too.

    "ir_base" is the infrared query with the pooling and neck of stage "base". `shared` are the fields that the rows
    have in common: {"gallery", "junk", ...}.
    """
    kinds = {"ir": (("ir",), {})}
    if stage == "lfm":
        kinds = {"ir_base": (("ir",), {"neck": "base"}), "ir": (("ir",), {}), "text": (("text",), {})}
        kinds["fusion"] = (("ir", "text"), {})
        if ensemble:
            kinds["mer"] = (("ir", "text"), {"ensemble": True})
    return {
        f"{group}/{name}": dict(group=group, setting=name, query=dict(split="query", use=use), options=options) | shared
        for name, (use, options) in kinds.items()
    }
