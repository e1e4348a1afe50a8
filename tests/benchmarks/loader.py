"""How fast pictures arrive: this loader, from files and from its cache, next to a PyTorch DataLoader on the same files.

python tests/benchmarks/loader.py [--workers=2] [--rounds=5] [--steps=20] [--json]

The files have the layout and the picture size of RGBNT201; the batches are the same for all, 8 x 8 triples. Both decode
and resize. The DataLoader, as in common training scripts, then flips, pads and crops, normalises and erases on the
host and returns float32; this one returns uint8 and leaves that to the device, as does "pytorch_uint8", a DataLoader
that stops there too. The loaders take turns, so that other load on the machine affects all of them; the median of the
rounds counts. Needs PyTorch.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from input_pipeline import DataConfig, MissingConfig, open_data
from input_pipeline.datasets import rgbnt201

FOLDERS = {"rgb": "RGB", "nir": "NI", "tir": "TI"}
MEAN = STD = 0.5
PAD = 10


class Sizes(NamedTuple):
    """Of the dataset, its batches and what is timed."""

    image: tuple[int, int] = (256, 128)  # H, W
    identities: int = 24
    triples: int = 8  # of an identity
    p: int = 8  # identities of a batch
    k: int = 8  # triples of each
    workers: int = 2  # processes of the DataLoader, threads of this loader
    steps: int = 20  # batches in a round
    rounds: int = 5

    @property
    def skipped(self) -> int:
        """More batches than either loader reads ahead."""
        return 2 * self.workers + 4


def write_files(root: Path, sizes: Sizes) -> None:
    """Pictures with edges and grain, whose files are about as large as those of photographs of this size."""
    rng = np.random.default_rng(0)
    height, width = sizes.image
    for split, identities in (("train_171", sizes.identities), ("test", 2)):
        for folder in FOLDERS.values():
            (root / split / folder).mkdir(parents=True)
            for pid in range(identities):
                for i in range(sizes.triples):
                    coarse = Image.fromarray(rng.integers(0, 256, (16, 8, 3)).astype(np.uint8))
                    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32)
                    pixels = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
                    name = f"{pid:06d}_cam{i % 4 + 1}_0_{i:02d}.jpg"
                    Image.fromarray(pixels).save(root / split / folder / name, quality=90)


class Triples:
    """Triples of augmented float32 pictures [3,H,W], as a training script on PyTorch reads them, or of uint8 ones."""

    def __init__(self, records: Any, image: tuple[int, int], augmented: bool):
        self.records, self.image, self.augmented = records, image, augmented

    def __len__(self) -> int:
        return len(self.records.pid)

    def __getitem__(self, row: int) -> tuple:
        pictures = {name: self.picture(self.records.path(name, row)) for name in self.records.paths}
        return pictures, int(self.records.pid[row]), int(self.records.camid[row])

    def picture(self, path: str) -> Any:
        import torch

        height, width = self.image
        with Image.open(path) as image:
            image = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        if not self.augmented:
            return torch.from_numpy(np.array(image))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        x = torch.nn.functional.pad(x, (PAD,) * 4)
        top, left = torch.randint(0, 2 * PAD + 1, (2,)).tolist()
        x = (x[:, top : top + height, left : left + width] - MEAN) / STD
        return erase(x) if torch.rand(()) < 0.5 else x


def erase(x: Any) -> Any:
    """Noise in a random box of a picture [3,H,W]."""
    import torch

    _, H, W = x.shape
    for _ in range(10):
        area = H * W * torch.empty(()).uniform_(0.02, 1 / 3)
        aspect = torch.exp(torch.empty(()).uniform_(-1.2, 1.2))
        height, width = int((area * aspect).sqrt()), int((area / aspect).sqrt())
        if height < H and width < W:
            top = int(torch.randint(0, H - height + 1, ()))
            left = int(torch.randint(0, W - width + 1, ()))
            x = x.clone()
            x[:, top : top + height, left : left + width] = torch.randn(3, height, width)
            break
    return x


def opened(root: Path, sizes: Sizes, cache: str) -> Any:
    config = DataConfig(
        "rgbnt201",
        str(root),
        image_size=sizes.image,
        identities=sizes.p,
        instances=sizes.k,
        threads=sizes.workers,
        cache=cache,
    )
    return open_data(config, missing=MissingConfig(), seed=0)


def ours(root: Path, sizes: Sizes) -> dict[str, Callable[[int], Iterator]]:
    """{name: number of batches -> the batches} of this loader, from files and from its cache."""
    files, cached = opened(root, sizes, ""), opened(root, sizes, "memory")
    for _ in cached.train(0, 4 * cached.spec.steps_per_epoch):  # fills the cache
        pass
    return {"files": lambda n: files.train(0, n), "cache": lambda n: cached.train(0, n)}


def pytorch(root: Path, sizes: Sizes) -> dict[str, Callable[[int], Iterator]]:
    """The same of a DataLoader that reads the rows of this loader's batches."""
    import torch

    records = rgbnt201.load(str(root), modalities=tuple(FOLDERS), allow_missing_files=False)["train"]
    batches = opened(root, sizes, "").train(0, sizes.steps + sizes.skipped)
    rows = [batch["index"].tolist() for batch in batches]

    def reference(count: int, augmented: bool) -> Iterator:
        triples = Triples(records, sizes.image, augmented)
        return iter(torch.utils.data.DataLoader(triples, batch_sampler=rows[:count], num_workers=sizes.workers))

    return {
        "pytorch": functools.partial(reference, augmented=True),
        "pytorch_uint8": functools.partial(reference, augmented=False),
    }


def images_per_second(batches: Iterator, sizes: Sizes) -> float:
    """Reads what is left after the skipped batches, which are the start-up and what was read ahead meanwhile."""
    for _ in range(sizes.skipped):
        next(batches)
    begin = time.perf_counter()
    count = sum(1 for _ in batches)
    return count * sizes.p * sizes.k * len(FOLDERS) / (time.perf_counter() - begin)


def measure(root: Path, sizes: Sizes, sources: tuple[Callable, ...]) -> dict:
    """Times the loaders of `sources`, such as `ours`, on files that are written to `root`; returns what is printed."""
    write_files(root, sizes)
    bytes_per_file = statistics.mean(path.stat().st_size for path in root.rglob("*.jpg"))
    loaders = {name: loader for source in sources for name, loader in source(root, sizes).items()}
    rates = {name: [] for name in loaders}
    for _ in range(sizes.rounds):
        for name, batches in loaders.items():
            rates[name].append(images_per_second(batches(sizes.steps + sizes.skipped), sizes))
    result = {"workers": sizes.workers, "bytes_per_file": round(bytes_per_file)}
    result |= {f"{name}_images_per_second": round(statistics.median(x)) for name, x in rates.items()}
    for name in ("files", "cache") if "pytorch" in rates else ():
        ratios = [one / other for one, other in zip(rates[name], rates["pytorch"])]
        result[f"{name}_ratio"] = round(statistics.median(ratios), 2)
    return result


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--workers", type=int, default=Sizes().workers, help="processes or threads that read")
    parser.add_argument("--rounds", type=int, default=Sizes().rounds, help="how often each loader is timed")
    parser.add_argument("--steps", type=int, default=Sizes().steps, help="batches in a round")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("torch") is None:
        sys.exit("loader: needs PyTorch; pip install torch")
    sizes = Sizes(workers=arguments.workers, rounds=arguments.rounds, steps=arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder) / "RGBNT201", sizes, (pytorch, ours))
    print(json.dumps(result) if arguments.json else "  ".join(f"{key} {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
