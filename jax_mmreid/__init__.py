"""Multi-modality object re-identification in JAX. `load_model` opens a trained workdir; `run` trains and evaluates."""

__version__ = "0.2.0"


def load_model(workdir, step="last"):
    """The trained model of a workdir, on machines without its dataset too; see `jax_mmreid.run.load_model`."""
    from jax_mmreid import run

    return run.load_model(workdir, step)
