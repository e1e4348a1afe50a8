"""Miss-ReID on MSVR310: vehicles in RGB, near infrared and thermal infrared, seen again in another scene.

python -m jax_mmreid.main --config=configs/msvr310.py --config.data.data_dir=data/MSVR310 --workdir=runs/msvr310

row, eta, modalities, preset, tower, epochs, text_epoch, pairs, rerank, robustness: as in rgbnt201.py, with 8
structure queries instead of 16, the sentence for vehicles, and pictures that are wider than high. One batch is 16
identities x 4 triples at 128x256, as in public code for this dataset. Gallery pictures of the query's own identity and
scene are left out; the camera is not compared.

Published: Miss-ReID (NeurIPS 2025) has no numbers on this dataset; the recipe is that of RGBNT100.
Ours: not run (neither the dataset nor CLIP's weights come with this project).
"""

from jax_mmreid.config import parse_arg
from jax_mmreid.metrics import protocols
from jax_mmreid.recipes.miss_reid import MISS_REID_ARGS, miss_reid


def get_config(arg: str = ""):
    arg = parse_arg(arg, **MISS_REID_ARGS)
    config = miss_reid("msvr310", splits="query/gallery", junk=protocols.find("msvr310").junk, **arg)
    config.data.data_dir = "data/MSVR310"
    config.data.image_size = config.data.image_size[::-1]  # wider than high
    config.data.update(identities=16, instances=4)
    config.model.template_kind = "vehicle"
    config.model.structure.queries = 8
    return config
