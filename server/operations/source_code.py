"""GET /web/code/...: the source files that the page's explanations and the guide link to, as text."""

from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Response

from caravan.server.http.errors import ApiError

FILES = frozenset(
    {
        *("scheduler/block_manager.py", "scheduler/block_pool.py", "scheduler/engine.py", "scheduler/events.py"),
        *("scheduler/batch.py", "scheduler/messages.py", "scheduler/prefill_budget.py", "scheduler/prefix_reads.py"),
        *("scheduler/process.py", "scheduler/scheduler.py", "scheduler/sequence.py", "scheduler/speculation.py"),
        *("scheduler/resident_adapters.py", "scheduler/waiting_queue.py"),
        *("model/llama.py", "model/rms_norm.py", "model/feed_forward.py", "model/rope.py", "model/rope_scaling.py"),
        *("model/clamped_swiglu.py", "model/config.py", "model/experts.py", "model/forward_batch.py"),
        *("model/kv_cache.py", "model/linear.py"),
        *("model/lora.py", "model/position_tables.py", "model/quantization.py", "model/soft_cap.py"),
        *("model/attention/reference.py", "model/sampling/truncation.py", "model/sampling/sampler.py"),
        *("model/checkpoint/peft_config.py", "model/checkpoint/relatives.py"),
        *("model/checkpoint/row_order.py", "model/tokenizer/tokenizer.py", "model/tokenizer/detokenizer.py"),
        *("server/engine/client.py", "server/engine/in_flight.py", "server/generation/admission.py"),
        *("server/generation/stop_strings.py", "server/generation/wait_forecast.py"),
        *("server/http/sse.py", "server/sandbox/chat_template.py"),
    }
)
_HEADERS = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def source_code_router() -> APIRouter:
    """Return the route. It is public, as the pages are: the files are the same in every installation."""
    router = APIRouter(tags=["page"])

    @cache  # at most one entry per file
    def content(path: str) -> bytes:
        package, _, name = path.partition("/")
        return (files(f"caravan.{package}") / name).read_bytes()

    async def respond(path: str) -> Response:
        if path not in FILES:
            raise ApiError(404, "There is no such file.")
        return Response(content(path), headers=_HEADERS, media_type="text/plain; charset=utf-8")

    router.add_api_route(
        "/web/code/{path:path}", respond, methods=["GET", "HEAD"], response_class=Response, include_in_schema=False
    )
    return router
