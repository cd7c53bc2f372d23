"""`python -m caravan`: the same as the command `caravan`."""

from caravan.cli.main import main

main()
