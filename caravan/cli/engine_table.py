"""`caravan top`: the engine live in a terminal."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from caravan.cli.client import events
from caravan.cli.own_key import own_key_headers

_CONNECT_SECONDS = 10.0
_CELLS_IN_LINE = 100
_CELLS = {"0": ("·", "bright_black"), "1": ("▒", "cyan"), "2": ("█", "green"), "3": ("█", "magenta")}
_LEGEND = (("·", "free", "bright_black"), ("▒", "cached", "cyan"), ("█", "used", "green"), ("█", "shared", "magenta"))
_MAX_ROWS = 20
_MAX_EVENTS = 8


class TopFailed(Exception):
    """The engine cannot be shown; the text is one line that says why."""


def views(url: str) -> Iterator[dict[str, Any]]:
    """Yield views of the engine of the server at `url` as they come; raises TopFailed.

    The key comes from the variable CARAVAN_API_KEY.
    """
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)
    try:
        with (
            httpx.Client(base_url=url, headers=own_key_headers(), timeout=timeout) as http,
            http.stream("GET", "/v1/engine/events") as response,
        ):
            if response.status_code != 200:
                raise TopFailed(str(json.loads(response.read())["error"]["message"]))
            for payload in events(response.iter_bytes()):
                yield json.loads(payload)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, LookupError) as error:
        raise TopFailed(f"{url} does not respond: {str(error) or type(error).__name__}. Check --url.") from None
    raise TopFailed("The server closed the connection.")


def watch(url: str, console: Console) -> None:
    """Show each view until Ctrl-C; raises TopFailed."""
    recent: list[dict[str, Any]] = []
    with Live(console=console, auto_refresh=False, screen=console.is_terminal) as live:
        for view in views(url):
            recent = [*recent, *view["events"]][-_MAX_EVENTS:]
            live.update(drawn(view, recent), refresh=True)


def drawn(view: dict[str, Any], recent: list[dict[str, Any]]) -> RenderableType:
    """Return a view as a head, the pool, the batch, the queue and the last events."""
    return Group(_head(view), _pool(view), _sequences(view), _events(recent))


def _head(view: dict[str, Any]) -> RenderableType:
    steps = view["steps"]
    mean_ms = sum(ms for *_, ms in steps) / len(steps) if steps else 0.0
    num_prefill, num_decode = (sum(step[index] for step in steps) for index in (1, 2))
    return Text(
        f"step {view['step']:,}   {view['num_running']} running   {view['num_waiting']} waiting   "
        f"{mean_ms:.1f} ms per step   {num_prefill} prompt and {num_decode} output tokens since the last update\n"
    )


def _pool(view: dict[str, Any]) -> RenderableType:
    cells = view["cell_states"]
    text = Text(f"KV pool  {view['num_used_blocks']:,} of {view['num_blocks']:,} blocks used, ")
    text.append(f"{view['num_cached_blocks']:,} cached; a cell is {view['blocks_per_cell']}   ")
    for sign, name, style in _LEGEND:
        text.append(f"{sign} {name}  ", style)
    for start in range(0, len(cells), _CELLS_IN_LINE):
        text.append("\n")
        for cell in cells[start : start + _CELLS_IN_LINE]:
            text.append(*_CELLS[cell])
    return text


def _sequences(view: dict[str, Any]) -> RenderableType:
    columns = ("request", "state", "this step", "prompt", "computed", "tokens", "of at most", "blocks")
    table = Table(*columns, box=None, pad_edge=False)
    running, waiting = view["running"], view["waiting"]
    rows = [(sequence, _phase(sequence)) for sequence in running]
    rows += [(sequence, f"waiting: {sequence[7] or 'not considered yet'}") for sequence in waiting]
    for (number, num_prompt, num_tokens, num_computed, max_tokens, num_blocks, num_step, _), phase in rows[:_MAX_ROWS]:
        numbers = (num_step, num_prompt, num_computed, num_tokens, num_prompt + max_tokens, num_blocks)
        table.add_row(str(number), phase, *map(str, numbers))
    left_out = len(rows) - _MAX_ROWS
    return Group(Text(), table, Text(f"and {left_out} more" if left_out > 0 else ""))


def _phase(sequence: list[Any]) -> str:
    _, num_prompt, _, num_computed, *_ = sequence
    return "prefill" if num_computed < num_prompt else "decode"


def _events(recent: list[dict[str, Any]]) -> RenderableType:
    return Text("\n".join(map(_event, recent)), "bright_black")


def _event(event: dict[str, Any]) -> str:
    who = f" {event['request']}" if event["request"] else ""
    return f"{event['kind']}{who}" + (f": {event['text']}" if event["text"] else "")
