"""`caravan top`: the engine live in a terminal, in as many lines and columns as it has."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
from rich.console import Console, ConsoleDimensions, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from caravan.cli.client import events
from caravan.cli.own_key import own_key_headers

_CONNECT_SECONDS = 10.0
_MAX_EVENTS = 40  # that are kept; as many are shown as fit
_LEAST_EVENTS = 4  # lines for them beside a long batch
_OTHER_LINES = 5  # head, head of the table, `and 3 more`, two lines of the pool
_POOL = (("█", "used", "green"), ("▒", "cached", "cyan"), ("·", "free", "bright_black"))


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
            live.update(drawn(view, recent, console.size), refresh=True)


def drawn(view: dict[str, Any], recent: list[dict[str, Any]], size: ConsoleDimensions) -> RenderableType:
    """Return a view in at most `size`: a head, the batch and the queue, the pool, the last events."""
    num_requests = len(view["running"]) + len(view["waiting"])
    num_rows = max(1, min(num_requests, size.height - _OTHER_LINES - _LEAST_EVENTS))
    num_events = max(0, size.height - _OTHER_LINES - num_rows)
    parts = [
        _head(view),
        _sequences(view, num_rows),
        *_pool(view, size.width),
        _events(recent[::-1][:num_events][::-1]),
    ]
    return Group(*parts)


def _head(view: dict[str, Any]) -> RenderableType:
    if view.get("is_replacing"):  # servers before 0.3 do not say
        return _line("The engine is being replaced. Requests wait for the next one.", "yellow")
    steps = view["steps"]
    mean_ms = sum(ms for *_, ms in steps) / len(steps) if steps else 0.0
    num_prefill, num_decode = (sum(step[index] for step in steps) for index in (1, 2))
    return _line(
        f"step {view['step']:,}  {view['num_running']} running  {view['num_waiting']} waiting  "
        f"{mean_ms:.1f} ms/step  {num_prefill:,} prompt, {num_decode:,} output tokens"
    )


def _sequences(view: dict[str, Any], num_rows: int) -> RenderableType:
    """Return the batch and then the queue as a table of `num_rows` rows, and the number of those left out."""
    table = Table(box=None, pad_edge=False, expand=True)
    for name in ("request", "state", "prompt", "answer", "limit", "blocks", "step"):
        is_text = name == "state"
        table.add_column(
            name,
            ratio=1 if is_text else None,
            no_wrap=True,
            overflow="ellipsis",
            justify="left" if is_text else "right",
        )
    rows = [(sequence, _phase(sequence)) for sequence in view["running"]]
    rows += [(sequence, f"waiting: {sequence[7] or 'not considered yet'}") for sequence in view["waiting"]]
    for (number, num_prompt, num_tokens, _, max_tokens, num_blocks, num_step, _), phase in rows[:num_rows]:
        numbers = (num_prompt, num_tokens - num_prompt, max_tokens, num_blocks, num_step)
        table.add_row(str(number), phase, *(f"{one:,}" for one in numbers))
    left_out = view["num_running"] + view["num_waiting"] - len(rows[:num_rows])
    return Group(table, _line(f"and {left_out:,} more" if left_out > 0 else ""))


def _phase(sequence: list[Any]) -> str:
    _, num_prompt, _, num_computed, *_ = sequence
    return f"prompt, {num_computed:,} computed" if num_computed < num_prompt else "answer"


def _pool(view: dict[str, Any], width: int) -> list[RenderableType]:
    """Return the pool as a bar over the whole width, and the number of blocks in each state."""
    num_blocks, num_used, num_cached = (view[f"num_{kind}blocks"] for kind in ("", "used_", "cached_"))
    counts = (num_used, num_cached, num_blocks - num_used - num_cached)
    num_cells = [_num_cells(count, num_blocks, width) for count in counts[:2]]
    num_cells.append(max(width - sum(num_cells), 0))
    bar, text = Text(no_wrap=True, overflow="crop"), Text("KV pool  ", no_wrap=True, overflow="ellipsis")
    for (sign, name, style), count, cells in zip(_POOL, counts, num_cells, strict=True):
        bar.append(sign * cells, style)
        text.append(f"{sign} ", style)
        text.append(f"{count:,} {name}  ")
    text.append(f"of {num_blocks:,} blocks")
    return [text, bar]


def _num_cells(count: int, num_blocks: int, width: int) -> int:
    """Return the length of a part of the bar; a few blocks of many have a cell, too."""
    return max(round(width * count / num_blocks), 1) if count else 0


def _events(recent: list[dict[str, Any]]) -> RenderableType:
    return Group(*(_line(_event(event), "bright_black") for event in recent))


def _event(event: dict[str, Any]) -> str:
    who = f" {event['request']}" if event["request"] else ""
    return f"{event['kind']}{who}" + (f": {event['text']}" if event["text"] else "")


def _line(text: str, style: str = "") -> Text:
    """Return one line of text, cut off where the terminal ends."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")
