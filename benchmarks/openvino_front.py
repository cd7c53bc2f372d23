"""A small HTTP server for OpenVINO GenAI, which has none of its own: /v1/completions of token ids, streamed.

It runs in OpenVINO's environment and needs openvino-genai, uvicorn and httptools there, nothing of ours:
`python openvino_front.py FOLDER --port 9000`. FOLDER holds the IR and its tokenizer.json.
"""

import argparse
import asyncio
import codecs
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
import uvicorn

_TURNS = 5  # of the event loop: a connection is accepted, read, its request begun, its body there, submitted
Tokens = asyncio.Queue[list[int] | None]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Engine:
    """Steps the pipeline while there are requests.

    A step holds the interpreter's lock from begin to end, so a thread for it would only make the event loop wait for
    its turn: it runs in the loop, which then has a few turns to write tokens and to read new requests.
    """

    def __init__(self, folder: Path, num_threads: int, cache_gigabytes: int, max_batch_tokens: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = cache_gigabytes
        scheduler.max_num_seqs = 64
        scheduler.max_num_batched_tokens = max_batch_tokens
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = True
        properties = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": num_threads}
        self._pipeline = genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        self._live: list[tuple[Any, Tokens]] = []
        self._arrived = asyncio.Event()
        self._ids = itertools.count()

    def submit(self, prompt: list[int], max_tokens: int, ignore_eos: bool) -> Tokens:
        """Return the queue of a request's new tokens; None follows the last ones."""
        config = genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = ignore_eos
        config.do_sample = False
        ids = ov.Tensor(np.array([prompt], dtype=np.int64))
        queue: Tokens = asyncio.Queue()
        self._live.append((self._pipeline.add_request(next(self._ids), ids, config), queue))
        self._arrived.set()
        return queue

    async def run(self) -> None:
        """Run steps forever."""
        while True:
            if not self._live:
                self._arrived.clear()
                await self._arrived.wait()
            self._pipeline.step()
            for handle, queue in self._live:
                if handle.can_read():
                    queue.put_nowait([token for output in handle.read().values() for token in output.generated_ids])
                if handle.get_status() != genai.GenerationStatus.RUNNING:
                    queue.put_nowait(None)
            self._live = [item for item in self._live if item[0].get_status() == genai.GenerationStatus.RUNNING]
            for _ in range(_TURNS):
                await asyncio.sleep(0)


class App:
    """The ASGI application."""

    def __init__(self, engine: Engine, token_bytes: list[bytes]) -> None:
        self._engine = engine
        self._token_bytes = token_bytes

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["path"] != "/v1/completions":
            await _answer(send, {"data": [{"id": "openvino", "object": "model"}]})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        fields = json.loads(body)
        queue = self._engine.submit(fields["prompt"], fields["max_tokens"], fields.get("ignore_eos", False))
        if fields.get("stream"):
            await self._stream(send, queue, len(fields["prompt"]))
        else:
            tokens: list[int] = []
            while (part := await queue.get()) is not None:
                tokens += part
            text = b"".join(self._token_bytes[token] for token in tokens).decode("utf-8", "replace")
            usage = {"prompt_tokens": len(fields["prompt"]), "completion_tokens": len(tokens)}
            await _answer(send, {"choices": [{"text": text, "finish_reason": "length"}], "usage": usage})

    async def _stream(self, send: Send, queue: Tokens, num_prompt_tokens: int) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        num_tokens, created = 0, int(time.time())
        head = f'data: {{"id":"cmpl","object":"text_completion","created":{created},"model":"openvino",'
        while (tokens := await queue.get()) is not None:
            num_tokens += len(tokens)
            text = decoder.decode(b"".join(self._token_bytes[token] for token in tokens))
            event = f'{head}"choices":[{{"index":0,"text":{json.dumps(text)},"finish_reason":null}}]}}\n\n'
            await send({"type": "http.response.body", "body": event.encode(), "more_body": True})
        usage = {"prompt_tokens": num_prompt_tokens, "completion_tokens": num_tokens}
        last = head + '"choices":[{"index":0,"text":"","finish_reason":"length"}]}\n\n'
        last += head + f'"choices":[],"usage":{json.dumps(usage)}}}\n\ndata: [DONE]\n\n'
        await send({"type": "http.response.body", "body": last.encode()})


def read_token_bytes(tokenizer_json: Path) -> list[bytes]:
    """Return the bytes of each token of a byte-level vocabulary (GPT-2's letters for bytes)."""
    content = json.loads(tokenizer_json.read_text())
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    vocabulary = content["model"]["vocab"]
    table = [b""] * (max(vocabulary.values()) + 1)
    for text, token_id in vocabulary.items():
        table[token_id] = bytes(bytes_of.get(letter, 63) for letter in text)
    return table


async def _answer(send: Send, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def serve(app: App, engine: Engine, port: int) -> None:
    """Serve until the process is stopped."""
    stepping = asyncio.create_task(engine.run())
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", lifespan="off")
    await uvicorn.Server(config).serve()
    stepping.cancel()


def main() -> None:
    """Load the model, then listen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache-gigabytes", type=int, default=2)
    parser.add_argument("--max-batch-tokens", type=int, default=512)
    arguments = parser.parse_args()
    engine = Engine(arguments.folder, arguments.threads, arguments.cache_gigabytes, arguments.max_batch_tokens)
    asyncio.run(serve(App(engine, read_token_bytes(arguments.folder / "tokenizer.json")), engine, arguments.port))


if __name__ == "__main__":
    main()
