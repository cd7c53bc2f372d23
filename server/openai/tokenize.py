"""POST /tokenize, /detokenize and /apply-template: what the model reads, in full view."""

from functools import partial
from typing import Any, ClassVar, Self, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, model_validator

from caravan.server.generation.context import key_name_of
from caravan.server.generation.served_model import ServedModel
from caravan.server.http.errors import invalid
from caravan.server.http.openapi import documented, errors
from caravan.server.openai.models import check_model
from caravan.server.openai.prompts import chat_prompt, check_token_ids, encode, in_thread_if_long, render_chat, too_long
from caravan.server.openai.protocol.ignored_fields import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import TOKENS
from caravan.server.openai.protocol.messages import Conversation, Message
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.tools import MAX_TOOLS, Tool
from caravan.server.openai.protocol.validated_body import read_body

MAX_TOKENS = 2**20  # that are detokenized at once


class TokenizeRequest(StrictModel):
    """The body of POST /tokenize: a text, or a conversation."""

    known_fields: ClassVar[KnownFields] = TOKENS

    model: str | None = Field(None, description="The served model, if it is left out.")
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096, fail_fast=True)
    add_special_tokens: bool = Field(True, description="With what the model wants before and behind a text: BOS, EOS.")
    parse_special: bool = Field(False, description="The text of a special token in the prompt is that token.")
    return_pieces: bool = False
    add_generation_prompt: bool | None = Field(None, description="Of messages: true unless continue_final_message is.")
    continue_final_message: bool = False
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, description="Of messages: as in a chat.")

    @model_validator(mode="after")
    def _has_one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("`prompt` and `messages` exclude each other, and one of them is required.", "prompt")
        of_text = {"add_special_tokens", "parse_special"} & self.model_fields_set
        of_chat = {"add_generation_prompt", "continue_final_message", "tools"} & self.model_fields_set
        for name in sorted(of_chat if self.messages is None else of_text):
            raise invalid(f"`{name}` means nothing for `{'prompt' if self.messages is None else 'messages'}`.", name)
        return self

    def conversation(self) -> Conversation | None:
        """Return the conversation, if it is one."""
        if self.messages is None:
            return None
        return Conversation.model_construct(
            messages=self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            tools=self.tools,
        )


class DetokenizeRequest(StrictModel):
    """The body of POST /detokenize."""

    known_fields: ClassVar[KnownFields] = TOKENS

    model: str | None = None
    tokens: list[int] = Field(max_length=MAX_TOKENS, fail_fast=True)


class ApplyTemplateRequest(Conversation):
    """The body of POST /apply-template."""

    known_fields: ClassVar[KnownFields] = TOKENS

    model: str | None = None


Named = TypeVar("Named", TokenizeRequest, DetokenizeRequest, ApplyTemplateRequest)


class Piece(BaseModel):
    """A token and the bytes it writes, perhaps a part of a character."""

    id: int
    bytes: list[int]


class Tokens(BaseModel):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    pieces: list[Piece] | None = None
    warnings: list[str] | None = None


class Text(BaseModel):
    """The text of tokens."""

    text: str
    prompt: str = Field(description="The same as `text`.")
    warnings: list[str] | None = None


class Prompt(BaseModel):
    """A conversation as the model reads it."""

    prompt: str
    warnings: list[str] | None = None


class TokenizerInfo(BaseModel):
    """The tokenizer, under the names of a tokenizer_config.json; `eos_token` is the empty text if there is none."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    add_bos_token: bool
    bos_token: str | None = None
    eos_token: str
    eos_token_ids: list[int] = Field(description="All tokens that end a text.")
    additional_special_tokens: list[str]
    chat_template: str | None = None


def tokenize_router(served: ServedModel) -> APIRouter:
    """Return the routes that show prompts and tokens."""
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
        summary="Show the tokens of a text or a conversation",
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
        summary="Show the text of tokens",
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
        summary="Show a conversation as the model reads it",
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
    """Return the answer of /tokenize as JSON, made a piece at a time: all as objects would take much memory."""
    shown = {"count": len(token_ids), "max_model_len": served.max_model_len, "tokens": token_ids} | warnings
    if not has_pieces:
        return msgspec.json.encode(shown)
    token_bytes = served.tokenizer.token_bytes
    pieces = (b'{"id":%d,"bytes":%b}' % (token_id, _numbers(token_bytes(token_id))) for token_id in token_ids)
    return msgspec.json.encode(shown | {"pieces": msgspec.Raw(b"[%b]" % b",".join(pieces))})


def _written_text(served: ServedModel, token_ids: list[int], warnings: dict[str, list[str]]) -> bytes:
    """Return the answer of /detokenize as JSON, the text under both of its names."""
    text = msgspec.Raw(msgspec.json.encode(served.tokenizer.decode(token_ids, skip_special=False)))
    return msgspec.json.encode({"text": text, "prompt": text, **warnings})


def _numbers(content: bytes) -> bytes:
    return msgspec.json.encode([*content])


def _warnings(body: StrictModel) -> dict[str, list[str]]:
    warnings = ignored_warnings(ignored_fields(body))
    return {"warnings": warnings} if warnings else {}
