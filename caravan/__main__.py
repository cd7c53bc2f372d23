"""`python -m caravan`, and the command `caravan`."""

import sys

from caravan.cli.interrupts import end_at_interrupt
from caravan.server.http.early_hangup import hold_hangups


def main() -> None:
    """Run the command named by the arguments of the process."""
    end_at_interrupt()  # before the imports, which take most of a short command's time
    if "serve" in sys.argv[1:2]:
        hold_hangups()
    from caravan.cli.main import main as run_command

    run_command()


if __name__ == "__main__":
    main()
