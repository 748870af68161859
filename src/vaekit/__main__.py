"""`python -m vaekit`."""

from .cli.main import main

main()
