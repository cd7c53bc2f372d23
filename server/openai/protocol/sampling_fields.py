"""SamplingFields: what completions, chat and responses have in common, under one name and with one meaning."""

from pydantic import Field

from caravan.server.openai.protocol.fields import LogitBiasField, StopField
from caravan.server.openai.protocol.strict_model import StrictModel


class SamplingFields(StrictModel):
    """How tokens are drawn, what ends a text, and who waits for it."""

    top_k: int = Field(0, ge=-1, lt=2**31, description="0 or -1: all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    logit_bias: LogitBiasField = Field({})
    seed: int | None = Field(
        None,
        ge=-(2**63),
        lt=2**64,
        description="Makes the request repeatable; -1 means none, as in vLLM and llama.cpp.",
    )

    min_tokens: int = Field(0, ge=0, description="Before this many tokens nothing but max_tokens ends a choice.")
    ignore_eos: bool = False
    stop: StopField = Field([])
    stop_token_ids: list[int] = Field([], max_length=128)
    include_stop_str_in_output: bool = False
    return_token_ids: bool = False
    cache_salt: str = Field("", max_length=256, description="Cached prefixes are shared within one salt only.")

    explain: bool = Field(False, description="The answer ends with what became of the request, moment by moment.")
    priority: int = Field(
        0, ge=-1000, le=1000, description="Within a key, requests of a lower number are served sooner."
    )
