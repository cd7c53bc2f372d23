"""AnswerCodes: words of one token that stand for the options of a question, for a model with a chat template.

A question lists its options with their codes, and the log-probability of each code as the first token of the answer is
read. Names of options would not do: longer ones are less probable for their length.
"""

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.server.sandbox.chat_template import ChatTemplate
from caravan.server.sandbox.special_tokens import Json
from caravan.server.sandbox.thought_marks import opens_thought
from caravan.server.sandbox.worker_pool import WorkerUnavailable

NO_TEMPLATE = "This model has no chat template, which questions need."
_QUESTION, _REPLY = "qzquestionzq", "qzreplyzq"
_WITHOUT_THOUGHT = ("enable_thinking", "thinking")  # variables of templates that are false for questions
_YES_AND_NO = (("yes", "no"), ("Yes", "No"), ("true", "false"), ("Y", "N"))  # the first that the tokenizer has


class Code(NamedTuple):
    """A word that is one token at the beginning of an answer."""

    text: str
    token_id: int


@dataclass(frozen=True)
class AnswerCodes:
    """The codes of one model, and the prompt from the end of a question on."""

    tail: str = ""  # what the template writes after the text of the last message
    tail_ids: tuple[int, ...] = ()  # its tokens
    letters: tuple[Code, ...] = ()  # A to Z
    pairs: tuple[Code, ...] = ()  # AA to ZZ
    digits: tuple[Code, ...] = ()  # 0 to 9
    yes_and_no: tuple[Code, ...] = ()
    problem: str = ""  # why there are none, for clients

    def within(self, vocab_size: int) -> "AnswerCodes":
        """Return the codes whose tokens a model with this vocabulary has."""

        def known(codes: Sequence[Code]) -> tuple[Code, ...]:
            return tuple(code for code in codes if code.token_id < vocab_size)

        yes_and_no = known(self.yes_and_no)
        return replace(
            self,
            letters=known(self.letters),
            pairs=known(self.pairs),
            digits=known(self.digits),
            yes_and_no=yes_and_no if len(yes_and_no) == 2 else (),
        )

    def options(self, count: int) -> tuple[Code, ...]:
        """Return `count` codes for the options of a choice, fewer if the tokenizer has not as many."""
        return self.letters[:count] if count <= len(self.letters) else self.pairs[:count]

    @property
    def max_options(self) -> int:
        """The number of options that a choice can have."""
        return max(len(self.letters), len(self.pairs))


def answer_codes(tokenizer: Tokenizer, template: ChatTemplate | None) -> AnswerCodes:
    """Return the codes that are one token each after a question, as `template` writes it.

    The template's own finished turn of the assistant shows whether a space comes before an answer. The model is not to
    think: a question reads the first token.
    """
    if template is None:
        return AnswerCodes(problem=NO_TEMPLATE)
    try:
        opened = _rendered(tokenizer, template, has_reply=False)
        before_reply = _rendered(tokenizer, template, has_reply=True).partition(_REPLY)[0]
    except (ValueError, WorkerUnavailable):  # TemplateRefused and TemplateFailed are such errors
        return AnswerCodes(problem="The model's chat template cannot be rendered for a question.")
    tail = opened.partition(_QUESTION)[2]
    if opened.count(_QUESTION) != 1:
        return AnswerCodes(problem="The model's chat template does not show a message once.")
    if opens_thought(tail):
        return AnswerCodes(problem="The model's chat template begins a thought; a question reads the first token.")
    shown_tail = before_reply.rpartition(_QUESTION)[2]
    space = " " if shown_tail.endswith(" ") and not tail.endswith((" ", "\n")) else ""
    tail_ids = _after_line_break(tokenizer, tail)

    def codes(words: Sequence[str]) -> tuple[Code, ...]:
        found: dict[int, Code] = {}
        for word in words:
            token_ids = _after_line_break(tokenizer, tail + space + word)
            is_one = len(token_ids) == len(tail_ids) + 1 and token_ids[:-1] == tail_ids
            if is_one and not tokenizer.is_special(token_ids[-1]):
                found.setdefault(token_ids[-1], Code(word, token_ids[-1]))
        return tuple(found.values())

    letters = codes(string.ascii_uppercase)
    digits = codes(string.digits)
    pairs = codes([first + second for first in string.ascii_uppercase for second in string.ascii_uppercase])
    answers = [found for words in _YES_AND_NO if len(found := codes(words)) == 2]
    return AnswerCodes(tail, tuple(tail_ids), letters, pairs, digits, answers[0] if answers else ())


def continued(tokenizer: Tokenizer, text: str, *, parse_special: bool = False) -> list[int]:
    """Return the token ids of a text that continues a prompt and begins with a line break; raises Unencodable."""
    token_ids = tokenizer.encode(text, add_special_tokens=False, parse_special=parse_special)
    if token_ids and tokenizer.token_bytes(token_ids[0]) == b" ":
        del token_ids[0]  # that some tokenizers put before every text
    return token_ids


def _after_line_break(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text that continues a prompt, with special tokens parsed."""
    line_break = continued(tokenizer, "\n")
    token_ids = continued(tokenizer, "\n" + text, parse_special=True)
    if token_ids[: len(line_break)] == line_break:
        return token_ids[len(line_break) :]
    return continued(tokenizer, text, parse_special=True)  # it begins with a line break that joins that one


def _rendered(tokenizer: Tokenizer, template: ChatTemplate, *, has_reply: bool) -> str:
    """Return a conversation of one question, perhaps with a reply, as the template writes it."""
    turns = [("user", _QUESTION), ("assistant", _REPLY)] if has_reply else [("user", _QUESTION)]
    messages: list[dict[str, Json]] = [
        {"role": role, "content": template.shape.content(role, text)} for role, text in turns
    ]
    return template.render(
        messages,
        special_tokens=tokenizer.special_tokens,
        variables={name: False for name in _WITHOUT_THOUGHT if template.names(name)},
        add_generation_prompt=not has_reply,
    ).text
