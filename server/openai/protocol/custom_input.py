"""The input of a custom tool: a plain text for clients, the one string in the arguments of a function for the model."""

import json
import re

_BEGINNING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_LONGEST_BEGINNING = 64  # characters; white space makes it longer than it need be
_PIECE = re.compile(r'(?:[^"\\]|\\u[0-9a-fA-F]{4}|\\u(?=[0-9a-fA-F]{0,3}[^0-9a-fA-F])|\\[^u])+')
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_LETTERS = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\", "/": "/"}


class CustomInput:
    """Reads the input from arguments that arrive in chunks; the joined parts do not depend on the chunks.

    The input is the value of `input` where that is the first key. Any other arguments are taken whole at the end: the
    value of `input` where they are a JSON object with such a string, else their text unchanged.
    """

    def __init__(self) -> None:
        self.text = ""  # all parts so far
        self._unread = ""
        self._is_begun = False
        self._is_ended = False

    def push(self, arguments: str) -> str:
        """Add a chunk of the arguments; return the next part of the input."""
        if self._is_ended:
            return ""
        self._unread += arguments
        if not self._is_begun:
            beginning = _BEGINNING.match(self._unread, 0, _LONGEST_BEGINNING)
            if beginning is None:
                return ""
            self._is_begun = True
            self._unread = self._unread[beginning.end() :]
        found = _PIECE.match(self._unread)
        if found is None:
            self._is_ended = self._unread.startswith('"')
            return ""
        part, end = _decoded(found[0]), found.end()
        self._is_ended = self._unread.startswith('"', end)
        if _is_half(part[-1]) and not self._is_ended:  # the other half of the pair may follow
            part, end = part[:-1], end - len(r"\ud83d")
        self._unread = self._unread[end:]
        return self._add(part)

    def finish(self) -> str:
        """End the arguments; return the last part of the input. An incomplete escape is left out."""
        if not self._is_begun:
            return self._add(_of_other_arguments(self._unread))
        found = None if self._is_ended else _PIECE.match(self._unread)  # half of a pair
        return self._add(_decoded(found[0])) if found else ""

    def _add(self, part: str) -> str:
        part = _without_halves(part)
        self.text += part
        return part


def arguments_of_input(text: str) -> str:
    """Return the arguments of the function that represents a custom tool."""
    return json.dumps({"input": text}, ensure_ascii=False)


def input_of_arguments(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of its function."""
    reader = CustomInput()
    reader.push(arguments)
    reader.finish()
    return reader.text


def _of_other_arguments(arguments: str) -> str:
    try:
        parsed = json.loads(arguments)
        if isinstance(parsed, dict) and isinstance(parsed.get("input"), str):
            return str(parsed["input"])
    except (ValueError, RecursionError):
        pass
    return arguments


def _decoded(piece: str) -> str:
    """Return the text of a part of a JSON string; a backslash before another letter stays."""
    text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _LETTERS.get(found[2], found[0]), piece)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # joins the halves of pairs


def _is_half(character: str) -> bool:
    """Return whether a character is the first half of a surrogate pair."""
    return "\ud800" <= character < "\udc00"


def _without_halves(text: str) -> str:
    """Return a text with U+FFFD for lone surrogates, which models write and UTF-8 cannot encode."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
