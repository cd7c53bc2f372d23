"""POST /v1/chat/completions."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from model.tokenizer import Tokenizer
from server.openai.answer import Answer
from server.openai.body import read_body
from server.openai.documentation import documented
from server.openai.logprobs import chat_logprobs
from server.openai.models import check_model
from server.openai.prompts import chat_prompt
from server.openai.schemas import ChatRequest
from server.served_model import ServedModel
from server.text_stream import TextPiece


class ChatShape:
    """How a chat choice is written: a message as a whole, deltas as chunks, the role before the first delta."""

    id_prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_object_name = "chat.completion.chunk"

    def __init__(self, request: ChatRequest, tokenizer: Tokenizer) -> None:
        self._request = request
        self._tokenizer = tokenizer

    def whole(self, index: int, choice: TextPiece) -> dict[str, Any]:
        """Return a finished choice."""
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._choice(index, "message", message, choice)

    def chunk(self, index: int, piece: TextPiece) -> dict[str, Any]:
        """Return a choice's share of one chunk."""
        return self._choice(index, "delta", {"content": piece.text}, piece)

    def opening(self, index: int) -> dict[str, Any]:
        """Return the share that names the role."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _choice(self, index: int, kind: str, content: dict[str, Any], piece: TextPiece) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": index,
            kind: content,
            "logprobs": chat_logprobs(piece.entries, self._tokenizer) if self._request.logprobs else None,
            "finish_reason": piece.finish_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = piece.token_ids
        return choice


def chat_router(served: ServedModel) -> APIRouter:
    """Return the route that answers conversations."""
    router = APIRouter(tags=["generation"])

    @router.post("/v1/chat/completions", summary="Answer a conversation", **documented(ChatRequest))
    async def create_chat_completion(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ChatRequest, served.limits)
        check_model(served, body.model)
        prompt = await chat_prompt(served, body)
        shape = ChatShape(body, served.tokenizer)
        answer = Answer(served, body, [prompt], shape, arrived_at_seconds=arrived_at_seconds)
        return await answer.respond(request)

    return router
