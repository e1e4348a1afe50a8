"""The names and axis orders that PyTorch code gives to weights, and ours, both ways.

A layout is a list of entries: one of our leaves, the tensors of a state dict that it is made of, and the change of
axes between them. Reading and writing use the same list, so that what was read is written back bit by bit.

    transformers   CLIPModel of Hugging Face transformers
    openai         CLIP as OpenAI published it; of its ResNet variants the text tower alone
    torchvision    ResNet-50, its stem for both stems of ours
    tvi_lfm        the official TVI-LFM code, first stage (481 keys) or second (488)
    jax_mmreid     our own paths

Our leaves are paths such as params/image/block_0/fc/kernel; parts are image, text, pool, head, logit_scale, base.
Other tensors (counters, ImageNet's classifier) are kept as extra/<their name>, to be written back.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from jax_mmreid.weights.layout_entries import Sizes, entries

OWN = ("params/", "batch_stats/", "extra/")
PATH = r"(params|batch_stats|extra)(/[^/]+)+"

# A tensor that no other layout has.
MARKS = {
    "transformers": "vision_model.embeddings.class_embedding",
    "tvi_lfm": "base_model.visual.rgb_model.resnet_conv.0.weight",
    "openai": "visual.conv1.weight",
    "torchvision": "layer1.0.conv1.weight",
}
LAYOUTS = (*MARKS, "jax_mmreid")
BLOCKS = {  # names of the layers of the (image, text) transformers; "" where their number is fixed
    "transformers": (r"vision_model\.encoder\.layers\.(\d+)\..*", r"text_model\.encoder\.layers\.(\d+)\..*"),
    "openai": (r"visual\.transformer\.resblocks\.(\d+)\..*", r"transformer\.resblocks\.(\d+)\..*"),
    "torchvision": ("", ""),
    "tvi_lfm": ("", ""),
    "jax_mmreid": (r"params/image/block_(\d+)/.*", r"params/text/block_(\d+)/.*"),
}
VISION = ("visual.class_embedding", "vision_model.embeddings.class_embedding", "params/image/class_embedding")
EXTRAS = {
    "transformers": r"(text|vision)_model\.embeddings\.position_ids",
    "openai": r"input_resolution|context_length|vocab_size",
    "torchvision": r".*\.num_batches_tracked|fc\.(weight|bias)",
    "tvi_lfm": r".*\.num_batches_tracked",
}
# The PyTorch code of a layout has these leaves in one size only, and all others in sizes that follow from them.
FIXED = {
    "torchvision": {"params/image/rgb_stem/conv/kernel": (7, 7, 3, 64)},
    "tvi_lfm": {
        "params/image/rgb_stem/conv/kernel": (7, 7, 3, 64),
        "params/text/token_embedding": (49408, 512),
        "params/text/position_embedding": (77, 512),
        "params/text/block_0/attention/qkv/kernel": (512, 3, 8, 64),
        "params/text/projection": (512, 2048),
    },
}
OPTIONAL = r"(backup_)?classifier\.classifier\.weight"  # testing never needs the classifier of training identities


class LayoutError(ValueError):
    """Tensors that are not in a layout; the message lists what is missing and what is unknown."""


def detect(names: Iterable[str]) -> str:
    """The layout that tensors of these names are in; raises LayoutError if there is none."""
    names = set(names)
    if names and all(name.startswith(OWN) for name in names):
        return "jax_mmreid"
    for layout, mark in MARKS.items():
        if mark in names:
            return layout
    found = f"tensors named {some(names)}" if names else "no tensors"
    raise LayoutError(f"it has {found}, which is none of the layouts {', '.join(LAYOUTS)}")


def to_ours(tensors: Mapping[str, np.ndarray], layout: str, heads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Our leaves by path, in the dtypes of `tensors`.

    `heads` has the number of attention heads of "image" and "text"; without it a head is 64 wide. Raises LayoutError
    listing the tensors that are missing, unknown or of an impossible shape.
    """
    if layout == "jax_mmreid":
        wrong = {name for name in tensors if not re.fullmatch(PATH, name)}
        above = {name[:i] for name in tensors for i, letter in enumerate(name) if letter == "/"}
        _require(f"not the layout {layout!r}", unknown=wrong, mis_placed=above & tensors.keys())
        return dict(tensors)
    sizes = _sizes(tensors, layout, heads)
    listed = entries(layout, sizes)
    known = {name for entry in listed for name in entry.names}
    extras = {name for name in tensors if re.fullmatch(EXTRAS[layout], name)}
    skipped = {name for name in tensors if layout == "openai" and not sizes.image_layers and name.startswith("visual.")}
    _require(
        f"not the layout {layout!r}",
        missing={name for name in known - tensors.keys() if not re.fullmatch(OPTIONAL, name)},
        unknown=tensors.keys() - known - extras - skipped,
    )
    out = {f"extra/{name}": np.asarray(tensors[name]) for name in sorted(extras)}
    for entry in listed:
        if entry.names[0] not in tensors:
            continue
        try:
            out[entry.path] = entry.read(*(tensors[name] for name in entry.names))
        except (ValueError, IndexError) as error:  # of an array that has too few axes or an odd size
            shapes = ", ".join(f"{name} {tensors[name].shape}" for name in entry.names)
            raise LayoutError(f"not the layout {layout!r}: mis-shaped {shapes}") from error
    return out


