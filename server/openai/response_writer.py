"""ResponseWriter: the output items of one response, and the events of its stream."""

import time
import uuid
from typing import Any, Literal

from msgspec import UNSET

from caravan.server.generation.generation import Generation
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.errors import RESPONSE_ENDED, ApiError
from caravan.server.http.sse import named_event
from caravan.server.openai.logprobs import chat_logprobs
from caravan.server.openai.protocol.chat import ChatRequest
from caravan.server.openai.protocol.custom_input import CustomInput
from caravan.server.openai.protocol.encoded_thought import encoded_thought
from caravan.server.openai.protocol.response_model import CachedTokens, ChosenTokenLogprob, ReasoningTokens, Timings
from caravan.server.openai.protocol.response_object import (
    IncompleteDetails,
    OutputCall,
    OutputCustomCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from caravan.server.openai.protocol.response_tools import AbsentTool, CustomTool
from caravan.server.openai.protocol.responses import ResponsesRequest
from caravan.server.openai.template_messages import message_warnings
from caravan.server.openai.tool_calls.call_format import call_format_of
from caravan.server.openai.tool_calls.tool_call_parser import ResponsePart, ToolCallParser

ClosedStatus = Literal["completed", "incomplete"]
Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
Item = OutputReasoning | OutputMessage | OutputCall | OutputCustomCall


class ResponseWriter:
    """Writes one response, whole or as events."""

    def __init__(
        self, request: ResponsesRequest, chat: ChatRequest, served: ServedModel, prompt_token_ids: list[int]
    ) -> None:
        self._request = request
        self._served = served
        self._parser = (
            ToolCallParser(
                call_format_of(served.chat_template),
                allows_several=chat.allows_several_calls,
                is_forced=bool(chat.required_tools),
            )
            if chat.shown_tools
            else None
        )
        self.answer_id = f"resp_{uuid.uuid4().hex}"
        self._is_repetition = False  # a repetition has ended it
        self._status: ClosedStatus = "completed"
        self._created_at = int(time.time())
        self._warnings = [*request.warnings(), *map(_of_input, message_warnings(served, chat))]
        self._output: list[Item] = []
        self._sequence_number = 0
        self._open_item: Item | None = None
        self._input = CustomInput()  # of the open call of a custom tool
        self._logprobs: list[ChosenTokenLogprob] = []  # of tokens whose text may still become a tool call
        self._prompt_token_ids = prompt_token_ids
        self._token_ids: list[int] = []

    def queued(self) -> ResponseObject:
        """Return the response before its first event."""
        return self._response("queued")

    def begin(self) -> bytes:
        """Return the events before the first text."""
        response = self._response("in_progress")
        created = self._event("response.created", response=response)
        return created + self._event("response.in_progress", response=response)

    def delta(self, index: int, delta: TextDelta, generation: Generation) -> bytes:  # noqa: ARG002  # of EndpointWriter
        """Return the events of the next delta."""
        parts = [ResponsePart(content=delta.text)] if self._parser is None else self._parser.push(delta.text)
        if delta.finish_reason is not None and self._parser is not None:
            parts += self._parser.finish(is_cut_off=delta.finish_reason == "length")
        if self._request.return_token_ids:
            self._token_ids += delta.token_ids
        if self._request.wants_logprobs:
            self._logprobs += chat_logprobs(delta.entries, self._served.tokenizer)
        is_thought = bool(delta.thought) and not self._request.hides_thoughts
        events = self._add_thought(delta.thought) if is_thought else b""
        for part in parts:
            if part.content or (self._parser is None and self._logprobs):
                events += self._add_text(part.content)
            if part.calls:
                self._logprobs = []  # calls have none
            for call in part.calls:
                if call.name is not None:
                    events += self._open_call(call.name)
                events += self._add_arguments(call.arguments)
        if delta.finish_reason is not None:
            self._is_repetition = bool(delta.stop_reason)
            self._status = "incomplete" if delta.finish_reason == "length" else "completed"
            has_answer = any(not isinstance(item, OutputReasoning) for item in self._output)
            if not has_answer and not (self._output and self._status == "incomplete"):
                events += self._add_text("")
            events += self._close(self._status)
        return events

    def end(self, generation: Generation) -> bytes:
        """Return the last event, after the last delta."""
        return self._event(f"response.{self._status}", response=self._finished(generation))

    def add(self, index: int, delta: TextDelta, generation: Generation) -> None:
        """Add a delta to the response, as in its stream."""
        self.delta(index, delta, generation)

    def whole(self, generation: Generation) -> ResponseObject:
        """Return the response as one object."""
        return self._finished(generation)

    def fail(self, error: ApiError, generation: Generation) -> bytes:
        """Return the event of a response that failed, or that was cancelled: clients know no event of its own."""
        detail = error.body()["error"]
        is_cancelled = error.code == RESPONSE_ENDED
        response = self._response("cancelled" if is_cancelled else "failed")
        if not is_cancelled:
            response.error = ResponseError(code=detail["code"] or "server_error", message=detail["message"])
        self._explain(response, generation)
        return self._event("response.failed", response=response)

    def _finished(self, generation: Generation) -> ResponseObject:
        response = self._response(self._status)
        response.usage = _usage(generation.usage())
        if self._request.return_token_ids:
            response.prompt_token_ids = self._prompt_token_ids
            response.token_ids = self._token_ids
        self._explain(response, generation)
        return response

    def _response(self, status: Status) -> ResponseObject:
        """Return the response as it is now."""
        request = self._request
        return ResponseObject(
            id=self.answer_id,
            created_at=self._created_at,
            status=status,
            background=request.background or UNSET,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            metadata=request.metadata,
            model=request.model,
            output=self._output,
            parallel_tool_calls=request.parallel_tool_calls,
            temperature=request.temperature,
            text=request.text.model_dump(include={"format"}, by_alias=True),
            tool_choice=request.tool_choice,
            tools=[tool.model_dump() for tool in request.tools if not isinstance(tool, AbsentTool)],
            top_p=request.top_p,
            stop_reason="repetition" if self._is_repetition else UNSET,
            warnings=self._warnings or UNSET,
        )

    def _explain(self, response: ResponseObject, generation: Generation) -> None:
        if self._request.explain:
            response.explanation = generation.record.explanation()

    def _add_text(self, text: str) -> bytes:
        events = b""
        logprobs, self._logprobs = self._logprobs, []
        item = self._open_item
        if not isinstance(item, OutputMessage):
            events = self._close("completed")
            item = OutputMessage(id=f"msg_{uuid.uuid4().hex}", content=[])
            events += self._open(item)
            item.content.append(OutputText(annotations=[], logprobs=[]))
            events += self._event("response.content_part.added", **self._place(), content_index=0, part=item.content[0])
        part = item.content[0]
        part.text += text
        part.logprobs += logprobs
        return events + self._event(
            "response.output_text.delta", **self._place(), content_index=0, delta=text, logprobs=logprobs
        )

    def _add_thought(self, text: str) -> bytes:
        events = b""
        item = self._open_item
        if not isinstance(item, OutputReasoning):
            item = OutputReasoning(id=f"rs_{uuid.uuid4().hex}", summary=[], content=[])
            events += self._open(item)
            item.content.append(ReasoningText())
            events += self._event("response.content_part.added", **self._place(), content_index=0, part=item.content[0])
        item.content[0].text += text
        return events + self._event("response.reasoning_text.delta", **self._place(), content_index=0, delta=text)

    def _open_call(self, name: str) -> bytes:
        offered = self._request.offered_tools.get(name)
        closed = self._close("completed")
        call_id = call_format_of(self._served.chat_template).new_call_id()
        namespace = UNSET if offered is None or offered.namespace is None else offered.namespace
        name = name if offered is None else offered.tool.name
        self._input = CustomInput()
        if offered is not None and isinstance(offered.tool, CustomTool):
            custom = OutputCustomCall(id=f"ctc_{uuid.uuid4().hex}", call_id=call_id, name=name, namespace=namespace)
            return closed + self._open(custom)
        item = OutputCall(id=f"fc_{uuid.uuid4().hex}", call_id=call_id, name=name, namespace=namespace)
        return closed + self._open(item)

    def _add_arguments(self, text: str) -> bytes:
        if not text:
            return b""
        if isinstance(self._item, OutputCall):
            self._item.arguments += text
            return self._event("response.function_call_arguments.delta", **self._place(), delta=text)
        return self._add_input(self._input.push(text))

    def _add_input(self, text: str) -> bytes:
        """Return the event of the next part of a custom tool's input, if there is one."""
        return self._event("response.custom_tool_call_input.delta", **self._place(), delta=text) if text else b""

    def _open(self, item: Item) -> bytes:
        self._open_item = item
        self._output.append(item)
        return self._event("response.output_item.added", output_index=len(self._output) - 1, item=item)

    def _close(self, status: ClosedStatus) -> bytes:
        """Return the events that end the open item, if there is one."""
        if self._open_item is None:
            return b""
        item, place = self._item, self._place()
        item.status = status
        match item:
            case OutputReasoning(content=[thought]):
                if self._request.wants_encrypted_thoughts:
                    item.encrypted_content = encoded_thought(thought.text)
                events = self._event("response.reasoning_text.done", **place, content_index=0, text=thought.text)
                events += self._event("response.content_part.done", **place, content_index=0, part=thought)
            case OutputMessage(content=[part]):
                events = self._event(
                    "response.output_text.done", **place, content_index=0, text=part.text, logprobs=part.logprobs
                )
                events += self._event("response.content_part.done", **place, content_index=0, part=part)
            case OutputCustomCall():
                events = self._add_input(self._input.finish())
                item.input = self._input.text
                events += self._event("response.custom_tool_call_input.done", **place, input=item.input)
            case OutputCall(name=name, arguments=arguments):
                events = self._event("response.function_call_arguments.done", **place, name=name, arguments=arguments)
            case _:
                raise AssertionError("a message or a thought has one part")
        self._open_item = None
        return events + self._event("response.output_item.done", output_index=len(self._output) - 1, item=item)

    @property
    def _item(self) -> Item:
        assert self._open_item is not None
        return self._open_item

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item.id, "output_index": len(self._output) - 1}

    def _event(self, kind: str, /, **fields: Any) -> bytes:
        payload = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return named_event(kind, payload)


def _of_input(warning: str) -> str:
    """Return a warning about a message of the chat as one about the input."""
    thought = "`messages[].reasoning_content` has"
    return warning.replace(thought, "Items of type `reasoning` have").replace("`messages[]", "`input[]")


def _usage(usage: dict[str, Any]) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage["prompt_tokens"],
        input_tokens_details=CachedTokens(cached_tokens=usage["prompt_tokens_details"]["cached_tokens"]),
        output_tokens=usage["completion_tokens"],
        output_tokens_details=ReasoningTokens(
            reasoning_tokens=usage.get("completion_tokens_details", {}).get("reasoning_tokens", 0)
        ),
        total_tokens=usage["total_tokens"],
        timings=Timings(**usage["timings"]) if "timings" in usage else UNSET,
    )
