"""The requests and responses of POST /v1/score and POST /v1/rerank."""

from typing import Annotated, Any, ClassVar, Literal, Self

from msgspec import UNSET, UnsetType
from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from caravan.server.http.errors import invalid
from caravan.server.observe.explanation import Explanation
from caravan.server.openai.protocol.decisions import AskingFields
from caravan.server.openai.protocol.fields import wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import RERANK, SCORE
from caravan.server.openai.protocol.response_model import ResponseModel

MAX_DOCUMENTS = 1000
METHOD = "The probability of yes beside no as a chat model's answer; no ranking model computed it."


def _texts(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts) or not texts:
        raise wrong("must be a text or a list of texts, none of them empty")
    if len(texts) > MAX_DOCUMENTS:
        raise wrong("must have at most {limit} texts", limit=MAX_DOCUMENTS)
    return texts


def _documents(value: Any) -> list[str]:
    """Return the texts of documents, which are texts or objects with a text."""
    if not isinstance(value, list):
        raise wrong("must be a list of texts, or of objects with `text`")
    for one in value:
        if not isinstance(one, str) and (not isinstance(one, dict) or set(one) != {"text"}):
            raise wrong("must be a list of texts, or of objects with `text`")
    return _texts([one if isinstance(one, str) else one["text"] for one in value])


_STRINGS = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_DOCUMENTS}
_Texts = Annotated[
    list[str], PlainValidator(_texts), WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _STRINGS]})
]
_Documents = Annotated[list[str], PlainValidator(_documents), WithJsonSchema(_STRINGS)]


class ScoreRequest(AskingFields):
    """The body of POST /v1/score."""

    known_fields: ClassVar[KnownFields] = SCORE

    model: str
    text_1: _Texts | None = Field(None, description="One text, or as many as `text_2` has. Also as `queries`.")
    text_2: _Texts | None = Field(None, description="The texts to score. Also as `documents`.")
    queries: _Texts | None = None
    documents: _Texts | None = None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of texts, in order."""
        firsts, seconds = self.text_1 or self.queries or [], self.text_2 or self.documents or []
        return [*zip(firsts * len(seconds) if len(firsts) == 1 else firsts, seconds, strict=True)]

    @model_validator(mode="after")
    def _texts_are_paired(self) -> Self:
        given = [name for name in ("text_1", "text_2", "queries", "documents") if getattr(self, name) is not None]
        if given not in (["text_1", "text_2"], ["queries", "documents"]):
            raise invalid("Send `text_1` and `text_2`, or `queries` and `documents`.", "text_1")
        num_firsts, num_seconds = (len(getattr(self, name)) for name in given)
        if num_firsts not in (1, num_seconds):
            raise invalid(f"`{given[0]}` has {num_firsts} texts; it must have 1 or {num_seconds}.", given[0])
        return self


class RerankRequest(AskingFields):
    """The body of POST /v1/rerank."""

    known_fields: ClassVar[KnownFields] = RERANK

    model: str
    query: str = Field(min_length=1)
    documents: _Documents
    top_n: int = Field(0, ge=0, description="Number of results; 0: all.")
    return_documents: bool = True


class ScoreUsage(ResponseModel, kw_only=True):
    """Token counts; the prompt counts once for each pair."""

    prompt_tokens: int
    total_tokens: int


class PairScore(ResponseModel, kw_only=True):
    """The score of a pair, from 0 to 1."""

    index: int
    object: Literal["score"] = "score"
    score: float
    label_mass: float


class ScoreList(ResponseModel, kw_only=True):
    """The response of POST /v1/score."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[PairScore]
    usage: ScoreUsage
    method: str = METHOD
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET


class RankedDocument(ResponseModel, kw_only=True):
    """The text of a document."""

    text: str


class RankedResult(ResponseModel, kw_only=True):
    """A document's place in the request, and its score from 0 to 1."""

    index: int
    document: RankedDocument | UnsetType = UNSET
    relevance_score: float
    label_mass: float


class RankedList(ResponseModel, kw_only=True):
    """The response of POST /v1/rerank, best first."""

    id: str
    model: str
    results: list[RankedResult]
    usage: ScoreUsage
    method: str = METHOD
    warnings: list[str] | UnsetType = UNSET
    explanation: Explanation | UnsetType = UNSET
