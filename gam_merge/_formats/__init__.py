"""One file a format on disk: keys and config <-> modules."""
