"""RequestReader: requests as in RFC 9112, split at any byte, and rejection of ambiguous ones."""

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.server.http.framing import (
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    MAX_TRAILER_BYTES,
    FramingError,
    RequestReader,
)

HOST = b"Host: a\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

Read = list[tuple[str, bytes, list[tuple[bytes, bytes]], bytes]]  # method, path, headers and body of each request


def read_all(data: bytes, *cuts: int) -> Read:
    """Return the requests in `data`, pushed in pieces that end at `cuts`; the last one may be without its end."""
    reader = RequestReader()
    read: Read = []
    for begin, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
        reader.push(data[begin:end])
        while True:
            if not reader.is_body_complete:
                method, path, headers, body = read.pop()
                read.append((method, path, headers, body + reader.read_body()))
            if not reader.is_body_complete or (head := reader.read_head()) is None:
                break
            read.append((head.method, head.path, head.headers, b""))
    return read


def refusal(data: bytes) -> int:
    """Return the status that the bytes are refused with."""
    with pytest.raises(FramingError) as refused:
        read_all(data)
    with pytest.raises(FramingError) as bytewise:
        read_all(data, *range(1, len(data)))
    assert bytewise.value.status == refused.value.status
    return refused.value.status


def head_of(data: bytes) -> "tuple[str, bytes, bytes, dict[bytes, bytes]]":
    reader = RequestReader()
    reader.push(data)
    head = reader.read_head()
    assert head is not None
    return head.method, head.path, head.query, dict(head.headers)


REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /a?b=c HTTP/1.0\r\n\r\n",
    b"POST /b HTTP/1.1\r\nHost:a\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /c HTTP/1.1\r\nHost:\ta \t\r\ncontent-length:0\r\nX-Empty:\r\nX-High: \xe9\r\n\r\n",
    b"POST /d HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n\r\n",  # a body that looks like a line end
    b"POST /e HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n0A;x\r\n0123456789\r\n0\r\n\r\n",
    b"POST /f HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;\r\na\r\n000\r\nX-Trailer: b\r\nY:\r\n\r\n",
    b"POST /g HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 4\r\n\r\nGET ",
    b"\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("request_bytes", REQUESTS)
def test_a_request_is_parsed_the_same_at_once_and_byte_by_byte(request_bytes: bytes) -> None:
    whole = read_all(request_bytes * 2)
    assert len(whole) == 2
    assert whole == read_all(request_bytes * 2, *range(1, 2 * len(request_bytes)))


@settings(deadline=None)
@given(st.data())
def test_pipelined_requests_are_parsed_the_same_however_they_are_split(data: st.DataObject) -> None:
    row = b"".join(data.draw(st.lists(st.sampled_from(REQUESTS), max_size=5)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(row)), max_size=12)))
    assert read_all(row, *cuts) == read_all(row)


