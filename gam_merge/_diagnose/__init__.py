"""Adapters and what they have in common: measured, judged, drawn."""
