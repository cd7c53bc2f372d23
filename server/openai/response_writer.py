"""ResponseWriter: the output items of one response as they come, and the events of its stream."""

import time
import uuid
from typing import Any

from caravan.server.generation.generation import Generation
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextPiece
from caravan.server.http.errors import ApiError
from caravan.server.http.sse import named_event
from caravan.server.openai.logprobs import chat_logprobs
from caravan.server.openai.message_warnings import message_warnings
from caravan.server.openai.protocol.generation_requests import ChatRequest
from caravan.server.openai.protocol.response_requests import ResponsesRequest
from caravan.server.openai.protocol.response_tools import AbsentTool, CustomTool, input_of_arguments
from caravan.server.openai.tool_calls.call_format import call_format_of
from caravan.server.openai.tool_calls.tool_call_parser import ResponsePart, ToolCallParser


class ResponseWriter:
    """One response: its output items as they come, and the events that tell of them."""

    def __init__(
        self, request: ResponsesRequest, chat: ChatRequest, served: ServedModel, prompt_token_ids: list[int]
    ) -> None:
        self._request = request
        self._served = served
        self._reader = (
            ToolCallParser(
                call_format_of(served.chat_template),
                allows_several=chat.allows_several_calls,
                is_forced=bool(chat.required_tools),
            )
            if chat.shown_tools
            else None
        )
        self.response_id = f"resp_{uuid.uuid4().hex}"
        self._created_at = int(time.time())
        self._warnings = [*request.warnings(), *map(_of_input, message_warnings(served, chat))]
        self._output: list[dict[str, Any]] = []
        self._sequence_number = 0
        self._open_item: dict[str, Any] | None = None
        self._arguments = ""  # of the open call of a custom tool
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text is still to be told apart
        self._prompt_token_ids = prompt_token_ids
        self._token_ids: list[int] = []

    def begin(self) -> bytes:
        """Return the events before the first text."""
        response = self.response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def take(self, piece: TextPiece) -> bytes:
        """Return the events of a piece."""
        parts = [ResponsePart(content=piece.text)] if self._reader is None else self._reader.push(piece.text)
        if piece.finish_reason is not None and self._reader is not None:
            parts += self._reader.finish(is_cut_off=piece.finish_reason == "length")
        if self._request.return_token_ids:
            self._token_ids += piece.token_ids
        if self._request.wants_logprobs:
            self._logprobs += chat_logprobs(piece.entries, self._served.tokenizer)["content"]
        events = b""
        for part in parts:
            if part.content or (self._reader is None and self._logprobs):
                events += self._add_text(part.content)
            if part.calls:
                self._logprobs = []  # calls have none
            for call in part.calls:
                if call.name is not None:
                    events += self._open_call(call.name)
                events += self._add_arguments(call.arguments)
        if piece.finish_reason is not None:
            if not self._output:
                events += self._add_text("")
            events += self._close("incomplete" if piece.finish_reason == "length" else "completed")
        return events

    def end(self, piece: TextPiece, generation: Generation) -> bytes:
        """Return the last event, after the last piece."""
        response = self.whole(piece, generation)
        return self._event(f"response.{response['status']}", response=response)

    def whole(self, piece: TextPiece, generation: Generation) -> dict[str, Any]:
        """Return the finished response."""
        status = "incomplete" if piece.finish_reason == "length" else "completed"
        response = self.response(status, generation.usage())
        if self._request.return_token_ids:
            response |= {"prompt_token_ids": self._prompt_token_ids, "token_ids": self._token_ids}
        return response | self._explanation(generation)

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the event of an answer that broke off."""
        told = error.body()["error"]
        response = self.response("failed", None) | {
            "error": {"code": told["code"] or "server_error", "message": told["message"]}
        }
        response |= self._explanation(generation)
        return self._event("response.failed", response=response)

    def response(self, status: str, usage: dict[str, Any] | None) -> dict[str, Any]:
        """Return the response as it is now."""
        request = self._request
        body: dict[str, Any] = {
            "id": self.response_id,
            "object": "response",
            "created_at": self._created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata,
            "model": request.model,
            "output": self._output,
            "parallel_tool_calls": request.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": request.text.model_dump(include={"format"}, by_alias=True),
            "tool_choice": request.tool_choice,
            "tools": [tool.model_dump() for tool in request.tools if not isinstance(tool, AbsentTool)],
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None if usage is None else _usage(usage),
        }
        return body | {"warnings": self._warnings} if self._warnings else body

    def _explanation(self, generation: Generation) -> dict[str, Any]:
        return {"explanation": generation.story.written()} if self._request.explain else {}

    def _add_text(self, text: str) -> bytes:
        events = b""
        logprobs, self._logprobs = self._logprobs, []
        if self._open_item is None or self._open_item["type"] != "message":
            events = self._close("completed")
            item = {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant"}
            events += self._open(item | {"status": "in_progress", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self._item["content"].append(part)
            events += self._event("response.content_part.added", **self._place(), content_index=0, part=part)
        part = self._item["content"][0]
        part["text"] += text
        part["logprobs"] += logprobs
        return events + self._event(
            "response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=logprobs
        )

    def _open_call(self, name: str) -> bytes:
        offered = self._request.offered_tools.get(name)
        closed = self._close("completed")
        call_id = call_format_of(self._served.chat_template).new_call_id()
        of_tool: dict[str, Any] = {"call_id": call_id, "name": name if offered is None else offered.tool.name}
        if offered is not None and offered.namespace is not None:
            of_tool["namespace"] = offered.namespace
        self._arguments = ""
        if offered is not None and isinstance(offered.tool, CustomTool):
            item = {"id": f"ctc_{uuid.uuid4().hex}", "type": "custom_tool_call", **of_tool, "input": ""}
        else:
            item = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", **of_tool, "arguments": ""}
        return closed + self._open(item | {"status": "in_progress"})

    def _add_arguments(self, text: str) -> bytes:
        if not text:
            return b""
        if self._item["type"] == "custom_tool_call":  # its input stands in JSON, and is known when that is complete
            self._arguments += text
            return b""
        self._item["arguments"] += text
        return self._event("response.function_call_arguments.delta", **self._place(), delta=text)

    def _open(self, item: dict[str, Any]) -> bytes:
        self._open_item = item
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, status: str) -> bytes:
        """Return the events that end the open item, if there is one."""
        if self._open_item is None:
            return b""
        item, place = self._item, self._place()
        item["status"] = status
        if item["type"] == "message":
            part = item["content"][0]
            texts = {"text": part["text"], "logprobs": part["logprobs"]}
            events = self._event("response.output_text.done", **place, content_index=0, **texts)
            events += self._event("response.content_part.done", **place, content_index=0, part=part)
        elif item["type"] == "custom_tool_call":
            item["input"] = text = input_of_arguments(self._arguments)
            events = self._event("response.custom_tool_call_input.delta", **place, delta=text) if text else b""
            events += self._event("response.custom_tool_call_input.done", **place, input=text)
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            events = self._event("response.function_call_arguments.done", **place, **told)
        self._open_item = None
        return events + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _item(self) -> dict[str, Any]:
        assert self._open_item is not None
        return self._open_item

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return named_event(kind, payload)


def _of_input(warning: str) -> str:
    """Return a warning about a message of the chat as one about the input."""
    thought = "`messages[].reasoning_content` has"
    return warning.replace(thought, "Items of type `reasoning` have").replace("`messages[]", "`input[]")


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": usage["prompt_tokens_details"]["cached_tokens"]},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
