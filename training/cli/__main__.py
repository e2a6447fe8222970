"""`python -m training.cli` is `doorstep`."""

from training.cli import main

main()
