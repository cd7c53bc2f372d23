"""The dashboard: prints the JSON that Grafana loads. `make dashboard` writes it to dashboards/caravan.json."""

import sys
from typing import Literal

from grafana_foundation_sdk.builders import heatmap, prometheus, timeseries
from grafana_foundation_sdk.builders.common import StackingConfig, VizLegendOptions, VizTooltipOptions
from grafana_foundation_sdk.builders.dashboard import Dashboard, DatasourceVariable, QueryVariable, Row
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendPlacement, StackingMode, TooltipDisplayMode, VisibilityMode
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DataSourceRef, VariableRefresh
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

_SOURCE = DataSourceRef(type_val="prometheus", uid="$source")
_SERIES = '{model_name=~"$model_name",instance=~"$instance"}'
_PROCESS = '{job="caravan",instance=~"$instance"}'
_HEIGHT = 8  # of a panel, in Grafana's units; a row is 24 wide
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def dashboard() -> Dashboard:
    """Return the dashboard: a row for each question an operator asks."""
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
    )
    for title, panels in _rows():
        board.with_row(Row(title))
        for panel in panels:
            board.with_panel(panel.height(_HEIGHT).span(24 // len(panels)))
    return board


def _rows() -> list[tuple[str, list[timeseries.Panel | heatmap.Panel]]]:
    return [
        (
            "Latency",
            [
                _quantiles("End to end", "e2e_request_latency_seconds"),
                _quantiles("Time to first token", "time_to_first_token_seconds"),
                _quantiles("Time between tokens", "inter_token_latency_seconds"),
            ],
        ),
        (
            "Time by phase",
            [
                _quantiles("Queue", "request_queue_time_seconds"),
                _quantiles("Prefill", "request_prefill_time_seconds"),
                _quantiles("Decode", "request_decode_time_seconds"),
            ],
        ),
        (
            "Throughput",
            [
                _lines("Tokens", "short", {"prompt": _rate("prompt_tokens"), "generated": _rate("generation_tokens")}),
                _lines("HTTP responses", "reqps", {"{{route}} {{status}}": _rate("http_requests", "route, status")}),
            ],
        ),
        (
            "Scheduler",
            [
                _lines(
                    "Sequences",
                    "short",
                    {"running": _sum("num_requests_running"), "wait": _sum("num_requests_waiting")},
                ),
                _quantiles("Tokens per step", "iteration_tokens", unit="short"),
                _lines("Preemptions", "cps", {"preemptions": _rate("num_preemptions")}),
            ],
        ),
        (
            "KV pool",
            [
                _lines("Blocks", "short", {"{{state}}": _sum("kv_cache_blocks", "state")}, is_stacked=True),
                _lines(
                    "Fraction in use", "percentunit", {"in use": f"max(caravan_kv_cache_usage_perc{_SERIES})"}, most=1
                ),
                _lines(
                    "Prefix cache hit rate",
                    "percentunit",
                    {"found": f"{_rate('prefix_cache_hits')} / {_rate('prefix_cache_queries')}"},
                    most=1,
                ),
            ],
        ),
        (
            "Request lengths",
            [
                _heatmap("Prompt tokens", "request_prompt_tokens"),
                _heatmap("Generated tokens", "request_generation_tokens"),
                _heatmap("max_tokens", "request_params_max_tokens"),
            ],
        ),
        (
            "Finished sequences",
            [
                _lines(
                    "Finish reasons",
                    "cps",
                    {
                        "{{finished_reason}}": _rate("request_success", "finished_reason"),
                        "incomplete: {{finished_reason}}": _rate("request_incomplete", "finished_reason"),
                    },
                    is_stacked=True,
                ),
                _lines(
                    "Draft token acceptance rate",
                    "percentunit",
                    {"right": f"{_rate('spec_decode_num_accepted_tokens')} / {_rate('spec_decode_num_draft_tokens')}"},
                    most=1,
                ),
            ],
        ),
        (
            "Admission",
            [
                _lines(
                    "Rejected requests", "cps", {"{{reason}}": _rate("admission_rejections", "reason")}, is_stacked=True
                ),
                _quantiles("Predicted minus actual wait", "admission_wait_error_seconds", (0.1, 0.5, 0.9), least=None),
            ],
        ),
        (
            "Health",
            [
                _lines("Ready", "short", {"{{instance}}": f"min by (instance) (caravan_ready{_SERIES})"}, most=1),
                _lines(
                    "Engine restarts and resumed sequences",
                    "short",
                    {"restarts": _increase("engine_restarts"), "requests replayed": _increase("requests_replayed")},
                ),
                _lines("Engine downtime", "s", {"down": _increase("engine_down_seconds")}),
            ],
        ),
        (
            "API process",
            [
                _lines("Memory", "bytes", {"{{instance}}": f"process_resident_memory_bytes{_PROCESS}"}),
                _lines(
                    "CPU",
                    "percentunit",
                    {"{{instance}}": f"rate(process_cpu_seconds_total{_PROCESS}[$__rate_interval])"},
                ),
                _lines("Open file descriptors", "short", {"{{instance}}": f"process_open_fds{_PROCESS}"}),
            ],
        ),
    ]


def _choice(label: str, title: str) -> QueryVariable:
    """Return a variable with every value that a label has."""
    query = f"label_values(caravan_num_requests_running, {label})"
    variable = QueryVariable(label).label(title).datasource(_SOURCE).query(query)
    return variable.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).include_all(True).multi(True)


def _lines(
    title: str,
    unit: str,
    queries: dict[str, str],
    *,
    is_stacked: bool = False,
    least: float | None = 0,
    most: float = 0,
) -> timeseries.Panel:
    """Return a panel with a line for each series of `queries`, by legend; `most` ends its scale if it is not 0."""
    panel = timeseries.Panel().title(title).unit(unit).datasource(_SOURCE)
    panel = panel.show_points(VisibilityMode.NEVER).fill_opacity(60 if is_stacked else 8)
    panel = panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    panel = panel.legend(VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM))
    if least is not None:
        panel.min(least)
    if most:
        panel.max(most)
    if is_stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    for legend, expression in queries.items():
        panel.with_target(_target(expression, legend, len(panel.build().targets or [])))
    return panel


