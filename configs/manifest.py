"""Miss-ReID in full size on your own pictures, listed in a table (input_pipeline/datasets/manifest.py).

python -m jax_mmreid.main --config=configs/manifest.py --config.data.data_dir=FOLDER --workdir=runs/mine
python -m jax_mmreid.main --config=configs/manifest.py:modalities=rgb/tir,splits=query/gallery,incomplete=skip ...

FOLDER holds manifest.csv; --config.data.options.file=NAME names another file in it, .csv or .jsonl.
row, eta, modalities, preset, tower, epochs, text_epoch, pairs, rerank: as in rgbnt201.py.
splits: test, or query/gallery where the table has these. junk: same_camera, same_view or none.
incomplete: error, or skip to leave out of a setting the test rows that have none of its pictures, and report how many.
object: person, or vehicle for pictures twice as wide as high. A small model: quickstart.py:dataset=manifest.
One batch is 8 identities x 8 rows; --config.init=DIR starts from CLIP's weights, see docs/weights.md.
"""

from jax_mmreid.config import check_choices, parse_arg
from jax_mmreid.recipes.miss_reid import MISS_REID_ARGS, miss_reid


def get_config(arg: str = ""):
    own = dict(splits="test", junk="same_camera", incomplete="error", object="person")
    arg = parse_arg(arg, **MISS_REID_ARGS, **own).to_dict()
    kind = arg.pop("object")
    check_choices(("object", kind, ("person", "vehicle")))
    config = miss_reid("manifest", **arg)
    config.data.options = dict(file="manifest.csv")
    config.model.template_kind = kind
    if kind == "vehicle":
        config.data.image_size = config.data.image_size[::-1]
        config.model.structure.queries = 8
    return config
