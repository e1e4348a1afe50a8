"""Files from the Hugging Face Hub with a time limit, or from its cache if the Hub does not answer."""

import re
from collections.abc import Sequence
from pathlib import Path

from jax_mmreid.errors import DataError

HUB_ID = r"[\w.-]+/[\w.-]+"
SECONDS = 10.0  # how long to wait for an answer of the Hub


def is_id(text: str) -> bool:
    """Whether a string can be the name of a repository, as openai/clip-vit-base-patch16."""
    return re.fullmatch(HUB_ID, text) is not None


def download(hub_id: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The folder in the cache with the files of a repository that match `patterns`.

    Raises DataError if the repository can neither be downloaded nor found in the cache.
    """
    import huggingface_hub

    wanted = dict(revision=revision, allow_patterns=list(patterns))
    try:
        # A request with a time limit comes first, since snapshot_download has none and waits for a silent network.
        huggingface_hub.model_info(hub_id, revision=revision, timeout=SECONDS)
        return Path(huggingface_hub.snapshot_download(hub_id, **wanted))
    except Exception as error:  # those of the Hub's HTTP library, whichever it is in this version
        try:
            return Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True, **wanted))
        except (OSError, ValueError):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"no local path {hub_id}, and it cannot be downloaded from the Hub ({reason}); "
                "download the repository elsewhere and name its folder"
            ) from error
