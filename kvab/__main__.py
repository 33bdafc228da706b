"""Run kvab as ``python -m kvab``."""

from kvab.cli import main

main()
