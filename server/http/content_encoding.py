"""Content encodings of request bodies: gzip and zstd, decoded up to a limit."""

import sys
import zlib
from collections.abc import Callable, Mapping

from caravan.server.http.errors import ApiError, invalid, shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_WINDOW_BITS = 23  # of zstd: 8 MiB, as RFC 9659 has it for HTTP


class TooLong(ValueError):
    """The decoded body is longer than it may be."""


def content_encoding(header: str) -> str:
    """Return the one encoding that a Content-Encoding header names, empty if none; raises ApiError 415."""
    named = [name for part in header.split(",") if (name := part.strip().lower()) not in ("", "identity")]
    if len(named) > 1 or any(name not in _DECODERS for name in named):
        raise ApiError(
            415,
            f"The content encoding {shown(', '.join(named))} is not supported; use gzip, zstd or none.",
        )
    return "gzip" if named == ["x-gzip"] else "".join(named)


def decoded(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the decoded body; raises TooLong, or ApiError 400 if it is cut off, damaged, or followed by more."""
    try:
        content, is_complete, rest = _DECODERS[encoding](body, max_bytes + 1)
    except (zlib.error, zstd.ZstdError):
        raise invalid(f"The body is not {encoding}, as its content encoding says.") from None
    if len(content) > max_bytes:
        raise TooLong
    if not is_complete:
        raise invalid(f"The body ends in the middle of its {encoding} data.")
    if rest:
        raise invalid(f"The body goes on after its {encoding} data; send it in one piece.")
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