def _quantiles(
    title: str, metric: str, quantiles: tuple[float, ...] = _QUANTILES, *, unit: str = "s", least: float | None = 0
) -> timeseries.Panel:
    """Return a panel with quantiles of a histogram."""
    buckets = _rate(metric, "le", suffix="_bucket")
    queries = {f"p{quantile * 100:.0f}": f"histogram_quantile({quantile}, {buckets})" for quantile in quantiles}
    return _lines(title, unit, queries, least=least)


def _heatmap(title: str, metric: str) -> heatmap.Panel:
    """Return how often each bucket of a histogram was hit, over time."""
    target = _target(_increase(metric, "le", suffix="_bucket"), "{{le}}").format(PromQueryFormat.HEATMAP)
    return heatmap.Panel().title(title).datasource(_SOURCE).with_target(target)


def _target(expression: str, legend: str, index: int = 0) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).datasource(_SOURCE).range()
    return query.ref_id(chr(ord("A") + index))


def _rate(metric: str, by: str = "", suffix: Literal["_total", "_bucket"] = "_total") -> str:
    return f"{_sum_of(by)} (rate(caravan_{metric}{suffix}{_SERIES}[$__rate_interval]))"


def _increase(metric: str, by: str = "", suffix: Literal["_total", "_bucket"] = "_total") -> str:
    return f"{_sum_of(by)} (increase(caravan_{metric}{suffix}{_SERIES}[$__rate_interval]))"


def _sum(metric: str, by: str = "") -> str:
    return f"{_sum_of(by)} (caravan_{metric}{_SERIES})"


def _sum_of(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


if __name__ == "__main__":
    sys.stdout.write(JSONEncoder(sort_keys=True, indent=1).encode(dashboard().build()) + "\n")
