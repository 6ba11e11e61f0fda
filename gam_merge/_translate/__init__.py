"""Adapters of one model in several grammars -> adapters whose modules meet."""
