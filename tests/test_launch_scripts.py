"""Law: the scripts and files in launch/ are well formed, and do to a cluster what they say."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_program import ROOT, called, install, start

from jax_mmreid.config_file import load_config
from jax_mmreid.errors import EXIT_CODES, PreemptedError

SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
TPU = ("--name=a", "--zone=z-1", "--type=v6e-16", "--image=r.dev/p/i:1", "--workdir=gs://b/w", "--poll=0")
SAVED = EXIT_CODES[PreemptedError]
SHELLCHECK = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def check(path):
    """Fails with what bash or shellcheck has to say of a script."""
    for command in (["bash", "-n"], [SHELLCHECK]):
        done = subprocess.run([*command, str(path)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_correct_bash_and_stop_at_errors(path):
    check(path)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and os.access(path, os.X_OK)
    code = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert code[0] == "set -euo pipefail"
    assert len(text.splitlines()) < 150 and max(map(len, text.splitlines())) <= 120


def test_one_host_runs_one_process_on_its_cards(tmp_path):
    given = ("--config=configs/a.py", "--config.missing.eta=(0, 1)", "--workdir=runs/a b")
    dry = start("gpu.sh", *given, "--dry_run", PYTHON="python3")
    assert shlex.split(dry.stdout) == ["JAX_PLATFORMS=cuda,cpu", "python3", "-m", "jax_mmreid.main", *given]
    install(tmp_path, **{"nvidia-smi": "true", "python3": f'echo "$JAX_PLATFORMS"; exit {SAVED}'})
    done = start("gpu.sh", *given, folder=tmp_path, PYTHON="python3")
    assert done.returncode == SAVED and done.stdout == "cuda,cpu\n"
    assert called(tmp_path) == ["nvidia-smi -L", f"python3 -m jax_mmreid.main {' '.join(given)}"]
    install(tmp_path, **{"nvidia-smi": "exit 9"})
    done = start("gpu.sh", *given, folder=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("gpu.sh: nvidia-smi finds no card; ")


@pytest.mark.parametrize(("tasks", "cards", "ids"), [("1", "3", "0,1,2"), ("3", "3", ""), ("1", "", "")])
def test_slurm_gives_a_task_per_node_all_cards_and_tasks_per_card_one(tasks, cards, ids):
    environment = {"SLURM_NTASKS_PER_NODE": tasks} | ({"SLURM_GPUS_ON_NODE": cards} if cards else {})
    first, last = start("slurm.sbatch", "--dry_run", "--config=a", **environment).stdout.splitlines()
    words = shlex.split(first)
    assert words[0] == f"JAX_LOCAL_DEVICE_IDS={ids}" and words[1] == "srun"
    assert words[-4:] == ["python", "-m", "jax_mmreid.main", "--config=a"]
    assert last == f"on exit code {SAVED}: scontrol requeue JOB"


@pytest.mark.parametrize("code", [0, 1, 2, SAVED])
def test_slurm_requeues_what_was_stopped_and_saved_and_nothing_else(tmp_path, code):
    install(tmp_path, srun=f'echo "$JAX_LOCAL_DEVICE_IDS"; exit {code}', scontrol="true")
    environment = {"SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "2", "SLURM_NTASKS_PER_NODE": "1"}
    done = start("slurm.sbatch", "--config=a", folder=tmp_path, **environment)
    assert (done.returncode, done.stdout) == (code, "0,1\n")
    assert called(tmp_path)[1:] == ["scontrol requeue 17"] * (code == SAVED)


def test_slurm_asks_for_a_signal_before_the_end_and_for_a_new_start():
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    options = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.M)
    # Options after the first command are not read.
    assert text.index("set -euo") > text.rindex("#SBATCH") and dict(options).keys() >= {"requeue", "nodes"}
    assert dict(options)["signal"] == "TERM@300"  # without "B:" it goes to the tasks


def test_a_dry_run_of_a_tpu_prints_a_correct_start_up_script_and_the_request(tmp_path):
    given = ("--config=configs/a.py", "--config.missing.eta=(0, 1)")
    install(tmp_path, gcloud="true")
    done = start("tpu_vm.sh", *TPU, "--dry_run", "--", *given, folder=tmp_path)
    assert done.returncode == 0 and called(tmp_path) == []
    *script, request = done.stdout.splitlines()
    (tmp_path / "startup.sh").write_text("\n".join(script) + "\n")
    check(tmp_path / "startup.sh")
    words = shlex.split(request)
    assert words[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "a"]
    assert {"--node-id=a", "--zone=z-1", "--accelerator-type=v6e-16", "--spot"} <= set(words)
    on_demand = start("tpu_vm.sh", *TPU, "--dry_run", "--on_demand", "--", *given).stdout
    assert "--spot" not in on_demand


CODES = [(f"{SAVED} {SAVED} 0", 3, 0), ("1 75 1 0", 4, 0), ("1 1 1 1 1 0", 5, 1), ("3 0", 1, 3), ("137 0", 2, 0)]


@pytest.mark.parametrize(("ends", "runs", "code"), CODES)
def test_a_host_of_a_tpu_starts_again_what_stopped_early(tmp_path, ends, runs, code):
    given = ("--config=configs/a.py", "--config.missing.eta=(0, 1)")
    script = start("tpu_vm.sh", *TPU, "--dry_run", "--", *given).stdout.splitlines()[:-1]
    (tmp_path / "startup.sh").write_text("\n".join(script) + "\n")
    (tmp_path / "ends").write_text("\n".join(ends.split()) + "\n")
    next_end = f'[[ $1 == run ]] || exit 0; end=$(head -n 1 {tmp_path}/ends); sed -i 1d {tmp_path}/ends; exit "$end"'
    install(tmp_path, docker=next_end, curl="echo 0", gcloud="[[ $1 != storage ]] || cat >&2")
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(["bash", tmp_path / "startup.sh"], env={"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == f"{code}\n"
    started = [call for call in called(tmp_path) if call.startswith("docker run")]
    assert len(started) == runs
    assert started[0].endswith("r.dev/p/i:1 --workdir=gs://b/w --config=configs/a.py --config.missing.eta=(0, 1)")
    assert called(tmp_path)[-1] == "gcloud storage cp - gs://b/w/launch/exit_code"


def test_a_tpu_is_made_again_when_it_is_preempted_and_deleted_at_the_end(tmp_path):
    states = ["", "PROVISIONING", "ACTIVE", "SUSPENDED", "", "ACTIVE", "ACTIVE"]
    (tmp_path / "states").write_text("\n".join(states) + "\n")
    look = f"head -n 1 {tmp_path}/states; sed -i 1d {tmp_path}/states"
    code = f"[[ $(wc -l <{tmp_path}/states) == 0 ]] && echo {SAVED} || exit 1"
    body = f'case "$*" in *describe*) {look};; "storage cat"*) {code};; "storage rm"*) exit 1;; esac'
    install(tmp_path, gcloud=body)
    done = start("tpu_vm.sh", *TPU, "--", "--config=c", folder=tmp_path)
    assert done.returncode == SAVED, done.stderr
    done_to_it = [call.split()[4] for call in called(tmp_path) if "queued-resources" in call]
    assert [what for what in done_to_it if what != "describe"] == ["create", "delete", "create", "delete"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--names=a",), "unknown argument --names=a"),
        (("--name=a",), "--zone is required"),
        (TPU, 'nothing follows "--"'),
        ((*TPU, "--workdir=runs/a", "--", "--config=c"), "--workdir=runs/a is not in a bucket"),
    ],
)
def test_a_tpu_that_cannot_be_made_is_refused_in_one_line(arguments, message):
    done = start("tpu_vm.sh", *arguments, "--dry_run")
    assert done.returncode == 2 and done.stderr.startswith(f"tpu_vm.sh: {message}") and done.stdout == ""


def test_logs_and_the_end_of_a_tpu_are_of_all_its_hosts():
    for action, calls in (("--logs", 1), ("--delete", 2)):
        lines = start("tpu_vm.sh", "--name=a", "--zone=z-1", action, "--dry_run").stdout.splitlines()
        assert len(lines) == calls and "--worker=all" in lines[0]
    assert "queued-resources delete a --zone=z-1" in lines[1]


def documents():
    return list(yaml.safe_load_all((ROOT / "launch" / "gke_jobset.yaml").read_text()))


def assert_is_jobset(found):
    """Fails for a field that has another type, that is required, or that JobSet or a Job in it does not have."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="has the published schema of JobSet")
    assert models.JobsetV1alpha2JobSet.from_dict(found).to_dict() == found


