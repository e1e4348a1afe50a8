"""Network parts: linen modules that know nothing of losses, masks of batches, or devices."""
