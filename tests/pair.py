"""Two processes of the command line that train the quickstart on a few small pictures."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import FAST_COMPILATION

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {FAST_COMPILATION}",
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": "",  # two processes keep no compiled programs
    "PYTHONUNBUFFERED": "1",
}
SMALL = (
    *("--config.data.image_size=(32,16)", "--config.data.threads=0", "--config.data.identities=4"),
    *("--config.data.instances=2", "--config.data.eval_batch_size=8", "--config.model.image.layers=1"),
    *("--config.data.options.num_train_ids=8", "--config.data.options.num_test_ids=3"),
    *("--config.data.options.height=32", "--config.save_every=10", "--config.watchdog.least=15"),
)


class Pair:
    """The processes, whose output goes to files. Use as a context: leaving it kills what still runs."""

    def __init__(self, workdir, folder, port, *flags, own=((), ())):
        """`own` are further flags of each of the two."""
        self.logs = [Path(f"{workdir}.{i}") for i in range(2)]
        common = (
            *("-m", "jax_mmreid.main", f"--config={ROOT}/configs/quickstart.py:row=A", f"--workdir={workdir}"),
            *(f"--config.data.data_dir={folder}", *SMALL, *flags),
            *(f"--coordinator=127.0.0.1:{port}", "--num_processes=2"),
        )
        self.processes = []
        for number, log in enumerate(self.logs):
            command = [sys.executable, *common, f"--process_id={number}", *own[number]]
            with log.open("w") as out:
                process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=out, stderr=out)
            self.processes.append(process)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def await_line(self, pattern, timeout=300):
        """Returns as soon as the first process has written a line that matches."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.said(0), re.MULTILINE):
            assert time.monotonic() < end and self.processes[0].poll() is None, self.said(0)
            time.sleep(0.05)

    def send(self, number, which=signal.SIGTERM):
        self.processes[number].send_signal(which)

    def codes(self, timeout=300):
        """The exit codes of both, as soon as they have ended."""
        end = time.monotonic() + timeout
        return [process.wait(timeout=max(0.1, end - time.monotonic())) for process in self.processes]

    def said(self, number):
        """All that a process has written so far."""
        return self.logs[number].read_text()

    def complaint(self, number):
        """The line of this project that a process ended with."""
        (line,) = [line for line in self.said(number).splitlines() if line.startswith("jax_mmreid: ")]
        return line
