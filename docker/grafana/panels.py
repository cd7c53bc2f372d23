"""Panels of the dashboard: lines, tiles, quantiles and heat maps of Caravan's metrics."""

from collections.abc import Sequence
from typing import Literal

from grafana_foundation_sdk.builders import heatmap, prometheus, stat, timeseries
from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import ThresholdsConfig
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

Panel = stat.Panel | timeseries.Panel | heatmap.Panel
Limits = Sequence[tuple[float, str]]  # values from which on a color holds; below the first one it is green

SOURCE = DataSourceRef(type_val="prometheus", uid="$source")
SERIES = '{model_name=~"$model_name",instance=~"$instance"}'
PROCESS = '{job="caravan",instance=~"$instance"}'
TOKENS_PER_SECOND = "suffix: tokens/s"
_QUANTILES = (0.5, 0.9, 0.95, 0.99)


def tile(title: str, text: str, unit: str, expression: str, limits: Limits = (), *, start: str = "green") -> stat.Panel:
    """Return a number with its trend; `start` is the color below the first limit."""
    panel = stat.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel = panel.reduce_options(ReduceDataOptions().calcs(["lastNotNull"])).graph_mode(BigValueGraphMode.AREA)
    panel = panel.color_mode(BigValueColorMode.VALUE).thresholds(_thresholds(limits, start)).min(0)
    return panel.with_target(_target(expression, title))


def lines(
    title: str,
    text: str,
    unit: str,
    queries: dict[str, str],
    *,
    is_stacked: bool = False,
    least: float | None = 0,
    most: float = 0,
    limits: Limits = (),
) -> timeseries.Panel:
    """Return a panel with a line for each series of `queries`, by legend; `most` ends its scale if it is not 0."""
    panel = timeseries.Panel().title(title).description(text).unit(unit).datasource(SOURCE)
    panel = panel.show_points(VisibilityMode.NEVER).fill_opacity(60 if is_stacked else 8)
    panel = panel.tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    panel = panel.legend(VizLegendOptions().show_legend(True).placement(LegendPlacement.BOTTOM))
    if least is not None:
        panel.min(least)
    if most:
        panel.max(most)
    if is_stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL).group("A"))
    if limits:
        panel.thresholds(_thresholds(limits, "transparent"))
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED))
    for legend, expression in queries.items():
        panel.with_target(_target(expression, legend, len(panel.build().targets or [])))
    return panel


def quantiles(
    title: str,
    text: str,
    metric: str,
    shares: tuple[float, ...] = _QUANTILES,
    *,
    unit: str = "s",
    least: float | None = 0,
    limits: Limits = (),
) -> timeseries.Panel:
    """Return a panel with quantiles of a histogram."""
    queries = {f"p{share * 100:.0f}": quantile(share, metric) for share in shares}
    return lines(title, text, unit, queries, least=least, limits=limits)


def heat_map(title: str, text: str, metric: str) -> heatmap.Panel:
    """Return how often each bucket of a histogram was hit, over time."""
    target = _target(increase(metric, "le", suffix="_bucket"), "{{le}}").format(PromQueryFormat.HEATMAP)
    return heatmap.Panel().title(title).description(text).datasource(SOURCE).with_target(target)


def quantile(share: float, metric: str) -> str:
    """Return the expression of a quantile of a histogram."""
    return f"histogram_quantile({share}, {rate(metric, 'le', suffix='_bucket')})"


def rate(metric: str, by: str = "", suffix: Literal["_total", "_bucket", "_count"] = "_total") -> str:
    """Return the expression of a counter's growth in a second, summed up."""
    return f"{_sum_of(by)} (rate(caravan_{metric}{suffix}{SERIES}[$__rate_interval]))"


def increase(metric: str, by: str = "", suffix: Literal["_total", "_bucket"] = "_total") -> str:
    """Return the expression of a counter's growth between two points of the panel, summed up."""
    return f"{_sum_of(by)} (increase(caravan_{metric}{suffix}{SERIES}[$__rate_interval]))"


def total(metric: str, by: str = "") -> str:
    """Return the expression of a gauge, summed up."""
    return f"{_sum_of(by)} (caravan_{metric}{SERIES})"


def _sum_of(by: str) -> str:
    return f"sum by ({by})" if by else "sum"


def _target(expression: str, legend: str, index: int = 0) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expression).legend_format(legend).datasource(SOURCE).range()
    return query.ref_id(chr(ord("A") + index))


def _thresholds(limits: Limits, start: str) -> ThresholdsConfig:
    steps = [Threshold(None, start), *(Threshold(value, color) for value, color in limits)]
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)
