"""Doors beside `jax_mmreid.main`, one a file: `python -m jax_mmreid.tools.NAME --help`."""
