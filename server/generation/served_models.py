"""ServedModels: the models that requests can name."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from caravan.scheduler.messages import AdapterSource
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import ServedModel


class ServedModels:
    """The served models by their names; the first one is for requests that name none."""

    def __init__(self, models: Sequence[ServedModel], adapted: Sequence[ServedModel] = ()) -> None:
        """`models` has at least one; `adapted` are such models with adapters. No name is there twice."""
        self.first = models[0]
        self._models = tuple(models)
        self._by_name = {name: model for model in (*models, *adapted) for name in model.names}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def named(self) -> Mapping[str, ServedModel]:
        """All names, also those of adapters, each with what it stands for."""
        return MappingProxyType(self._by_name)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use."""
        return tuple(self._by_name)

    @property
    def limits(self) -> RequestLimits:
        """The limits of one HTTP request, the same for all models."""
        return self.first.limits

    def add(self, name: str, adapter: AdapterSource) -> None:
        """Let requests choose an adapter of the first model by a new name, from now on."""
        adapted = self.first.with_adapter(adapter)
        self._by_name[name] = replace(adapted, name=name, created_at=int(time.time()))

    def remove(self, name: str) -> None:
        """Let requests choose an adapter no longer. Those that have chosen it go on."""
        assert self._by_name[name].adapter is not None, "models stay"
        del self._by_name[name]

    def find(self, name: str) -> ServedModel | None:
        """Return the model with this name."""
        return self._by_name.get(name)
