"""POST /v1/systemone: questions about a state, in TypeSafe's form."""

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
from caravan.server.openai.decisions import IS_TRUE
from caravan.server.openai.models import chosen_model
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.system_one import (
    LevelsAnswer,
    LevelsQuestion,
    NamedChoiceAnswer,
    NamedChoiceQuestion,
    NoulAnswer,
    NoulCriteria,
    NoulQuestion,
    SystemOneAnswers,
    SystemOneRequest,
    SystemOneUsage,
)
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.question import Question, checked_codes, choice, described, score, yes_or_no
from caravan.server.openai.question_reading import Matter, read_questions

EXAMPLE = {
    "model": "smollm2",
    "state": {"parcel": "late and open"},
    "questions": {
        "who": {
            "type": "choice",
            "instructions": "Who is at fault?",
            "criteria": {"carrier": "The parcel was damaged on its way.", "us": "It was packed badly."},
        }
    },
}

AskedQuestion = NoulQuestion | NamedChoiceQuestion | LevelsQuestion


def system_one_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/systemone."""
    router = APIRouter(tags=["questions"])

    @router.post(
        "/v1/systemone",
        summary="Answer questions, in TypeSafe's form",
        **documented(SystemOneRequest, EXAMPLE, answer=SystemOneAnswers),
    )
    async def create_answers(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, SystemOneRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        codes = checked_codes(served.codes)
        context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)

        def write() -> list[Matter]:
            asked = [question_of(codes, one, f"questions.{name[:64]}.criteria") for name, one in body.questions.items()]
            return [Matter([{"role": "user", "content": body.state}], asked)]

        answer_id = f"systemone-{uuid.uuid4().hex}"
        readings = await read_questions(request, served, write, context, answer_id, "state")
        ignored = ignored_fields(body)
        served.metrics.count_ignored_fields(ignored)
        answers = zip(body.questions.items(), readings.answers, strict=True)
        return json_response(
            SystemOneAnswers(
                model=body.model,
                answers={name: answer_of(one, found) for (name, one), found in answers},
                usage=SystemOneUsage(input_tokens=readings.record.num_prompt_tokens),
                warnings=ignored_warnings(ignored) or UNSET,
                explanation=readings.record.explanation() if body.explain else UNSET,
            )
        )

    return router


def question_of(codes: AnswerCodes, asked: AskedQuestion, param: str) -> Question:
    """Return a question of a request, written out; `param` is the path of its criteria."""
    match asked:
        case NoulQuestion():
            criteria = asked.criteria or NoulCriteria()
            yes, no = criteria.true or "", criteria.false or ""
            return yes_or_no(codes, IS_TRUE + asked.instructions, yes=yes, no=no)
        case NamedChoiceQuestion():
            options = [described(name, description) for name, description in asked.criteria.items()]
            return choice(codes, asked.instructions, options, param)
        case LevelsQuestion():
            return score(codes, asked.instructions, asked.criteria, param)


def answer_of(asked: AskedQuestion, found: AnswerProbabilities) -> NoulAnswer | NamedChoiceAnswer | LevelsAnswer:
    """Return the answer to a question."""
    mass, probabilities = found.label_mass, found.probabilities
    match asked:
        case NoulQuestion():
            return NoulAnswer(noul=probabilities[0], label_mass=mass)
        case NamedChoiceQuestion():
            by_name = dict(zip(asked.criteria, probabilities, strict=True))
            best = [*by_name][found.best]
            return NamedChoiceAnswer(
                choice=best, confidence=found.choice_confidence, probabilities=by_name, label_mass=mass
            )
        case LevelsQuestion():
            return LevelsAnswer(
                score=found.score,
                confidence=found.score_confidence,
                legend={str(index): level for index, level in enumerate(asked.criteria)},
                probabilities={str(index): probability for index, probability in enumerate(probabilities)},
                label_mass=mass,
            )
