"""Finished runs as tables: the names of settings, the tables of one evaluation, runs side by side."""
