"""The marks around thoughts as tokens."""

from caravan.model.tokenizer.tokenizer import Tokenizer
from caravan.scheduler.thought_budget import INSIDE, ThoughtBudget
from caravan.server.generation.text_model import TextModel
from caravan.server.generation.thought_splitter import Thoughts
from caravan.server.sandbox.chat_template import ChatTemplate


def thought_token_ids(tokenizer: Tokenizer, template: ChatTemplate | None) -> frozenset[int]:
    """Return the special tokens that are marks of thoughts, whose text a splitter must get."""
    templates = [] if template is None else [template, template.for_tools()]
    marks = {mark for one in templates for mark in one.thought_marks or ()}
    return frozenset(tokenizer.special_tokens[mark] for mark in marks & tokenizer.special_tokens.keys())


def thought_budget(model: TextModel, thoughts: Thoughts, max_tokens: int) -> ThoughtBudget | None:
    """Return the budget of a response, None if it has no thought."""
    if thoughts.start == "closed":
        return None
    automaton = model.mark_automaton(thoughts.marks)
    closing = model.tokenizer.encode(thoughts.marks.closing, add_special_tokens=False, parse_special=True)
    first_state = INSIDE if thoughts.start == "open" else automaton.num_inside + 1
    return ThoughtBudget(
        max_tokens=max_tokens, closing_token_ids=tuple(closing), first_state=first_state, automaton=automaton
    )
