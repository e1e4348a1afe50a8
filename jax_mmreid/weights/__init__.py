"""Files of weights: where they are, how they are named, and how a run starts from them."""
