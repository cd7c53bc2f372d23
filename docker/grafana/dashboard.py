"""The dashboard: prints the JSON that Grafana loads. `make dashboard` writes it to dashboards/caravan.json."""

import sys

from grafana_foundation_sdk.builders.dashboard import (
    AnnotationQuery,
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
)
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, VariableRefresh

from docker.grafana.panels import SERIES, SOURCE, TOKENS_PER_SECOND, Panel, quantile, rate, tile, total
from docker.grafana.request_rows import request_rows, time_rows
from docker.grafana.server_rows import engine_rows, server_rows

_HEIGHT, _TILE_HEIGHT = 8, 4  # of a panel, in Grafana's units; a row is 24 wide
_REFUSED = (
    f"{rate('admission_rejections')} / ({rate('admission_rejections')} + {rate('request_params_n', suffix='_count')})"
)


def dashboard() -> Dashboard:
    """Return the dashboard: a row of tiles, then a row for each question an operator asks."""
    restarts = f"increase(caravan_engine_restarts_total{SERIES}[$__rate_interval]) > 0"
    board = (
        Dashboard("Caravan")
        .uid("caravan")
        .tags(["caravan"])
        .readonly()
        .refresh("5s")
        .time("now-15m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("source").label("Prometheus").type("prometheus"))
        .with_variable(_choice("model_name", "Model"))
        .with_variable(_choice("instance", "Instance"))
        .annotation(
            AnnotationQuery().name("Engine restarts").datasource(SOURCE).enable(True).expr(restarts).icon_color("red")
        )
        .link(DashboardLink("Caravan").type(DashboardLinkType.DASHBOARDS).tags(["caravan"]))
    )
    for number, (title, panels) in enumerate(_rows()):
        board.with_row(Row(title))
        for panel in panels:
            board.with_panel(panel.height(_HEIGHT if number else _TILE_HEIGHT).span(24 // len(panels)))
    return board


def _rows() -> list[tuple[str, list[Panel]]]:
    return [("Now", _tiles()), *time_rows(), *engine_rows(), *request_rows(), *server_rows()]


def _tiles() -> list[Panel]:
    return [
        tile(
            "Ready now",
            "Share of the servers that accept requests, as /readyz. Below 100 % an engine is being replaced, or a "
            "server shuts down.",
            "percentunit",
            f"avg(caravan_ready{SERIES})",
            [(1, "green")],
            start="red",
        ),
        tile("Output", "Generated tokens of all requests.", TOKENS_PER_SECOND, rate("generation_tokens")),
        tile(
            "Running and waiting",
            "Sequences in the batch and in the queue. The batch has a limit, --max-num-seqs; a queue that stays means "
            "that the load is above what the server can compute.",
            "short",
            f"{total('num_requests_running')} + {total('num_requests_waiting')}",
        ),
        tile(
            "KV pool in use",
            "The fullest pool. When it is full, requests wait or lose their blocks and are computed again.",
            "percentunit",
            f"max(caravan_kv_cache_usage_perc{SERIES})",
            [(0.8, "yellow"), (0.95, "red")],
        ),
        tile(
            "First token, p95",
            "19 of 20 requests had their first token within this time.",
            "s",
            quantile(0.95, "time_to_first_token_seconds"),
            [(2, "yellow"), (10, "red")],
        ),
        tile(
            "Refused",
            "Share of the requests that got status 429. An alert fires above 5 %.",
            "percentunit",
            _REFUSED,
            [(0.01, "yellow"), (0.05, "red")],
        ),
    ]


def _choice(label: str, title: str) -> QueryVariable:
    """Return a variable with every value that a label has."""
    query = f"label_values(caravan_num_requests_running, {label})"
    variable = QueryVariable(label).label(title).datasource(SOURCE).query(query)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).include_all(True).multi(True)


if __name__ == "__main__":
    sys.stdout.write(JSONEncoder(sort_keys=True, indent=1).encode(dashboard().build()) + "\n")
