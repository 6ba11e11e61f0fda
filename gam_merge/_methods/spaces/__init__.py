"""Spaces: the matrices that rules on entries look at, one per file."""
