"""Model names as Ollama's clients write them: with a tag, by default `latest`."""

from starlette.types import Scope

from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.openai.models import chosen_model

LATEST = ":latest"


def named_model(models: ServedModels, name: str, scope: Scope) -> ServedModel:
    """Return the model of a name with or without the tag `latest`; raises ApiError 404 if there is no such model."""
    for spelled in (name, name.removesuffix(LATEST), f"{name}{LATEST}"):
        if models.find(spelled) is not None:
            return chosen_model(models, spelled, scope)
    return chosen_model(models, name, scope)


def tagged(name: str) -> str:
    """Return the name of a model with a tag."""
    return name if ":" in name.rpartition("/")[2] else name + LATEST
