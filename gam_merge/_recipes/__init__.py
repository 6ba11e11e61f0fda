"""Merges written down: read, run and checked."""
