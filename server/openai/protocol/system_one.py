"""The request and response of POST /v1/systemone, in TypeSafe's form."""

from typing import Annotated, ClassVar, Literal

from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field

from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.decision_parts import Instructions, StateField
from caravan.server.openai.protocol.decisions import MAX_CHOICES, MAX_LEVELS, MAX_QUESTIONS, AskingFields
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import SYSTEM_ONE
from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel

_Name = Annotated[str, Field(min_length=1, max_length=256)]


class NoulCriteria(StrictModel):
    """When a statement counts as true, and when as false."""

    true: str | None = None
    false: str | None = None


class NoulQuestion(StrictModel):
    """How probable is it that a statement is true?"""

    type: Literal["noul"]
    instructions: Instructions
    criteria: NoulCriteria | None = None


class NamedChoiceQuestion(StrictModel):
    """Which option is right?"""

    type: Literal["choice"]
    instructions: Instructions
    criteria: dict[_Name, str | None] = Field(
        min_length=1, max_length=MAX_CHOICES, description="Options with their descriptions."
    )


class LevelsQuestion(StrictModel):
    """Which of several ordered levels is right?"""

    type: Literal["score"]
    instructions: Instructions
    criteria: list[_Name] = Field(min_length=1, max_length=MAX_LEVELS)


class SystemOneRequest(AskingFields):
    """The body of POST /v1/systemone."""

    known_fields: ClassVar[KnownFields] = SYSTEM_ONE

    model: str
    state: StateField = Field(description="What all questions are about.")
    questions: dict[_Name, Annotated[NoulQuestion | NamedChoiceQuestion | LevelsQuestion, Discriminator("type")]] = (
        Field(min_length=1, max_length=MAX_QUESTIONS)
    )


class NoulAnswer(ResponseModel, kw_only=True, tag_field="type", tag="noul"):
    """How probable a statement is."""

    noul: float
    label_mass: float


class NamedChoiceAnswer(ResponseModel, kw_only=True, tag_field="type", tag="choice"):
    """The most probable option."""

    choice: str
    confidence: float
    probabilities: dict[str, float]
    label_mass: float


class LevelsAnswer(ResponseModel, kw_only=True, tag_field="type", tag="score"):
    """The expected level; levels are numbered from "0"."""

    score: float
    confidence: float
    legend: dict[str, str]
    probabilities: dict[str, float]
    label_mass: float


class SystemOneUsage(ResponseModel, kw_only=True):
    """Token counts; the prompt counts once for each question."""

    input_tokens: int
    output_tokens: int = 0


class SystemOneAnswers(ResponseModel, kw_only=True):
    """The response of POST /v1/systemone; answers by the names of their questions."""

    model: str
    answers: dict[str, NoulAnswer | NamedChoiceAnswer | LevelsAnswer]
    usage: SystemOneUsage
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
