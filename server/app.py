"""The HTTP application, assembled from its parts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from caravan.server.batches.batches import Batches
from caravan.server.batches.line_app import LineApp
from caravan.server.batches.objects import BatchList, BatchObject, BatchRequest, DeletedFile, FileList, FileObject
from caravan.server.batches.routes import batches_router, files_router
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.auth import ApiKeyAuth
from caravan.server.http.canonical_path import CanonicalPath
from caravan.server.http.client_address import Network
from caravan.server.http.concurrency_limit import ConcurrencyLimit, ConcurrencyLimitMiddleware
from caravan.server.http.errors import add_error_handlers
from caravan.server.http.openapi import complete_document
from caravan.server.http.request_log import OnResponse, RequestLogging
from caravan.server.http.trusted_hosts import TrustedHosts
from caravan.server.observe.all_metrics import AllMetrics
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.chat import chat_router
from caravan.server.openai.completions import completions_router
from caravan.server.openai.embeddings import embeddings_router
from caravan.server.openai.models import models_router
from caravan.server.openai.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from caravan.server.openai.protocol.completions import Completion, CompletionRequest
from caravan.server.openai.protocol.embeddings import EmbeddingList, EmbeddingRequest
from caravan.server.openai.protocol.models import ModelList
from caravan.server.openai.protocol.response_object import OutputCall, OutputCustomCall, OutputMessage, ResponseObject
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.tokenize import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    Piece,
    Prompt,
    Text,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from caravan.server.openai.responses import responses_router
from caravan.server.openai.tokenize import tokenize_router
from caravan.server.operations.explain import explanations_router
from caravan.server.operations.health import health_router
from caravan.server.operations.live_view import LiveView, live_view_router
from caravan.server.operations.metrics_route import metrics_router
from caravan.server.operations.page import page_router


@dataclass(frozen=True, kw_only=True)
class AppParts:
    """The parts of an application; the caller closes what the models share: `grammar_check` and `executors`."""

    models: Sequence[ServedModel]  # at least one; the first is the default
    live_views: Sequence[LiveView]  # of each model
    version: str  # of the server
    concurrency_limit: ConcurrencyLimit
    batches: Batches | None = None  # None: there are neither files nor batches; the caller starts and closes them
    max_batch_lines: int = 1  # that run at the same time
    keys: ApiKeys | None = None  # None: no authentication
    hosts: Iterable[str] | None = None  # allowed host names; None: all
    origins: Sequence[str] = ()  # allowed origins for CORS
    trusted_proxies: Sequence[Network] = ()  # whose X-Forwarded-For is used
    on_response: OnResponse = lambda _: None  # called with the record of each HTTP request at its end


def create_app(parts: AppParts) -> FastAPI:
    """Return the application that serves the models."""
    concurrency_limit = parts.concurrency_limit
    models = ServedModels(parts.models)
    metrics = AllMetrics([served.metrics for served in models])
    live_views = {name: view for served, view in zip(models, parts.live_views, strict=True) for name in served.names}

    def is_model_ready(served: ServedModel) -> bool:
        return concurrency_limit.is_open and served.engine.is_ready

    def is_ready() -> bool:
        return any(map(is_model_ready, models))

    for served in models:
        served.metrics.add_ready_gauge(partial(is_model_ready, served))
        served.metrics.add_queue_gauge(served.admission.num_queued_tokens)
    if parts.batches is not None:
        parts.batches.connect(
            LineApp(models, concurrency_limit.bodies, parts.keys.digests if parts.keys else {}).answer,
            is_ready,
            num_slots=parts.max_batch_lines,
            registry=models.first.metrics.registry,
            model_name=models.first.name,
        )
    app = FastAPI(
        title="Caravan",
        version=parts.version,
        openapi_url=None,  # complete_document adds the route
        docs_url=None,  # FastAPI's page loads scripts from a CDN; /docs is a page of ours
        redoc_url=None,
        redirect_slashes=False,  # a redirect would use the client's Host header
    )
    routers = (
        completions_router(models),
        chat_router(models),
        responses_router(models),
        embeddings_router(models),
        files_router(parts.batches, models.limits),
        batches_router(parts.batches, models.limits),
        models_router(models),
        tokenize_router(models),
        explanations_router(models),
        live_view_router(live_views, models.limits.write_timeout_seconds),
        health_router(parts.version, is_ready),
        page_router(),
        metrics_router(metrics),
    )
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    complete_document(
        app,
        [
            CompletionRequest,
            ChatRequest,
            ResponsesRequest,
            EmbeddingRequest,
            BatchRequest,
            TokenizeRequest,
            DetokenizeRequest,
            ApplyTemplateRequest,
        ],
        [
            Completion,
            ChatCompletion,
            ChatCompletionChunk,
            ResponseObject,
            OutputMessage,
            OutputCall,
            OutputCustomCall,
            EmbeddingList,
            *(FileObject, FileList, DeletedFile, BatchObject, BatchList),
            ModelList,
            Tokens,
            Piece,
            Text,
            Prompt,
            TokenizerInfo,
            Explanation,
        ],
        models.names,
    )
    # From the innermost to the outermost.
    # Inside the authentication: requests without a key do not count.
    app.add_middleware(ConcurrencyLimitMiddleware, concurrency_limit=concurrency_limit, metrics=models.first.metrics)
    if parts.keys is not None:
        app.add_middleware(ApiKeyAuth, keys=parts.keys)
    if parts.origins:
        app.add_middleware(  # outside the authentication: a preflight request has no key
            CORSMiddleware,
            allow_origins=parts.origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after"],
        )
    if parts.hosts is not None:
        app.add_middleware(TrustedHosts, hosts=parts.hosts)
    # Outside all of these: rejected requests have an id and are counted, too.
    app.add_middleware(
        RequestLogging,
        metrics=models.first.metrics,
        on_response=parts.on_response,
        trusted_proxies=parts.trusted_proxies,
    )
    # Outermost: before any of them reads the path.
    paths = [route.path for router in routers for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(CanonicalPath, routes=paths)
    return app
