"""Content encodings of request bodies: gzip and zstd, decoded up to a limit."""

import sys
import zlib
from collections.abc import Callable, Mapping

from caravan.server.http.errors import ApiError, invalid, shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_WINDOW_BITS = 23  # of zstd: 8 MiB, the limit of RFC 9659 for HTTP


class TooLong(ValueError):
    """The decoded body exceeds the limit."""


def content_encoding(header: str) -> str:
    """Return the encoding in a Content-Encoding header, empty if there is none; raises ApiError 415."""
    named = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if len(named) > 1 or any(name not in _DECODERS for name in named):
        raise ApiError(
            415,
            f"The content encoding {shown(', '.join(named))} is not supported; use gzip, zstd or none.",
        )
    return "gzip" if named == ["x-gzip"] else "".join(named)


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the decoded body; raises TooLong, or ApiError 400 if it is truncated, corrupt, or followed by data."""
    try:
        content, is_complete, rest = _DECODERS[encoding](body, max_bytes + 1)
    except (zlib.error, zstd.ZstdError):
        raise invalid(f"The body is not valid {encoding} data, as its content encoding declares.") from None
    if len(content) > max_bytes:
        raise TooLong
    if not is_complete:
        raise invalid(f"The {encoding} data of the body is truncated.")
    if rest:
        raise invalid(f"The body has more data after the {encoding} data; send a single {encoding} frame.")
    return content


def _gzip(body: bytes, max_bytes: int) -> tuple[bytes, bool, bytes]:
    decoder = zlib.decompressobj(wbits=31)
    return decoder.decompress(body, max_bytes), decoder.eof, decoder.unused_data


def _zstd(body: bytes, max_bytes: int) -> tuple[bytes, bool, bytes]:
    decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _MAX_WINDOW_BITS})
    content = decoder.decompress(body, max_bytes)
    return content, decoder.eof, decoder.unused_data


_DECODERS: Mapping[str, Callable[[bytes, int], tuple[bytes, bool, bytes]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "zstd": _zstd,
}
