"""From records to batches: decoding, sampling, training masks, packed data."""
