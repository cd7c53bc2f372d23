"""The settings of an engine that runs inside a program."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from caravan.server.settings import Settings, WrongSettings, wrong_value


class EngineSettings(Settings):
    """The settings of a server, without its environment variables and settings file."""

    model_config = SettingsConfigDict(env_prefix="=")  # no name of a variable begins with it


def engine_settings(options: Mapping[str, Any]) -> EngineSettings:
    """Return the settings for the options of a program; raises WrongSettings."""
    try:
        return EngineSettings(**options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise WrongSettings(wrong_value(f"`{problem['loc'][0]}`", problem)) from None
