"""POST /v1/load_lora_adapter and /v1/unload_lora_adapter, as vLLM has them."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from caravan.server.generation.served_models import ServedModels
from caravan.server.http.errors import ApiError
from caravan.server.http.openapi import documented_text
from caravan.server.openai.adapter_folder import AdapterFolder
from caravan.server.openai.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from caravan.server.openai.protocol.validated_body import read_body


def adapters_router(models: ServedModels, folder: AdapterFolder | None) -> APIRouter:
    """Return the routes; they are errors without a folder."""
    router = APIRouter(tags=["models"], default_response_class=PlainTextResponse)

    def documentation(schema: type[BaseModel], **example: str) -> dict[str, Any]:
        return documented_text(schema, {"lora_name": "poems"} | example)

    @router.post(
        "/v1/load_lora_adapter",
        summary="Load a LoRA adapter",
        **documentation(LoadAdapterRequest, lora_path="poems"),
    )
    async def load_lora_adapter(request: Request) -> Response:
        loading = _switched_on(folder)
        body = await read_body(request, LoadAdapterRequest, models.limits)
        await loading.load(models, body.lora_name, body.lora_path)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post(
        "/v1/unload_lora_adapter",
        summary="Unload a LoRA adapter",
        **documentation(UnloadAdapterRequest),
    )
    async def unload_lora_adapter(request: Request) -> Response:
        loading = _switched_on(folder)
        body = await read_body(request, UnloadAdapterRequest, models.limits)
        loading.unload(models, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router


def _switched_on(folder: AdapterFolder | None) -> AdapterFolder:
    """Return the folder; raises ApiError if there is none."""
    if folder is None:
        raise ApiError(
            403, "This server loads no adapters while it runs. Start it with --lora-folder.", code="no_lora_folder"
        )
    return folder
