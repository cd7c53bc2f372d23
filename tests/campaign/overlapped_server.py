"""A server whose engine overlaps its steps: `python -m tests.campaign.overlapped_server serve MODEL`."""

from unittest.mock import patch

from caravan.cli.main import main

# The name of the program that it replaces is in the command line, by which tests find the engine process.
PROGRAM = ("-X", "replaced=caravan.scheduler.process", "-m", "tests.campaign.overlapped_process")

if __name__ == "__main__":
    with patch("caravan.server.engine.process.ENGINE_PROGRAM", PROGRAM):
        main()
