"""ModelOptions: the field `options`, with Ollama's names of sampling parameters and lengths."""

from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, ConfigDict, Field, ModelWrapValidatorHandler, model_validator

from caravan.server.http.errors import shown
from caravan.server.openai.protocol.fields import StopField, wrong
from caravan.server.openai.protocol.known_field import KnownFields, all_ignored, ignored
from caravan.server.openai.protocol.strict_model import StrictModel

_OLLAMA = "Ollama"
_UNKNOWN = "_unknown_names"
_MAX_NAMED = 8  # unknown options in warnings
_NAMES = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # that differ from those of chats

OPTIONS: KnownFields = {
    "tfs_z": ignored(_OLLAMA, harmless=(1,)),
    "typical_p": ignored(_OLLAMA, harmless=(1,)),
    "mirostat": ignored(_OLLAMA, harmless=(0,)),
    "num_keep": ignored(_OLLAMA, harmless=(0,)),
    **all_ignored(
        _OLLAMA,
        "num_ctx num_batch num_gpu main_gpu low_vram f16_kv logits_all vocab_only use_mmap use_mlock embedding_only "
        "num_thread numa repeat_last_n mirostat_tau mirostat_eta penalize_newline draft_num_predict",
    ),
}


def _num_predict(value: int) -> int:
    if value < -2 or value == 0:
        raise wrong("must be -1 or -2 for no limit, or at least 1")
    return value


def _allow_more(schema: dict[str, Any], model: type[StrictModel]) -> None:
    complete: Any = StrictModel.model_config["json_schema_extra"]
    complete(schema, model)
    schema["additionalProperties"] = True


class ModelOptions(StrictModel):
    """Options of one request. One that the server does not know gets a warning, as Ollama logs one."""

    model_config = ConfigDict(json_schema_extra=_allow_more)
    known_fields: ClassVar[KnownFields] = OPTIONS

    num_predict: Annotated[int, AfterValidator(_num_predict)] = Field(
        -1, lt=2**31, description="Largest number of tokens. -1, -2: all that fit. Reduced to what fits."
    )
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1: all tokens.")
    top_p: float | None = Field(None, ge=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=10, description="Over the prompt and the whole text.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64, description="-1: no seed.")
    stop: StopField = Field([])

    @property
    def unknown_warnings(self) -> list[str]:
        """A warning for each option that the server does not know."""
        names: tuple[str, ...] = self.__dict__.get(_UNKNOWN, ())
        warnings = [f"`options` has the unknown name {shown(name)}, which has no effect." for name in names]
        if len(warnings) > _MAX_NAMED:
            warnings[_MAX_NAMED:] = [f"`options` has {len(warnings) - _MAX_NAMED} more unknown names."]
        return warnings

    @property
    def max_tokens(self) -> int | None:
        """The requested number of tokens, None for all that fit."""
        return self.num_predict if self.num_predict > 0 else None

    def as_fields(self) -> dict[str, Any]:
        """Return the equivalent fields of a chat or completion, without the number of tokens."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "num_predict"}
        return {_NAMES.get(name, name): value for name, value in given.items() if value is not None}

    @model_validator(mode="wrap")
    @classmethod
    def _sort_out(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(value, dict):
            return handler(value)
        known = {name: one for name, one in value.items() if name in cls.model_fields or name in OPTIONS}
        model = handler(known)
        model.__dict__[_UNKNOWN] = tuple(name for name in value if name not in known)
        return model
