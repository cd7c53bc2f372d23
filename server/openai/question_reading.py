"""Read questions: each is a prompt of its own, and the answer is the log-probabilities of its codes.

All questions about one text begin with the same tokens, so the engine computes these once. Nothing is sampled.
"""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.model.tokenizer.tokenizer import Unencodable
from caravan.server.generation.answer_codes import continued
from caravan.server.generation.context import RequestContext
from caravan.server.generation.generation import Generation
from caravan.server.generation.prompt_job import PromptJob
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.text_stream import TextDelta
from caravan.server.http.disconnect import until_disconnect
from caravan.server.http.errors import invalid
from caravan.server.observe.request_record import RequestRecord
from caravan.server.openai.answer_probabilities import AnswerProbabilities, answer_probabilities
from caravan.server.openai.chat_rendering import rendered_chat
from caravan.server.openai.prompts import chat_token_ids, encoded, too_long
from caravan.server.openai.protocol.messages import Conversation
from caravan.server.openai.protocol.validation import first_problem
from caravan.server.openai.question import HOW_TO_ANSWER, Question
from caravan.server.openai.run_generation import read_whole
from caravan.server.sandbox.special_tokens import Json, all_strings, unused_characters

MAX_PROMPT_TOKENS = 4_000_000  # of all questions of a request together

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Matter:
    """What questions are about, as messages, and the questions."""

    messages: Messages
    questions: list[Question]


@dataclass(frozen=True)
class Readings:
    """The answers to all questions, in order, and the record of the request with its counts."""

    answers: list[AnswerProbabilities]
    record: RequestRecord


async def read_questions(
    request: Request,
    served: ServedModel,
    write: Callable[[], Sequence[Matter]],
    context: RequestContext,
    answer_id: str,
    param: str,
) -> Readings:
    """Return the probabilities of the options of every question that `write` returns, in a thread.

    `param` is the field with what they are about. Raises ApiError, QueueFull, DeadlineExceeded, EngineUnavailable,
    ClientDisconnect or the error of the engine.
    """
    key_name, executors = context.key_name, served.executors

    async def prepare() -> list[PromptJob]:
        jobs: list[PromptJob] = []
        num_tokens = 0
        for matter in await executors.tokenizing.run(key_name, write):
            state = await executors.templates.run(key_name, partial(_rendered, served, matter.messages, param))
            new = await executors.tokenizing.run(key_name, partial(_jobs, served, state, matter.questions, param))
            num_tokens += sum(len(job.token_ids) for job in new)
            _check_sum(num_tokens, param)
            jobs += new
        return jobs

    jobs = await until_disconnect(request.receive, prepare())
    generation = Generation(served, jobs, context, answer_id=answer_id)
    logprobs: list[Sequence[float]] = [()] * len(jobs)

    def add(index: int, delta: TextDelta) -> None:
        logprobs[index] = delta.token_logprobs

    await read_whole(request, generation, add)
    return Readings([*map(answer_probabilities, logprobs)], generation.record)


@dataclass(frozen=True)
class _State:
    """The text of a prompt up to the question; to be encoded with `guard`."""

    text: str
    guard: str


def _rendered(served: ServedModel, messages: Messages, param: str) -> _State:
    """Return the beginning of all prompts about these messages: questions continue the last message of the user."""
    source = served.chat_template.source if served.chat_template is not None else ""
    texts: Json = [*messages]
    try:
        (mark,) = unused_characters([source, *all_strings(texts)], 1)
    except ValueError as error:
        raise invalid(str(error), param) from None
    end = HOW_TO_ANSWER + mark
    if messages and messages[-1].get("role") == "user" and isinstance(messages[-1]["content"], str):
        content = messages[-1]["content"].rstrip()
        marked = [*messages[:-1], {**messages[-1], "content": f"{content}\n\n{end}"}]
    else:
        marked = [*messages, {"role": "user", "content": end}]
    try:
        conversation = Conversation.model_validate({"messages": marked, "enable_thinking": False})
    except ValidationError as error:
        problem = first_problem(error, {"messages": marked})
        raise invalid(f"`{param}` cannot be read as a conversation: {problem}", param) from None
    rendered = rendered_chat(served, conversation)
    before, found, tail = rendered.text.partition(mark)
    if not found or tail.replace(rendered.guard, "") != served.codes.tail:
        raise invalid("The model's chat template ends this prompt differently, so codes are unknown.", param)
    return _State(before, rendered.guard)


def _jobs(served: ServedModel, state: _State, questions: Sequence[Question], param: str) -> list[PromptJob]:
    """Return a prompt for each question; what they are about is tokenized once, apart from the questions."""
    first_ids = encoded(
        served, state.text, param, served.max_model_len, parse_special=True, guard=state.guard, is_open=True
    )
    first_ids = chat_token_ids(served, first_ids)
    jobs: list[PromptJob] = []
    _check_sum(len(first_ids) * len(questions), param)  # before they take memory
    try:
        own_ids = [continued(served.tokenizer, question.text) for question in questions]
    except Unencodable as error:
        raise invalid(f"A question cannot be encoded: {error}", "questions") from None
    known: dict[tuple[int, ...], SamplingParams] = {}
    group, num_shared = secrets.randbits(63), len(first_ids) + common_length(own_ids)
    for question, ids in zip(questions, own_ids, strict=True):
        token_ids = [*first_ids, *ids, *served.codes.tail_ids]
        if len(token_ids) > served.max_model_len:
            raise too_long(served, f"{len(token_ids)} tokens with a question")
        code_ids = tuple(code.token_id for code in question.codes)
        sampling = known.setdefault(code_ids, SamplingParams(seed=0, max_tokens=0, logprob_token_ids=code_ids))
        shared = min(num_shared, len(token_ids) - 1)  # each computes its last token
        jobs.append(PromptJob(token_ids=token_ids, params=[sampling], group=group, num_shared_tokens=shared))
    return jobs


def common_length(texts: Sequence[list[int]]) -> int:
    """Return with how many equal tokens all texts begin; there must be at least one."""
    first, last = min(texts), max(texts)  # all others begin with what these two have in common
    return next((place for place, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))


def _check_sum(num_tokens: int, param: str) -> None:
    if num_tokens > MAX_PROMPT_TOKENS:
        raise invalid(
            f"The prompts of all questions have more than {MAX_PROMPT_TOKENS} tokens together; ask fewer.", param
        )
