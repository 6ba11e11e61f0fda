"""Adapters -> what is merged with what, from headers alone."""
