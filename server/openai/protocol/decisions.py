"""The request and response of POST /v1/decisions, in OpenAI's form."""

from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import UNSET, UnsetType
from pydantic import Discriminator, Field, model_validator

from caravan.server.http.errors import invalid
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.decision_parts import ChoiceValue, DecisionInput, Instructions
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import DECISION
from caravan.server.openai.protocol.response_items import InputReader
from caravan.server.openai.protocol.response_model import ResponseModel
from caravan.server.openai.protocol.strict_model import StrictModel

MAX_QUESTIONS = 400
MAX_CHOICES = 255
MAX_LEVELS = 10


class QuestionFields(StrictModel):
    """The common fields of questions."""

    name: str | None = Field(None, max_length=256, description="Returned unchanged.")
    instructions: Instructions


class PredicateQuestion(QuestionFields):
    """How probable is it that a statement is true?"""

    type: Literal["predicate"]


class ChoiceOption(StrictModel):
    """An option of a choice."""

    value: ChoiceValue
    description: str | None = None


class ChoiceQuestion(QuestionFields):
    """Which option is right?"""

    type: Literal["choice"]
    choices: list[ChoiceOption] = Field(min_length=2, max_length=MAX_CHOICES)

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        values = {(type(option.value), option.value) for option in self.choices}
        if len(values) < len(self.choices):
            raise invalid("Two options of a question have the same value.", "questions")
        return self


class ScoreLevel(StrictModel):
    """A level of a score."""

    label: str = Field(min_length=1)
    description: str | None = None


class ScoreQuestion(QuestionFields):
    """Which of several ordered levels is right?"""

    type: Literal["score"]
    levels: list[ScoreLevel] = Field(min_length=2, max_length=MAX_LEVELS)


class AskingFields(StrictModel):
    """Scheduling and reports of requests with questions."""

    priority: int = Field(
        0, ge=-1000, le=1000, description="Among requests of one API key, lower numbers are scheduled first."
    )
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared only if salts are equal.")
    explain: bool = Field(False, description="Add the events of the request, with times, to the response.")


class DecisionRequest(AskingFields):
    """The body of POST /v1/decisions."""

    known_fields: ClassVar[KnownFields] = DECISION

    model: str
    input: DecisionInput = Field(description="What all questions are about: a text, or messages, calls and outputs.")
    questions: list[Annotated[PredicateQuestion | ChoiceQuestion | ScoreQuestion, Discriminator("type")]] = Field(
        min_length=1, max_length=MAX_QUESTIONS
    )

    def messages(self) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """Return the input as the messages of a chat, and a warning for each field of it that has no effect, by path.

        Raises ApiError for an invalid item.
        """
        reader = InputReader()
        if isinstance(self.input, str):
            reader.add({"role": "user", "content": self.input}, "input")
        else:
            for index, item in enumerate(self.input):
                reader.read(item, f"input[{index}]")
        return reader.messages, reader.ignored


class PredicateAnswer(ResponseModel, kw_only=True, tag_field="type", tag="predicate"):
    """How probable a statement is."""

    name: str | None
    probability: float
    label_mass: float  # of the codes together, before the softmax over them


class ChoiceProbability(ResponseModel, kw_only=True):
    """An option and its probability."""

    value: str | bool
    probability: float


class ChoiceAnswer(ResponseModel, kw_only=True, tag_field="type", tag="choice"):
    """The most probable option."""

    name: str | None
    choice: str | bool
    confidence: float
    probabilities: list[ChoiceProbability]
    label_mass: float


class LevelProbability(ResponseModel, kw_only=True):
    """A level and its probability."""

    value: int  # from 0
    label: str
    probability: float


class ScoreAnswer(ResponseModel, kw_only=True, tag_field="type", tag="score"):
    """The expected level."""

    name: str | None
    score: float
    confidence: float
    probabilities: list[LevelProbability]
    label_mass: float


class DecisionInputDetails(ResponseModel, kw_only=True):
    """Details of the prompt tokens."""

    cached_tokens: int
    cache_write_tokens: int = 0


class DecisionOutputDetails(ResponseModel, kw_only=True):
    """Details of the generated tokens, of which there are none."""

    reasoning_tokens: int = 0


class DecisionUsage(ResponseModel, kw_only=True):
    """Token counts; the prompt counts once for each question."""

    input_tokens: int
    input_tokens_details: DecisionInputDetails
    output_tokens: int = 0
    output_tokens_details: DecisionOutputDetails
    total_tokens: int


class Decision(ResponseModel, kw_only=True):
    """The response of POST /v1/decisions; answers are in the order of the questions."""

    model: str
    answers: list[PredicateAnswer | ChoiceAnswer | ScoreAnswer]
    usage: DecisionUsage
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
