"""The formats of custom tools: grammars and patterns of a text, enforced inside a JSON string."""

import itertools
import json
import re
import time

import pytest
from llguidance import LLMatcher

from caravan.server.openai.protocol.custom_input import arguments_of_input, input_of_arguments
from caravan.server.openai.structured_output.call_grammar import free_text_rules
from caravan.server.openai.structured_output.custom_format import arguments_of_format
from caravan.server.openai.structured_output.escaped_lark import escaped_rules
from caravan.server.openai.structured_output.escaped_pattern import NotEnforceable, escaped_pattern, escaped_text
from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, Arguments, CallFormat
from tests.conformance.codex import PATCH_GRAMMAR, PATCH_PATTERN
from tests.scheduler.constrained_requests import constrained, constrained_engine
from tests.support.matching import accepts_text
from tests.support.reading_calls import FORMATS, read
from tests.support.tiny_llama import run_to_end
from tests.support.transcript_text import text_of

ALPHABET = ["a", "B", "7", " ", "\n", "\t", "\r", "\x01", '"', "\\", "/", "\u00e9", "\U0001f600", "-", "]"]
TEXTS = ["", *ALPHABET, *map("".join, itertools.product(ALPHABET, repeat=2)), "aa\n", 'a"a', "a\\n", "aaa", "a\nb\nc"]

