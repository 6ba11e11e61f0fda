"""Adapters -> files, whole or not at all, and the texts next to them."""
