"""What is wrong with a dataset before anyone trains on it: copies, wrong labels, cameras, modalities out of line.

Pure functions of pictures and of vectors, in numpy; `jax_mmreid.tools.preflight` puts them together.
"""
