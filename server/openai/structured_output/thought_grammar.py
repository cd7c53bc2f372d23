"""Grammars of responses that begin with a thought: what the request prescribes begins after it.

The text of a thought is free, but it must end: the end of the text is not allowed inside it. Two line breaks may follow
its closing mark, as models write them.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from caravan.server.generation.thought_splitter import Thoughts


def after_thought(grammar: str, thoughts: Thoughts, special_tokens: Mapping[str, int]) -> str:
    """Return a grammar of llguidance for texts that match `grammar` after their thought.

    A mark that is a special token is not text for a grammar, so it is named by its id.
    """
    opening, closing = thoughts.marks
    rules = ["thought: open_thought END"]
    if closing in special_tokens:
        text = rf"/(?s:.*)/ & ~/(?s:.*){_escaped(closing)}(?s:.*)/"  # the mark as ordinary text ends a thought, too
        rules = [f"thought: (open_thought | TEXT <[{special_tokens[closing]}]>) END", f"TEXT: {text}"]
    rules += [f"open_thought[suffix={json.dumps(closing)}]: /(?s:.*)/", r"END: /\n{0,2}/"]
    if thoughts.start == "undecided":
        mark = f"(<[{special_tokens[opening]}]> | MARK)" if opening in special_tokens else "MARK"
        rules += [f"start: (SPACE {mark} thought)? @answer", f"MARK: {json.dumps(opening)}", r"SPACE: /[ \t\n\r\f\v]*/"]
    else:
        rules.append("start: thought @answer")
    parts: list[dict[str, Any]] = json.loads(grammar)["grammars"] if _is_json(grammar) else [{"lark_grammar": grammar}]
    assert len(parts) == 1, "no constraint makes a grammar of several"
    answer = {key: value for key, value in parts[0].items() if value is not None} | {"name": "answer"}
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}, answer]})


def _is_json(grammar: str) -> bool:
    return grammar.lstrip().startswith("{")


def _escaped(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
