#!/usr/bin/env bash
# One host, one process, all its graphics cards, or those that CUDA_VISIBLE_DEVICES names.
#
#   launch/gpu.sh --config=configs/rgbnt201.py --config.data.data_dir=RGBNT201 --workdir=runs/rgbnt201
#
# The arguments are those of jax_mmreid.main, whose exit code this is; the same command resumes a run. --dry_run prints
# what would run. PYTHON names the interpreter.
set -euo pipefail

dry_run=false arguments=()
for argument in "$@"; do
  if [[ $argument == --dry_run ]]; then dry_run=true; else arguments+=("$argument"); fi
done

# Without a card this ends with an error, where JAX alone would take the processor. Data are read on the host.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
command=("${PYTHON:-python}" -m jax_mmreid.main "${arguments[@]}")
if $dry_run; then
  printf 'JAX_PLATFORMS=%s' "$JAX_PLATFORMS"
  printf ' %q' "${command[@]}"
  echo
  exit 0
fi
if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L; then
  echo "gpu.sh: nvidia-smi finds no card; install NVIDIA's driver, or call python -m jax_mmreid.main" >&2
  exit 2
fi
exec "${command[@]}"
