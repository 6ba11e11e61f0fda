"""The deltas of modules of one shape, as methods see them."""
