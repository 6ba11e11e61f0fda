"""When GAM helps: errors of merges of synthetic deltas, one signal each, and noise."""
