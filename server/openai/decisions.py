"""POST /v1/decisions: questions about a text, answered with probabilities."""

import json
import time
import uuid

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from caravan.server.generation.answer_codes import AnswerCodes
from caravan.server.generation.context import request_context
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented
from caravan.server.openai.answer_probabilities import AnswerProbabilities
from caravan.server.openai.models import chosen_model
from caravan.server.openai.protocol.decisions import (
    ChoiceAnswer,
    ChoiceProbability,
    ChoiceQuestion,
    Decision,
    DecisionInputDetails,
    DecisionOutputDetails,
    DecisionRequest,
    DecisionUsage,
    LevelProbability,
    PredicateAnswer,
    PredicateQuestion,
    ScoreAnswer,
    ScoreQuestion,
)
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.question import Question, checked_codes, choice, described, score, yes_or_no
from caravan.server.openai.question_reading import Matter, read_questions

IS_TRUE = "True? "
EXAMPLE = {
    "model": "smollm2",
    "input": "The parcel came late and open.",
    "questions": [{"type": "predicate", "name": "late", "instructions": "The parcel arrived late."}],
}

AskedQuestion = PredicateQuestion | ChoiceQuestion | ScoreQuestion


def decisions_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/decisions."""
    router = APIRouter(tags=["questions"])

    @router.post("/v1/decisions", summary="Answer questions", **documented(DecisionRequest, EXAMPLE, answer=Decision))
    async def create_decision(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, DecisionRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        codes = checked_codes(served.codes)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)
        messages, items_ignored = body.messages()

        def write() -> list[Matter]:
            asked = enumerate(body.questions)
            return [Matter(messages, [question_of(codes, one, f"questions[{index}]") for index, one in asked])]

        answer_id = f"decision-{uuid.uuid4().hex}"
        readings = await read_questions(request, served, write, context, answer_id, "input")
        ignored = ignored_fields(body)
        served.metrics.count_ignored_fields(ignored | items_ignored)
        record = readings.record
        return json_response(
            Decision(
                model=body.model,
                answers=[answer_of(*pair) for pair in zip(body.questions, readings.answers, strict=True)],
                usage=DecisionUsage(
                    input_tokens=record.num_prompt_tokens,
                    input_tokens_details=DecisionInputDetails(cached_tokens=record.num_cached_tokens),
                    output_tokens_details=DecisionOutputDetails(),
                    total_tokens=record.num_prompt_tokens,
                ),
                warnings=[*ignored_warnings(ignored), *items_ignored.values()] or UNSET,
                explanation=record.explanation() if body.explain else UNSET,
            )
        )

    return router


def question_of(codes: AnswerCodes, asked: AskedQuestion, param: str) -> Question:
    """Return a question of a request, written out; `param` is its path."""
    match asked:
        case PredicateQuestion():
            return yes_or_no(codes, IS_TRUE + asked.instructions)
        case ChoiceQuestion():
            names = _names([option.value for option in asked.choices])
            options = [described(*pair) for pair in zip(names, (o.description for o in asked.choices), strict=True)]
            return choice(codes, asked.instructions, options, f"{param}.choices")
        case ScoreQuestion():
            levels = [described(level.label, level.description) for level in asked.levels]
            return score(codes, asked.instructions, levels, f"{param}.levels")


def answer_of(asked: AskedQuestion, found: AnswerProbabilities) -> PredicateAnswer | ChoiceAnswer | ScoreAnswer:
    """Return the answer to a question."""
    name, mass, probabilities = asked.name, found.label_mass, found.probabilities
    match asked:
        case PredicateQuestion():
            return PredicateAnswer(name=name, probability=probabilities[0], label_mass=mass)
        case ChoiceQuestion():
            return ChoiceAnswer(
                name=name,
                choice=asked.choices[found.best].value,
                confidence=found.choice_confidence,
                probabilities=[
                    ChoiceProbability(value=option.value, probability=probability)
                    for option, probability in zip(asked.choices, probabilities, strict=True)
                ],
                label_mass=mass,
            )
        case ScoreQuestion():
            return ScoreAnswer(
                name=name,
                score=found.score,
                confidence=found.score_confidence,
                probabilities=[
                    LevelProbability(value=index, label=level.label, probability=probability)
                    for index, (level, probability) in enumerate(zip(asked.levels, probabilities, strict=True))
                ],
                label_mass=mass,
            )


def _names(values: list[str | bool]) -> list[str]:
    """Return the texts of choices; beside booleans strings are quoted, as "true" is not true."""
    if any(isinstance(value, bool) for value in values):
        return [json.dumps(value, ensure_ascii=False) for value in values]
    return [str(value) for value in values]
