"""Retrieval metrics on plain arrays."""
