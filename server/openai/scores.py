"""POST /v1/score and POST /v1/rerank: how relevant texts are to others, as a chat model says with yes or no."""

import time
import uuid
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from caravan.server.generation.context import request_context
from caravan.server.generation.served_model import ServedModel
from caravan.server.generation.served_models import ServedModels
from caravan.server.http.json_response import json_response
from caravan.server.http.openapi import documented
from caravan.server.openai.models import chosen_model
from caravan.server.openai.protocol.scores import (
    PairScore,
    RankedDocument,
    RankedList,
    RankedResult,
    RerankRequest,
    ScoreList,
    ScoreRequest,
    ScoreUsage,
)
from caravan.server.openai.protocol.strict_model import ignored_fields, ignored_warnings
from caravan.server.openai.protocol.validated_body import read_body
from caravan.server.openai.question import checked_codes, yes_or_no
from caravan.server.openai.question_reading import Matter, Readings, read_questions

ANSWERS_QUERY = "Does this text answer the query? "
SCORE_EXAMPLE = {"model": "smollm2", "text_1": "capital of France", "text_2": ["Paris is a city.", "Bread is baked."]}
RERANK_EXAMPLE = {
    "model": "smollm2",
    "query": "capital of France",
    "documents": ["Bread is baked.", "Paris is a city."],
}


def scores_router(models: ServedModels) -> APIRouter:
    """Return the router of POST /v1/score and POST /v1/rerank."""
    router = APIRouter(tags=["questions"])

    @router.post(
        "/v1/score", summary="Score pairs of texts", **documented(ScoreRequest, SCORE_EXAMPLE, answer=ScoreList)
    )
    async def create_scores(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, ScoreRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        answer_id = f"score-{uuid.uuid4().hex}"
        readings = await _read(request, served, body, body.pairs, answer_id, arrived_at_seconds, "text_2")
        return json_response(
            ScoreList(
                id=answer_id,
                created=int(time.time()),
                model=body.model,
                data=[
                    PairScore(index=index, score=found.probabilities[0], label_mass=found.label_mass)
                    for index, found in enumerate(readings.answers)
                ],
                usage=_usage(readings),
                warnings=_warnings(served, body),
                explanation=readings.record.explanation() if body.explain else UNSET,
            )
        )

    @router.post("/v1/rerank", summary="Rank documents", **documented(RerankRequest, RERANK_EXAMPLE, answer=RankedList))
    async def create_ranking(request: Request) -> Response:
        arrived_at_seconds = time.monotonic()
        body = await read_body(request, RerankRequest, models.limits)
        served = chosen_model(models, body.model, request.scope)
        answer_id = f"rerank-{uuid.uuid4().hex}"
        pairs = [(body.query, document) for document in body.documents]
        readings = await _read(request, served, body, pairs, answer_id, arrived_at_seconds, "documents")
        results = [
            RankedResult(
                index=index,
                document=RankedDocument(text=body.documents[index]) if body.return_documents else UNSET,
                relevance_score=found.probabilities[0],
                label_mass=found.label_mass,
            )
            for index, found in enumerate(readings.answers)
        ]
        results.sort(key=lambda result: result.relevance_score, reverse=True)
        return json_response(
            RankedList(
                id=answer_id,
                model=body.model,
                results=results[: body.top_n or None],
                usage=_usage(readings),
                warnings=_warnings(served, body),
                explanation=readings.record.explanation() if body.explain else UNSET,
            )
        )

    return router


async def _read(
    request: Request,
    served: ServedModel,
    body: ScoreRequest | RerankRequest,
    pairs: Sequence[tuple[str, str]],
    answer_id: str,
    arrived_at_seconds: float,
    param: str,
) -> Readings:
    """Ask about each pair; consecutive pairs with the same first text share its tokens."""
    codes = checked_codes(served.codes)
    context = request_context(request.scope, body.priority, body.cache_salt, arrived_at_seconds)

    def write() -> list[Matter]:
        matters: list[Matter] = []
        last = None
        for first, second in pairs:
            if first != last:
                matters.append(Matter([{"role": "user", "content": f"Query: {first}"}], []))
                last = first
            matters[-1].questions.append(yes_or_no(codes, ANSWERS_QUERY + second))
        return matters

    return await read_questions(request, served, write, context, answer_id, param)


def _usage(readings: Readings) -> ScoreUsage:
    num_tokens = readings.record.num_prompt_tokens
    return ScoreUsage(prompt_tokens=num_tokens, total_tokens=num_tokens)


def _warnings(served: ServedModel, body: ScoreRequest | RerankRequest) -> list[str] | UnsetType:
    ignored = ignored_fields(body)
    served.metrics.count_ignored_fields(ignored)
    return ignored_warnings(ignored) or UNSET
