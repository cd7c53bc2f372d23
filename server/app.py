"""The HTTP application: the parts of a server, given as arguments, put together."""

import time
from collections.abc import Iterable, Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Lifespan

from caravan.model.sampling.generation_defaults import GenerationDefaults
from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.generation.admission import Admission
from caravan.server.generation.executors import Executors
from caravan.server.generation.request_limits import RequestLimits
from caravan.server.generation.served_model import Engine, ServedModel
from caravan.server.http.api_keys import ApiKeys
from caravan.server.http.auth import ApiKeyAuth
from caravan.server.http.canonical_path import CanonicalPath
from caravan.server.http.client_address import Network
from caravan.server.http.concurrency_limit import ConcurrencyLimit, ConcurrencyLimitMiddleware
from caravan.server.http.errors import add_error_handlers
from caravan.server.http.openapi import complete_document
from caravan.server.http.request_log import OnExchange, RequestLogging
from caravan.server.http.trusted_hosts import TrustedHosts
from caravan.server.observe.metrics import Metrics
from caravan.server.observe.request_history import StoryBook
from caravan.server.openai.chat import chat_router
from caravan.server.openai.completions import completions_router
from caravan.server.openai.embeddings import EmbeddingRequest, embeddings_router
from caravan.server.openai.models import models_router
from caravan.server.openai.protocol.generation_requests import ChatRequest, CompletionRequest
from caravan.server.openai.protocol.response_requests import ResponsesRequest
from caravan.server.openai.responses import responses_router
from caravan.server.openai.tokenize import ApplyTemplateRequest, DetokenizeRequest, TokenizeRequest, tokenize_router
from caravan.server.openai.tool_calls.call_format import call_token_ids
from caravan.server.operations.explain import explanations_router
from caravan.server.operations.health import health_router
from caravan.server.operations.live_view import LiveView, live_view_router
from caravan.server.operations.metrics_route import metrics_router
from caravan.server.operations.page import page_router
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.grammar_check import GrammarCheck


def create_app(
    *,
    engine: Engine,
    tokenizer: Tokenizer,
    chat_template: ChatTemplate | None,
    model_name: str,
    aliases: tuple[str, ...] = (),
    max_model_len: int,
    metrics: Metrics,
    version: str,
    defaults: GenerationDefaults | None = None,
    limits: RequestLimits | None = None,
    admission: Admission | None = None,
    concurrency_limit: ConcurrencyLimit | None = None,
    stories: StoryBook | None = None,
    watch: LiveView | None = None,
    grammar_check: GrammarCheck | None = None,
    executors: Executors | None = None,
    keys: ApiKeys | None = None,
    hosts: Iterable[str] | None = None,
    origins: Sequence[str] = (),
    trusted_proxies: Sequence[Network] = (),
    on_exchange: OnExchange = lambda _: None,
    lifespan: Lifespan[FastAPI] | None = None,
) -> FastAPI:
    """Return the application that serves one model; `lifespan` starts and stops what must run beside it.

    Parts that are not given have their defaults; close `grammar_check` and `executors` when the server ends. With
    `keys` all requests except those for health and the pages bring one of them; with `hosts` the server answers to
    these names only; pages of `origins` may use it in a browser. `on_exchange` gets each exchange at its end, with the
    client that one of `trusted_proxies` names.
    """
    admission = admission or Admission(engine.config, metrics)
    concurrency_limit = concurrency_limit or ConcurrencyLimit(
        engine.config.max_num_seqs + admission.limits.max_requests
    )
    served = ServedModel(
        name=model_name,
        aliases=aliases,
        version=version,
        created_at=int(time.time()),
        max_model_len=max_model_len,
        engine=engine,
        tokenizer=tokenizer,
        chat_template=chat_template,
        shown_token_ids=call_token_ids(tokenizer),
        metrics=metrics,
        admission=admission,
        stories=stories or StoryBook(),
        defaults=defaults or GenerationDefaults(),
        limits=limits or RequestLimits(),
        grammar_check=grammar_check or GrammarCheck(),
        executors=executors or Executors(),
    )

    def is_ready() -> bool:
        return concurrency_limit.is_open and engine.is_ready

    metrics.watch_ready(is_ready)
    app = FastAPI(
        title="Caravan",
        version=version,
        lifespan=lifespan,
        docs_url=None,  # its page would load scripts from elsewhere; ours is one of the pages
        redoc_url=None,
        redirect_slashes=False,  # a redirect would send the client to whatever host it named
    )
    for router in (
        completions_router(served),
        chat_router(served),
        responses_router(served),
        embeddings_router(served),
        models_router(served),
        tokenize_router(served),
        explanations_router(served),
        live_view_router(watch or LiveView(engine.subscribe), served.limits.write_timeout_seconds),
        health_router(served, is_ready),
        page_router(),
        metrics_router(metrics),
    ):
        app.include_router(router)
    add_error_handlers(app)
    complete_document(
        app,
        [
            CompletionRequest,
            ChatRequest,
            ResponsesRequest,
            EmbeddingRequest,
            TokenizeRequest,
            DetokenizeRequest,
            ApplyTemplateRequest,
        ],
        served.names,
    )
    # From the inside out.
    # Inside the authentication: a request without a key takes no place.
    app.add_middleware(ConcurrencyLimitMiddleware, concurrency_limit=concurrency_limit, metrics=metrics)
    if keys is not None:
        app.add_middleware(ApiKeyAuth, keys=keys)
    if origins:
        app.add_middleware(  # around the guard: a preflight has no key
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            allow_private_network=True,
            expose_headers=["x-request-id", "retry-after"],
        )
    if hosts is not None:
        app.add_middleware(TrustedHosts, hosts=hosts)
    # Around all of them: a refusal has an id, too, and is counted.
    app.add_middleware(RequestLogging, metrics=metrics, on_exchange=on_exchange, trusted_proxies=trusted_proxies)
    app.add_middleware(CanonicalPath, routes=app.openapi()["paths"])  # before any of them looks at the path
    return app
