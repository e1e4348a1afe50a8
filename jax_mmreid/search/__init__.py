"""Galleries of one's own: a store of vectors on disk, exact and approximate search in it, what its scores mean."""
