"""Thinking fields: variables of the chat template, and whether and how long a model thinks.

Each server has its own names for the same; they are read as one. Fields that contradict each other are refused.
"""

import re
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, get_args

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from caravan.server.http.errors import invalid, shown
from caravan.server.openai.protocol.fields import wrong
from caravan.server.openai.protocol.known_field import KnownFields
from caravan.server.openai.protocol.known_fields import REASONING, THINKING_OPTIONS
from caravan.server.openai.protocol.strict_model import StrictModel

Plain = str | int | float | bool | None  # a value of a template variable

_MAX_VARIABLES = 16
_MAX_CHARACTERS = 256  # of a value
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FIELD_OF_VARIABLE = {  # what the server itself passes to a template, and the field that decides it
    "messages": "messages",
    "tools": "tools",
    "add_generation_prompt": "add_generation_prompt",
    "chat_template": "",
    "bos_token": "",
    "eos_token": "",
    "raise_exception": "",
    "strftime_now": "",
}
_SWITCHES = ("enable_thinking", "thinking")  # variables that switch thinking on or off


def template_kwargs(value: Any) -> dict[str, Plain]:
    """Return the variables of a template as they were sent; raises an error for one that cannot be used."""
    if not isinstance(value, dict):
        raise wrong("must be an object of names and plain values")
    if len(value) > _MAX_VARIABLES:
        raise wrong("must have at most {limit} names", limit=_MAX_VARIABLES)
    for name, one in value.items():
        if not _NAME.fullmatch(name):
            raise wrong("must have names of letters, digits and underscores; {name} is not one", name=shown(name))
        if name in _FIELD_OF_VARIABLE:
            instead = _FIELD_OF_VARIABLE[name]
            way_out = f"use the field `{instead}`" if instead else "leave it out"
            raise wrong("cannot have {name}, which the server sets; {way_out}", name=name, way_out=way_out)
        if not isinstance(one, Plain) or (isinstance(one, str) and len(one) > _MAX_CHARACTERS):
            raise wrong(
                "must have numbers, truth values, null or strings of at most {limit} characters as values; that of "
                "{name} is another one",
                limit=_MAX_CHARACTERS,
                name=name,
            )
    return value


TemplateKwargsField = Annotated[
    dict[str, Plain], PlainValidator(template_kwargs, json_schema_input_type=dict[str, str | float | bool | None])
]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
BudgetField = Annotated[int | None, Field(None, ge=-1, lt=2**31, description="See `thinking_token_budget`.")]


class ReasoningOptions(StrictModel):
    """OpenAI's and OpenRouter's object."""

    known_fields: ClassVar[KnownFields] = REASONING

    effort: Effort | None = None
    enabled: bool | None = None
    exclude: bool = Field(False, description="True: as `include_reasoning: false`.")
    max_tokens: BudgetField


class ThinkingOptions(StrictModel):
    """Anthropic's object."""

    known_fields: ClassVar[KnownFields] = THINKING_OPTIONS

    type: Literal["enabled", "disabled", "adaptive"] | None = None
    budget_tokens: BudgetField


def _thinking(value: Any) -> Any:
    """Return a truth value in the form of Anthropic's object."""
    return {"type": "enabled" if value else "disabled"} if isinstance(value, bool) else value


def _think(value: Any) -> Any:
    """Return a truth value or an effort as it is."""
    if value is not None and not isinstance(value, bool) and value not in get_args(Effort):
        raise wrong("must be true, false or an effort such as low or high")
    return value


ThinkField = Annotated[bool | Effort | None, PlainValidator(_think, json_schema_input_type=bool | Effort | None)]
ThinkingField = Annotated[
    ThinkingOptions | None, BeforeValidator(_thinking, json_schema_input_type=bool | ThinkingOptions | None)
]


class CustomParams(StrictModel):
    """SGLang's object, of which one parameter is known here."""

    thinking_budget: BudgetField


class Given(NamedTuple):
    """A value, and the path of the field that has it."""

    param: str
    value: Any


