"""The published recipe of Miss-ReID (NeurIPS 2025) as config fields: what the configs of its datasets share."""

import dataclasses
from collections.abc import Mapping, Sequence

from jax_mmreid.batch import MODALITIES
from jax_mmreid.config import ConfigDict, base_config, check_choices, parse_eta
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.baselines import baselines
from jax_mmreid.recipes.missing_settings import FULL, missing_evals
from jax_mmreid.recipes.robustness import robustness
from jax_mmreid.recipes.towers import TOWER_SHARDING, TOWERS

# Rows of Table 1 of the paper: (bhipr, iosm, ldmmc).
MISS_REID_ROWS = {
    "A": (False, False, False),
    "B": (True, False, False),
    "C": (False, True, False),
    "D": (True, True, False),
    "E": (False, True, True),
    "F": (True, True, True),
}

# M-iOSM and inversion network with the widths of the published complexity figures, or 512 throughout as in Eq. 5-8.
MISS_REID_PRESETS = {
    "table1": dict(structure=dict(tokens="pre_proj", width=768, heads=12), inversion=dict(hidden=768)),
    "equations": dict(structure=dict(tokens="proj", width=512, heads=8), inversion=dict(hidden=2048)),
}

# `config.model` apart from what a row, a preset and a tower decide; see methods.miss_reid.Config.
MISS_REID_MODEL = dict(
    backbone="vit",
    conv=dict(orientations=8, width=64, blocks=(1, 1), group=16, cell=16),
    triplet_tau=0.0,
    shared_head=False,
    class_multiple=1,
    mining_blocks=1,
    microbatches=1,
    sie_camera=True,
    prompts=4,
    template_kind="person",
    period=True,
    text_len=0,
    tau=0.05,
    label_smooth=0.1,
    margin=-1.0,
    memory=dict(alpha=0.2, update="per_step_sequential", order="after_loss", passive=True),
    structure_drop=0.0,
    detach_structure=False,
    part_norm=False,
    missing_fill="zero_feature",
    dtype="float32",
    remat=False,
    scan=False,
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

# The arguments of the datasets' configs, after the colon, with the defaults of `miss_reid`.
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
    robustness=False,
)

