"""A small CLIP as transformers writes one, for tests of weight files."""

import json

from safetensors.numpy import save_file
from test_layouts import DIM, HEADS, WIDTH, transformers_clip

CONFIG = dict(
    model_type="clip",
    projection_dim=DIM,
    vision_config=dict(num_attention_heads=HEADS["image"], hidden_size=WIDTH),
    text_config=dict(num_attention_heads=HEADS["text"], hidden_size=WIDTH),
)


def write_clip(folder, tensors=None, **config):
    """The folder with its weights, by default those of `transformers_clip`, and its config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(transformers_clip() if tensors is None else tensors, folder / "model.safetensors")
    return folder
