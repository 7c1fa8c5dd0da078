"""`python -m receiver`."""

from receiver.cli import main

main(prog_name="python -m receiver")
