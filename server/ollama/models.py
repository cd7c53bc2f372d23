"""GET /api/version, /api/tags and /api/ps, and POST /api/show: the served models, in Ollama's form."""

import hashlib
from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers
from caravan.server.ollama.answers import (
    ListedModel,
    LoadedModel,
    ModelDetails,
    OllamaLoadedList,
    OllamaModelInfo,
    OllamaModelList,
    OllamaVersion,
)
from caravan.server.ollama.documented import ollama_documented, ollama_errors
from caravan.server.ollama.model_names import named_model, tagged
from caravan.server.ollama.requests import OllamaShowRequest
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validated_body import read_body

API_VERSION = "0.35.0"  # of Ollama's API: clients compare it with the least one that they need
FAMILY = "llama"  # the architecture of all models that the server can run, in its general sense
NEVER = datetime(9999, 12, 31, tzinfo=UTC)


def ollama_models_router(models: ServedModels, server_version: str) -> APIRouter:
    """Return the router of the models and the version."""
    router = APIRouter(tags=["ollama"])

    @router.head("/api/version", include_in_schema=False)
    @router.get(
        "/api/version", summary="Version of Ollama's API", responses=answers(OllamaVersion) | ollama_errors(401)
    )
    async def version() -> Response:
        return json_response(OllamaVersion(version=API_VERSION, server=f"caravan {server_version}"))

    @router.head("/api/tags", include_in_schema=False)
    @router.get(
        "/api/tags", summary="List models, in Ollama's form", responses=answers(OllamaModelList) | ollama_errors(401)
    )
    async def list_models() -> Response:
        return json_response(OllamaModelList(models=[_listed(served, name) for name, served in models.named.items()]))

    @router.get(
        "/api/ps",
        summary="List loaded models, in Ollama's form",
        responses=answers(OllamaLoadedList) | ollama_errors(401),
    )
    async def list_loaded() -> Response:
        return json_response(
            OllamaLoadedList(models=[_loaded(served) for served in models if served.engine.state == "loaded"])
        )

    @router.post(
        "/api/show",
        summary="Describe a model, in Ollama's form",
        **ollama_documented(OllamaShowRequest, {"model": "smollm2"}, answer=OllamaModelInfo),
    )
    async def show(request: Request) -> Response:
        body = await read_body(request, OllamaShowRequest, models.limits)
        served = named_model(models, body.asked_name, request.scope)
        ignored = ignored_fields(body)
        served.metrics.count_ignored_fields(ignored)
        report = served.engine.report
        return json_response(
            OllamaModelInfo(
                parameters=_parameters(served),
                template="" if served.chat_template is None else served.chat_template.source,
                details=_details(served),
                model_info={
                    "general.architecture": FAMILY,
                    "general.basename": served.name,
                    **({} if report is None else {"general.parameter_count": report.num_parameters}),
                    f"{FAMILY}.context_length": served.max_model_len,
                    f"{FAMILY}.vocab_size": served.tokenizer.vocab_size,
                },
                capabilities=_capabilities(served),
                modified_at=_started_at(served),
                warnings=ignored_warnings(ignored) or UNSET,
            )
        )

    return router


def _listed(served: ServedModel, name: str) -> ListedModel:
    return ListedModel(
        name=tagged(name),
        model=tagged(name),
        modified_at=_started_at(served),
        size=_num_bytes(served),
        digest=_digest(served),
        details=_details(served),
        capabilities=_capabilities(served),
    )


def _loaded(served: ServedModel) -> LoadedModel:
    return LoadedModel(
        name=tagged(served.name),
        model=tagged(served.name),
        size=_num_bytes(served),
        digest=_digest(served),
        details=_details(served),
        expires_at=NEVER,
        size_vram=0,  # clients show it as the share that is on a GPU, which is not known here
        context_length=served.max_model_len,
    )


def _details(served: ServedModel) -> ModelDetails:
    report = served.engine.report
    if report is None:
        return ModelDetails(family=FAMILY, families=[FAMILY])
    return ModelDetails(
        family=FAMILY,
        families=[FAMILY],
        parameter_size=f"{report.num_parameters / 1e6:,.0f}M"
        if report.num_parameters < 1e9
        else f"{report.num_parameters / 1e9:.1f}B",
        quantization_level=report.file_type,
    )


def _capabilities(served: ServedModel) -> list[str]:
    """Return what the model can do; any chat template takes tools."""
    template = served.chat_template
    if template is None:
        return ["completion"]
    return ["completion", "tools", *(["thinking"] if template.thought_marks else [])]


def _digest(served: ServedModel) -> str:
    """Return a digest that changes when answers of the model may change."""
    return hashlib.sha256(f"{served.name}\n{served.fingerprint}".encode()).hexdigest()


def _num_bytes(served: ServedModel) -> int:
    report = served.engine.report
    return 0 if report is None else report.weight_bytes


def _started_at(served: ServedModel) -> datetime:
    return datetime.fromtimestamp(served.created_at, UTC)


def _parameters(served: ServedModel) -> str:
    """Return the sampling parameters of requests that do not set them, one in each line."""
    defaults = served.defaults
    values = {
        "temperature": defaults.temperature,
        "top_k": defaults.top_k,
        "top_p": defaults.top_p,
        "min_p": defaults.min_p,
        "repeat_penalty": defaults.repetition_penalty,
    }
    return "\n".join(f"{name} {value:g}" for name, value in values.items())
