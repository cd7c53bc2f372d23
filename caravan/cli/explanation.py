"""`caravan explain`: the story of a request as a table."""

from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from caravan.cli.own_key import own_key_headers

_TIMEOUT_SECONDS = 10.0


class ExplainFailed(Exception):
    """There is nothing to explain; the text is one line."""


def fetch_story(url: str, name: str, transport: httpx.BaseTransport | None = None) -> dict[str, Any]:
    """Return the story of a request from the server at `url`; raises ExplainFailed.

    The key comes from the variable CARAVAN_API_KEY.
    """
    try:
        with httpx.Client(
            base_url=url, headers=own_key_headers(), timeout=_TIMEOUT_SECONDS, transport=transport
        ) as http:
            response = http.get(f"/v1/requests/{name}/explain")
            body: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ExplainFailed(f"{url} gives no answer: {str(error) or type(error).__name__}.") from None
    if response.status_code != 200:
        raise ExplainFailed(_complaint(body) or f"{url} answers with status {response.status_code}.")
    return body


def _complaint(body: Any) -> str:
    """Return what an answer says went wrong; empty if it is not one of ours."""
    try:
        return str(body["error"]["message"])
    except (LookupError, TypeError):
        return ""


def print_story(story: dict[str, Any], console: Console) -> None:
    """Print each moment of a story in a line, and what its choices took below."""
    table = Table("ms", "what", "", title=story["id"], title_justify="left", box=None)
    for moment in story["timeline"]:
        facts = {name: value for name, value in moment.items() if name not in ("at_ms", "event") and value is not None}
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())
        table.add_row(f"{moment['at_ms']:,.1f}", moment["event"], told)
    console.print(table)
    if story["left_out"]:
        console.print(f"{story['left_out']} later moments, of kinds that are told above, are not kept.")
    for choice in story["choices"]:
        console.print(
            f"Choice {choice['choice']}, in the live view {choice['engine_request']}: "
            f"{choice['tokens']} tokens in {choice['steps']} steps, "
            f"on average with {choice['mean_batch']:g} sequences in the batch, at most {choice['largest_batch']}"
            + (f"; ended: {choice['finish_reason']}." if choice["finish_reason"] else ".")
        )
    console.print("Finished." if story["is_finished"] else "Still running.")
