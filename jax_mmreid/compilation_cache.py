"""Where compiled programs are kept, so that a run that starts again does not compile them again."""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import jax

VARIABLE = "JAX_COMPILATION_CACHE_DIR"  # JAX's own; it may name a folder or a gs:// bucket


def enable() -> None:
    """Keeps compiled programs in `default_folder`, unless JAX's variable names another place; "" there is none."""
    if VARIABLE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(default_folder()))


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """~/.cache/jax_mmreid/compiled/PROCESSOR, below XDG_CACHE_HOME where this is set.

    JAX does not see that a program for a CPU was compiled for another one, which may lack some of its instructions:
    machines that share a home and have different processors get folders of their own.
    """
    above = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(above) / "jax_mmreid" / "compiled" / _processor()


def _processor() -> str:
    """Eight hexadecimal digits that name the kind of this machine's processor."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.is_file() else [platform.processor()]
    kinds = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    kind = "\n".join([platform.system(), platform.machine(), *(kinds or lines[:1])])
    return hashlib.sha256(kind.encode()).hexdigest()[:8]
