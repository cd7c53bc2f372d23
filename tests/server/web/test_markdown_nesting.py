"""Markdown that nests deeply is read down to a limit; what is deeper is text as it was written."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.javascript import NEEDS_NODE, run_module

pytestmark = NEEDS_NODE

# Each text has as many levels as the limit and some more; the marks of a form take turns.
PROGRAM = """import { lex, MAX_NESTING } from "./chat/markdown_lexer.js";

const KINDS = new Set(["blockquote", "list", "strong", "em", "del"]);
const depthOf = (token) =>
  Math.max(0, ...[...(token.tokens ?? []), ...(token.items ?? [])].map(depthOf)) + (KINDS.has(token.type) ? 1 : 0);
const innermost = (token) => {
  const inner = [...(token.tokens ?? []), ...(token.items ?? [])].filter((one) => one.raw.includes("deep"));
  return inner.length ? innermost(inner[0]) : token.raw;
};
return given.levels.map((more) => {
  const marks = Array.from({ length: MAX_NESTING + more }, (_, level) => given.marks[level % given.marks.length]);
  const text = marks.map(([before]) => before).join("") + "deep" + marks.reverse().map(([, after]) => after).join("");
  const tokens = lex(text);
  const isWhole = tokens.map(({ raw }) => raw).join("") === text;
  return { depth: Math.max(...tokens.map(depthOf)) - MAX_NESTING, inner: innermost(tokens[0]), isWhole };
});"""

FORMS = {
    "quotes": [("> ", "")],
    "lists": [("- ", "")],
    "numbered lists": [("1. ", "")],
    "quotes and lists": [("> ", ""), ("- ", "")],
    "emphasis": [("*a ", " a*"), ("**b ", " b**")],
    "strikethrough": [("~~a ", " a~~"), ("*b ", " b*")],
}


@pytest.mark.parametrize("form", FORMS)
def test_levels_up_to_the_limit_are_read_and_deeper_ones_stay_as_they_were_written(tmp_path: Path, form: str) -> None:
    marks = FORMS[form]
    found: list[dict[str, Any]] = run_module(tmp_path, PROGRAM, {"marks": marks, "levels": [-1, 0, 1, 2, 20]})
    assert all(one["isWhole"] for one in found)
    assert [one["depth"] for one in found] == [-1, 0, 0, 0, 0]
    for one, num_deeper in zip(found, (0, 0, 1, 2, 20), strict=True):
        written = [before for before, _ in marks] * 20
        assert one["inner"].count("deep") == 1
        assert sum(one["inner"].count(before) for before in set(written)) == num_deeper, one["inner"]
