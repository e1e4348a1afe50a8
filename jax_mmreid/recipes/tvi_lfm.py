"""TVI-LFM as published: what the configs of its three datasets, and a small one, share."""

from jax_mmreid.config import ConfigDict, base_config
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.miss_reid import TOWER_SHARDING

# Rows of the poster's ablation, all of stage "lfm": what they train with, and whether they are scored as an ensemble.
# llm: every other training caption is rephrased.
ROWS = {
    "B": dict(sff=False, mjl=False, llm=False, mer=False),
    "B+SFF": dict(sff=True, mjl=False, llm=False, mer=False),
    "B+SFF+MJL": dict(sff=True, mjl=True, llm=False, mer=False),
    "+LLM": dict(sff=True, mjl=True, llm=True, mer=False),
    "+MER": dict(sff=True, mjl=True, llm=False, mer=True),
    "full": dict(sff=True, mjl=True, llm=True, mer=True),
}
STAGES = ("base", "lfm")

MODEL = dict(
    frozen_bn="train",  # of stage lfm, as published; eval: the frozen tower keeps its statistics
    stem_relu=False,  # as published; True: ResNet's own stem
    dtype="float32",  # of convolutions and matrix products; or bfloat16
    remat=False,  # True: the towers recompute a block's inside in the backward pass, for less memory
)
IMAGE = dict(blocks=(3, 4, 6, 3), width=64)  # ResNet-50
TEXT = dict(vocab=49408, context=77, width=512, layers=12, heads=8)  # of CLIP's RN50

# Pictures are normalised before parts are erased, with constants, and a channel put in place of three.
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
        ir=dict(erase=0.5, channel="adaptive_grey"),
    ),
)
BASE_GROUPS = (
    (r"text/.*|logit_scale", "frozen"),
    (r"(image|pool)/.*", "visual"),
    (r"head/.*", "head"),
)
LFM_GROUPS = (
    (r"(image|base)/.*|logit_scale", "frozen"),
    (r"text/block_.*bias", "text_bias"),
    (r"text/block_.*", "text"),
    (r"text/.*", "embedding"),  # the published code trains it, with ln_final and the projection, at the visual rate
    (r"head/.*", "head"),
)
DIVISION = (*TOWER_SHARDING, (r"classifier/kernel$", (None, "model")))


def tvi_lfm(
    dataset: str,
    protocols: dict[str, dict],
    *,
    stage: str = "lfm",
    row: str = "full",
    epochs: int = 120,
    lr_visual: float = 3.5e-4,
    lr_text: float = 3.5e-4,
    text_bias_decay: float = 5e-4,
    eval_from: int = 0,
) -> ConfigDict:
    """One stage: ResNet-50, 8 identities x 4 pairs of 288x144, Adam with coupled decay, 120 epochs.

    `row` is a row of the ablation, which stage "base" has no use for; `protocols` {name: what its evaluation rows
    share} as `cross_modal_evals` takes them; the first one picks the best checkpoint. Raises ConfigError for a stage
    or row that does not exist.
    """
    for key, value, known in (("stage", stage, STAGES), ("row", row, ROWS)):
        if value not in known:
            raise ConfigError(f"{key}={value}: expected one of {', '.join(known)}")
    parts, lfm = ROWS[row], stage == "lfm"
    config = base_config(method="tvi_lfm", dataset=dataset)
    config.seed = 1
    config.epochs = epochs
    config.data.update(
        modalities=("rgb", "ir"), image_size=(288, 144), instances=4, pairs=True, resize=("lanczos", "lanczos")
    )
    config.data.options = dict(captioner="Blip" if lfm else "", rephrased=lfm and parts["llm"])
    config.data.text.update(tokenizer="builtin" if lfm else "", rephrased=0.5 if lfm and parts["llm"] else 0.0)
    config.missing.eta = (0.0, 0.0)
    config.aug = AUGMENTATION
    config.requires_init = ("image", "pool", "head") if lfm else ()
    config.model = MODEL | dict(stage=stage, sff=parts["sff"], mjl=parts["mjl"], image=IMAGE, text=TEXT)
    config.weights = dict(identity=1.0, triplet=1.0)
    config.optim.schedule = dict(kind="multistep", warmup=10, warmup_factor=0.01, milestones=(40, 60, 100), gamma=0.1)
    config.optim.weight_decay = 5e-4
    config.optim.lr = dict(visual=lr_visual, head=2 * lr_visual)
    config.optim.rules = BASE_GROUPS
    if lfm:
        # Without the filter the pooling inside the fusion learns, a quirk of the published code that the row keeps.
        config.optim.rules = ((r"pool/.*", "frozen" if parts["sff"] else "visual"), *LFM_GROUPS)
        config.optim.lr.update(text=lr_text, text_bias=2 * lr_text, embedding=lr_visual)
        config.optim.decay = dict(text_bias=text_bias_decay)
        if parts["sff"]:
            del config.optim.lr["visual"]
    config.phases = ((0, {}, tuple(config.optim.lr)),)
    config.sharding = DIVISION
    for name, shared in protocols.items():
        config.evals.update(cross_modal_evals(name, shared, stage=stage, ensemble=parts["mer"]))
    config.best = f"{next(iter(protocols))}/{'fusion' if lfm else 'ir'}/rank1"
    config.eval_every = config.save_every = 2
    config.eval_from = eval_from
    return config


def tvi_lfm_published(table: dict, *, stage: str, row: str, epochs: int) -> dict[str, dict[str, float]]:
    """`config.published` for arguments of the recipe, out of {stage: {row of evals: (R-1, mAP, mINP) in percent}}.

    Empty for another number of epochs, and for rows of the ablation other than the whole.
    """
    if epochs != tvi_lfm.__kwdefaults__["epochs"] or (stage == "lfm" and row != "full"):
        return {}
    metrics = ("rank1", "mAP", "mINP")
    return {name: {key: round(x / 100, 4) for key, x in zip(metrics, row)} for name, row in table[stage].items()}


def cross_modal_evals(group: str, shared: dict, *, stage: str, ensemble: bool) -> dict[str, dict]:
    """Rows for `config.evals`: infrared queries, and in stage "lfm" text, fusion and, with `ensemble`, mer.

    "ir_base" is the infrared query with the pool and neck of stage "base". `shared` is a row without what differs
    between these: {"query", "gallery", "junk", ...}, whose query is given by what it uses.
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
