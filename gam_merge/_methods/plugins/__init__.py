"""Plug-ins: changes before or after a rule."""
