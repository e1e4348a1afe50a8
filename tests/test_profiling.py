"""Law: a trace covers the steps that it is asked for, and compiled programs are kept where JAX or we say."""

import jax
import jax.numpy as jnp
import pytest
from conftest import open_tiny, tiny_config

from jax_mmreid import compilation_cache, profiling, train
from jax_mmreid.errors import ConfigError
from jax_mmreid.profiling import Trace


@pytest.fixture
def traced(monkeypatch):
    """Which steps run while a trace is taken, in place of JAX's profiler."""
    running, steps, folders = [], [], []

    class Profiler:
        def __init__(self, folder):
            folders.append(folder)

        def __enter__(self):
            running.append(1)

        def __exit__(self, *_):
            running.pop()

    monkeypatch.setattr(profiling.jax.profiler, "trace", Profiler)
    return running, steps, folders


def walk(workdir, steps, first, last, traced):
    """Goes through the steps first..last-1 as the loop does; returns those of the trace, counted from 0."""
    running, found, _ = traced
    with Trace(workdir, steps) as trace:
        for step in range(first, last):
            trace.before(step, jnp.zeros(3))
            if running:
                found.append(step)
    assert not running
    return found


@pytest.mark.parametrize(
    ("steps", "first", "last", "expected"),
    [
        ((2, 5), 0, 7, [2, 3, 4]),
        ((0, 1), 0, 3, [0]),
        ((2, 5), 3, 7, [3, 4]),  # resumed
        ((5, 9), 0, 7, [5, 6]),  # the run ends first
        ((2, 5), 5, 7, []),
        ((0, 0), 0, 3, []),
    ],
)
def test_a_trace_covers_its_steps(tmp_path, traced, steps, first, last, expected):
    assert walk(tmp_path, steps, first, last, traced) == expected
    assert traced[2] == [str(tmp_path / "profile" / "process0")] * bool(expected)


def test_a_trace_ends_with_a_run_that_fails(tmp_path, traced):
    with pytest.raises(ValueError), Trace(tmp_path, (0, 9)) as trace:
        trace.before(0)
        assert traced[0]
        raise ValueError
    assert not traced[0]


@pytest.mark.parametrize("steps", [(3, 2), (-1, 2), (4,), (1, 2, 3)])
def test_steps_that_are_none_are_refused(tmp_path, steps):
    with pytest.raises(ConfigError, match="expected .start, stop. with 0 <= start <= stop"):
        Trace(tmp_path, steps)


def test_a_trace_holds_what_the_device_did(tmp_path):
    with Trace(tmp_path, (1, 2)) as trace:
        x = jnp.ones(3)
        for step in range(3):
            trace.before(step, x)
            x = jax.jit(lambda x: 2 * x)(x)
    (file,) = (tmp_path / "profile" / "process0").rglob("*.xplane.pb")
    assert b"jit__lambda" in file.read_bytes()


def test_compiled_programs_are_kept_below_the_users_cache(monkeypatch, tmp_path):
    folder = compilation_cache.default_folder({"XDG_CACHE_HOME": str(tmp_path)})
    assert folder.parent == tmp_path / "jax_mmreid" / "compiled" and len(folder.name) == 8
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    home = compilation_cache.default_folder({})
    assert home == tmp_path / "home" / ".cache" / "jax_mmreid" / "compiled" / folder.name


@pytest.mark.parametrize("given", ["", "elsewhere"])
def test_the_variable_of_jax_wins(monkeypatch, given):
    before, updates = jax.config.jax_compilation_cache_dir, []
    monkeypatch.setattr(jax.config, "update", lambda *update: updates.append(update))
    monkeypatch.setenv(compilation_cache.VARIABLE, given)
    compilation_cache.enable()
    assert updates == []
    monkeypatch.delenv(compilation_cache.VARIABLE)
    compilation_cache.enable()
    assert updates == [("jax_compilation_cache_dir", str(compilation_cache.default_folder()))]
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.slow
def test_a_run_writes_the_trace_of_its_config(drawn, tmp_path):
    changes = {"modalities": "rgb/tir", "epochs": 1, "model.image.layers": 1, "profile": (3, 5)}
    config = tiny_config(drawn, row="A", **changes)
    train.train(config, tmp_path, open_tiny(config))
    (file,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert b"train_step" in file.read_bytes()
