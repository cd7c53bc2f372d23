"""Rules of single clients: what each sends, and what it reads of the answer."""

from types import ModuleType

from tests.conformance.rules.clients import (
    ai_sdk,
    aiperf,
    evalscope,
    guidellm,
    inference_perf,
    langchain,
    llama_cpp,
    lm_eval,
    open_webui,
    pydantic_ai,
    sglang,
    vllm,
    vllm_bench,
)

MODULES: tuple[ModuleType, ...] = (
    open_webui,
    langchain,
    ai_sdk,
    pydantic_ai,
    guidellm,
    vllm_bench,
    aiperf,
    inference_perf,
    evalscope,
    lm_eval,
    vllm,
    sglang,
    llama_cpp,
)
