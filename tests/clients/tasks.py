"""The tasks of every client library; imported by both virtual environments, so it needs pydantic only."""

import json
import sys
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MODEL = "smollm2"
QUESTION = "Name the seven days of the week."  # an answer of many tokens
CITY_QUESTION = "Tell me about a city."
WEATHER_QUESTION = "What is the weather in Rome?"
MAX_TOKENS = 60  # more than any answer here can have: schemas bound them


class Bounded(BaseModel):
    """Has these fields and no others, each bounded: the smallest model can fill it in."""

    model_config = ConfigDict(extra="forbid")


class City(Bounded):
    """A city."""

    name: Literal["Paris", "Rome"]
    is_capital: bool
    stars: int = Field(ge=1, le=5)


class GetWeather(Bounded):
    """Get the weather in a city."""

    city: Literal["Paris", "Rome"]
    unit: Literal["celsius", "fahrenheit"]


class GetTime(Bounded):
    """Get the time in a city."""

    city: Literal["Paris", "Rome"]


TOOLS: list[type[Bounded]] = [GetWeather, GetTime]


def tool_of(model: type[Bounded]) -> dict[str, Any]:
    """Return a function in the form of the API."""
    function = {"name": model.__name__, "description": model.__doc__, "parameters": model.model_json_schema()}
    return {"type": "function", "function": function}


def report(tasks: Callable[[str, str], dict[str, Any]]) -> None:
    """Print what `tasks` returns for the two URLs of the command line: the server's, and that of a busy proxy."""
    url, busy_url = sys.argv[1:]
    print(json.dumps(tasks(f"{url}/v1", f"{busy_url}/v1")))
