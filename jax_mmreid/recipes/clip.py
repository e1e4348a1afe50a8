"""Contrastive image-text training as config fields: what the configs that prepare towers share."""

from jax_mmreid.config import ConfigDict, base_config
from jax_mmreid.errors import ConfigError
from jax_mmreid.recipes.miss_reid import CLIP_TOWERS, SIZES, TOWER_SHARDING

LOSSES = ("info_nce", "sigmoid")
MODEL = dict(
    dedup_captions=True,  # a caption is no negative of another picture that is described in the same words
    block=4096,  # captions that the loss compares with at a time
    dtype="float32",  # of matrix products; or bfloat16
    remat=False,  # True: the towers recompute a block's inside in the backward pass, for less memory
    scan=False,  # True: the towers compile one block for all layers, for a shorter compilation
)
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

    `loss` is info_nce or sigmoid, `tower` names the CLIP, `batch` counts rows, of which each brings a pair a modality;
    `lr` suits towers that start from CLIP's weights; evaluation is on `split`. Raises ConfigError for a loss or tower
    that does not exist.
    """
    for name, value, known in (("loss", loss, LOSSES), ("tower", tower, CLIP_TOWERS)):
        if value not in known:
            raise ConfigError(f"{name}={value}: expected one of {', '.join(known)}")
    names = tuple(modalities.split("/"))
    config = base_config(method="clip", dataset=dataset)
    config.data.modalities = names
    config.data.update(identities=batch, instances=1)  # another picture of a person is no fair negative
    config.data.text.tokenizer = "builtin"
    config.epochs = epochs
    config.missing.eta = (0.0,) * len(names)
    config.aug.erase = 0.0  # the caption tells what would be erased
    (patch, *image), text, dim, config.data.image_size = CLIP_TOWERS[tower]
    config.model = MODEL | dict(
        loss=loss,
        image=dict(zip(SIZES, image), patch=patch, position_std=0.0),
        text=dict(zip(SIZES, text), vocab=49408, context=77),
        dim=dim,
    )
    config.weights = dict(contrast=1.0)
    # Decay would wear away the words that no caption uses; a sentence at test may use them.
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
