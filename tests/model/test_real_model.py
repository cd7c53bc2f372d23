"""The default model against transformers, which reads the same file with code of its own."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from caravan.model.llama import Llama
from caravan.model.tokenizer.loader import load_tokenizer
from tests.model.oracle import load_checkpoint, logits_of_every_position
from tests.scheduler.requests import make_request
from tests.support.tiny_llama import run_to_end, tiny_engine

pytestmark = pytest.mark.real_model

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived a clockmaker who",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nWhy is the sky blue?<|im_end|>\n<|im_start|>assistant\n",
    "日本の首都は東京です。フランスの首都は",
    "1, 1, 2, 3, 5, 8, 13, 21,",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    " ".join(f"{i} squared is {i * i}." for i in range(40)),  # more than one tile of attention
]


@pytest.fixture(scope="module")
def model(real_model_path: Path) -> Llama:
    return load_checkpoint(real_model_path, torch.float32)


@pytest.fixture(scope="module")
def twin(real_model_path: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        real_model_path.parent, gguf_file=real_model_path.name, dtype=torch.float32
    )


@pytest.fixture(scope="module")
def prompts(real_model_path: Path) -> list[list[int]]:
    tokenizer = load_tokenizer(real_model_path)
    return [tokenizer.encode(prompt, parse_special=True) for prompt in PROMPTS]


def test_logits_of_every_prompt_position_equal_transformers(model: Llama, twin: Any, prompts: list[list[int]]) -> None:
    differences = []
    for prompt in prompts:
        with torch.inference_mode():
            expected = twin(torch.tensor([prompt])).logits[0]
        differences.append(float((logits_of_every_position(model, prompt) - expected).abs().max()))
    print(f"largest difference of a logit for each prompt: {differences}")
    assert len(differences) == 8
    assert max(differences) < 1e-3


def test_64_greedy_tokens_and_logprobs_equal_transformers(model: Llama, twin: Any, prompts: list[list[int]]) -> None:
    engine = tiny_engine(model, num_blocks=512, block_size=16, max_batch_tokens=512, max_model_len=1024)
    requests = [make_request(i, prompt, max_tokens=64, num_logprobs=5) for i, prompt in enumerate(prompts)]
    ours = run_to_end(engine, requests)
    for i, prompt in enumerate(prompts):
        with torch.inference_mode():  # over prompt and answer at once: each token is the best after those before
            logits = twin(torch.tensor([prompt + ours[i].token_ids])).logits[0]
        theirs = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
        assert len(theirs) == 64
        assert ours[i].token_ids == theirs
        logprobs = logits[len(prompt) - 1 : -1].log_softmax(dim=-1)
        reported = torch.tensor([entry.top_logprobs for entry in ours[i].logprobs])
        torch.testing.assert_close(reported, logprobs.topk(5).values, atol=1e-3, rtol=0)
        assert [entry.logprob for entry in ours[i].logprobs] == [entry.top_logprobs[0] for entry in ours[i].logprobs]
