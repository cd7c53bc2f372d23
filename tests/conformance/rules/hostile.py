"""Hostile bytes."""

import json

from tests.conformance.target import Target

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
BODY = b'{"model": "none", "prompt": "a"}'
CHUNKS = b"20\r\n" + BODY + b"\r\n0\r\n\r\n"

CORPUS: dict[str, bytes] = {
    "nothing": b"",
    "a blank line": b"\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "TLS": bytes.fromhex("16030100a5010000a10303") + b"\0" * 64,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "an unknown method": b"BREW /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a method of 10,000 letters": b"A" * 10_000 + b" / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path of 100,000 letters": b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path with a null": b"GET /v1/mod\0els HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path that is no UTF-8": b"GET /v1/models/%ff%fe HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path that climbs": b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a path of percent signs": b"GET /%%%%25%2 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an absolute path": b"GET http://other/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: b\r\n\r\n",
    "a header without a colon": b"GET /health HTTP/1.1\r\nHost a\r\n\r\n",
    "a header without a name": b"GET /health HTTP/1.1\r\n: a\r\n\r\n",
    "a folded header": b"GET /health HTTP/1.1\r\nHost: localhost\r\n b\r\n\r\n",
    "a header of 1 MiB": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 2**20 + b"\r\n\r\n",
    "10,000 headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    "a header that is no UTF-8": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: \xff\xfe\r\n\r\n",
    "a key that is no UTF-8": b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\r\n\r\n",
    "a header with a null": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",
    "bare line feeds": b"GET /health HTTP/1.1\nHost: a\n\n",
    "no length": HEAD + b"\r\n" + BODY,
    "a length below zero": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length that is no number": HEAD + b"Content-Length: ten\r\n\r\n" + BODY,
    "a length of 30 digits": HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + BODY,
    "two lengths": HEAD + b"Content-Length: 32\r\nContent-Length: 5\r\n\r\n" + BODY,
    "a length too long": HEAD + b"Content-Length: 1000\r\n\r\n" + BODY,
    "a length too short": HEAD + b"Content-Length: 5\r\n\r\n" + BODY,
    "a length and chunks": HEAD + b"Content-Length: 32\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "a chunk of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + BODY,
    "a chunk below zero": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\n" + BODY,
    "a chunk of 20 digits": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\n" + BODY,
    "a chunk cut off": HEAD + b"Transfer-Encoding: chunked\r\n\r\n20\r\n" + BODY[:9],
    "an unknown encoding": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "gzip that is none": HEAD + b"Content-Encoding: gzip\r\nContent-Length: 32\r\n\r\n" + BODY,
    "an expectation": HEAD + b"Expect: 100-continue\r\nContent-Length: 32\r\n\r\n" + BODY,
    "a length before a space and a colon": HEAD + b"Content-Length : 32\r\n\r\n" + BODY,
    "chunks that are encoded twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKS,
    "chunks in HTTP/1.0": HEAD.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "chunks with bare line feeds": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS.replace(b"\r", b""),
    "a trailer without an end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 10_000,
    "another expectation": HEAD + b"Expect: tea\r\nContent-Length: 32\r\n\r\n" + BODY,
    "a tunnel": b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost:443\r\n\r\n",
    "an upgrade": b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "requests in a row": (HEAD + b"Content-Length: 32\r\n\r\n" + BODY) * 20,
    "half a request": HEAD,
    "JSON in UTF-16": HEAD + b"Content-Length: 66\r\n\r\n" + BODY.decode().encode("utf-16"),
    "a byte order mark": HEAD + b"Content-Length: 35\r\n\r\n\xef\xbb\xbf" + BODY,
}


def nothing_breaks_the_server(target: Target) -> None:
    """Whatever bytes come, the answer is no 5xx, it comes within 10 seconds, and the server lives on."""
    for name, request in CORPUS.items():
        try:
            answer = target.raw(request)
        except TimeoutError as error:
            raise AssertionError(f"{name}: no answer and no end within 10 seconds") from error
        for line in answer.split(b"\r\n"):
            if line.startswith(b"HTTP/"):
                status = int(line.split()[1])
                assert status < 500 or status in (501, 505), f"{name}: {status}"
        assert target.http.get("/health").status_code == 200, f"{name}: the server is gone"
    assert target.complete()["choices"]


def a_second_request_is_not_smuggled(target: Target) -> None:
    """Of a request whose length is given twice, or in two ways, no second request is read."""
    hidden = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lengths = b"Content-Length: 0\r\nContent-Length: %d\r\n" % len(hidden)
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    for headers, body in ((lengths, b""), (both, b"0\r\n\r\n")):
        answer = target.raw(HEAD + headers + b"\r\n" + body + hidden)
        assert answer.count(b"HTTP/1.1 200") == 0, "the bytes after it were answered"


def _completion(target: Target, headers: bytes, **fields: object) -> bytes:
    body = json.dumps({"model": target.model, "prompt": "a", "max_tokens": 50} | fields).encode()
    key = target.http.headers.get("authorization", "").encode()
    return HEAD + headers + b"Authorization: %s\r\nContent-Length: %d\r\n\r\n" % (key, len(body)) + body


def an_offered_upgrade_changes_nothing(target: Target) -> None:
    """A request that offers an upgrade is answered as if it had not, with its body."""
    for offer in (
        b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAEAAEAAAAIAAAAA\r\nUpgrade: h2c\r\n",
        b"Connection: upgrade\r\nUpgrade: websocket\r\n",
    ):
        answer = target.raw(_completion(target, offer))
        assert answer.count(b"HTTP/1.1 ") == 1, "not one answer"
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        assert b'"finish_reason"' in answer, answer[-200:]


def http_1_0_gets_answers_that_it_can_read(target: Target) -> None:
    """HTTP/1.0 gets its answer without chunks, and then the connection ends."""
    for stream in (False, True):
        request = _completion(target, b"", stream=stream).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
        head, _, body = target.raw(request).partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower(), "the answer is chunked"
        assert body.startswith(b"data: " if stream else b"{"), body[:100]


def a_client_that_ends_its_half_gets_its_answer(target: Target) -> None:
    """A client that sends nothing more after its request gets its whole answer."""
    for stream in (False, True):
        answer = target.raw(_completion(target, b"", stream=stream))  # which ends its half
        assert answer.startswith(b"HTTP/1.1 200"), answer[:200]
        assert not stream or b"data: [DONE]" in answer, "the stream ends early"


def clients_that_leave_do_no_harm(target: Target) -> None:
    """Clients that leave in the middle of a stream do no harm."""
    for _ in range(10):
        target.leave(_completion(target, b"", stream=True))
    assert target.complete()["choices"]
