"""A small recipe for one's own pictures and random weights, as config fields; it is not of a publication.

Miss-ReID's row A on a small convolutional tower (`models/conv_tower.py`), with losses that compare pictures of
different modalities. docs/own_pictures.md says what to expect.
"""

from jax_mmreid.config import ConfigDict
from jax_mmreid.recipes.miss_reid import miss_reid, miss_reid_weights

WARP = dict(zoom=0.15, stretch=0.08, turn=5.0, shift=0.08)
TONE = dict(mix=0.7, gamma=0.5, contrast=0.3, brightness=0.1, invert=0.0, blur=0.2, noise=0.02)
RATE = 2e-3


def small_miss_reid(dataset: str, *, steps: int = 0, seconds: float = 0.0, **options) -> ConfigDict:
    """`miss_reid` with these options in small, for so many steps or seconds of training."""
    config = miss_reid(dataset, **options)
    config.length.update(steps=steps, seconds=seconds)
    # 32 identities x 2 rows: most sets of pictures have more identities than pictures of each.
    config.data.update(image_size=(64, 32), identities=32, instances=2, fit_batch=True, cache="memory")
    config.aug.update(flip=0.0, pad=0, erase=0.3, fill="constant", warp=WARP, tone=TONE)
    config.model.update(
        backbone="conv",
        dim=768,
        shared_head=True,
        triplet_tau=0.1,
        part_norm=True,
        missing_fill="mean_feature",
        sie_camera=False,
    )
    config.model.text.update(width=64, layers=2, heads=4)
    config.model.structure.update(queries=8, width=128, heads=4)
    config.model.inversion.hidden = 128
    config.weights = miss_reid_weights(identity=1.0, contrast=0.1)
    config.optim.update(b2=0.99, lr=dict.fromkeys(config.optim.lr, RATE))
    config.optim.schedule.update(warmup=1, reference=RATE, floor=0.01, per_step=True)
    config.eval_every = 0
    config.save_every = 0
    return config
