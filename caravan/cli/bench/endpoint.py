"""Endpoint: the form of requests that a server accepts, found with a few small requests before the measurement."""

import ssl
from dataclasses import dataclass, replace
from typing import Any

import httptools
import msgspec

from caravan.cli.bench import BenchFailed
from caravan.cli.bench.answer import Answer, AnswerFailed, error_text, read_answer
from caravan.cli.bench.http_connection import ConnectionBroken, HttpConnections, HttpResponse
from caravan.cli.bench.prompts import Prompt, PromptMaker

_CALIBRATION_TOKENS = (32, 96)
_REFUSED = ("HTTP 400", "HTTP 422")
CONNECTION_ERRORS = (OSError, ConnectionBroken, httptools.HttpParserError)


@dataclass(frozen=True)
class Endpoint:
    """A model of a server, and the fields that its requests can have."""

    connections: HttpConnections
    model: str
    is_chat: bool
    is_stream: bool
    takes_token_ids: bool
    has_ignore_eos: bool
    has_stream_usage: bool
    temperature: float = 0.0
    overhead_tokens: int = 0  # that the server adds to a text
    words_per_token: float = 1.0
    notes: tuple[str, ...] = ()  # what the reader of the figures must know

    @property
    def path(self) -> str:
        """The path of the requests."""
        return "/v1/chat/completions" if self.is_chat else "/v1/completions"

    def body(self, prompt: Prompt, max_tokens: int) -> bytes:
        """Return a request as JSON."""
        fields: dict[str, Any] = {"model": self.model, "max_tokens": max_tokens, "temperature": self.temperature}
        if self.is_chat:
            fields["messages"] = [{"role": "user", "content": prompt}]
        else:
            fields["prompt"] = prompt
        if self.has_ignore_eos:
            fields["ignore_eos"] = True
        if self.is_stream:
            fields["stream"] = True
            if self.has_stream_usage:
                fields["stream_options"] = {"include_usage": True}
        return msgspec.json.encode(fields)

    async def ask(self, prompt: Prompt, max_tokens: int) -> Answer:
        """Send one request. Raises AnswerFailed or one of CONNECTION_ERRORS."""
        response = await self.connections.request("POST", self.path, self.body(prompt, max_tokens))
        return read_answer(response, is_stream=self.is_stream)

    def prompt_maker(self, *, seed: int, shared_prefix_tokens: int) -> PromptMaker:
        """Return a PromptMaker for this server."""
        return PromptMaker(
            seed=seed,
            shared_prefix_tokens=shared_prefix_tokens,
            is_text=not self.takes_token_ids,
            overhead_tokens=self.overhead_tokens,
            words_per_token=self.words_per_token,
        )


async def find_endpoint(
    connections: HttpConnections, *, model: str | None, is_chat: bool, is_stream: bool, temperature: float
) -> Endpoint:
    """Return the endpoint for `model`, or for the first model of the server.

    Fields that OpenAI's API does not have are left out, one after the other, if the server rejects them. Raises
    BenchFailed.
    """
    chosen = model or await _first_model(connections)
    refusal = ""
    for takes_token_ids in (False,) if is_chat else (True, False):
        for has_ignore_eos, has_stream_usage in ((True, True), (False, True), (True, False), (False, False)):
            if not has_stream_usage and not is_stream:
                continue
            endpoint = Endpoint(
                connections, chosen, is_chat, is_stream, takes_token_ids, has_ignore_eos, has_stream_usage, temperature
            )
            try:
                answer = await endpoint.ask(endpoint.prompt_maker(seed=0, shared_prefix_tokens=0).prompt(8), 2)
            except AnswerFailed as error:
                if error.kind not in _REFUSED:
                    raise BenchFailed(f"{endpoint.path} returned {error}") from None
                refusal = refusal or str(error)
            except CONNECTION_ERRORS as error:
                raise BenchFailed(f"{endpoint.path}: {connection_error(error)}.") from None
            else:
                return await _calibrated(endpoint, answer)
    raise BenchFailed(f"The server accepts no request that this command can send: {refusal}")


async def _first_model(connections: HttpConnections) -> str:
    try:
        response = await connections.request("GET", "/v1/models")
    except CONNECTION_ERRORS as error:
        raise BenchFailed(f"Cannot connect to the server: {connection_error(error)}. Check the address.") from None
    if response.status != 200:
        raise BenchFailed(f"/v1/models returned HTTP {response.status}: {error_text(response.body)}")
    return _model_name(response)


def _model_name(response: HttpResponse) -> str:
    try:
        return str(msgspec.json.decode(response.body)["data"][0]["id"])
    except (msgspec.DecodeError, LookupError, TypeError):
        raise BenchFailed("/v1/models lists no model. Set --model.") from None


async def _calibrated(endpoint: Endpoint, answer: Answer) -> Endpoint:
    """Return the endpoint with the number of tokens in a text of words, and with notes for the report."""
    notes = []
    if not endpoint.has_ignore_eos:
        notes.append("The server refuses ignore_eos: outputs may be shorter than requested.")
    if endpoint.is_stream and not endpoint.has_stream_usage:
        notes.append("The server refuses stream_options: output tokens are counted by events.")
    elif answer.output_tokens is None:
        notes.append("The server reports no usage: output tokens are counted by events.")
    overhead_tokens, words_per_token = 0, 1.0
    if not endpoint.takes_token_ids:
        if not endpoint.is_chat:
            notes.append("The server refuses prompts of token ids: prompts are words.")
        counts = []
        for num_words in _CALIBRATION_TOKENS:
            prompt = endpoint.prompt_maker(seed=num_words, shared_prefix_tokens=0).prompt(num_words)
            try:
                counts.append((await endpoint.ask(prompt, 2)).prompt_tokens)
            except (AnswerFailed, *CONNECTION_ERRORS) as error:
                raise BenchFailed(f"{endpoint.path}, to count a prompt: {error}") from None
        short, long = counts
        if short is None or long is None or long <= short:
            notes.append("The server does not count prompts: their lengths are in words.")
        else:
            words_per_token = (_CALIBRATION_TOKENS[1] - _CALIBRATION_TOKENS[0]) / (long - short)
            overhead_tokens = round(long - _CALIBRATION_TOKENS[1] / words_per_token)
    return replace(endpoint, overhead_tokens=overhead_tokens, words_per_token=words_per_token, notes=tuple(notes))


def connection_error(error: Exception) -> str:
    """Return a description of a connection error that is the same for all requests."""
    match error:
        case ConnectionRefusedError():
            return "connection refused"
        case ssl.SSLError():
            return "TLS failed"
        case TimeoutError():
            return "timeout"
        case ConnectionBroken() | ConnectionResetError() | BrokenPipeError():
            return "connection closed by the server"
        case httptools.HttpParserError():
            return "not HTTP"
    return str(getattr(error, "strerror", None) or error).lower()
