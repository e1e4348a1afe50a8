"""Configs: the fields that every run has, `file.py:key=value` arguments, and names that are module files.

A config file is a leaf script with `get_config(arg)`; it starts from `base_config` and sets what its experiment
needs. Whatever a method needs for itself stands in `config.model`, which becomes keyword arguments of its
`create`. `ml_collections` locks the result, so a misspelled `--config.x=` is refused with a suggestion.
"""

import difflib
import hashlib
import importlib
import json
import pkgutil
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from jax_mmreid.errors import ConfigError

# Fields that may change when a run goes on: they touch neither the weights nor what a checkpoint means.
RUNTIME_FIELDS = (
    "evals",
    "published",
    "eval_every",
    "eval_from",
    "save_every",
    "log_every",
    "watchdog",
    "profile",
    "mesh",
    "sharding",
    "fsdp",
    "data.data_dir",
    "data.source",
    "data.threads",
    "data.eval_batch_size",
    "data.cache",
    "data.options.query_captions",  # captions of queries, which training does not read
    "data.on_bad_image",  # what stopped at a picture may go on without it: up to there the batches are the same
    "model.remat",
    "model.scan",
    "model.microbatches",
)

# The range of every number outside data and missing (input_pipeline), evals (evaluators) and model (methods).
RANGES = {
    r"seed": "[0, 4294967295]",
    r"epochs": "[1, inf)",
    r"length\.(steps|seconds)": "[0, inf)",
    r"eval_every|eval_from|save_every|log_every|profile": "[0, inf)",
    r"aug(\..*)?\.(flip|erase|grey)": "[0, 1]",
    r"aug(\..*)?\.pad": "[0, inf)",
    r"aug(\..*)?\.(warp\.shift|tone\.(mix|invert|blur|noise|brightness))": "[0, 1]",
    r"aug(\..*)?\.(warp\.(zoom|stretch)|tone\.(gamma|contrast))": "[0, 3]",
    r"aug(\..*)?\.warp\.turn": "[0, 180]",
    r"aug\.mean": "[0, 1]",
    r"aug\.std": "(0, inf)",
    r"weights\..*": "[0, inf)",
    r"optim\.(lr|decay)\..*|optim\.weight_decay": "[0, inf)",
    r"optim\.b[12]": "[0, 1)",
    r"optim\.eps": "(0, inf)",
    r"optim\.schedule\.(warmup|milestones)": "[0, inf)",
    r"optim\.schedule\.reference": "(0, inf)",
    r"optim\.schedule\.(floor|warmup_factor|gamma)": "[0, 1]",
    r"watchdog\.multiple": "[0, inf)",
    r"watchdog\.(least|other)": "(0, inf)",
    r"mesh\.data": "[-1, inf)",
    r"mesh\.model": "[1, inf)",
    r"fsdp": "[0, inf)",
}
CHECKED_ELSEWHERE = ("data", "missing", "evals", "published", "pretrain", "phases", "sharding")