class TemplateFields(StrictModel):
    """The fields that decide the variables of the chat template."""

    chat_template_kwargs: TemplateKwargsField = Field(
        {}, description="Variables of the chat template, each a plain value. They override all other fields."
    )
    reasoning_effort: Effort | None = Field(
        None, description="How much the model thinks, if its chat template can say it. none: it does not think."
    )
    enable_thinking: bool | None = Field(None, description="Whether the model thinks, if its template has a switch.")
    think: ThinkField = Field(None, description="Ollama's name for the two fields above.")
    reasoning: ReasoningOptions | None = None
    thinking: ThinkingField = None

    @property
    def effort(self) -> Given | None:
        """The requested effort; raises ApiError for a contradiction."""
        return _only(
            Given("reasoning_effort", self.reasoning_effort),
            Given("reasoning.effort", self.reasoning.effort if self.reasoning is not None else None),
            Given("think", self.think if isinstance(self.think, str) else None),
        )

    @property
    def switch(self) -> Given | None:
        """Whether the model is to think, as far as the request says; raises ApiError for a contradiction."""
        kind = self.thinking.type if self.thinking is not None else None
        explicit = _only(
            Given("enable_thinking", self.enable_thinking),
            Given("think", self.think if isinstance(self.think, bool) else None),
            Given("reasoning.enabled", self.reasoning.enabled if self.reasoning is not None else None),
            Given("thinking", None if kind is None else kind != "disabled"),
        )
        if explicit is not None:
            return explicit
        effort = self.effort
        return None if effort is None else effort._replace(value=effort.value != "none")

    def template_variables(self) -> dict[str, Given]:
        """Return the variables that the request sets, each with the field that sets it; raises ApiError."""
        effort, switch = self.effort, self.switch
        variables: dict[str, Given] = {}
        if effort is not None:
            variables["reasoning_effort"] = effort
        if switch is not None:
            variables |= dict.fromkeys(_SWITCHES, switch)
        given = {name: Given(f"chat_template_kwargs.{name}", one) for name, one in self.chat_template_kwargs.items()}
        return variables | given

    @model_validator(mode="after")
    def _template_fields_agree(self) -> Self:
        self.template_variables()
        return self


class ThinkingFields(TemplateFields):
    """The template's fields, and those that decide what becomes of the thoughts."""

    thinking_token_budget: BudgetField = Field(
        None,
        description="Largest number of tokens of a thought, after which its closing mark is forced. -1: no limit.",
    )
    thinking_budget_tokens: BudgetField
    thinking_budget: BudgetField
    reasoning_budget: BudgetField
    custom_params: CustomParams | None = Field(None, description="SGLang's object, for `thinking_budget`.")
    include_reasoning: bool = Field(True, description="False: thoughts are generated and counted, but not returned.")
    separate_reasoning: bool = Field(True, description="False: thoughts and their marks are part of the content.")
    reasoning_format: Literal["auto", "none", "raw", "deepseek", "parsed", "hidden"] = Field(
        "auto",
        description="none, raw: as `separate_reasoning: false`. hidden: as `include_reasoning: false`. "
        "Otherwise thoughts are returned beside the content.",
    )

    @property
    def thought_budget(self) -> Given | None:
        """The largest number of tokens of a thought, None if there is no limit; raises ApiError for a contradiction."""
        budget = _only(
            Given("thinking_token_budget", self.thinking_token_budget),
            Given("thinking_budget_tokens", self.thinking_budget_tokens),
            Given("thinking_budget", self.thinking_budget),
            Given("reasoning_budget", self.reasoning_budget),
            Given("thinking.budget_tokens", self.thinking.budget_tokens if self.thinking is not None else None),
            Given("reasoning.max_tokens", self.reasoning.max_tokens if self.reasoning is not None else None),
            Given("custom_params.thinking_budget", self.custom_params.thinking_budget if self.custom_params else None),
        )
        return None if budget is None or budget.value == -1 else budget

    @property
    def has_raw_thoughts(self) -> bool:
        """Whether thoughts and their marks are part of the content."""
        return not self.separate_reasoning or self.reasoning_format in ("none", "raw")

    @property
    def hides_thoughts(self) -> bool:
        """Whether thoughts are left out of the response."""
        is_excluded = self.reasoning is not None and self.reasoning.exclude
        return not self.include_reasoning or is_excluded or self.reasoning_format == "hidden"

    @model_validator(mode="after")
    def _budgets_agree(self) -> Self:
        _ = self.thought_budget
        return self


def _only(*fields: Given) -> Given | None:
    """Return the first field with a value; raises ApiError if another one differs."""
    given = [field for field in fields if field.value is not None]
    for other in given[1:]:
        if other.value != given[0].value:
            raise invalid(f"`{given[0].param}` and `{other.param}` differ; send one of them.", given[0].param)
    return given[0] if given else None
