"""The writer: one line per record, nothing from beyond a checkpoint, and how long it still takes."""

import io
import json
import logging
import struct
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jax_mmreid import writer
from jax_mmreid.writer import Writer


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test moves by hand, in place of the writer's."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(writer, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(file):
    """The records of a TensorBoard file: length [8], its checksum [4], the event, its checksum [4]."""
    data = file.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_every_record_is_a_line_in_order(tmp_path):
    with Writer(tmp_path, start=0, stop=9, rows_per_step=8) as w:
        w.write(2, {"loss": 1.5, "grad_norm": 0.25})
        w.write(4, {"loss": 1.25})
        w.write(4, {"full/mAP": 0.5})
    assert lines(tmp_path) == [
        {"step": 2, "loss": 1.5, "grad_norm": 0.25},
        {"step": 4, "loss": 1.25},
        {"step": 4, "full/mAP": 0.5},
    ]


def test_a_line_is_there_as_soon_as_it_is_written(tmp_path):
    with Writer(tmp_path, start=0, stop=9, rows_per_step=8) as w:
        w.write(2, {"loss": 1.5})
        assert lines(tmp_path) == [{"step": 2, "loss": 1.5}]


def test_resuming_drops_what_was_written_beyond_the_checkpoint(tmp_path):
    with Writer(tmp_path, start=0, stop=9, rows_per_step=8) as w:
        for step in (2, 4, 6, 8):
            w.write(step, {"loss": float(step)})
    with Writer(tmp_path, start=4, stop=9, rows_per_step=8) as w:
        w.write(6, {"loss": 60.0})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2.0), (4, 4.0), (6, 60.0)]


def test_an_incomplete_last_line_is_dropped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.5}\n{"step": 4, "lo')
    with Writer(tmp_path, start=4, stop=9, rows_per_step=8) as w:
        w.write(6, {"loss": 0.5})
    assert [line["step"] for line in lines(tmp_path)] == [2, 6]


def test_tensorboard_reads_the_same_numbers(tmp_path):
    with Writer(tmp_path, start=4, stop=9, rows_per_step=8) as w:
        w.write(6, {"loss": 1.5, "full/mAP": 0.75})
    (file,) = tmp_path.glob("events.out.tfevents.*")
    found = list(events(file))
    scalars = {(e.step, v.tag): v.simple_value for e in found for v in e.summary.value}
    assert scalars == {(6, "loss"): np.float32(1.5), (6, "full/mAP"): np.float32(0.75)}
    # What an interrupted run wrote from step 5 on is not shown.
    assert [e.step for e in found if e.session_log.status == SessionLog.START] == [5]


def test_without_a_terminal_a_line_has_step_values_and_time_to_go(tmp_path, clock, caplog):
    caplog.set_level(logging.INFO, logger="jax_mmreid.writer")
    with Writer(tmp_path, start=4, stop=24, rows_per_step=8) as w:
        clock.now += 10.0
        w.write(9, {"loss": 1.23456, "grad_norm": 3.0} | w.rate(9))
        clock.now += 4.0
        w.write(9, {"full/mAP": 0.75})
    step, evaluation = caplog.messages
    assert step.startswith("step 9/24  loss 1.235  ") and "grad_norm" not in step
    assert step.endswith("10s, 30s to go")  # 5 steps took 10 s, 15 are left
    assert evaluation.startswith("step 9/24  full/mAP 0.750") and not evaluation.endswith(" 0s to go")


def test_a_terminal_gets_a_bar_and_no_lines(tmp_path, monkeypatch, caplog):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    caplog.set_level(logging.INFO, logger="jax_mmreid.writer")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Writer(tmp_path, start=4, stop=24, rows_per_step=8) as w:
        w.write(9, {"loss": 1.23456})
    assert "9/24" in sys.stderr.getvalue() and "loss=1.235" in sys.stderr.getvalue()
    assert caplog.messages == []


def test_an_inactive_writer_writes_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="jax_mmreid.writer")
    with Writer(tmp_path, start=0, stop=9, rows_per_step=8, active=False) as w:
        w.write(2, {"loss": 1.5} | w.rate(2))
    assert list(tmp_path.iterdir()) == [] and caplog.messages == []


def test_samples_per_second_are_those_since_the_last_call(tmp_path, clock):
    with Writer(tmp_path, start=10, stop=99, rows_per_step=8) as w:
        clock.now += 2.0
        assert w.rate(15) == {"samples_per_second": 5 * 8 / 2.0}
        clock.now += 4.0
        assert w.rate(16) == {"samples_per_second": 1 * 8 / 4.0}
        assert w.rate(16) == {}
        assert w.rate(17)["samples_per_second"] > 0  # a clock that has not moved divides nothing by zero


def test_compiling_and_evaluating_count_neither_in_the_rate_nor_in_the_time_to_go(tmp_path, clock, caplog):
    """A former defect: the time to go jumped, since a compilation or a stop counted as a step's time."""
    caplog.set_level(logging.INFO, logger="jax_mmreid.writer")
    seconds = iter((60.0, 1.0, 1.0, 1.0))

    def step(x):
        clock.now += next(seconds)
        return x

    with Writer(tmp_path, start=0, stop=24, rows_per_step=8) as w:
        run = w.untimed(step)
        run(1)
        assert w.rate(1) == {}
        w.write(1, {"loss": 1.0})
        run(2)
        run(3)
        with w.paused():
            clock.now += 500.0
        run(4)
        w.write(4, {"loss": 1.0} | w.rate(4))
    first, second = caplog.messages
    assert "to go" not in first
    assert second.endswith("563s, 20s to go")  # 3 steps took 3 s, 20 are left
    assert lines(tmp_path)[1]["samples_per_second"] == 8.0
