"""The directory of an adapter, written whole or not at all, and the texts in it."""
