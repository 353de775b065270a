"""``python -m bringup``: the command line."""

from bringup.cli import main

main()
