"""What a method sees: the deltas of modules of one shape."""
