"""Target: the server under test."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai

Body = dict[str, Any]
TIMEOUT_SECONDS = 30.0


class Target:
    """One server at a URL, with the official client, plain HTTP and raw bytes."""

    def __init__(self, url: str, api_key: str | None, model: str | None = None) -> None:
        """Without a model the first one that the server lists is asked."""
        self.url = url.rstrip("/")
        self.has_key = api_key is not None
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        # Each request has a connection of its own: when a server ends idle ones is no rule.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(
            base_url=self.url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False, limits=limits
        )
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=api_key or "none", max_retries=0, timeout=TIMEOUT_SECONDS
        )
        self.model = model or str(self.http.get("/v1/models").json()["data"][0]["id"])

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.http.close()

    def post(self, path: str, body: Body) -> httpx.Response:
        """Return the response to a JSON body."""
        return self.http.post(path, json=body)

    def complete(self, **fields: Any) -> Body:
        """Return the answer to a completion, which must succeed."""
        return self._answer("/v1/completions", {"prompt": "The sea is", "max_tokens": 6, "temperature": 0} | fields)

    def chat(self, **fields: Any) -> Body:
        """Return the answer to a chat, which must succeed."""
        return self._answer("/v1/chat/completions", self.a_chat() | fields)

    def refused(self, path: str, body: Body, status: int = 400) -> Body:
        """Return the error of a request that must be refused with this status."""
        response = self.post(path, {"model": self.model} | body)
        assert response.status_code == status, f"status {response.status_code} instead of {status}"
        error: Body = response.json()["error"]
        assert isinstance(error["message"], str), "the message is no text"
        return error

    def refused_completion(self, status: int = 400, **fields: Any) -> Body:
        """Return the error of a completion that must be refused."""
        return self.refused("/v1/completions", {"prompt": "hi", "max_tokens": 4} | fields, status)

    def refused_chat(self, status: int = 400, **fields: Any) -> Body:
        """Return the error of a chat that must be refused."""
        return self.refused("/v1/chat/completions", self.a_chat() | fields, status)

    def stream(self, path: str, **fields: Any) -> list[Body]:
        """Return the chunks of a stream, which must be events as the standard has them and end with [DONE]."""
        body = self.a_chat() if "chat" in path else {"prompt": "The sea is", "max_tokens": 6, "temperature": 0}
        return self.chunks_of(path, body | fields)

    def chunks_of(self, path: str, body: Body, headers: dict[str, str] | None = None) -> list[Body]:
        """Return the chunks of the stream that answers this body and nothing else."""
        streamed = {"model": self.model, "stream": True} | body
        response = self.http.post(path, json=streamed, headers=headers)
        assert response.status_code == 200, response.text[:200]
        assert response.headers["content-type"].startswith("text/event-stream"), "not an event stream"
        return events_in(response.text)

    def answer_to(self, path: str, body: Body, headers: dict[str, str] | None = None) -> Body:
        """Return the answer to this body and nothing else, which must succeed."""
        response = self.http.post(path, json={"model": self.model} | body, headers=headers)
        assert response.status_code == 200, f"status {response.status_code}: {response.text[:200]}"
        answer: Body = response.json()
        return answer

    def a_chat(self) -> Body:
        """Return the fields of a short conversation."""
        return {"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 6, "temperature": 0}

    def raw(self, request: bytes, seconds: float = 10.0) -> bytes:
        """Return what the server answers to these bytes, nothing if it only closes; raises TimeoutError."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), timeout=seconds) as connection:
            received = b""
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    received += part
            except TimeoutError:
                raise
            except OSError:  # it had read enough, and closed with the rest unread
                pass
        return received

    def leave(self, request: bytes) -> None:
        """Send these bytes and close the connection after the first bytes of the answer."""
        address = urlsplit(self.url)
        with socket.create_connection((address.hostname, address.port), timeout=TIMEOUT_SECONDS) as connection:
            connection.sendall(request)
            connection.recv(16)

    def _answer(self, path: str, fields: Body) -> Body:
        body = self.answer_to(path, fields)
        assert body.get("choices"), f"an answer without choices: {str(body)[:100]}"
        return body


def events_in(text: str) -> list[Body]:
    """Return the events of a whole stream without the last one, which must be [DONE]; comments are left out."""
    assert text.endswith("\n\n"), "the last event does not end with a blank line"
    blocks = [block for block in text.removesuffix("\n\n").split("\n\n") if not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), "an event has other fields"
    assert blocks[-1] == "data: [DONE]", "the stream does not end with [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


def text_of(chunks: list[Body], index: int = 0) -> str:
    """Return the text of one choice of a stream of either kind."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content") or "" if "delta" in choice else choice["text"] for choice in choices)
