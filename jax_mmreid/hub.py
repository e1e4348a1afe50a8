"""Files from the Hugging Face Hub, in bounded time, or from its cache where the Hub does not answer."""

import re
from collections.abc import Sequence
from pathlib import Path

from jax_mmreid.errors import DataError

HUB_ID = r"[\w.-]+/[\w.-]+"
SECONDS = 10.0  # how long the Hub may stay silent


def is_id(text: str) -> bool:
    """Whether a text can be the name of a repository, as in openai/clip-vit-base-patch16."""
    return re.fullmatch(HUB_ID, text) is not None


def download(hub_id: str, patterns: Sequence[str], *, revision: str | None = None) -> Path:
    """The folder in the cache with the files of a repository that match `patterns`; DataError if it cannot be had."""
    import huggingface_hub

    wanted = dict(revision=revision, allow_patterns=list(patterns))
    try:
        # A question that may time out comes first, since snapshot_download waits for a silent network without end.
        huggingface_hub.model_info(hub_id, revision=revision, timeout=SECONDS)
        return Path(huggingface_hub.snapshot_download(hub_id, **wanted))
    except Exception as error:  # those of the Hub's HTTP library, whichever it is in this version
        try:
            return Path(huggingface_hub.snapshot_download(hub_id, local_files_only=True, **wanted))
        except (OSError, ValueError):
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"no local path {hub_id}, and it cannot be had from the Hub ({reason}); "
                "download the repository elsewhere and name its folder"
            ) from error
