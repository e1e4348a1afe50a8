"""Programs that a script in launch/ calls, in place of those of a cluster or a cloud."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def install(folder: Path, **programs: str) -> None:
    """Programs of these names, each a body in bash; all write their names and arguments to a file `called`."""
    for name, body in programs.items():
        path = folder / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{folder}/called\n{body}\n')
        path.chmod(0o755)


def called(folder: Path) -> list[str]:
    """The calls so far, in their order."""
    path = folder / "called"
    return path.read_text().splitlines() if path.exists() else []


def start(script: str, *arguments: str, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """Runs launch/SCRIPT, with the programs of a folder before others."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "JAX_PLATFORMS"))}
    kept |= {"PATH": f"{folder}:{kept['PATH']}"} if folder else {}
    command = ["bash", str(ROOT / "launch" / script), *arguments]
    return subprocess.run(command, env=kept | environment, capture_output=True, text=True, timeout=60)
