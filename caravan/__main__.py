"""`python -m caravan`: the same as the command `caravan`."""

from caravan.server.cli import main

main()
