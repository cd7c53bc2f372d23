"""The text of a thought in an opaque form: `encrypted_content` of an item of /v1/responses.

Clients that keep no readable thoughts return it unchanged. It is no secret: nothing is encrypted.
"""

import base64
import zlib

_PREFIX = "caravan1."
MAX_CHARACTERS = 2**20  # of a decoded thought


def encoded_thought(text: str) -> str:
    """Return a thought in its opaque form."""
    return _PREFIX + base64.urlsafe_b64encode(zlib.compress(text.encode())).decode()


def decoded_thought(blob: str) -> str | None:
    """Return the text of a thought in its opaque form, None for a form of another server or one that is too long."""
    if not blob.startswith(_PREFIX):
        return None
    decompressor = zlib.decompressobj()
    try:
        data = base64.b64decode(blob.removeprefix(_PREFIX), altchars=b"-_", validate=True)
        text = decompressor.decompress(data, MAX_CHARACTERS).decode()
    except (zlib.error, ValueError):
        return None
    return text if decompressor.eof else None
