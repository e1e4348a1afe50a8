"""Captions as token ids."""
