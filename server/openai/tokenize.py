"""POST /tokenize, /detokenize and /apply-template, and GET /tokenizer_info."""

from functools import partial
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from caravan.server.generation.context import key_name_of
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import answers, documented, errors
from caravan.server.openai.chat_rendering import render_chat
from caravan.server.openai.models import chosen_model
from caravan.server.openai.prompts import chat_prompt, check_token_ids, encode, in_thread_if_long, too_long
from caravan.server.openai.protocol.strict_model import StrictModel, ignored_fields, ignored_warnings
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
from caravan.server.openai.protocol.validated_body import read_body

Named = TypeVar("Named", TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest)


def tokenize_router(models: ServedModels) -> APIRouter:
    """Return the router of the tokenizer's endpoints."""
    router = APIRouter(tags=["tokens"])

    async def read(request: Request, schema: type[Named]) -> tuple[Named, ServedModel]:
        """Return the body of a request and its model."""
        body = await read_body(request, schema, models.limits)
        served = chosen_model(models, body.model, request.scope)
        served.metrics.count_ignored_fields(ignored_fields(body))
        return body, served

    @router.post(
        "/tokenize",
        summary="Tokenize a text or a conversation",
        **documented(TokenizeRequest, {"prompt": "Hello world", "return_pieces": True}, answer=Tokens),
    )
    async def tokenize(request: Request) -> Response:
        key_name = key_name_of(request.scope)
        body, served = await read(request, TokenizeRequest)
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
        writing = partial(_tokens_response, served, token_ids, _warnings(body), has_pieces=body.return_pieces)
        return await in_thread_if_long(served, key_name, len(token_ids), writing)

    @router.post(
        "/detokenize",
        summary="Detokenize token ids",
        **documented(DetokenizeRequest, {"tokens": [19556, 905]}, answer=Text),
    )
    async def detokenize(request: Request) -> Response:
        body, served = await read(request, DetokenizeRequest)
        check_token_ids(body.tokens, served.tokenizer.vocab_size, "tokens")
        writing = partial(_text_response, served, body.tokens, _warnings(body))
        return await in_thread_if_long(served, key_name_of(request.scope), len(body.tokens), writing)

    @router.post(
        "/apply-template",
        summary="Render a conversation with the chat template",
        **documented(ApplyTemplateRequest, {"messages": [{"role": "user", "content": "Hi"}]}, answer=Prompt),
    )
    async def apply_template(request: Request) -> Response:
        body, served = await read(request, ApplyTemplateRequest)
        rendered = await render_chat(served, body, key_name_of(request.scope))
        return json_response(Prompt(prompt=rendered.text.replace(rendered.guard, ""), warnings=_warnings(body)))

    @router.get(
        "/tokenizer_info",
        summary="Describe the tokenizer",
        responses=answers(TokenizerInfo) | errors(401, 404),
    )
    async def tokenizer_info(request: Request, model: str | None = None) -> Response:
        served = chosen_model(models, model, request.scope)
        tokenizer = served.tokenizer
        info = TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            vocab_size=tokenizer.vocab_size,
            model_max_length=served.max_model_len,
            add_bos_token=bool(tokenizer.encode("")),
            bos_token=tokenizer.bos_token or UNSET,
            eos_token=tokenizer.eos_token,
            eos_token_ids=sorted(tokenizer.eos_token_ids),
            additional_special_tokens=list(tokenizer.special_tokens),
            chat_template=UNSET if served.chat_template is None else served.chat_template.source,
        )
        return json_response(info)

    return router


def _tokens_response(
    served: ServedModel, token_ids: list[int], warnings: list[str] | UnsetType, *, has_pieces: bool
) -> Response:
    """Return the response of /tokenize; its pieces are written token by token to save memory."""
    body = Tokens(count=len(token_ids), max_model_len=served.max_model_len, tokens=token_ids, warnings=warnings)
    if has_pieces:
        encode_piece, token_bytes = msgspec.json.encode, served.tokenizer.token_bytes
        pieces = (encode_piece(Piece(id=token_id, bytes=[*token_bytes(token_id)])) for token_id in token_ids)
        body.pieces = msgspec.Raw(b"[%b]" % b",".join(pieces))
    return json_response(body)


def _text_response(served: ServedModel, token_ids: list[int], warnings: list[str] | UnsetType) -> Response:
    text = served.tokenizer.decode(token_ids, skip_special=False)
    return json_response(Text(text=text, prompt=text, warnings=warnings))


def _warnings(body: StrictModel) -> list[str] | UnsetType:
    return ignored_warnings(ignored_fields(body)) or UNSET
