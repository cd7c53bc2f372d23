"""Which words a model's tokenizer and chat template allow as codes."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.model.tokenizer.vocabulary import TokenType
from caravan.server.generation.answer_codes import NO_TEMPLATE, answer_codes, continued
from caravan.server.sandbox.chat_template import ChatTemplate
from tests.support.fakes import BOS, EOS, ByteVocabulary

INST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}bot: {% endif %}"
)


class WordVocabulary(ByteVocabulary):
    """Bytes, and some words, of which the longest at a place is taken; perhaps a space before each text."""

    def __init__(self, words: list[str], *, adds_space: bool = False) -> None:
        super().__init__()
        self._words = {word: len(self.texts) + index for index, word in enumerate(words)}
        self._adds_space = adds_space
        self.texts = [*self.texts, *words]
        self.types = [*self.types, *([TokenType.NORMAL] * len(words))]
        self.token_bytes = [*self.token_bytes, *map(str.encode, words)]

    def encode(self, text: str) -> list[int]:
        text = " " + text if self._adds_space else text
        token_ids: list[int] = []
        while text:
            word = max((one for one in self._words if text.startswith(one)), key=len, default="")
            token_ids += [self._words[word]] if word else text[0].encode()
            text = text[len(word) or 1 :]
        return token_ids


def tokenizer_of(*words: str, adds_space: bool = False) -> Tokenizer:
    return Tokenizer(WordVocabulary([*words], adds_space=adds_space), bos_token_id=BOS, eos_token_ids=[EOS])


@contextmanager
def template_of(source: str) -> Iterator[ChatTemplate]:
    template = ChatTemplate(source, "<s>", "</s>")
    yield template
    template.close()


def test_a_code_has_the_space_that_the_template_puts_before_an_answer() -> None:
    tokenizer = tokenizer_of(" A", " C", " Q", " yes", " no", "yes", "no", " 1")
    with template_of(INST) as template:
        codes = answer_codes(tokenizer, template)
    assert (codes.problem, codes.tail) == ("", " [/INST]")
    assert [tokenizer.token_bytes(code.token_id) for code in codes.letters] == [b" A", b" C", b" Q"]
    assert [tokenizer.token_bytes(code.token_id) for code in codes.yes_and_no] == [b" yes", b" no"]
    assert [code.text for code in codes.digits] == ["1"]
    assert codes.max_options == 3
    assert len(codes.options(4)) < 4


def test_a_code_that_joins_the_text_before_it_is_left_out() -> None:
    tokenizer = tokenizer_of(" B", "yes", "no")
    with template_of(LINES) as template:  # the prompt ends with a space
        codes = answer_codes(tokenizer, template)
    assert [code.text for code in codes.letters] == [*"ACDEFGHIJKLMNOPQRSTUVWXYZ"]
    assert [code.text for code in codes.yes_and_no] == ["yes", "no"]


def test_pairs_are_for_more_options_than_letters() -> None:
    tokenizer = tokenizer_of("AA", "AB", "QZ")
    with template_of(LINES) as template:
        codes = answer_codes(tokenizer, template)
    assert [code.text for code in codes.pairs] == ["AA", "AB", "QZ"]
    assert codes.options(26) == codes.letters
    assert codes.options(27) == codes.pairs


def test_a_space_that_the_tokenizer_puts_before_every_text_is_not_in_the_prompt() -> None:
    tokenizer = tokenizer_of("yes", "no", adds_space=True)
    assert continued(tokenizer, "\nAnswer") == list(b"\nAnswer")
    with template_of(LINES) as template:
        codes = answer_codes(tokenizer, template)
    assert bytes(codes.tail_ids) == b"\nbot: "
    assert len(codes.letters) == 26


def test_a_tail_whose_line_break_joins_others_is_tokenized_by_itself() -> None:
    tokenizer = tokenizer_of("\n\n")
    with template_of(LINES) as template:
        codes = answer_codes(tokenizer, template)
    assert bytes(codes.tail_ids) == b"\nbot: "
    assert len(codes.letters) == 26


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}<think>", "begins a thought"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "does not show a message once"),
        ("{{ raise_exception('no') if messages else '' }}", "cannot be rendered"),
    ],
)
def test_a_template_that_cannot_be_used_is_a_problem_for_the_client(source: str, problem: str) -> None:
    with template_of(source) as template:
        codes = answer_codes(tokenizer_of(), template)
    assert problem in codes.problem
    assert codes.letters == codes.yes_and_no == ()


def test_a_thought_that_the_template_also_ends_is_none() -> None:
    with template_of("{% for m in messages %}{{ m.content }}{% endfor %}<think></think>") as template:
        assert answer_codes(tokenizer_of(), template).problem == ""


def test_a_model_without_a_template_has_no_codes() -> None:
    assert answer_codes(tokenizer_of(), None).problem == NO_TEMPLATE
