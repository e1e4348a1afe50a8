"""Losses: one value per example, a `where=` mask, no state."""
