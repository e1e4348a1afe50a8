"""The published recipe of Miss-ReID as config fields (NeurIPS 2025): what the configs of its datasets share."""

from collections.abc import Sequence

from jax_mmreid.batch import MODALITIES
from jax_mmreid.config import ConfigDict, base_config, parse_eta
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.missing_settings import missing_evals

# Rows of the Miss-ReID poster's Table 1: (bhipr, iosm, ldmmc).
MISS_REID_ROWS = {
    "A": (False, False, False),
    "B": (True, False, False),
    "C": (False, True, False),
    "D": (True, True, False),
    "E": (False, True, True),
    "F": (True, True, True),
}

# M-iOSM and inversion network as the published complexity figures say, or 512 wide as the equations are written.
MISS_REID_PRESETS = {
    "table1": dict(structure=dict(tokens="pre_proj", width=768, heads=12), inversion=dict(hidden=768)),
    "equations": dict(structure=dict(tokens="proj", width=512, heads=8), inversion=dict(hidden=2048)),
}

SIZES = ("width", "layers", "heads")  # of a transformer
# The published CLIPs: patch and image tower, text tower, joint space, and a person's picture (H, W) in whole patches.
CLIP_TOWERS = {
    "vit_b16": ((16, 768, 12, 12), (512, 12, 8), 512, (256, 128)),
    "vit_b32": ((32, 768, 12, 12), (512, 12, 8), 512, (256, 128)),
    "vit_l14": ((14, 1024, 24, 16), (768, 12, 12), 768, (252, 126)),
}

# What `methods/miss_reid.py` is built from, apart from what a row, a preset and a tower decide.
MISS_REID_MODEL = dict(
    sie_camera=True,  # a learned vector per training camera on the class token
    prompts=4,  # prompt tokens per modality
    template_kind="person",  # or vehicle
    period=True,  # the sentence ends with one
    text_len=0,  # tokens; 0: as long as the sentence; 77: CLIP's whole context, with the same result
    tau=0.05,  # temperature of both contrastive terms
    label_smooth=0.1,
    margin=-1.0,  # of the triplet loss; negative: soft margin
    memory=dict(
        alpha=0.2,  # what a prototype keeps of itself in an update
        update="per_step_sequential",  # or per_step_batch_mean, per_epoch_mean
        order="after_loss",  # or before_loss
        passive=True,  # row E keeps prototypes for the text terms, though no visual loss uses them
    ),
    structure_drop=0.0,  # how often a picture is left out of the structure vector in training, as if it were missing
    detach_structure=False,  # True: text terms do not train the structure vector
    part_norm=False,  # True: f and f~ of every modality are normalised before they are concatenated
    missing_fill="zero_feature",  # of rows without text; or encode_zero_image, the picture that is all mid-grey
    dtype="float32",  # of matrix products; or bfloat16
    remat=False,  # True: the towers recompute a block's inside in the backward pass, for less memory
    scan=False,  # True: the towers compile one block for all layers, for a shorter compilation
)
# Ordered: the first pattern that matches a parameter's whole path names its group.
MISS_REID_GROUPS = (
    (r"text/.*", "frozen"),
    (r"prompts", "prompts"),
    (r"image/camera_embedding", "new"),
    (r"image/.*", "tower"),
    (r"(inversion|heads/text_\w+)/.*bias", "language_bias"),
    (r"(inversion|heads/text_\w+)/.*", "language"),
    (r".*bias", "new_bias"),
    (r".*", "new"),
)
MISS_REID_LR = dict(tower=5e-6, new=3.5e-4, new_bias=7e-4, language=3.5e-4, language_bias=7e-4, prompts=5e-3)

# What the dataset's configs take after the colon, with the defaults of `miss_reid`.
MISS_REID_ARGS = dict(
    row="F",
    eta="0",
    modalities="rgb/nir/tir",
    preset="table1",
    tower="vit_b16",
    epochs=50,
    text_epoch=21,
    pairs=False,
    rerank=False,
)

RERANK = dict(k1=50, k2=15, lam=0.3)  # of the field's multi-modality code

# Wide matrices over the "model" axis, one split by columns and the next by rows, as tensor parallelism goes.
TOWER_SHARDING = (
    (r"attention/qkv/kernel$", (None, None, "model", None)),
    (r"attention/qkv/bias$", (None, "model", None)),
    (r"attention/out/kernel$", ("model", None, None)),
    (r"/fc/kernel$", (None, "model")),
    (r"/fc/bias$", ("model",)),
    (r"/proj/kernel$", ("model", None)),
)