def test_the_jobset_is_one_by_its_published_schema():
    *_, jobset = documents()
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert_is_jobset(jobset)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    replicated["template"]["spec"]["paralelism"] = 4
    with pytest.raises(AssertionError):
        assert_is_jobset(jobset)


def test_the_jobset_finds_its_processes_and_starts_again_as_the_exit_codes_say():
    account, role, binding, jobset = documents()
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert account["metadata"]["name"] == pod["serviceAccountName"] == binding["subjects"][0]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    allowed = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert allowed.keys() >= {"pods", "jobs"} and all({"get", "list"} <= set(verbs) for verbs in allowed.values())
    height, width = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    chips = int(pod["containers"][0]["resources"]["limits"]["google.com/tpu"])
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"] == height * width // chips
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == pod["containers"][0]["name"]
    assert rule["onExitCodes"]["values"] == sorted(set(EXIT_CODES.values()) - {SAVED})
    assert (
        pod["restartPolicy"] == "Never" and job["backoffLimit"] == 0 and jobset["spec"]["failurePolicy"]["maxRestarts"]
    )
    check_arguments(pod["containers"][0]["args"])


def check_arguments(arguments):
    """Loads the config of a command, with its fields."""
    values = dict(argument.removeprefix("--").split("=", 1) for argument in arguments)
    fields = [f"{key.removeprefix('config.')}={value}" for key, value in values.items() if key.startswith("config.")]
    load_config(ROOT / values["config"], fields)
    assert values["workdir"]


