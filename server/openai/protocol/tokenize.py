"""The requests and responses of POST /tokenize, /detokenize and /apply-template, and of GET /tokenizer_info."""

from typing import Annotated, ClassVar, Self

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import TOKENIZE, TOKENS
from caravan.server.openai.protocol.messages import Conversation, Message
from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel
from caravan.server.openai.protocol.thinking_fields import TemplateFields
from caravan.server.openai.protocol.tools import MAX_TOOLS, Tool

MAX_TOKENS = 2**20  # of one request to /detokenize


class TokenizeRequest(TemplateFields):
    """The body of POST /tokenize: a text, or a conversation."""

    known_fields: ClassVar[KnownFields] = TOKENIZE

    model: str | None = Field(None, description="Default: the served model.")
    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=4096, fail_fast=True)
    add_special_tokens: bool = Field(True, description="Add the tokenizer's BOS and EOS tokens.")
    parse_special: bool = Field(False, description="Read the text of a special token in `prompt` as that token.")
    return_pieces: bool = False
    add_generation_prompt: bool | None = Field(
        None, description="With `messages`. Default: not `continue_final_message`."
    )
    continue_final_message: bool = False
    tools: list[Tool] = Field([], max_length=MAX_TOOLS, description="With `messages`: as in a chat.")

    @model_validator(mode="after")
    def _has_one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise invalid("Exactly one of `prompt` and `messages` is required.", "prompt")
        of_text = {"add_special_tokens", "parse_special"} & self.model_fields_set
        chat_fields = {"add_generation_prompt", "continue_final_message", "tools", *TemplateFields.model_fields}
        of_chat = chat_fields & self.model_fields_set
        given, excluded = ("prompt", of_chat) if self.messages is None else ("messages", of_text)
        for name in sorted(excluded):
            raise invalid(f"`{name}` cannot be combined with `{given}`.", name)
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
            **{name: getattr(self, name) for name in TemplateFields.model_fields},
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


class Piece(ResponseModel, kw_only=True):
    """A token and its bytes, which may be a part of a character."""

    id: int
    bytes: list[int]


Pieces = Annotated[
    msgspec.Raw,
    msgspec.Meta(extra_json_schema={"type": "array", "items": {"$ref": "#/components/schemas/Piece"}}),
]


class Tokens(ResponseModel, kw_only=True):
    """The tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    warnings: list[str] | UnsetType = UNSET
    pieces: Pieces | UnsetType = UNSET


class Text(ResponseModel, kw_only=True):
    """The text of tokens, under both names."""

    text: str
    prompt: str
    warnings: list[str] | UnsetType = UNSET


class Prompt(ResponseModel, kw_only=True):
    """A conversation rendered with the chat template."""

    prompt: str
    warnings: list[str] | UnsetType = UNSET


class TokenizerInfo(ResponseModel, kw_only=True):
    """The tokenizer, under the names of a tokenizer_config.json; `eos_token` is the empty text if there is none."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    add_bos_token: bool
    bos_token: str | UnsetType = UNSET
    eos_token: str
    eos_token_ids: Annotated[list[int], msgspec.Meta(description="All end tokens.")]
    additional_special_tokens: list[str]
    chat_template: str | UnsetType = UNSET
