"""The router of Ollama's API."""

from fastapi import APIRouter

from caravan.server.generation.served_models import ServedModels
from caravan.server.ollama.embeddings import ollama_embeddings_router
from caravan.server.ollama.generation import generation_router
from caravan.server.ollama.models import ollama_models_router


def ollama_router(models: ServedModels, server_version: str) -> APIRouter:
    """Return the router of all routes of Ollama's API."""
    router = APIRouter()
    for part in (
        generation_router(models),
        ollama_embeddings_router(models),
        ollama_models_router(models, server_version),
    ):
        router.include_router(part)
    return router
