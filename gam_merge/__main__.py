"""``python -m gam_merge`` is the command line."""

from gam_cli import main

main()