RERANK = dict(k1=50, k2=15, lam=0.3)  # as the public code of multi-modality ReID has it


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the settings of missing modalities are evaluated."""

    splits: str = "test"  # as `missing_evals` takes them, like the next two and `pairs`
    junk: str = "same_camera"
    incomplete: str = "error"
    # Of rows with text features, other imputations to evaluate too, in groups of their names; see MissReID.imputation.
    imputations: Sequence[str] = ("zero",)
    pairs: bool = False  # with them also pairs of similarity "common", and a mixed gallery
    rerank: bool = False  # the settings with k-reciprocal re-ranking too, in the group "reranked"
    robustness: bool = False  # queries with damaged pictures too, in the groups of `recipes.robustness`
    baselines: bool = False  # the settings without learning too, in the groups of `recipes.baselines`

    def rows(self, modalities: Sequence[str], *, has_text: bool) -> dict[str, dict]:
        """Rows for `config.evals`."""
        common = dict(splits=self.splits, junk=self.junk, incomplete=self.incomplete)
        found = missing_evals(modalities, **common, pairs=self.pairs)
        plain = {name: row for name, row in found.items() if "query" in row}
        others = {name: dict(options={"imputation": name}) for name in self.imputations if has_text}
        for name, changes in others.items():
            found |= missing_evals(modalities, **common, **changes, group=name, pairs=self.pairs)
        if self.pairs and len(plain) > 1:
            found["common/pairs"] = dict(pairs_of=tuple(plain), similarity="common")
            found |= _mixed_gallery(plain[FULL], others)
        if self.rerank:
            found |= missing_evals(modalities, **common, group="reranked", rerank=RERANK)
        if self.robustness:
            found |= robustness(plain[FULL], modalities)
        if self.baselines:
            found |= baselines(missing_evals(modalities, **common, pairs=self.pairs))
        return found


def _mixed_gallery(full: dict, others: Mapping[str, dict]) -> dict[str, dict]:
    """The full setting where each gallery row shows a random subset of its pictures, compared in several ways."""
    full = {key: x for key, x in full.items() if key not in ("group", "setting")}
    full["gallery"] = full["gallery"] | dict(mixed=0)
    forms = {"embed": {}} | others | {"common": dict(similarity="common")}
    return {f"mixed gallery/{name}": full | changes for name, changes in forms.items()}


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
    **evaluation,
) -> ConfigDict:
    """Miss-ReID as published (Section 4.2): ViT-B/16, Adam, 50 epochs, text terms from epoch `text_epoch` (1-based) on.

    `row` is a row of Table 1, `eta` the missing rates of training (`0.1` or `0.1/0.3/0.5`), `modalities` those that
    are used at all; `preset` names the widths, `tower` the CLIP; `evaluation` are fields of `Evaluation`. Raises
    ConfigError for a row, preset, tower, modality or rate that does not exist.
    """
    check_choices(("row", row, MISS_REID_ROWS), ("preset", preset, MISS_REID_PRESETS), ("tower", tower, TOWERS))
    names = tuple(modalities.split("/"))
    if not set(names) <= MODALITIES.keys() or len(set(names)) != len(names):
        raise ConfigError(f"modalities={modalities}: expected some of {'/'.join(MODALITIES)}, each once")
    has_text = MISS_REID_ROWS[row][2]
    config = base_config(method="miss_reid", dataset=dataset)
    config.data.modalities = names
    config.data.image_size = TOWERS[tower].image_size
    config.epochs = epochs
    config.missing.eta = parse_eta(eta, len(names))
    config.model = _model(row, preset, tower)
    config.weights = miss_reid_weights(identity=0.1, contrast=0.1)
    config.optim.rules, config.optim.lr = MISS_REID_GROUPS, MISS_REID_LR
    config.optim.schedule = dict(
        kind="cosine", warmup=10, reference=3.5e-4, floor=1e-3, warmup_from="own", per_step=False, noise=False
    )
    visual = ("tower", "new", "new_bias")
    config.phases = ((0, {"text_terms": False}, visual),)
    if has_text:
        language = ("language", "language_bias", "prompts")
        config.phases += ((text_epoch - 1, {"text_terms": True}, visual + language),)
    config.sharding = (
        *TOWER_SHARDING,
        (r"classifier/kernel$", (None, "model")),
        (r"memory/(proto|sums)$", (None, "model", None)),
        (r"memory/(has_visual|counts)$", (None, "model")),
    )
    config.evals.update(Evaluation(**evaluation).rows(names, has_text=has_text))
    return config


def _model(row: str, preset: str, tower: str) -> dict:
    (bhipr, iosm, ldmmc), widths, sizes = MISS_REID_ROWS[row], MISS_REID_PRESETS[preset], TOWERS[tower]
    return MISS_REID_MODEL | dict(
        image=sizes.image,
        text=sizes.text,
        dim=sizes.dim,
        bhipr=bhipr,
        iosm=iosm,
        ldmmc=ldmmc,
        structure=dict(queries=16, out_proj=False, **widths["structure"]),
        inversion=dict(drop=0.1, **widths["inversion"]),
    )


def miss_reid_published(
    table: Mapping,
    matrices: Mapping | None = None,
    *,
    row: str,
    eta: str,
    pairs: bool,
    rerank: bool,
    robustness: bool,
    **others,
) -> dict[str, dict[str, float]]:
    """`config.published` for arguments of the recipe; empty where nothing is printed.

    `table` is {(row, eta): (mAP, R-1)}, each the last columns of Table 2 in percent, up to the mean; `matrices` is
    {row: (mAP, R-1)}, each 7 x 7 settings with eta 0.1 (appendix A.4). Empty too if an argument other than row and eta
    is not the published one.
    """
    if any(value != MISS_REID_ARGS[key] for key, value in others.items()):
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
    """Factors of Eq. 11: 1 for triplet losses, `identity` (lambda 1) for cross-entropies, `contrast` (lambda 2)."""
    branches = ("", "structure_", "text_")
    weights = {f"{branch}triplet": 1.0 for branch in branches} | {f"{branch}identity": identity for branch in branches}
    return weights | {"nce": contrast, "text_nce": contrast}
