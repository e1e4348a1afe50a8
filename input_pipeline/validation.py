"""Which arguments of `open_data` and `describe` can be; each function raises ValueError naming the config's key."""

from collections.abc import Collection, Sequence

from PIL import Image


def distinct(modalities: Sequence[str]) -> tuple[str, ...]:
    """The modalities, none of them twice."""
    if len(set(modalities)) < len(modalities):
        raise ValueError(f"data.modalities={tuple(modalities)}: a modality is named twice")
    return tuple(modalities)


def check_modalities(dataset: str, modalities: Sequence[str], known: Collection[str]) -> None:
    """Some of those that a dataset has."""
    if not modalities or not set(modalities) <= set(known):
        raise ValueError(f"data.modalities={tuple(modalities)}: {dataset} has {', '.join(known)}")


def check_sizes(*, threads: int, **sizes: int) -> None:
    """Sizes of batches and a number of threads."""
    for key, size in sizes.items():
        if size < 1:
            raise ValueError(f"data.{key}={size}: must be at least 1")
    if threads < 0:
        raise ValueError(f"data.threads={threads}: must be 0 (no reading ahead) or more")


def check_shard(shard: tuple[int, int], batch_size: int, eval_batch_size: int) -> None:
    """Process i of n, and batches that divide by n."""
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(f"data: there is no process {index} among {count}")
    if batch_size % count:
        raise ValueError(
            f"data: {batch_size} training rows (data.identities x data.instances) do not divide by {count} processes"
        )
    if eval_batch_size % count:
        raise ValueError(f"data.eval_batch_size={eval_batch_size} does not divide by {count} processes")


def check_reading(cache: str, on_bad_image: str, range16: tuple[int, int], resize: tuple[str, str]) -> None:
    """How pictures are read."""
    filters = tuple(name.lower() for name in Image.Resampling.__members__)
    if len(resize) != 2 or not set(resize) <= set(filters):
        raise ValueError(f"data.resize={tuple(resize)}: must be two of {', '.join(filters)}")
    for key, value, known in (("cache", cache, ("", "memory")), ("on_bad_image", on_bad_image, ("error", "drop"))):
        if value not in known:
            raise ValueError(f"data.{key}={value!r}: there are {' and '.join(map(repr, known))}")
    whole = len(range16) == 2 and all(isinstance(x, int) for x in range16)
    if not whole or not 0 <= range16[0] < range16[1] <= 65535:
        raise ValueError(f"data.range16={tuple(range16)}: must be two whole numbers that ascend within 0..65535")
