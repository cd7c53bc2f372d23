"""Question: a question about a text, written out with a code for each of its options."""

from collections.abc import Sequence
from dataclasses import dataclass

from caravan.server.generation.answer_codes import AnswerCodes, Code
from caravan.server.http.errors import ApiError, invalid

HOW_TO_ANSWER = "Answer each question with yes or no, or with the code of one option only."  # after what it is about


@dataclass(frozen=True)
class Question:
    """The text that follows what the question is about, and the codes of the options."""

    text: str
    codes: tuple[Code, ...]


def yes_or_no(codes: AnswerCodes, question: str, *, yes: str = "", no: str = "") -> Question:
    """Return a question with the options yes and no, in this order; `yes` and `no` describe them."""
    if not codes.yes_and_no:
        raise invalid(
            "After the end of this model's prompts its tokenizer has no words for yes and no of one token each."
        )
    is_named = [code.text for code in codes.yes_and_no] == ["yes", "no"]  # in HOW_TO_ANSWER
    meanings = (yes, no) if is_named else (yes or "yes", no or "no")
    lines = [f"{code.text}: {text}" for code, text in zip(codes.yes_and_no, meanings, strict=True) if text]
    return Question("\n".join([f"\n\n{question}", *lines]), codes.yes_and_no)


def choice(codes: AnswerCodes, instructions: str, options: Sequence[str], param: str) -> Question:
    """Return a question with lettered options; raises ApiError if there are more than the tokenizer has codes for."""
    chosen = codes.options(len(options))
    if len(chosen) < len(options):
        raise invalid(
            f"`{param}` has {len(options)} options; after the end of this model's prompts its tokenizer has one-token "
            f"codes for {codes.max_options}.",
            param,
        )
    return _listed(chosen, instructions, options)


def score(codes: AnswerCodes, instructions: str, levels: Sequence[str], param: str) -> Question:
    """Return a question with numbered levels; raises ApiError if the tokenizer lacks codes."""
    if len(codes.digits) < len(levels):
        raise invalid(
            f"`{param}` has {len(levels)} levels; after the end of this model's prompts its tokenizer has one-token "
            f"codes for {len(codes.digits)}.",
            param,
        )
    return _listed(codes.digits[: len(levels)], instructions, levels)


def described(name: str, description: str | None) -> str:
    """Return the line of an option after its code."""
    return f"{name} - {description}" if description else name


def checked_codes(codes: AnswerCodes) -> AnswerCodes:
    """Return the codes of a model; raises ApiError if it cannot be asked."""
    if codes.problem:
        raise ApiError(400, codes.problem, param="model")
    return codes


def _listed(codes: tuple[Code, ...], instructions: str, options: Sequence[str]) -> Question:
    lines = [f"{code.text}: {option}" for code, option in zip(codes, options, strict=True)]
    return Question("\n".join([f"\n\n{instructions}", *lines]), codes)
