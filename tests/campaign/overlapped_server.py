"""A server whose engine overlaps its steps: `python -m tests.campaign.overlapped_server serve MODEL`."""

import functools
from unittest.mock import patch

from caravan.cli.main import main
from caravan.server.engine.client import EngineClient

# The name of the program that it replaces is in the command line, by which tests find the engine process.
PROGRAM = ("-X", "replaced=caravan.scheduler.process", "-m", "tests.campaign.overlapped_process")

if __name__ == "__main__":
    with patch("caravan.server.engine.client.EngineClient", functools.partial(EngineClient, program=PROGRAM)):
        main()
