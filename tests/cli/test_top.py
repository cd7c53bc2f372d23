"""`caravan top` in a terminal of 80 columns and 24 lines."""

import io
from typing import Any

import pytest
from rich.console import Console

from caravan.cli.engine_table import drawn


def sequence(number: int, num_computed: int, num_tokens: int, reason: str | None = None) -> list[Any]:
    return [number, 1000, num_tokens, num_computed, 4096, num_computed // 16, 0 if reason else 1, reason]


def view(num_running: int, num_waiting: int) -> dict[str, Any]:
    running = [sequence(number, 500 if number == 1 else 1200, 1200) for number in range(1, num_running + 1)]
    queue = [sequence(100 + number, 0, 1000, "no free blocks") for number in range(num_waiting)]
    return {
        "step": 1_234_567,
        "steps": [[1, 512, 30, 40.0], [2, 0, 31, 20.0]],
        "num_running": num_running,
        "num_waiting": num_waiting,
        "num_blocks": 65_536,
        "num_used_blocks": 40_000,
        "num_cached_blocks": 3,
        "block_size": 16,
        "running": running,
        "waiting": queue,
    }


def shown(one: dict[str, Any], recent: list[dict[str, Any]], width: int = 80, height: int = 24) -> list[str]:
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(drawn(one, recent, console.size))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


EVENTS = [{"request": number, "kind": "chunk", "text": f"512 tokens computed, {number} so far"} for number in range(40)]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (60, 16), (132, 50)])
@pytest.mark.parametrize(("num_running", "num_waiting"), [(0, 0), (1, 0), (3, 2), (64, 100)])
def test_a_view_fits_into_the_terminal(num_running: int, num_waiting: int, width: int, height: int) -> None:
    lines = shown(view(num_running, num_waiting), EVENTS, width, height)
    assert len(lines) <= height
    assert max(map(len, lines)) <= width


def test_the_batch_comes_first_then_the_queue_then_the_pool_then_events() -> None:
    lines = shown(view(3, 2), EVENTS)
    text = "\n".join(lines)
    assert lines[0].startswith("step 1,234,567  3 running  2 waiting  30.0 ms/step  512 prompt, 61 output tokens")
    places = [text.index(part) for part in ("prompt, 500 computed", "waiting: no free blocks", "KV pool", "chunk 39")]
    assert places == sorted(places)
    assert len(lines) == 24, "events fill the rest"


def test_what_does_not_fit_is_counted() -> None:
    lines = shown(view(64, 100), EVENTS)
    (line,) = (line for line in lines if line.startswith("and "))
    num_rows = sum("answer" in line or "computed" in line for line in lines[2:17] if "chunk" not in line)
    assert line.rstrip() == f"and {164 - num_rows} more"


def test_the_pool_is_one_bar_in_which_few_blocks_can_be_seen() -> None:
    lines = shown(view(1, 0), [])
    (bar,) = (line for line in lines if set(line) <= set("█▒·") and len(line) == 80)
    assert bar == "█" * 49 + "▒" + "·" * 30
    (numbers,) = (line for line in lines if line.startswith("KV pool"))
    assert "█ 40,000 used" in numbers
    assert "▒ 3 cached" in numbers


def test_an_engine_without_work_has_no_mean_time() -> None:
    idle = view(0, 0) | {"steps": [], "num_used_blocks": 0, "num_cached_blocks": 0}
    lines = shown(idle, [{"request": 0, "kind": "restart", "text": "the engine was replaced"}])
    assert "0.0 ms/step" in lines[0]
    assert "·" * 80 in lines
    assert "restart: the engine was replaced" in lines


def test_an_engine_that_is_being_replaced_is_said_first() -> None:
    lines = shown(view(0, 0) | {"is_replacing": True}, [])
    assert lines[0] == "The engine is being replaced. Requests wait for the next one."
    assert not shown(view(0, 0) | {"is_replacing": False}, [])[0].startswith("The engine")
