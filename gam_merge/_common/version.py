"""The version of this package, read once: files of an installation may go while a long-lived process merges."""

from importlib.metadata import version

VERSION = version("gam-merge")
