"""Miss-ReID in small on drawn pedestrians: the whole path in minutes on two CPU cores, from JPEG files to the table.

python -m jax_mmreid.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m jax_mmreid.main --config=configs/quickstart.py:row=A,eta=0.5 --workdir=runs/quickstart_a
python -m jax_mmreid.main --config=configs/quickstart.py:dataset=rgbnt201 --config.data.data_dir=FOLDER --workdir=...

row, eta, modalities: as in rgbnt201.py. dataset: synthetic; rgbnt201 for a folder of your own in that layout, manifest
for pictures that a table lists. splits, incomplete: as in manifest.py.
The pictures are drawn into data/synthetic on first use: 96 training and 32 test identities, 4 cameras, 2 triples
each. Weights start at random, the text tower's too, so text features carry no meaning here; see README.md.
"""

from jax_mmreid.config import parse_arg
from jax_mmreid.recipes import miss_reid, miss_reid_weights


def get_config(arg: str = ""):
    recipe = dict(row="F", eta="0", modalities="rgb/nir/tir", splits="test", incomplete="error")
    arg = parse_arg(arg, dataset="synthetic", **recipe)
    config = miss_reid(epochs=9, text_epoch=5, **arg)
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
    config.weights = miss_reid_weights(identity=1.0, contrast=0.1)  # at this size cross-entropy does the work
    config.optim.b2 = 0.98
    config.optim.lr = dict.fromkeys(config.optim.lr, 2e-3)
    config.optim.schedule.update(warmup=1, reference=2e-3, per_step=True)
    config.eval_every = 0
    config.save_every = 3
    return config