def from_ours(leaves: Mapping[str, np.ndarray], layout: str) -> dict[str, np.ndarray]:
    """The state dict in `layout`.

    Raises LayoutError listing the leaves that are missing, that have no name in it, or whose size it cannot have.
    """
    if layout == "jax_mmreid":
        return {path: np.asarray(leaf, order="C") for path, leaf in leaves.items()}
    listed = entries(layout, _sizes(leaves, "jax_mmreid", {}))
    extras = {path for path in leaves if path.startswith("extra/")}
    fixed = {path: shape for path, shape in FIXED.get(layout, {}).items() if path in leaves}
    found = {path: leaves[path].shape for path in fixed}
    _require(
        f"cannot be written in the layout {layout!r}",
        missing={e.path for e in listed if e.path not in leaves and not re.fullmatch(OPTIONAL, e.names[0])},
        unknown=leaves.keys() - {entry.path for entry in listed} - extras,
        mis_shaped={f"{path} {found[path]} instead of {fixed[path]}" for path in fixed if found[path] != fixed[path]},
    )
    out = {}
    for entry in listed:
        if entry.path not in leaves:
            continue
        for name, tensor in zip(entry.names, entry.write(np.asarray(leaves[entry.path]))):
            if name in out and not np.array_equal(out[name], tensor):
                raise LayoutError(
                    f"cannot be written in the layout {layout!r}: it has one {name}, our two stems differ"
                )
            out[name] = np.asarray(tensor, order="C")
    means = [name for name in out if name.endswith(".running_mean")]
    out |= {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in means}
    return out | {path.removeprefix("extra/"): np.asarray(leaves[path]) for path in extras}


def _sizes(tensors: Mapping[str, np.ndarray], layout: str, heads: Mapping[str, int]) -> Sizes:
    image, text = (
        len({match[1] for name in tensors if (match := re.fullmatch(pattern, name))}) for pattern in BLOCKS[layout]
    )
    vision = any(name.endswith(VISION) for name in tensors)
    base = any(name.startswith(("backup_", "params/base/")) for name in tensors)
    # A tower has at least one layer, so that the layers of a file without any are missing.
    return Sizes(max(image, vision), max(text, 1), heads.get("image", 0), heads.get("text", 0), base)


def _require(what: str, **faults: set[str]) -> None:
    """Raises LayoutError if any of the named sets holds something."""
    found = [f"{name.replace('_', '-')} {some(names)}" for name, names in faults.items() if names]
    if found:
        raise LayoutError(f"{what}: {'; '.join(found)}")


def some(names: Iterable[str]) -> str:
    """The first six names in order, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
