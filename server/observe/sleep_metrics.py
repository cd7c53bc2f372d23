"""SleepMetrics: how often a model that can sleep is loaded, and how long that takes."""

from prometheus_client import CollectorRegistry, Counter, Gauge
from typing_extensions import override

from caravan.server.engine.engine_swaps import EngineSwaps
from caravan.server.engine.listener import EngineListener
from caravan.server.engine.swapped_engine import SwappedEngine

_PREFIX = "caravan_model_"


class SleepMetrics(EngineListener):
    """Gauges and counters of one model that shares memory with others, or sleeps when it is idle."""

    def __init__(self, registry: CollectorRegistry, engine: SwappedEngine, swaps: EngineSwaps) -> None:
        self._registry = registry
        self._model_name = engine.name
        self._gauge("loaded", "Whether the model is loaded: 1 or 0.").set_function(
            lambda: engine.client.state == "loaded"
        )
        self._gauge("needed_bytes", "Memory that the model needs, as planned.").set(engine.need_bytes)
        self._gauge("expected_load_seconds", "Expected time until a request of now gets an engine.").set_function(
            lambda: swaps.forecast_seconds(engine)
        )
        self._loads = self._counter("loads", "Times that the model was loaded for a request.")
        self._load_seconds = self._counter("load_seconds", "Time to load the model for requests.")
        self._sleeps = self._counter("sleeps", "Times that the engine was ended to free its memory.")

    @override
    def on_wake(self, load_seconds: float) -> None:
        """Count a load."""
        self._loads.inc()
        self._load_seconds.inc(load_seconds)

    @override
    def on_sleep(self) -> None:
        """Count a sleep."""
        self._sleeps.inc()

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(_PREFIX + name, text, ["model_name"], registry=self._registry).labels(self._model_name)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(_PREFIX + name, text, ["model_name"], registry=self._registry).labels(self._model_name)
