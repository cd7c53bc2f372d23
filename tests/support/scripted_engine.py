"""An engine process without a model: each request gets one token a step, a function of its prompt and the position.

The first token of a prompt says what else happens: DIES ends the process in the step that has the request in its batch,
HANGS stops the step loop, DIES_LATE does the former once the request has three tokens of this life. Run in place of
`caravan.scheduler.process`, as `-m tests.support.scripted_engine STEP_SECONDS FD`. With another number, STEP_SECONDS
LOAD_SECONDS FD, it is a standby, which takes that time to load and does not take over before it is asked to.
"""

import os
import queue
import socket
import sys
import threading
import time

import msgspec

from caravan.scheduler.channel import LENGTH, frame_length
from caravan.scheduler.message_sender import MessageSender
from caravan.scheduler.messages import (
    Abort,
    EngineLoaded,
    Request,
    SequenceOutput,
    StartEngine,
    StepOutput,
    StepStats,
    TakeOver,
    ToEngine,
    TokenLogprobs,
)
from tests.support.engine_reports import READY

DIES, HANGS, DIES_LATE = 1, 2, 3
MAX_BATCH = 4


def token_at(prompt: list[int], position: int) -> int:
    """Return the token of an answer at a position."""
    return (sum(prompt) * 31 + position * 17) % 1000 + 10


def output_of(request: Request, num_tokens: int) -> SequenceOutput:
    """Return what a step does for a request with this number of tokens."""
    prompt, params = request.prompt_token_ids, request.params
    is_scored = params.num_prompt_logprobs is not None and not num_tokens
    return SequenceOutput(
        request_id=request.request_id,
        token_ids=[token_at(prompt, num_tokens)],
        prompt_logprobs=[TokenLogprobs(logprob=-float(token)) for token in prompt[1:]] if is_scored else [],
        finish_reason="length" if num_tokens + 1 == params.max_tokens else None,
    )


def main() -> None:
    """Serve the API process at the other end of the inherited socket."""
    step_seconds, connection = float(sys.argv[1]), socket.socket(fileno=int(sys.argv[-1]))
    inbox: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, inbox), daemon=True).start()
    sender = MessageSender(connection)
    for load_seconds in map(float, sys.argv[2:-1]):
        time.sleep(load_seconds)
        sender.send(EngineLoaded())
        while not isinstance(inbox.get(), TakeOver):
            pass
    sender.send(READY)
    sender.start_heartbeats()
    requests: dict[int, Request] = {}
    num_tokens: dict[int, int] = {}
    while True:
        sender.loop()
        time.sleep(step_seconds)
        while not inbox.empty():
            match inbox.get():
                case Request() as request:
                    requests[request.request_id] = request
                    num_tokens[request.request_id] = len(request.output_token_ids)
                case Abort(request_id=request_id):
                    requests.pop(request_id, None)
                case StartEngine():
                    pass
        batch = [*requests.values()][:MAX_BATCH]
        sender.announce([request.request_id for request in batch])
        for request in batch:
            num_new = num_tokens[request.request_id] - len(request.output_token_ids)
            if request.prompt_token_ids[0] == DIES or (request.prompt_token_ids[0] == DIES_LATE and num_new == 3):
                os._exit(3)
            if request.prompt_token_ids[0] == HANGS:
                threading.Event().wait()
        outputs = [output_of(request, num_tokens[request.request_id]) for request in batch]
        for output in outputs:
            num_tokens[output.request_id] += 1
            if output.finish_reason is not None:
                del requests[output.request_id]
        sender.send(StepOutput(outputs=outputs, stats=StepStats(num_running=len(batch))))


def _read(connection: socket.socket, inbox: "queue.SimpleQueue[ToEngine]") -> None:
    decoder: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
    with connection.makefile("rb") as stream:
        while head := stream.read(LENGTH.size):
            inbox.put(decoder.decode(stream.read(frame_length(head))))
    os._exit(0)


if __name__ == "__main__":
    main()
