"""The settings of logs and metrics."""

from typing import Literal

from pydantic import BaseModel, Field

LogFormat = Literal["auto", "json", "text"]
LogLevel = Literal["info", "warning", "error"]


class LogSettings(BaseModel):
    """Logs and metrics."""

    log_format: LogFormat = Field(
        "auto", description="Format of the log on standard error. auto: text in a terminal, otherwise JSON."
    )
    log_level: LogLevel = Field(
        "info", description="Least severe log lines that are written. warning: no line for each request."
    )
    access_log: bool = Field(
        False, description="Log every request, including health checks and metrics, not only POST requests."
    )
    metrics_names: Literal["caravan", "vllm"] = Field(
        "caravan",
        description="Names of metrics. vllm: four gauges have vLLM's names, too, for routers that read those.",
    )
    profile: bool = Field(False, description="Print how the time of engine steps is spent, every few seconds.")
