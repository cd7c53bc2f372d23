"""caravan config."""

from typing import Annotated

import typer

from caravan.cli.config_text import config_example, config_in_force
from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.service_unit import service_unit
from caravan.server.settings import WrongSettings, load_settings


def config(
    example: Annotated[
        bool, typer.Option("--example", help="Print a file with every option, its description and its default.")
    ] = False,
    systemd: Annotated[
        bool, typer.Option("--systemd", help="Print the unit of a systemd service for this installation.")
    ] = False,
) -> None:
    """Print the options of `caravan serve` as a YAML file.

    Without an option these are the ones in force: set by variables, or by the
    file that CARAVAN_CONFIG names. API keys are not shown.

    \b
    Examples:
      caravan config --example > caravan.yaml
      caravan config --systemd > caravan.service
      caravan serve --port 8001 --print-config
    """
    if example and systemd:
        fail("--example cannot be combined with --systemd. Leave one of them out.", USAGE_ERROR)
    if example:
        text = config_example()
    elif systemd:
        text = service_unit()
    else:
        try:
            text = config_in_force(load_settings({}), {})
        except WrongSettings as error:
            fail(str(error), USAGE_ERROR)
    typer.echo(text, nl=False)
