"""Contrastive image-text training: CLIP's towers on your own pictures and captions, for another sensor or subject.

python -m jax_mmreid.main --config=configs/clip.py --config.init=weights/clip_b16 --config.data.data_dir=FOLDER --workdir=runs/clip
python -m jax_mmreid.main --config=configs/rgbnt201.py --config.init=runs/clip --config.data.data_dir=RGBNT201 --workdir=runs/rgbnt201

dataset: manifest, a table with columns caption_rgb, ...; or rgbnt201 with captions in Text/Blip_RGB and Text/Blip_IR.
loss: info_nce or sigmoid. modalities: as in rgbnt201.py. tower: vit_b16, vit_b32, vit_l14. batch: rows of different
identities, each with one pair per modality. lr: of all parameters; 1e-5 suits CLIP's weights, 5e-4 random weights.
split: of the evaluation; test, or gallery where a table has query and gallery.
"""  # noqa: E501

from jax_mmreid.config import parse_arg
from jax_mmreid.recipes.clip import clip


def get_config(arg: str = ""):
    sizes = dict(tower="vit_b16", epochs=30, batch=128, lr=1e-5)
    arg = parse_arg(arg, dataset="manifest", loss="info_nce", modalities="rgb/nir/tir", split="test", **sizes)
    config = clip(**arg)
    config.data.data_dir = f"data/{arg.dataset}"
    if arg.dataset == "rgbnt201":
        config.data.options = dict(captioner="Blip")
    return config
