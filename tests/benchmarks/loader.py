"""How fast pictures arrive: this loader, from files and from its cache, next to a PyTorch DataLoader on the same files.

python tests/benchmarks/loader.py [--workers=2] [--rounds=5] [--steps=20] [--json]

The files have the layout and the picture size of RGBNT201; the batches are the same for all, 8 x 8 triples. Both decode
and resize. The DataLoader, as in the field's code, then flips, pads and crops, normalises and erases on the host and
hands out float32; this one hands out uint8 and leaves that to the device, as does "pytorch_uint8", a DataLoader that
stops there too. The loaders take turns, so that what else the machine does hits all of them; the median of the rounds
counts. Needs PyTorch.
"""

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from absl import app, flags
from PIL import Image

from input_pipeline import open_data
from input_pipeline.datasets import rgbnt201

WORKERS = flags.DEFINE_integer("workers", 2, "Processes of the DataLoader, threads of this loader.")
ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each loader is timed.")
STEPS = flags.DEFINE_integer("steps", 20, "Batches in a round.")
JSON = flags.DEFINE_bool("json", False, "Print JSON.")

SIZE = (256, 128)  # H, W
P, K = 8, 8
IDENTITIES, INSTANCES = 24, 8
FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
NO_MASKS = dict(eta=(0.0, 0.0, 0.0), seed=0, mode="bernoulli", all_missing="repair", mask_file="")
MEAN = STD = 0.5
PAD = 10


def write_files(root: Path) -> None:
    """Pictures with edges and grain, of about the bytes that photographs of this size have."""
    rng = np.random.default_rng(0)
    for split, identities in (("train_171", IDENTITIES), ("test", 2)):
        for folder in FOLDERS.values():
            (root / split / folder).mkdir(parents=True)
            for pid in range(identities):
                for i in range(INSTANCES):
                    coarse = Image.fromarray(rng.integers(0, 256, (16, 8, 3)).astype(np.uint8))
                    smooth = np.asarray(coarse.resize(SIZE[::-1], Image.Resampling.BICUBIC), np.float32)
                    pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
                    name = f"{pid:06d}_cam{i % 4 + 1}_0_{i:02d}.jpg"
                    Image.fromarray(pixels).save(root / split / folder / name, quality=90)


class Triples(torch.utils.data.Dataset):
    """Triples of augmented float32 pictures [3,H,W], as a training script on PyTorch reads them, or of uint8 ones."""

    def __init__(self, records, augmented: bool):
        self.records, self.augmented = records, augmented

    def __getitem__(self, row: int) -> tuple:
        pictures = {name: self.picture(self.records.path(name, row)) for name in self.records.paths}
        return pictures, int(self.records.pid[row]), int(self.records.camid[row])

    def picture(self, path: str) -> torch.Tensor:
        with Image.open(path) as image:
            image = image.convert("RGB").resize(SIZE[::-1], Image.Resampling.BICUBIC)
        if not self.augmented:
            return torch.from_numpy(np.array(image))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        x = torch.nn.functional.pad(x, (PAD,) * 4)
        top, left = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        x = (x[:, top : top + SIZE[0], left : left + SIZE[1]] - MEAN) / STD
        return erase(x) if torch.rand(()) < 0.5 else x


def erase(x: torch.Tensor) -> torch.Tensor:
    """Noise in a random box."""
    for _ in range(10):
        area = SIZE[0] * SIZE[1] * torch.empty(()).uniform_(0.02, 1 / 3)
        aspect = torch.exp(torch.empty(()).uniform_(-1.2, 1.2))
        height, width = int((area * aspect).sqrt()), int((area / aspect).sqrt())
        if height < SIZE[0] and width < SIZE[1]:
            top = int(torch.randint(0, SIZE[0] - height + 1, ()))
            left = int(torch.randint(0, SIZE[1] - width + 1, ()))
            x = x.clone()
            x[:, top : top + height, left : left + width] = torch.randn(3, height, width)
            break
    return x


def opened(root: Path, cache: str):
    return open_data(
        name="rgbnt201",
        data_dir=str(root),
        modalities=tuple(FOLDERS),
        image_size=SIZE,
        identities=P,
        instances=K,
        eval_batch_size=128,
        threads=WORKERS.value,
        allow_missing_files=False,
        missing=NO_MASKS,
        seed=0,
        cache=cache,
    )


def images_per_second(batches: Iterator, skip: int) -> float:
    """Reads what is left after `skip` batches; those are the start-up, and what was read ahead meanwhile."""
    for _ in range(skip):
        next(batches)
    begin = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * P * K * len(FOLDERS) / (time.perf_counter() - begin)


def loaders(root: Path) -> dict[str, Callable[[int], Iterator]]:
    """{name: number of batches -> the batches}."""
    files, cached = opened(root, ""), opened(root, "memory")
    for _ in cached.train(0, 4 * cached.steps_per_epoch):  # fills the cache
        pass
    records = rgbnt201.load(str(root), modalities=tuple(FOLDERS), allow_missing_files=False)["train"]
    rows = [batch["index"].tolist() for batch in files.train(0, STEPS.value + skipped())]

    def reference(count: int, augmented: bool) -> Iterator:
        triples = Triples(records, augmented)
        return iter(torch.utils.data.DataLoader(triples, batch_sampler=rows[:count], num_workers=WORKERS.value))

    return {
        "pytorch": functools.partial(reference, augmented=True),
        "pytorch_uint8": functools.partial(reference, augmented=False),
        "files": lambda n: files.train(0, n),
        "cache": lambda n: cached.train(0, n),
    }


def skipped() -> int:
    """More batches than either loader reads ahead."""
    return 2 * WORKERS.value + 4


def main(_):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "RGBNT201"
        write_files(root)
        sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
        each = loaders(root)
        rates = {name: [] for name in each}
        for _ in range(ROUNDS.value):
            for name, batches in each.items():
                rates[name].append(images_per_second(batches(STEPS.value + skipped()), skipped()))
    result = {"workers": WORKERS.value, "bytes_per_file": round(statistics.mean(sizes))}
    result |= {f"{name}_images_per_second": round(statistics.median(x)) for name, x in rates.items()}
    for name in ("files", "cache"):
        ratios = [ours / theirs for ours, theirs in zip(rates[name], rates["pytorch"])]
        result[f"{name}_ratio"] = round(statistics.median(ratios), 2)
    print(json.dumps(result) if JSON.value else "  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    app.run(main)