PATTERNS = [
    r"a",
    r"",
    r".",
    r".*",
    r"(?s).*",
    r"(?s:.)\n?",
    r"[^a]",
    r"[^\n]+",
    r"[\n\r]",
    r"[\x00-\x20]+",
    r"[ -a]",
    r"[a\]]",
    r"[]a]",
    r"[-a]",
    r"[a-]",
    r"[\s]",
    r"\s\S?",
    r"\w+",
    r"\W",
    r"\d|\D\n",
    r"a|\n|\\",
    r"(?:a|\n){2}",
    r"(?P<x>a\n){0,2}",
    r"a{1,}?",
    r"a??",
    r"\t\"",
    r"\\n",
    r"\x{1F600}|\u00e9|\u{e9}",
    r"[\"\\]{1,2}",
    r"\/",
    r"(?i)A\n?",
    r"(?i:b)a?",
    r"(?i)[a]b",
    r"[^\W\d]",
    r"\.",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_allows_the_same_texts_inside_a_string(pattern: str) -> None:
    written, _ = escaped_pattern(pattern)
    grammar = LLMatcher.grammar_from_lark(f'start: "\\"" /(?:{written})/ "\\""')
    python = re.compile(re.sub(r"\\[xu]\{(\w+)\}", lambda found: f"\\U{int(found[1], 16):08x}", pattern))
    for text in TEXTS:
        expected = python.fullmatch(text) is not None
        assert accepts_text(grammar, json.dumps(text, ensure_ascii=False)) == expected, text
    assert not accepts_text(grammar, '"')
    assert not accepts_text(grammar, '"\n"')


@pytest.mark.parametrize(
    ("pattern", "members"),
    [
        (r"[[a-z]&&[^b]]", "ac"),
        (r"[\x00-\x7f--[^\n]]", "\n"),
        (r"[\na~~\nb]", "ab"),
        (r"[[:space:]]", " \n"),
        (r"[[:^punct:]&&[\n\"]]", "\n"),
        (r"\p{Cc}", "\n\x01"),
        (r"[\P{L}&&[a\n]]", "\n"),
        (r"\pL", "a\u00e9"),
        (r"[\P{Po}&&[\\\n]]", "\n"),
        (r"\p{Any}", 'a\n"'),
        (r"\a|\v|\f", "\x07\x0b\x0c"),
        (r"(?i:\x41)", "aA"),
        (r"[\x{41}-\x{43}]", "AB"),
        (r"\U0001F600|\U{1F601}", "\U0001f600\U0001f601"),
    ],
)
def test_sets_that_only_rust_has_are_read_as_it_does(pattern: str, members: str) -> None:
    written, has_special = escaped_pattern(pattern)
    grammar = LLMatcher.grammar_from_lark(f'start: "\\"" /(?:{written})/ "\\""')
    for text in members:
        assert accepts_text(grammar, f'"{escaped_text(text)}"'), text
    assert has_special == any(escaped_text(text) != text for text in members)
    others = set('abcAB \n"\\\x01\x07\x0b\x0c\u00e9\U0001f600\U0001f601') - set(members)
    assert not all(accepts_text(grammar, f'"{escaped_text(text)}"') for text in others) or pattern == r"\p{Any}"


@pytest.mark.parametrize(
    "pattern",
    [
        *("(?=a)", "(?<!a)b", "a(", "a)", "[a", "[[a]", "*a", "a{b", "^a", "a$", r"a\b", r"\A", r"\q", "\\", r"\é"),
        *(
            r"\xd800"[:2] + "{d800}",
            r"\u{110000}",
            "(?x)a",
            "(?-u)a",
            "(?i",
            "[b-a]",
            r"\p{Klingon}",
            "[[:no:]]",
            r"\x4",
        ),
        *("(" * 60 + ")" * 60, "[" * 60 + "a" + "]" * 60, r"(?<é>a)"),
    ],
)
def test_a_pattern_that_is_not_regular_or_not_known_is_not_enforceable(pattern: str) -> None:
    with pytest.raises(NotEnforceable, match="a pattern has"):
        escaped_pattern(pattern)


@pytest.mark.parametrize("pattern", [r"^a\n$", r"\Aa\n\z", r"^a\n|a\n$", r"a\n"])
def test_anchors_at_the_ends_of_a_whole_pattern_exclude_nothing(pattern: str) -> None:
    grammar = grammar_of(arguments_of_format("regex", pattern, "input0"))
    assert accepts_text(grammar, arguments_of_input("a\n"))
    assert not accepts_text(grammar, arguments_of_input("a"))


@pytest.mark.parametrize("pattern", ["a^", "$a", "(^a)", "^^a", "(?m)^a"])
def test_other_anchors_are_not_enforceable(pattern: str) -> None:
    with pytest.raises(NotEnforceable, match="a pattern has"):
        arguments_of_format("regex", pattern, "input0")


def grammar_of(arguments: Arguments) -> str:
    assert callable(arguments)
    return LLMatcher.grammar_from_lark("\n".join(arguments("start")))


GRAMMARS: list[tuple[str, list[str], list[str]]] = [
    ('start: /.+/ "\\n" /.*/', ["a\n", 'a"b\\n\n\\', "\u00e9\nx"], ["a", "\n", "a\nb\n"]),
    ('start: "a"i "B" "\\n"i', ["aB\n", "AB\n"], ["ab\n", "aBn"]),
    ('start: "a".."c" ["x"] ("y" | z)+\nz: "z"', ["ay", "cxzy"], ["dy", "a"]),
    ('start: "a"~2 "b"~1..2 "c"{2} "d"{1,} "e"{0,1}', ["aabccd", "aabbccdde"], ["abccd", "aabccdee"]),
    ("start: A B?\nA.2: /a/i // the first\nB: /b/ # the second", ["a", "Ab"], ["b"]),
    ('start: A?B\nA: "a"\nB: "b"', ["b", "ab"], ["a", ""]),
    ("?start: _x -> named\n!_x: /[a-c]/ & /[b-d]/", ["b", "c"], ["a", "d"]),
    (
        "%import common.INT\n%import common (LF, WORD)\n%import common.WS_INLINE -> GAP\nstart: INT LF WORD GAP INT",
        ["12\nab \t3"],
        ["12ab 3"],
    ),
    (
        "start: NUMBER ESCAPED_STRING\n%import common.NUMBER\n%import common.ESCAPED_STRING",
        ['1.5e3"a\\"b"', '7""'],
        ['7"'],
    ),
    ('start: "f" "(" X ")"\nX: /\\w+/\n%ignore " "\n%ignore /\\n/', ["f(a)", " f ( ab )\n"], ["f(a b)", "f("]),
    ('start: a\n\na: "x"\n  | "y"\n  |\nunused: "z" unused', ["x", "y", ""], ["z"]),
    ('start: e\ne: DIGIT | "(" e "+" e ")"\nDIGIT: "0".."9"', ["7", "(1+(2+3))"], ["", "(1+2"]),
    ('start: e\ne: WORD | "\\n" e\nWORD: /[a-z]+/\n%ignore " "', ["ab", "\n \nab"], ["\n"]),
    ("start: /a/ //\n", ["a"], [""]),
]


@pytest.mark.parametrize(("definition", "allowed", "others"), GRAMMARS)
def test_a_grammar_allows_the_same_texts_inside_a_string(
    definition: str, allowed: list[str], others: list[str]
) -> None:
    grammar = grammar_of(arguments_of_format("lark", definition, "input7"))
    for text in allowed:
        assert accepts_text(grammar, arguments_of_input(text)), text
    for text in others:
        assert not accepts_text(grammar, arguments_of_input(text)), text


@pytest.mark.parametrize(
    ("definition", "reason"),
    [
        ("", "it is empty"),
        ('begin: "a"', "no rule `start`"),
        ("start: missing", "does not define `missing`"),
        ('start: "a\nb"', "it has"),
        ('start: "\\x41"', "escape that JSON does not have"),
        ('start: "\\ud800"', "surrogate"),
        ('start: %json {"type": "object"}', "it has"),
        ("start: <|im_end|>", "it has"),
        ("start: A\nA: ~/a/", "`~` before a terminal"),
        ('start: "a"{X}\nX: "x"', "`{` without a number"),
        ('start: ("a"', "unclosed bracket"),
        ('start: "a")', "unopened `\\)`"),
        ('start[capture]: "a"', "it begins with"),
        ('start: b\nb[lazy]: "a"', "attributes or parameters"),
        ("start: X\n%import python.NAME -> X", "something else than `common`"),
        ("start: X\n%import common.MISSING -> X", "imports `MISSING`"),
        ('start: "a"\n%declare B', "`%declare`"),
        ('start: "ab".."c"', "a range from"),
        ('start: "a" ..', "a range from"),
        ("start: A, A\nA: /a/", "`,` in a definition"),
        ("start: /(?=a)/", "a lookaround"),
        ('start: e\ne: /.+/ | "(" e ")"', "refer to themselves"),
        ("start: " + "A " * 20_001 + '\nA: "a"', "more than 20000"),
        ("start: 5", "`5` in a definition"),
    ],
)
def test_a_grammar_that_cannot_be_enforced_says_why(definition: str, reason: str) -> None:
    with pytest.raises(NotEnforceable, match=reason):
        escaped_rules("input0", definition)


PATCHES = [
    ("*** Begin Patch\n*** Add File: a.txt\n+x\\y\n+\n*** End Patch\n", True),
    ("*** Begin Patch\n*** Delete File: b.txt\n*** End Patch", True),
    ("*** Begin Patch\n*** Add File: a.txt\n*** End Patch\n", False),
    ("*** Begin Patch\n*** End Patch\n", False),
    ("", False),
]


@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
def test_optional_calls_keep_to_the_grammar_and_other_texts_are_free(call_format: CallFormat) -> None:
    arguments: dict[str, Arguments] = {
        "patch": arguments_of_format("lark", PATCH_GRAMMAR, "input0"),
        "run": lambda name: [f'{name}: %json {{"type": "object"}}'],
    }
    lark = call_format.grammar(arguments, allows_several=True, free_text=free_text_rules(call_format, {}))
    grammar = LLMatcher.grammar_from_lark(lark)
    lead = "" if call_format.is_whole_answer else "Now. "
    for text in ("", "Hello!\n", call_format.mark[:-1], "[1] says so", "It is a {brace}."):
        assert accepts_text(grammar, text), text
    for patch, is_patch in PATCHES:
        assert (re.fullmatch(PATCH_PATTERN, patch) is not None) == is_patch
        text = lead + call_format.written([("patch", arguments_of_input(patch))])
        assert accepts_text(grammar, text) == is_patch, text
    both = call_format.written([("run", '{"cmd": ["ls"]}'), ("patch", arguments_of_input(PATCHES[1][0]))])
    assert accepts_text(grammar, lead + both)
    assert [name for name, _ in read(call_format, [lead + both])[1]] == ["run", "patch"]
    for text in (call_format.mark, call_format.written([("other", "{}")]), call_format.written([("run", "5")])):
        assert not accepts_text(grammar, text), text


@pytest.mark.slow
@pytest.mark.parametrize("call_format", FORMATS, ids=lambda one: one.name)
def test_a_random_model_writes_inputs_of_their_grammars(call_format: CallFormat) -> None:
    arguments: dict[str, Arguments] = {
        "patch": arguments_of_format("lark", PATCH_GRAMMAR, "input0"),
        "dial": arguments_of_format("regex", r"(?:[0-9]{2}\n){1,3}", "input1"),
    }
    grammar = LLMatcher.grammar_from_lark(call_format.grammar(arguments, allows_several=False))
    transcripts = run_to_end(constrained_engine(), [constrained(index, grammar) for index in range(20)])
    patterns = {"patch": PATCH_PATTERN, "dial": r"(?:[0-9]{2}\n){1,3}"}
    names = set()
    for transcript in transcripts.values():
        content, calls = read(call_format, [text_of(transcript)], is_cut_off=True)
        assert content == ""
        ((name, written),) = calls
        if json_is_complete(written):
            names.add(name)
            assert re.fullmatch(patterns[name], input_of_arguments(written)), written
    assert names


def json_is_complete(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def test_a_long_chain_of_rules_and_a_long_pattern_are_read_quickly() -> None:
    chain = "\n".join(f"r{number}: r{number + 1}" for number in range(4000))
    started = time.process_time()
    rules = escaped_rules("input0", f'start: r0\n{chain}\nr4000: "a"')
    written, _ = escaped_pattern("." * 10_000)
    assert time.process_time() - started < 2
    assert len(rules) == 4004
    assert len(written) < 2_000_000


def test_marks_that_are_special_tokens_are_named_by_their_ids() -> None:
    assert any("TEXT <[9]>" in rule for rule in free_text_rules(HERMES, {"<tool_call>": 9}))
    assert any("<[9]>" in rule for rule in free_text_rules(LLAMA, {"<|python_tag|>": 9}))
