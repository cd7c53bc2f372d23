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
from caravan.server.generation.served_model import Engine, ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.auth import ApiKeyAuth
from caravan.server.http.canonical_path import CanonicalPath
from caravan.server.http.client_address import Network
from caravan.server.http.concurrency_limit import ConcurrencyLimit, ConcurrencyLimitMiddleware
from caravan.server.http.errors import ErrorBody, add_error_handlers
from caravan.server.http.openapi import complete_document
from caravan.server.http.request_log import OnResponse, RequestLogging
from caravan.server.http.trusted_hosts import TrustedHosts
from caravan.server.learn.kill_protocol import KilledEngine, KillRequest
from caravan.server.learn.kill_route import kill_router
from caravan.server.learn.protocol import Trace, TraceRequest
from caravan.server.learn.simulate_route import simulate_router
from caravan.server.learn.simulation_protocol import SimulateRequest, Simulation
from caravan.server.learn.trace_route import trace_router
from caravan.server.learn.tracer import Tracer
from caravan.server.messages.error_form import ANTHROPIC
from caravan.server.messages.messages import messages_router
from caravan.server.messages.models import anthropic_models_router
from caravan.server.messages.protocol.answer import (
    MessageErrorBody,
    MessageObject,
    MessageText,
    MessageThinking,
    MessageToolUse,
    TokenCount,
)
from caravan.server.messages.protocol.request import CountTokensRequest, MessagesRequest
from caravan.server.observe.all_metrics import AllMetrics
from caravan.server.observe.explanation import Explanation
from caravan.server.ollama.answers import OllamaError
from caravan.server.ollama.documented import ANSWERS as OLLAMA_ANSWERS
from caravan.server.ollama.documented import REQUESTS as OLLAMA_REQUESTS
from caravan.server.ollama.error_form import OLLAMA
from caravan.server.ollama.router import ollama_router
from caravan.server.openai.adapter_folder import AdapterFolder
from caravan.server.openai.adapters import adapters_router
from caravan.server.openai.background import background_router
from caravan.server.openai.chat import chat_router
from caravan.server.openai.completions import completions_router
from caravan.server.openai.decisions import decisions_router
from caravan.server.openai.embeddings import embeddings_router
from caravan.server.openai.models import models_router
from caravan.server.openai.protocol.adapters import LoadAdapterRequest, UnloadAdapterRequest
from caravan.server.openai.protocol.chat import ChatCompletion, ChatCompletionChunk, ChatRequest
from caravan.server.openai.protocol.completions import Completion, CompletionRequest
from caravan.server.openai.protocol.decisions import Decision, DecisionRequest
from caravan.server.openai.protocol.embeddings import EmbeddingList, EmbeddingRequest
from caravan.server.openai.protocol.models import ModelList
from caravan.server.openai.protocol.response_object import (
    DeletedResponse,
    OutputCall,
    OutputCustomCall,
    OutputMessage,
    OutputReasoning,
    ResponseObject,
)
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.protocol.scores import RankedList, RerankRequest, ScoreList, ScoreRequest
from caravan.server.openai.protocol.system_one import SystemOneAnswers, SystemOneRequest
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
from caravan.server.openai.scores import scores_router
from caravan.server.openai.system_one import system_one_router
from caravan.server.openai.tokenize import tokenize_router
from caravan.server.operations.explain import explanations_router
from caravan.server.operations.health import health_router
from caravan.server.operations.live_view import LiveView
from caravan.server.operations.live_view_route import live_view_router
from caravan.server.operations.metrics_route import metrics_router
from caravan.server.operations.page import page_router
from caravan.server.operations.server_facts import OptionFacts, ServerFacts, server_facts_router
from caravan.server.operations.source_code import source_code_router
from caravan.server.resumption.kept_responses import KeptResponses
from caravan.server.resumption.resume_metrics import resume_metrics
from caravan.server.resumption.resumption import Resumption
from caravan.server.resumption.routes import ResponseReaders, kept_responses_router
from caravan.server.resumption.settings import ResumeLimits


@dataclass(frozen=True, kw_only=True)
class AppParts:
    """The parts of an application; the caller closes what the models share: `grammar_check` and `executors`."""

    models: Sequence[ServedModel]  # at least one; the first is the default
    live_views: Sequence[LiveView]  # of each model
    version: str  # of the server
    concurrency_limit: ConcurrencyLimit
    adapted: Sequence[ServedModel] = ()  # the models with adapters, each under a name of its own
    adapter_folder: AdapterFolder | None = None  # None: none are loaded or unloaded while the server runs
    batches: Batches | None = None  # None: there are neither files nor batches; the caller starts and closes them
    max_batch_lines: int = 1  # that run at the same time
    keys: ApiKeys | None = None  # None: no authentication
    hosts: Iterable[str] | None = None  # allowed host names; None: all
    root_path: str = ""  # prefix of all paths, such as /llm
    origins: Sequence[str] = ()  # allowed origins for CORS
    trusted_proxies: Sequence[Network] = ()  # whose X-Forwarded-For is used
    resume_limits: ResumeLimits | None = None  # of responses that clients can read again
    options: Sequence[OptionFacts] = ()  # in force, without secrets
    tracer: Tracer | None = None  # None: there are no traces; the caller closes it
    on_response: OnResponse = lambda _: None  # called with the record of each HTTP request at its end


