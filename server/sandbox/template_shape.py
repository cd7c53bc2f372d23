"""TemplateShape: the message format that a chat template expects.

Templates differ in the format of content (a string or a list of parts), of call arguments (an object or a JSON string)
and of call ids, and most of them drop anything else without an error.
"""

import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field

from caravan.server.sandbox.special_tokens import Json

SHORT_ID_LENGTH = 9  # characters; Mistral's templates accept only such call ids

_LETTERS = string.digits + string.ascii_letters


@dataclass(frozen=True)
class ContentShape:
    """The content formats that a template renders without loss."""

    takes_text: bool = True
    takes_parts: bool = False  # any number of them
    takes_part: bool = False  # one

    @property
    def is_shown(self) -> bool:
        """Whether any format is rendered."""
        return self.takes_text or self.takes_part

    def content(self, sent: Json) -> Json:
        """Return content unchanged if the template accepts it, else converted to a format that it accepts."""
        if isinstance(sent, str) and not self.takes_text and self.takes_part:
            return [text_part(sent)]
        if isinstance(sent, list) and not self.takes_parts:
            text = text_of_content(sent)
            return text if self.takes_text or not self.takes_part else [text_part(text)]
        return sent


@dataclass(frozen=True)
class TemplateShape:
    """The message format of a template. The defaults are the most common format."""

    roles: Mapping[str, ContentShape] = field(default_factory=dict)
    is_blind: bool = False  # it renders, but drops the text of user messages in any format
    takes_argument_objects: bool = True
    takes_argument_texts: bool = False
    takes_null_beside_calls: bool = False
    takes_empty_beside_calls: bool = True
    takes_short_ids_only: bool = False
    takes_several_calls: bool = True  # in one message
    shows_text_beside_calls: bool = True
    shows_calls_beside_text: bool = True
    takes_late_systems: bool = False  # system messages after the first message, in their places
    takes_text_after_results: bool = True  # user messages after results of tools

    def content(self, role: str, sent: Json, *, has_calls: bool = False) -> Json:
        """Return the content of a message in the template's format."""
        if sent is None:
            return None if has_calls and self.takes_null_beside_calls else self.content(role, "", has_calls=has_calls)
        if sent == "" and has_calls and not self.takes_empty_beside_calls:
            return None
        return self.roles.get(role, self.roles.get("user", ContentShape())).content(sent)

    def arguments(self, text: str, parsed: dict[str, Json] | None) -> Json:
        """Return the arguments of a call; `parsed` is `text` decoded, None if it is no JSON object."""
        if parsed is not None and self.takes_argument_objects:
            return parsed
        return text if self.takes_argument_texts else {"arguments": text}

    def call_id(self, sent: str) -> str:
        """Return the id of a call: as sent, or nine characters derived from it."""
        if not self.takes_short_ids_only or re.fullmatch(rf"[0-9a-zA-Z]{{{SHORT_ID_LENGTH}}}", sent):
            return sent
        number = int.from_bytes(hashlib.sha256(sent.encode()).digest())
        return "".join(_LETTERS[number // len(_LETTERS) ** place % len(_LETTERS)] for place in range(SHORT_ID_LENGTH))


def random_letters(count: int) -> str:
    """Return `count` random letters and digits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(count))


def text_part(text: str) -> Json:
    """Return a content part."""
    return {"type": "text", "text": text}


def text_of_content(content: Json) -> str:
    """Return the text of a message's content."""
    if isinstance(content, list):
        return "".join(str(part["text"]) for part in content if isinstance(part, dict))
    return "" if content is None else str(content)