UNITS = {"s": 1, "m": 60, "h": 3600}
BOOLS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def base_config(*, method: str, dataset: str) -> ConfigDict:
    """The fields every config has; `method` and `dataset` are module names in `methods/` and `datasets/`."""
    return ConfigDict(
        dict(
            method=method,
            seed=1111,
            epochs=50,
            length=dict(steps=0, seconds=0.0),  # one of them in place of epochs, see run_length.py
            data=_data_fields(dataset),
            # Which training pictures are hidden: a rate per modality in the order of data.modalities.
            missing=dict(eta=(0.0, 0.0, 0.0), seed=0, mode="bernoulli", all_missing="repair", mask_file=""),
            aug=dict(flip=0.5, pad=10, erase=0.5, sync="none", mean=0.5, std=0.5),
            # weights to start from: a folder of tools.convert, the workdir of a run or a .safetensors file, with
            # ":text" or ":image+text" at its end only these parts; several joined by ","
            init="",
            # {"config", "workdir"} of another run: what is trained before this one, unless it is there already
            pretrain={},
            requires_init=(),  # parts of the method that a run cannot start with at random
            model={},
            weights={},  # a factor for every loss term that the method returns
            # (start epoch counted from 0, method options, trainable groups), in the order of their start
            phases=((0, {}, ()),),
            optim=dict(
                rules=(),  # ordered (regex, group); first match wins; the group "frozen" is never trained
                lr={},  # base learning rate of each group
                b1=0.9,
                b2=0.999,
                eps=1e-8,
                weight_decay=1e-4,
                decay={},  # {group: weight decay} where it differs
                schedule={},  # kind: cosine or multistep; the keyword arguments of that function of optim.py
            ),
            mesh=dict(data=-1, model=1),  # -1: all devices
            sharding=(),  # ordered (regex, axis names) over params, memory and moments; default: replicated
            fsdp=0,  # parameters of so many numbers, and their moments, are split over "data" too; 0: none
            evals=ConfigDict(sort_keys=False),  # results and tables keep its order
            published={},  # {row of evals: {metric: fraction}}, which report.compare sets beside what runs reach
            best="full/mAP",  # the result that picks the checkpoint kept as best
            eval_every=1,  # epochs
            eval_from=0,  # epochs done before the first evaluation
            save_every=1,  # epochs
            log_every=10,  # steps
            profile=(0, 0),  # steps start+1..stop of which a trace is written, see profiling.py
            # seconds after which a process of several gives up: see watchdog.py
            watchdog=dict(multiple=30.0, least=120.0, other=3600.0),
        )
    )


def _data_fields(dataset: str) -> dict:
    """Which data, and how they are read; the fields of `input_pipeline.DataConfig`."""
    return dict(
        name=dataset,
        data_dir="",
        source="files",  # or "tfds": what input_pipeline.tfds_builder packed below data_dir
        modalities=("rgb", "nir", "tir"),
        image_size=(256, 128),  # H, W
        identities=8,  # P of the PxK batch
        instances=8,  # K of the PxK batch
        fit_batch=False,  # True: of fewer than P training identities a batch takes all, with more instances
        pairs=False,  # True: a training row is a picture of each modality, drawn apart, of one identity
        eval_batch_size=128,  # a tower sees it in eight parts, in turn or each on a device
        threads=2,
        cache="",  # "memory" keeps decoded pictures
        on_bad_image="error",  # "drop" trains without a few unreadable pictures
        range16=(0, 65535),  # what becomes black and white in 16-bit pictures
        resize=("bicubic", "bilinear"),  # Pillow's, in training and in evaluation
        allow_missing_files=False,
        options={},  # the dataset module's own keyword arguments
        # Captions as token ids. tokenizer: "" for none, else see input_pipeline/text/tokenizer.py;
        # vocab_size: of "train"; rephrased: how often a training caption is taken in its other words.
        text=dict(tokenizer="", context=77, vocab_size=4096, rephrased=0.0),
    )


