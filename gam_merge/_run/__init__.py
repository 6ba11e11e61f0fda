"""A lineup -> merged tensors, bucket by bucket."""
