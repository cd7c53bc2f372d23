"""Formats of strings that are enforced, each as a regular expression that matches the whole string.

Where checkers differ (leap seconds, lower case `t` and `z`, rare forms of addresses) the expression allows only what
all of them accept. Sources: RFC 3339 (dates, durations), RFC 5321 (addresses), RFC 1123 (hosts),
RFC 4291 (IPv6), RFC 3986 (URIs), RFC 9562 (UUIDs), RFC 4648 (base64), RFC 6901 (JSON pointers).
"""

from collections.abc import Mapping
from typing import Any

from caravan.server.http.errors import shown
from caravan.server.openai.structured_output.schema_error import SchemaError

# Year 0 is not one of Python's; a year is a leap year by its last two digits, or by its first two where these are 00.
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_HOUR_MINUTE = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR_MINUTE}:[0-5][0-9](?:\.[0-9]{{1,9}})?(?:Z|[+-]{_HOUR_MINUTE})"

_CLOCK = "T(?:[0-9]{1,6}H(?:[0-9]{1,6}M(?:[0-9]{1,6}S)?)?|[0-9]{1,6}M(?:[0-9]{1,6}S)?|[0-9]{1,6}S)"
_CALENDAR = "(?:[0-9]{1,6}Y(?:[0-9]{1,6}M(?:[0-9]{1,6}D)?)?|[0-9]{1,6}M(?:[0-9]{1,6}D)?|[0-9]{1,6}D)"
_DURATION = f"P(?:{_CALENDAR}(?:{_CLOCK})?|{_CLOCK}|[0-9]{{1,6}}W)"

_LABEL = "[A-Za-z0-9]{1,14}(?:-[A-Za-z0-9]{1,14}){0,3}"
_TOP_LABEL = "[A-Za-z]{2,20}"
_HOST = rf"(?:{_LABEL}\.){{0,3}}{_TOP_LABEL}"
_LOCAL = r"[A-Za-z0-9_+-]{1,20}(?:\.[A-Za-z0-9_+-]{1,20}){0,2}"
_EMAIL = rf"{_LOCAL}@(?:{_LABEL}\.){{1,3}}{_TOP_LABEL}"

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
_GROUP = "[0-9A-Fa-f]{1,4}"


def _ipv6() -> str:
    forms = [f"(?:{_GROUP}:){{7}}{_GROUP}"]
    for before in range(8):  # groups before ::, which stands for one group or more
        left = f"(?:{_GROUP}:){{{before - 1}}}{_GROUP}" if before else ""
        right = f"(?:{_GROUP}(?::{_GROUP}){{0,{6 - before}}})?" if before < 7 else ""
        forms.append(f"{left}::{right}")
    return f"(?:{'|'.join(forms)})"


_IPV6 = _ipv6()
_HEX = "[0-9A-Fa-f]"


def _uuid(version: str = _HEX, variant: str = _HEX) -> str:
    return f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-{variant}{_HEX}{{3}}-{_HEX}{{12}}"


_PATH_CHARACTER = r"(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_QUERY = rf"(?:\?(?:{_PATH_CHARACTER}|[/?])*)?(?:\#(?:{_PATH_CHARACTER}|[/?])*)?"
_AUTHORITY = f"(?:{_HOST}|{_IPV4})(?::[0-9]{{1,4}})?"
_SCHEME = "[A-Za-z][A-Za-z0-9+.-]{0,30}"
_URI = rf"{_SCHEME}:(?://{_AUTHORITY}(?:/{_PATH_CHARACTER}*)*|{_PATH_CHARACTER}+(?:/{_PATH_CHARACTER}*)*){_QUERY}"
_REFERENCE = rf"(?:{_URI}|/(?:{_PATH_CHARACTER}+(?:/{_PATH_CHARACTER}*)*)?{_QUERY})"
_BASE64 = "(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?"
_BASE64URL = "(?:[A-Za-z0-9_-]{4})*(?:[A-Za-z0-9_-][AQgw]|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048])?"

_UNANCHORED: Mapping[str, str] = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "duration": _DURATION,
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipv4interface": f"{_IPV4}(?:/(?:[12]?[0-9]|3[0-2]))?",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": _REFERENCE,
    "iri-reference": _REFERENCE,
    "uuid": _uuid(),
    **{f"uuid{version}": _uuid(str(version), "[89ABab]") for version in range(1, 9)},
    "json-pointer": r"(?:/(?:[^~/]|~[01])*)*",
    "base64": _BASE64,
    "base64url": _BASE64URL,
    "byte": _BASE64,
}

FORMATS: Mapping[str, str] = {name: f"^(?:{expression})$" for name, expression in _UNANCHORED.items()}

# The bounds of OpenAPI's integer formats.
INTEGER_FORMATS: Mapping[str, tuple[int, int]] = {
    **{f"int{bits}": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": (0, 2**bits - 1) for bits in (8, 16, 32, 64)},
}

# Formats that describe the use of a string and exclude no string.
HINTS = frozenset({"password", "binary", "path", "file-path", "directory-path", "textarea", "markdown", "unknown"})
NUMBER_HINTS = frozenset({"float", "double", "decimal"})


def string_patterns(schema: dict[str, Any]) -> list[str]:
    """Return the patterns for the `format` of a string; raises SchemaError if it is not enforced."""
    name = schema.get("format")
    if name is None or name in HINTS or name in INTEGER_FORMATS or name in NUMBER_HINTS:
        return []
    if isinstance(name, str) and name in FORMATS:
        return [FORMATS[name]]
    parts = schema.get("allOf")
    if "pattern" in schema or any(isinstance(part, dict) and "pattern" in part for part in parts or ()):
        return []  # the format only names the pattern
    raise SchemaError(f"its `format` is {shown(name)}, which is not supported; leave it out, or write a `pattern`")