def parse_arg(arg: str, **defaults) -> ConfigDict:
    """Reads `key=value,key=value` over typed defaults; raises ConfigError for an unknown key or a bad value."""
    values = dict(defaults)
    for item in filter(None, (arg or "").split(",")):
        key, sep, text = item.partition("=")
        if key not in defaults or not sep:
            hint = difflib.get_close_matches(key, defaults, n=1)
            raise ConfigError(
                f"config argument {item!r}: expected key=value with key one of {', '.join(sorted(defaults))}"
                + (f"; did you mean {hint[0]!r}?" if hint and hint[0] != key else "")
            )
        kind = type(defaults[key])
        try:
            values[key] = BOOLS[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ConfigError(f"config argument {item!r}: {text!r} is not a {kind.__name__}") from None
    return ConfigDict(values)


def take_arg(arg: str, **default: str) -> tuple[str, str]:
    """Takes one `key=value` out of a config argument: its value (or the default) and the rest of the argument."""
    ((key, value),) = default.items()
    rest = []
    for item in (arg or "").split(","):
        name, _, text = item.partition("=")
        if name == key:
            value = text
        else:
            rest.append(item)
    return value, ",".join(rest)


def parse_eta(text: str, count: int = 3) -> tuple[float, ...]:
    """Missing rates from `0.1` (all modalities) or `0.1/0.3/0.5`; raises ConfigError outside [0, 1]."""
    try:
        rates = tuple(float(x) for x in text.split("/"))
    except ValueError:
        raise ConfigError(
            f"eta={text}: expected one rate or {count} of them joined by '/', as in 0.1/0.3/0.5"
        ) from None
    rates = rates * count if len(rates) == 1 else rates
    if len(rates) != count:
        raise ConfigError(f"eta={text}: {len(rates)} rates for {count} modalities")
    if not all(0.0 <= rate <= 1.0 for rate in rates):
        raise ConfigError(f"eta={text}: every rate must lie in [0, 1]")
    return rates


def parse_seconds(text: str) -> float:
    """Seconds from `90s`, `10m` or `1.5h`, 0 from an empty text; raises ConfigError for anything else."""
    number, unit = text[:-1], text[-1:]
    try:
        seconds = float(number) * UNITS[unit] if text else 0.0
    except (KeyError, ValueError):
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ConfigError(f"budget={text}: expected a number and s, m or h, as in 90s, 10m or 1.5h")
    return seconds


def check_choices(*fields: tuple[str, object, Collection[str]], where: str = "") -> None:
    """Raises ConfigError for a (name, value, known values) whose value is not known; `where` goes before the name."""
    for name, value, known in fields:
        if value not in known:
            raise ConfigError(f"{where}{name}={value}: expected one of {', '.join(known)}")


def find(package: str, name: str) -> ModuleType:
    """Imports module `name` of `package`; raises ConfigError listing the names that exist if there is none."""
    names = sorted(m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__))
    if name not in names:
        raise ConfigError(f"no {package.rpartition('.')[2]} named {name!r}; there are: {', '.join(names)}")
    return importlib.import_module(f"{package}.{name}")


def to_json(config: ConfigDict) -> dict:
    """The config as plain JSON values, tuples as lists."""
    return json.loads(json.dumps(config.to_dict(), sort_keys=True))


def from_json(saved: dict) -> ConfigDict:
    """The config that `to_json` wrote; a list is a tuple again."""

    def value(x: object) -> object:
        if isinstance(x, dict):
            return {key: value(inner) for key, inner in x.items()}
        return tuple(map(value, x)) if isinstance(x, list) else x

    return ConfigDict(value(saved))


def config_hash(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that name the config up to the fields in RUNTIME_FIELDS."""
    fixed = {k: v for k, v in flat(to_json(config)).items() if not is_runtime(k)}
    same = json.loads(json.dumps(fixed), parse_int=float)  # 0 and 0.0 are one rate, as `difference` has it
    return hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:12]


def evals_hash(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that name the rows of evaluation, which `config_hash` leaves out."""
    return hashlib.sha256(json.dumps(to_json(config)["evals"], sort_keys=True).encode()).hexdigest()[:12]


def difference(saved: dict, config: ConfigDict) -> list[str]:
    """`field (old -> new)` where a saved config.json and this config differ, RUNTIME_FIELDS aside."""
    old, new = flat(saved), flat(to_json(config))
    return [
        f"{key} ({old.get(key)} -> {new.get(key)})"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not is_runtime(key)
    ]


def require_same(saved: Path, config: ConfigDict) -> None:
    """Raises ConfigError naming what changed if a workdir's config.json is of another run than `config`."""
    changed = difference(json.loads(saved.read_text()), config)
    if changed:
        raise ConfigError(
            f"workdir {saved.parent} holds a run of another config: {'; '.join(changed[:3])}; choose another --workdir"
        )


def numeric_fields(config: ConfigDict) -> dict[str, object]:
    """The dotted fields whose numbers RANGES and the method's own RANGES must cover, with their values."""
    fields = {key: value for key, value in config.to_dict().items() if key not in CHECKED_ELSEWHERE}
    return {key: value for key, value in flat(fields).items() if key != "optim.rules"}


def flat(tree: dict, prefix: str = "") -> dict:
    """Nested dicts as one dict with dotted keys."""
    out = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return out


def is_runtime(key: str) -> bool:
    """Whether a dotted field is one of RUNTIME_FIELDS or lies below one, in the config or in that of `pretrain`."""
    key = key.removeprefix("pretrain.config.")
    return any(key == name or key.startswith(name + ".") for name in RUNTIME_FIELDS)
