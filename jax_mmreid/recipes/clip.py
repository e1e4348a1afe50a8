"""Contrastive image-text training as config fields: what the configs that prepare towers share."""

from jax_mmreid.config import ConfigDict, base_config, check_choices
from jax_mmreid.recipes.towers import TOWER_SHARDING, TOWERS

LOSSES = ("info_nce", "sigmoid")
# See methods.clip.Config.
MODEL = dict(dedup_captions=True, block=4096, microbatches=1, dtype="float32", remat=False, scan=False)
GROUPS = (
    (r"logit_(scale|bias)", "scale"),
    (r".*", "towers"),
)


def clip(
    dataset: str,
    *,
    loss: str = "info_nce",
    tower: str = "vit_b16",
    modalities: str = "rgb/nir/tir",
    epochs: int = 30,
    batch: int = 128,
    lr: float = 1e-5,
    split: str = "test",
) -> ConfigDict:
    """Image and text tower on pictures with captions: Adam, warm-up and cosine, a batch of different identities.

    `loss` is one of LOSSES, `tower` names the CLIP; `batch` counts rows, and each has one pair per modality. `lr` suits
    towers that start from CLIP's weights. The evaluation is on `split`. Raises ConfigError for a loss or tower that
    does not exist.
    """
    check_choices(("loss", loss, LOSSES), ("tower", tower, TOWERS))
    names = tuple(modalities.split("/"))
    config = base_config(method="clip", dataset=dataset)
    config.data.modalities = names
    config.data.update(identities=batch, instances=1)  # another picture of the same person is no valid negative
    config.data.text.tokenizer = "builtin"
    config.epochs = epochs
    config.missing.eta = (0.0,) * len(names)
    config.aug.erase = 0.0  # the caption describes the whole picture
    sizes = TOWERS[tower]
    config.data.image_size = sizes.image_size
    config.model = MODEL | dict(loss=loss, image=sizes.image, text=sizes.text, dim=sizes.dim)
    config.weights = dict(contrast=1.0)
    # No decay: it would shrink the embeddings of words that no training caption has and a sentence at test may have.
    config.optim.update(b2=0.98, rules=GROUPS, lr=dict(towers=lr, scale=lr), weight_decay=0.0)
    config.optim.schedule = dict(kind="cosine", warmup=2, reference=lr, floor=0.0, per_step=True)
    config.phases = ((0, {}, ("towers", "scale")),)
    config.sharding = TOWER_SHARDING
    for m in names:
        for direction in ("image_to_text", "text_to_image"):
            labels = dict(group=m, setting=direction)
            row = dict(kind="image_text", split=split, modality=m, direction=direction)
            config.evals[f"{m}/{direction}"] = labels | row
    config.best = f"{names[0]}/image_to_text/rank1"
    return config