def miss_reid(
    dataset: str,
    *,
    row: str = "F",
    eta: str = "0",
    modalities: str = "rgb/nir/tir",
    preset: str = "table1",
    tower: str = "vit_b16",
    epochs: int = 50,
    text_epoch: int = 21,
    splits: str = "test",
    junk: str = "same_camera",
    incomplete: str = "error",
    imputations: Sequence[str] = ("zero",),
    pairs: bool = False,
    rerank: bool = False,
) -> ConfigDict:
    """Miss-ReID as published (Section 4.2): ViT-B/16, Adam, 50 epochs, text terms from epoch `text_epoch` (1-based) on.

    `row` is a row of Table 1, `eta` the missing rates of training (`0.1` or `0.1/0.3/0.5`), `modalities` those that
    are used at all, `preset` names the widths, `tower` the CLIP; `splits`, `junk`, `incomplete` and `pairs` are those
    of `missing_evals`. `imputations`: how the settings are scored beside with text features, where there are any:
    "zero" puts blocks of zeros in their place, "alone" leaves nothing but them. `rerank` scores them re-ranked too.
    Raises ConfigError for a row, preset, tower, modality or rate that does not exist.
    """
    choices = {"row": (row, MISS_REID_ROWS), "preset": (preset, MISS_REID_PRESETS), "tower": (tower, CLIP_TOWERS)}
    for name, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(f"{name}={value}: expected one of {', '.join(known)}")
    names = tuple(modalities.split("/"))
    if not set(names) <= MODALITIES.keys() or len(set(names)) != len(names):
        raise ConfigError(f"modalities={modalities}: expected some of {'/'.join(MODALITIES)}, each once")
    config = base_config(method="miss_reid", dataset=dataset)
    config.data.modalities = names
    config.epochs = epochs
    config.missing.eta = parse_eta(eta, len(names))
    bhipr, iosm, ldmmc = MISS_REID_ROWS[row]
    widths = MISS_REID_PRESETS[preset]
    (patch, *image), text, dim, config.data.image_size = CLIP_TOWERS[tower]
    config.model = MISS_REID_MODEL | dict(
        image=dict(zip(SIZES, image), patch=patch, position_std=0.0),  # 0: CLIP's own initial scale
        text=dict(zip(SIZES, text), vocab=49408, context=77),
        dim=dim,  # of f, f~ and the prototypes: CLIP's joint space
        bhipr=bhipr,
        iosm=iosm,
        ldmmc=ldmmc,
        structure=dict(queries=16, out_proj=False, **widths["structure"]),
        inversion=dict(drop=0.1, **widths["inversion"]),
    )
    config.weights = miss_reid_weights(identity=0.1, contrast=0.1)
    config.optim.rules, config.optim.lr = MISS_REID_GROUPS, MISS_REID_LR
    config.optim.schedule = dict(
        kind="cosine", warmup=10, reference=3.5e-4, floor=1e-3, warmup_from="own", per_step=False, noise=False
    )
    visual = ("tower", "new", "new_bias")
    config.phases = ((0, {"text_terms": False}, visual),)
    if ldmmc:
        language = ("language", "language_bias", "prompts")
        config.phases += ((text_epoch - 1, {"text_terms": True}, visual + language),)
    config.sharding = (
        *TOWER_SHARDING,
        (r"classifier/kernel$", ("model", None)),
        (r"memory/(proto|sums)$", (None, None, "model")),
    )
    config.evals.update(missing_evals(names, splits, junk, incomplete=incomplete, pairs=pairs))
    for imputation in imputations if ldmmc else ():
        changed = {"imputation": imputation}
        config.evals.update(
            missing_evals(names, splits, junk, imputation, options=changed, incomplete=incomplete, pairs=pairs)
        )
    if rerank:
        config.evals.update(missing_evals(names, splits, junk, "reranked", incomplete=incomplete, rerank=RERANK))
    return config


def miss_reid_published(
    table: dict, matrices: dict | None = None, *, row: str, eta: str, pairs: bool, rerank: bool, **others
) -> dict[str, dict[str, float]]:
    """`config.published` for arguments of the recipe; empty where nothing is printed.

    `table` is {(row, eta): (mAP, R-1)}, each in percent of the last of Table 2's columns, up to the mean, which is the
    very last; `matrices` is {row: (mAP, R-1)}, each 7 x 7 of the settings with eta 0.1 (appendix A.4). Empty too if an
    argument other than row and eta is not the published one.
    """
    if any(value != miss_reid.__kwdefaults__[key] for key, value in others.items()):
        return {}
    rates, found = parse_eta(eta), {}
    *settings, mean = missing_evals(("rgb", "nir", "tir"), "test", "none")
    columns = (*settings, mean)
    for metric, numbers in zip(("mAP", "rank1"), table.get((row, rates), ())):
        for name, number in zip(columns[-len(numbers) :], numbers):
            found.setdefault(name, {})[metric] = round(number / 100, 4)
    if pairs and matrices and rates == (0.1, 0.1, 0.1):
        for metric, matrix in zip(("mAP", "rank1"), matrices.get(row, ())):
            for query, line in zip(settings, matrix):
                for gallery, number in zip(settings, line):
                    found.setdefault(f"pairs/{query}>{gallery}", {})[metric] = round(number / 100, 4)
    return found


def miss_reid_weights(*, identity: float, contrast: float) -> dict[str, float]:
    """Factors of Eq. 11: 1 for triplets, lambda 1 for cross-entropies, lambda 2 for contrastive terms."""
    branches = ("", "structure_", "text_")
    weights = {f"{branch}triplet": 1.0 for branch in branches} | {f"{branch}identity": identity for branch in branches}
    return weights | {"nce": contrast, "text_nce": contrast}
