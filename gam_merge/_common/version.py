"""The version of this package, read once: an upgrade may come while a process runs."""

from importlib.metadata import version

VERSION = version("gam-merge")