def read_by_h11(data: bytes) -> tuple[str, bytes, list[tuple[bytes, bytes]], bytes]:
    """Return the first request as another library reads it; raises RemoteProtocolError."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    connection.receive_data(data)
    event = connection.next_event()
    assert isinstance(event, h11.Request), event
    body = b""
    while isinstance(part := connection.next_event(), h11.Data):
        body += part.data
    assert isinstance(part, h11.EndOfMessage), part
    return event.method.decode(), bytes(event.target).partition(b"?")[0], [*event.headers], body


PIECES = st.sampled_from(
    [b"GET", b"POST", b" ", b"/", b"/a?b#c", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\t", b":",
     b"Host: a\r\n", b"Content-Length: 3\r\n", b"Content-Length:", b"Transfer-Encoding: chunked\r\n", b"chunked", b"3",
     b"3\r\nabc\r\n", b"0\r\n\r\n", b"0\r\n", b"0\r\nX: y\r\n\r\n", b"abc", b";", b",", b"Expect: 100-continue\r\n",
     b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"\0", b"\xff", b"-", b"+", b"X: y\r\n",
     b"POST / HTTP/1.1\r\nHost: a\r\n"]
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([b"", b"POST / HTTP/1.1\r\nHost: a\r\n", CHUNKED]), st.lists(PIECES, max_size=8))
def test_threat_26_requests_are_parsed_as_by_another_library(first: bytes, pieces: list[bytes]) -> None:
    data = first + b"".join(pieces)
    reader = RequestReader()
    reader.push(data)
    try:
        head = reader.read_head()
        body = reader.read_body()
    except FramingError:
        return
    if head is None or not reader.is_body_complete:
        return
    assert (head.method, head.path, head.headers, body) == read_by_h11(data)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n", 400),
        (b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / http/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/11.1\r\n" + HOST + b"\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\n" + HOST + b"\r\n", 501),
        (b"A" * 33 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET a HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET * HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /\xe9 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET ftp://a/ HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"\r\n\r\nGET / HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\n" + HOST + b"\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"\n", 400),
        (b"GET / HTTP/1.1\r" + HOST + b"\r\n", 400),
        (b"\x16\x03\x01", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b": a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X\xe9: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: a\r\n\tb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n " + HOST + b"\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 1_0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length:\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding:\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked, chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\n" + HOST + b"Expect: a\r\nContent-Length: 1\r\n\r\n", 417),
        (CHUNKED + b"1\r\nab\r\n", 400),
        (CHUNKED + b"1\r\na\n", 400),
        (CHUNKED + b"1" * 16 + b"\r\n", 400),
        (CHUNKED + b"1;" + b"a" * MAX_CHUNK_LINE_BYTES + b"\r\n", 400),
        (CHUNKED + b"1 a\r\n", 400),
        (CHUNKED + b"0\r\nX: " + b"a" * MAX_TRAILER_BYTES, 431),
        (CHUNKED + b"0\r\n" + b"X: a\r\n" * (MAX_TRAILER_BYTES // 6 + 1), 431),
        (CHUNKED + b"0\r\nX: a\0\r\n\r\n", 400),
        (CHUNKED + b"0\r\n\r\r\n", 400),
    ],
)
def test_threat_26_ambiguous_requests_are_rejected(data: bytes, status: int) -> None:
    assert refusal(data) == status


def test_threat_8_the_size_of_a_head_is_limited() -> None:
    start, end = b"GET / HTTP/1.1\r\nHost: a\r\nX: ", b"\r\n\r\n"
    room = MAX_HEAD_BYTES - len(start) - len(end)
    assert len(read_all(start + b"a" * room + end)) == 1
    for data in (start + b"a" * (room + 1) + end, start + b"a" * (room + len(end) + 1)):
        with pytest.raises(FramingError) as refused:
            read_all(data)
        assert refused.value.status == 431


def test_threat_8_the_overhead_of_small_chunks_is_limited() -> None:
    assert len(read_all(CHUNKED + b"1\r\na\r\n" * 10_000 + b"0\r\n\r\n")[0][3]) == 10_000
    assert len(read_all(CHUNKED + b"40\r\n" + (b"a" * 64 + b"\r\n40\r\n") * 50_000)[0][3]) == 50_000 * 64
    with pytest.raises(FramingError, match="too many small chunks"):
        read_all(CHUNKED + b"1\r\na\r\n" * 20_000)


def test_the_host_of_an_absolute_target_replaces_the_header() -> None:
    read = head_of(b"GET http://b:8000/c?d=e?f HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n")
    assert read == ("GET", b"/c", b"d=e?f", {b"host": b"b:8000", b"x": b"y"})
    assert head_of(b"GET HTTP://b HTTP/1.1\r\nHost: a\r\n\r\n")[1] == b"/"


@pytest.mark.parametrize(
    ("headers", "version", "keeps_alive"),
    [
        (b"", b"1.1", True),
        (b"Connection: close\r\n", b"1.1", False),
        (b"Connection: Keep-Alive, Close\r\n", b"1.1", False),
        (b"Connection: upgrade\r\nConnection: close\r\n", b"1.1", False),
        (b"Connection: upgrade, http2-settings\r\n", b"1.1", True),
        (b"Connection: keep-alive\r\n", b"1.0", False),
    ],
)
def test_a_connection_is_kept_alive_only_if_both_sides_support_it(
    headers: bytes, version: bytes, keeps_alive: bool
) -> None:
    reader = RequestReader()
    reader.push(b"GET / HTTP/" + version + b"\r\nHost: a\r\n" + headers + b"\r\n")
    head = reader.read_head()
    assert head is not None
    assert head.keeps_alive == keeps_alive


@pytest.mark.parametrize(
    ("headers", "version", "expects"),
    [
        (b"Content-Length: 1\r\nExpect: 100-Continue\r\n", b"1.1", True),
        (b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", b"1.1", True),
        (b"Content-Length: 0\r\nExpect: 100-continue\r\n", b"1.1", False),
        (b"Content-Length: 1\r\nExpect: 100-continue\r\n", b"1.0", False),
        (b"Content-Length: 1\r\nExpect: anything\r\n", b"1.0", False),
    ],
)
def test_expect_is_honoured_only_for_http_1_1_with_a_body(headers: bytes, version: bytes, expects: bool) -> None:
    reader = RequestReader()
    reader.push(b"POST / HTTP/" + version + b"\r\nHost: a\r\n" + headers + b"\r\n")
    head = reader.read_head()
    assert head is not None
    assert head.expects_continue == expects
