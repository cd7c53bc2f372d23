"""`caravan explain`: the events of a request as a table."""

from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from caravan.cli.client import error_message
from caravan.cli.own_key import own_key_headers

_TIMEOUT_SECONDS = 10.0
_MISSES = {
    "evicted": "token {token} on was evicted {seconds} ago",
    "differs": "differs at token {token} from a block cached {seconds} ago",
    "not seen": "token {token} on was not in the cache in the last {seconds}",
    "scored": "token {token} on is scored",
    "too short": "token {token} on is too short for a block",
}
_HIDDEN = {"at_ms", "event", "miss", "miss_token", "miss_seconds"}  # not shown as name and value


class ExplainFailed(Exception):
    """The request cannot be explained; the text is one line that says why."""


def fetch_explanation(url: str, name: str, transport: httpx.BaseTransport | None = None) -> dict[str, Any]:
    """Return the events of a request from the server at `url`; raises ExplainFailed.

    The key comes from the variable CARAVAN_API_KEY.
    """
    try:
        with httpx.Client(
            base_url=url, headers=own_key_headers(), timeout=_TIMEOUT_SECONDS, transport=transport
        ) as http:
            response = http.get(f"/v1/requests/{name}/explain")
            body: dict[str, Any] = response.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise ExplainFailed(f"{url} does not respond: {str(error) or type(error).__name__}. Check --url.") from None
    if response.status_code != 200:
        raise ExplainFailed(error_message(body) or f"{url} returned status {response.status_code}. Check --url.")
    return body


def print_explanation(explanation: dict[str, Any], console: Console) -> None:
    """Print each event in a line, and the steps of each choice below."""
    table = Table("ms", "event", "", title=explanation["id"], title_justify="left", box=None)
    for event in explanation["timeline"]:
        facts = {name: value for name, value in event.items() if name not in _HIDDEN and value is not None}
        details = [f"{name.replace('_', ' ')} {value}" for name, value in facts.items()]
        table.add_row(f"{event['at_ms']:,.1f}", event["event"], ", ".join([*details, *_miss(event)]))
    console.print(table)
    if explanation["left_out"]:
        console.print(f"{explanation['left_out']} later events of the same kinds were not stored.")
    for choice in explanation["choices"]:
        console.print(
            f"Choice {choice['choice']} (request {choice['engine_request']} of the engine): "
            f"{choice['tokens']} tokens in {choice['steps']} steps, "
            f"{choice['mean_batch']:g} sequences in the batch on average, at most {choice['largest_batch']}"
            + (f"; finish reason {choice['finish_reason']}." if choice["finish_reason"] else ".")
        )
    console.print("Finished." if explanation["is_finished"] else "Still running.")


def _miss(event: dict[str, Any]) -> list[str]:
    """Return why no more of a prompt was in the prefix cache, if the event says so."""
    reason = event.get("miss")
    if reason is None:
        return []
    seconds = f"{event.get('miss_seconds', 0):g} s"
    return ["prefix " + _MISSES.get(reason, reason).format(token=event.get("miss_token"), seconds=seconds)]