def _is_replacing(engine: Engine) -> bool:
    return engine.state == "replacing"


def create_app(parts: AppParts) -> FastAPI:
    """Return the application that serves the models."""
    concurrency_limit = parts.concurrency_limit
    models = ServedModels(parts.models, parts.adapted)
    metrics = AllMetrics([served.metrics for served in models])
    kept = KeptResponses(
        parts.resume_limits, on_reject=partial(models.first.metrics.count_rejection, "resumable_responses")
    )
    resumed = resume_metrics(models.first.metrics.registry, models.first.name, kept)
    readers = ResponseReaders(kept, models.limits, concurrency_limit, on_resume=resumed.inc)
    live_views = {name: view for served, view in zip(models, parts.live_views, strict=True) for name in served.names}

    def is_model_ready(served: ServedModel) -> bool:
        return concurrency_limit.is_open and served.engine.is_ready

    def is_ready() -> bool:
        return any(map(is_model_ready, models))

    for served in models:
        served.metrics.add_ready_gauges(partial(is_model_ready, served), partial(_is_replacing, served.engine))
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
        responses_router(models, kept),
        background_router(readers),
        kept_responses_router(readers),
        messages_router(models),
        embeddings_router(models),
        decisions_router(models),
        system_one_router(models),
        scores_router(models),
        ollama_router(models, parts.version),
        files_router(parts.batches, models.limits),
        batches_router(parts.batches, models.limits),
        anthropic_models_router(models),  # before the one with the same paths
        models_router(models),
        adapters_router(models, parts.adapter_folder),
        tokenize_router(models),
        explanations_router(models),
        trace_router(models, parts.tracer),
        simulate_router(models, is_on=parts.tracer is not None),
        kill_router(models, is_on=parts.tracer is not None and parts.keys is None),
        live_view_router(live_views, models.limits.write_timeout_seconds),
        health_router(parts.version, is_ready),
        server_facts_router(models, parts.version, is_ready, parts.options),
        source_code_router(),
        page_router(parts.root_path),
        metrics_router(metrics),
    )
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    complete_document(
        app,
        [
            *(ErrorBody, OllamaError, MessageErrorBody),
            *(CompletionRequest, ChatRequest, ResponsesRequest),
            *(MessagesRequest, CountTokensRequest),
            EmbeddingRequest,
            *(DecisionRequest, SystemOneRequest, ScoreRequest, RerankRequest),
            BatchRequest,
            *(TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest),
            *(TraceRequest, SimulateRequest, KillRequest),
            *(LoadAdapterRequest, UnloadAdapterRequest),
            *OLLAMA_REQUESTS,
        ],
        [
            Completion,
            ChatCompletion,
            ChatCompletionChunk,
            *(ResponseObject, DeletedResponse),
            OutputReasoning,
            OutputMessage,
            OutputCall,
            OutputCustomCall,
            *(MessageObject, MessageText, MessageThinking, MessageToolUse, TokenCount),
            EmbeddingList,
            *(Decision, SystemOneAnswers, ScoreList, RankedList),
            *(FileObject, FileList, DeletedFile, BatchObject, BatchList),
            ModelList,
            Tokens,
            Piece,
            Text,
            Prompt,
            TokenizerInfo,
            Explanation,
            ServerFacts,
            *(Trace, Simulation, KilledEngine),
            *OLLAMA_ANSWERS,
        ],
        models.names,
        parts.root_path,
        can_grow=parts.adapter_folder is not None,
    )
    # From the innermost to the outermost.
    # Inside the authentication: requests without a key do not count.
    app.add_middleware(
        ConcurrencyLimitMiddleware,
        concurrency_limit=concurrency_limit,
        metrics=models.first.metrics,
        resumable=lambda inner: Resumption(inner, kept, models.limits),
    )
    if parts.keys is not None:
        app.add_middleware(ApiKeyAuth, keys=parts.keys)
    if parts.origins:
        app.add_middleware(  # outside the authentication: a preflight request has no key
            CORSMiddleware,
            allow_origins=parts.origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "request-id", "retry-after", "x-caravan-resume"],
        )
    if parts.hosts is not None:
        app.add_middleware(TrustedHosts, hosts=parts.hosts)
    # Outside all of these: rejected requests have an id and are counted, too.
    app.add_middleware(
        RequestLogging,
        metrics=models.first.metrics,
        forms=(ANTHROPIC, OLLAMA),
        on_response=parts.on_response,
        trusted_proxies=parts.trusted_proxies,
    )
    # Outermost: before any of them reads the path.
    paths = [route.path for router in routers for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(CanonicalPath, routes=paths, root_path=parts.root_path)
    return app