def test_skypilot_recovers_what_was_saved_and_starts_a_process_per_machine(tmp_path):
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert task["resources"]["use_spot"] and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [SAVED]
    for name in ("setup", "run"):
        (tmp_path / name).write_text("#!/usr/bin/env bash\n" + task[name])
        check(tmp_path / name)
    (tmp_path / "env" / "bin").mkdir(parents=True)
    install(tmp_path / "env" / "bin", python="true")
    machines = {"SKYPILOT_NODE_IPS": "10.0.0.5\n10.0.0.6", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
    environment = os.environ | machines | task["envs"] | {"HOME": str(tmp_path)}
    assert subprocess.run(["bash", tmp_path / "run"], env=environment, capture_output=True).returncode == 2
    environment |= {"WORKDIR": "gs://b/w", "DATA": "gs://b/d"}
    assert subprocess.run(["bash", tmp_path / "run"], env=environment).returncode == 0
    (call,) = called(tmp_path / "env" / "bin")
    assert call.startswith("python -m jax_mmreid.main ")
    *ours, address, count, number = call.split()[3:]
    assert (address, count, number) == ("--coordinator=10.0.0.5:8476", "--num_processes=2", "--process_id=1")
    check_arguments(ours)


def test_the_image_has_what_it_copies_and_installs():
    text = (ROOT / "launch" / "Dockerfile").read_text()
    words = [line.split()[0] for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert words[0] == "FROM" and words[-1] == "ENTRYPOINT"
    assert ast.literal_eval(text.rpartition("ENTRYPOINT ")[2]) == ["python", "-m", "jax_mmreid.main"]
    version = re.search(r"^FROM python:(3\.\d+)", text, re.M)[1]
    assert tuple(map(int, version.split("."))) >= (3, 11)
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert {"pyproject.toml", "jax_mmreid", "input_pipeline", "configs"} <= set(kept)
    assert all((ROOT / name).exists() for name in kept)
