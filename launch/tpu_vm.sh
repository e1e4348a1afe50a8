#!/usr/bin/env bash
# A Cloud TPU of one or more hosts, up to v6e, as a queued resource: made, watched, made again if it is preempted, and
# deleted when the run is over.
#
#   launch/tpu_vm.sh --name=reid --zone=us-east5-b --type=v6e-16 --image=IMAGE --workdir=gs://BUCKET/runs/rgbnt201 -- \
#     --config=configs/rgbnt201.py --config.data.source=tfds --config.data.data_dir=gs://BUCKET/packed
#
# What follows "--" goes to jax_mmreid.main, with the workdir. IMAGE is one of launch/Dockerfile with --build-arg
# JAX="jax[tpu]", in a registry that the hosts may read. The start-up script of each host starts the run, which resumes,
# and starts it again if it stops early. This script may be stopped and started again at any time; its exit code is that
# of the run. Other arguments:
#
#   --runtime=v2-alpha-tpuv6e   the system of the hosts     --on_demand   instead of spot
#   --poll=60                   seconds between two looks   --dry_run     prints what would be done
#   --logs                      the last lines of all hosts --delete      stops the run and deletes the TPU
set -euo pipefail

name="" zone="" type="" image="" workdir="" runtime=v2-alpha-tpuv6e spot=(--spot) poll=60 dry_run=false action=run
while (($#)) && [[ $1 != -- ]]; do
  case $1 in
    --name=* | --zone=* | --type=* | --image=* | --workdir=* | --runtime=* | --poll=*)
      key=${1%%=*}
      printf -v "${key#--}" %s "${1#*=}"
      ;;
    --on_demand) spot=() ;;
    --dry_run) dry_run=true ;;
    --logs | --delete) action=${1#--} ;;
    *) echo "tpu_vm.sh: unknown argument $1" >&2 && exit 2 ;;
  esac
  shift
done
arguments=("${@:2}")
needed=(name zone)
[[ $action == run ]] && needed+=(type image workdir)
for key in "${needed[@]}"; do
  [[ ${!key} ]] || { echo "tpu_vm.sh: --$key is required" >&2 && exit 2; }
done
if [[ $action == run && ${#arguments[@]} == 0 ]]; then
  echo 'tpu_vm.sh: nothing follows "--"; expected the arguments of jax_mmreid.main' >&2
  exit 2
elif [[ $action == run && $workdir != gs://* ]]; then
  echo "tpu_vm.sh: --workdir=$workdir is not in a bucket, which all hosts see; expected gs://..." >&2
  exit 2
fi
where=(--zone="$zone" --quiet)
exit_code=$workdir/launch/exit_code # written by the first host when the run is over

run() { # or, in a dry run, prints
  if $dry_run; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_all_hosts() { run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$1"; }

delete() { run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force; }

startup_script() {
  cat <<SCRIPT
#!/usr/bin/env bash
set -euo pipefail
export HOME=/root
image=$(printf %q "$image") workdir=$(printf %q "$workdir")
set --$(printf ' %q' "${arguments[@]}")
gcloud auth configure-docker "\${image%%/*}" --quiet
failures=0
while true; do
  docker rm --force run >/dev/null 2>&1 || true # of before a crash of the host
  code=0
  docker run --rm --init --name=run --privileged --network=host --stop-timeout=300 \\
    --env=JAX_COMPILATION_CACHE_DIR="\$workdir/launch/compiled" "\$image" \\
    --workdir="\$workdir" "\$@" || code=\$?
  echo "the run ended with \$code"
  case \$code in
    75) ;; # stopped and saved
    0 | 2 | 3 | 4) break ;; # done, bad config, bad data, not finite
    *) ((++failures < 5)) || break ;; # as when another host is lost
  esac
done
attributes=http://metadata.google.internal/computeMetadata/v1/instance/attributes
if [[ \$(curl -sH 'Metadata-Flavor: Google' "\$attributes/agent-worker-number") == 0 ]]; then
  echo "\$code" | gcloud storage cp - $(printf %q "$exit_code")
fi
SCRIPT
}

create() {
  run gcloud compute tpus queued-resources create "$name" --node-id="$name" "${where[@]}" --accelerator-type="$type" \
    --runtime-version="$runtime" "${spot[@]}" --metadata-from-file=startup-script="$startup"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null || true
}

if [[ $action == logs ]]; then
  on_all_hosts 'sudo journalctl --unit=google-startup-scripts --lines=20 --no-pager'
  exit
elif [[ $action == delete ]]; then
  on_all_hosts 'sudo docker stop run' || true # saves
  delete
  exit
fi

startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
startup_script >"$startup"
if $dry_run; then
  cat "$startup"
  create
  exit
fi
found=$(state)
if [[ ! $found ]]; then
  gcloud storage rm "$exit_code" 2>/dev/null || true # of an earlier TPU
fi
while true; do
  echo "$(date +%T) $name: ${found:-none}"
  case $found in
    "") create ;;
    SUSPENDED | FAILED) delete ;; # preempted, or not to be had; another one is made at the next look
    ACTIVE)
      code=$(gcloud storage cat "$exit_code" 2>/dev/null || true)
      if [[ $code ]]; then
        delete
        exit "$code"
      fi
      ;;
  esac
  sleep "$poll"
  found=$(state)
done
