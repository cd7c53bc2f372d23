"""POST /v1/learn/trace: what the served model computes on the way from a text to the next token."""

import msgspec
from fastapi import APIRouter, Request, Response

from caravan.server.generation.context import key_name_of
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import ApiError, invalid
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented, errors
from caravan.server.learn.protocol import MAX_TOKENS, LikelyToken, ModelTrace, Trace, TracedToken, TraceRequest
from caravan.server.learn.tracer import Tracer
from caravan.server.openai.chat_rendering import render_chat
from caravan.server.openai.models import chosen_model
from caravan.server.openai.prompts import encode, encode_chat, too_long
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.protocol.strict_model import ignored_fields
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.sandbox.special_tokens import Json

_EXAMPLE = {"text": "The cat sat on the", "layer": 0, "head": 0}


def trace_router(models: ServedModels, tracer: Tracer | None) -> APIRouter:
    """Return the route; without a tracer it is an error."""
    router = APIRouter(tags=["learn"])
    documentation = documented(TraceRequest, _EXAMPLE, answer=Trace)
    documentation["responses"] |= errors(403)

    @router.post("/v1/learn/trace", summary="Trace a text through the model", **documentation)
    async def trace(request: Request) -> Response:
        if tracer is None:
            raise ApiError(403, "Traces are off on this server. Start it with --learn on.", code="learn_off")
        key_name = key_name_of(request.scope)
        body = await read_body(request, TraceRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        if served.parent:
            raise invalid(f"An adapter cannot be traced. Name the model, `{served.parent}`.", "model")
        served.metrics.count_ignored_fields(ignored_fields(body))
        prompt, token_ids = await _encoded(served, body, key_name)
        if len(token_ids) > MAX_TOKENS:
            raise too_long(served, f"{len(token_ids)} tokens in `text`", MAX_TOKENS)
        position = len(token_ids) - 1 if body.position is None else body.position
        asked: dict[str, Json] = {
            "token_ids": [*token_ids],
            "layer": body.layer,
            "head": body.head,
            "position": position,
        }
        text = await until_disconnect(request.receive, tracer.trace(served.name, asked, key_name))
        traced = msgspec.json.decode(text, type=ModelTrace)
        return json_response(_complete(served, body, prompt, token_ids, position, traced))

    return router


async def _encoded(served: ServedModel, body: TraceRequest, key_name: str) -> tuple[str, list[int]]:
    """Return the text as the model gets it, and its tokens; raises ApiError."""
    if body.is_chat and served.chat_template is not None:
        conversation = Conversation.model_validate({"messages": [{"role": "user", "content": body.text}]})
        rendered = await render_chat(served, conversation, key_name)
        token_ids = await encode_chat(served, rendered, key_name, MAX_TOKENS)
        return rendered.text.replace(rendered.guard, ""), token_ids
    return body.text, await encode(served, body.text, "text", key_name, max_tokens=MAX_TOKENS)


def _complete(
    served: ServedModel, body: TraceRequest, prompt: str, token_ids: list[int], position: int, traced: ModelTrace
) -> Trace:
    """Return the response: the trace with the texts of its tokens."""

    def text_of(token_id: int) -> str:
        return served.tokenizer.token_bytes(token_id).decode("utf-8", "replace")

    def likely(words: list[tuple[int, float]]) -> list[LikelyToken]:
        return [LikelyToken(id=token_id, text=text_of(token_id), probability=one) for token_id, one in words]

    return Trace(
        model=served.name,
        prompt=prompt,
        tokens=[TracedToken(id=token_id, text=text_of(token_id)) for token_id in token_ids],
        layer=body.layer,
        head=body.head,
        position=position,
        num_layers=traced.num_layers,
        num_heads=traced.num_heads,
        num_kv_heads=traced.num_kv_heads,
        stops=traced.stops,
        attention=traced.attention,
        habits=traced.habits,
        lens=[likely(words) for words in traced.lens],
        logits=traced.logits,
        likeliest=likely(traced.likeliest),
    )
