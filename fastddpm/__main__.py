"""`python -m fastddpm`."""

from fastddpm.cli import main

main()
