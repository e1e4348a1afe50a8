"""What a config costs: multiply-adds of the traced program, and as papers count them."""
