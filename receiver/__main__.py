"""`python -m receiver`."""

from receiver.commands.main import main

main(prog_name="python -m receiver")
