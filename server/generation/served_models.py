"""ServedModels: the models that requests can name."""

from collections.abc import Iterator, Sequence

from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import ServedModel


class ServedModels:
    """The served models by their names; the first one is for requests that name none."""

    def __init__(self, models: Sequence[ServedModel]) -> None:
        """`models` has at least one, and no name twice."""
        self.first = models[0]
        self._models = tuple(models)
        self._by_name = {name: model for model in models for name in model.names}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    @property
    def names(self) -> tuple[str, ...]:
        """All names that requests may use."""
        return tuple(self._by_name)

    @property
    def limits(self) -> RequestLimits:
        """The limits of one HTTP request, the same for all models."""
        return self.first.limits

    def find(self, name: str) -> ServedModel | None:
        """Return the model with this name."""
        return self._by_name.get(name)
