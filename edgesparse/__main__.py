"""``python -m edgesparse``: the command line."""

from edgesparse.cli import main

main()
