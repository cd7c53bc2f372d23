"""POST /tokenize, /detokenize and /apply-template, and GET /tokenizer_info."""

from functools import partial
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from caravan.server.generation.context import key_name_of
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.openapi import documented, errors
from caravan.server.openai.models import check_model
from caravan.server.openai.prompts import chat_prompt, check_token_ids, encode, in_thread_if_long, render_chat, too_long
from caravan.server.openai.protocol.strict_model import StrictModel, ignored_fields, ignored_warnings
from caravan.server.openai.protocol.tokenize import (
    ApplyTemplateRequest,
    DetokenizeRequest,
    Prompt,
    Text,
    TokenizeRequest,
    TokenizerInfo,
    Tokens,
)
from caravan.server.openai.protocol.validated_body import read_body

Named = TypeVar("Named", TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest)


def tokenize_router(served: ServedModel) -> APIRouter:
    """Return the router of the tokenizer's endpoints."""
    router = APIRouter(tags=["tokens"])

    async def read(request: Request, schema: type[Named]) -> Named:
        """Return the body of a request for the served model."""
        body = await read_body(request, schema, served.limits)
        if body.model is not None:
            check_model(served, body.model)
        served.metrics.count_ignored_fields(ignored_fields(body))
        return body

    @router.post(
        "/tokenize",
        summary="Tokenize a text or a conversation",
        response_model=Tokens,
        response_model_exclude_none=True,
        **documented(TokenizeRequest, {"prompt": "Hello world", "return_pieces": True}),
    )
    async def tokenize(request: Request) -> Response:
        key_name = key_name_of(request.scope)
        body = await read(request, TokenizeRequest)
        conversation = body.conversation()
        max_tokens = max(served.max_model_len, served.limits.max_shown_tokens)
        if conversation is not None:
            token_ids = await chat_prompt(served, conversation, key_name, max_tokens)
        else:
            assert body.prompt is not None
            token_ids = await encode(
                served,
                body.prompt,
                "prompt",
                key_name,
                add_special_tokens=body.add_special_tokens,
                parse_special=body.parse_special,
                max_tokens=max_tokens,
            )
        if len(token_ids) > max_tokens:
            param = "prompt" if conversation is None else "messages"
            raise too_long(served, f"{len(token_ids)} tokens in `{param}`", max_tokens)
        writing = partial(_written, served, token_ids, _warnings(body), has_pieces=body.return_pieces)
        written = await in_thread_if_long(served, key_name, len(token_ids), writing)
        return Response(written, media_type="application/json")

    @router.post(
        "/detokenize",
        summary="Detokenize token ids",
        response_model=Text,
        response_model_exclude_none=True,
        **documented(DetokenizeRequest, {"tokens": [19556, 905]}),
    )
    async def detokenize(request: Request) -> Response:
        body = await read(request, DetokenizeRequest)
        check_token_ids(body.tokens, served.tokenizer.vocab_size, "tokens")
        writing = partial(_written_text, served, body.tokens, _warnings(body))
        written = await in_thread_if_long(served, key_name_of(request.scope), len(body.tokens), writing)
        return Response(written, media_type="application/json")

    @router.post(
        "/apply-template",
        summary="Render a conversation with the chat template",
        response_model=Prompt,
        response_model_exclude_none=True,
        **documented(ApplyTemplateRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
    )
    async def apply_template(request: Request) -> dict[str, Any]:
        body = await read(request, ApplyTemplateRequest)
        rendered = await render_chat(served, body, key_name_of(request.scope))
        return {"prompt": rendered.text.replace(rendered.guard, "")} | _warnings(body)

    @router.get(
        "/tokenizer_info",
        summary="Describe the tokenizer",
        response_model=TokenizerInfo,
        response_model_exclude_none=True,
        responses=errors(401),
    )
    async def tokenizer_info() -> dict[str, Any]:
        tokenizer = served.tokenizer
        return {
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            "model_max_length": served.max_model_len,
            "add_bos_token": bool(tokenizer.encode("")),
            "bos_token": tokenizer.bos_token or None,
            "eos_token": tokenizer.eos_token,
            "eos_token_ids": sorted(tokenizer.eos_token_ids),
            "additional_special_tokens": list(tokenizer.special_tokens),
            "chat_template": None if served.chat_template is None else served.chat_template.source,
        }

    return router


def _written(served: ServedModel, token_ids: list[int], warnings: dict[str, list[str]], *, has_pieces: bool) -> bytes:
    """Return the response of /tokenize as JSON, written token by token to save memory."""
    shown = {"count": len(token_ids), "max_model_len": served.max_model_len, "tokens": token_ids} | warnings
    if not has_pieces:
        return msgspec.json.encode(shown)
    token_bytes = served.tokenizer.token_bytes
    pieces = (b'{"id":%d,"bytes":%b}' % (token_id, _numbers(token_bytes(token_id))) for token_id in token_ids)
    return msgspec.json.encode(shown | {"pieces": msgspec.Raw(b"[%b]" % b",".join(pieces))})


def _written_text(served: ServedModel, token_ids: list[int], warnings: dict[str, list[str]]) -> bytes:
    """Return the response of /detokenize as JSON, with the text under both names."""
    text = msgspec.Raw(msgspec.json.encode(served.tokenizer.decode(token_ids, skip_special=False)))
    return msgspec.json.encode({"text": text, "prompt": text, **warnings})


def _numbers(content: bytes) -> bytes:
    return msgspec.json.encode([*content])


def _warnings(body: StrictModel) -> dict[str, list[str]]:
    warnings = ignored_warnings(ignored_fields(body))
    return {"warnings": warnings} if warnings else {}
