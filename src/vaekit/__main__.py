"""`python -m vaekit`."""

from .cli import main

main()
