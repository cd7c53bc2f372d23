"""Fields of requests that other servers and clients know and that have no effect here, with where they are known from.

The rule: a field is accepted if the answer is still of the kind that the client asked for. It then has a warning and is
counted. That holds for what tunes sampling, thinking, caches or scheduling in ways that this server does not have, for
labels, and for reports beside the text. A field is refused by its name if it asks for something else: other inputs or
outputs than text, a prompt or a template of the request's own, code or adapters, a form or length of the text. Such a
field may still have a value that asks for nothing.
"""

from dataclasses import dataclass

_OPENAI, _VLLM, _SGLANG, _LLAMA, _OLLAMA = "OpenAI", "vLLM", "SGLang", "llama.cpp", "Ollama"
_ROUTER, _LITELLM, _ANTHROPIC, _TGI, _CODEX = "OpenRouter", "LiteLLM", "Anthropic", "TGI", "Codex CLI"


@dataclass(frozen=True)
class KnownField:
    """A field that has no effect here."""

    sources: str  # servers and clients that know it
    harmless: tuple[object, ...] = ()  # values that ask for what this server does anyway
    is_refused: bool = False  # other values are an error instead of a warning
    instead: str = ""  # the field of this server that means nearly the same

    @property
    def is_read(self) -> bool:
        """Whether an empty list, object or text means something else than other ones."""
        return self.is_refused or any(value in ([], {}, "") for value in self.harmless)

    def is_harmless(self, value: object) -> bool:
        """Return whether a value asks for nothing that this server does not do anyway."""
        if value is None:
            return True
        return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in self.harmless)


KnownFields = dict[str, KnownField]


def _ignored(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    return KnownField(", ".join(sources), harmless, instead=instead)


def _refused(*sources: str, harmless: tuple[object, ...] = (), instead: str = "") -> KnownField:
    return KnownField(", ".join(sources), harmless, is_refused=True, instead=instead)


# What any endpoint may get: labels, caches, routing.
COMMON: KnownFields = {
    "user": _ignored(_OPENAI),
    "metadata": _ignored(_OPENAI, _LITELLM),
    "safety_identifier": _ignored(_OPENAI),
    "prompt_cache_key": _ignored(_OPENAI, _CODEX),
    "prompt_cache_options": _ignored(_OPENAI),
    "prompt_cache_retention": _ignored(_OPENAI),
    "service_tier": _ignored(_OPENAI, _ANTHROPIC, harmless=("auto", "default")),
    "store": _ignored(_OPENAI, harmless=(False,)),
    "moderation": _ignored(_OPENAI),
    "client_metadata": _ignored(_CODEX),
    "request_id": _ignored(_VLLM),
    "rid": _ignored(_SGLANG),
    "extra_key": _ignored(_SGLANG),
    "custom_labels": _ignored(_SGLANG),
    "data_parallel_rank": _ignored(_SGLANG),
    "routed_dp_rank": _ignored(_SGLANG),
    "disagg_prefill_dp_rank": _ignored(_SGLANG),
    "bootstrap_host": _ignored(_SGLANG),
    "bootstrap_port": _ignored(_SGLANG),
    "bootstrap_room": _ignored(_SGLANG),
    "session_id": _ignored(_VLLM, _SGLANG, _ROUTER),
    "session_params": _ignored(_SGLANG),
    "kv_transfer_params": _ignored(_VLLM),
    "ec_transfer_params": _ignored(_VLLM),
    "mm_processor_kwargs": _ignored(_VLLM),
    "media_io_kwargs": _ignored(_VLLM),
    "return_mm_kwargs": _ignored(_VLLM),
    "provider": _ignored(_ROUTER),
    "models": _ignored(_ROUTER),
    "route": _ignored(_ROUTER),
    "trace": _ignored(_ROUTER),
    "tags": _ignored(_LITELLM),
    "fallbacks": _ignored(_LITELLM),
    "litellm_session_id": _ignored(_LITELLM),
    "litellm_trace_id": _ignored(_LITELLM),
    "keep_alive": _ignored(_OLLAMA),
    "options": _ignored(_OLLAMA),
    "lora_path": _refused(_SGLANG, harmless=("", [])),
    "lora_request": _refused(_VLLM),
    "lora": _refused(_LLAMA, harmless=([],)),
    "adapter_id": _refused(_TGI, harmless=("",)),
    "truncate_prompt_tokens": _refused(_VLLM),
    "truncation_side": _ignored(_VLLM),
}

# Thinking: this server hands on what the model writes.
THINKING: KnownFields = {
    "reasoning": _ignored(_OPENAI, _ROUTER, _SGLANG),
    "reasoning_effort": _ignored(_OPENAI, _VLLM, _SGLANG, _LLAMA, _OLLAMA),
    "reasoning_format": _ignored(_LLAMA, "Groq", harmless=("none",)),
    "reasoning_budget": _ignored(_LLAMA),
    "include_reasoning": _ignored(_VLLM, _ROUTER, harmless=(True,)),
    "separate_reasoning": _ignored(_SGLANG, harmless=(False,)),
    "stream_reasoning": _ignored(_SGLANG, harmless=(True,)),
    "thinking": _ignored(_ANTHROPIC, _LITELLM, "DeepSeek"),
    "thinking_budget": _ignored("Qwen"),
    "thinking_token_budget": _ignored(_VLLM, harmless=(-1,)),
    "thinking_budget_tokens": _ignored(_LLAMA, harmless=(-1,)),
    "thinking_forced_open": _ignored(_LLAMA, harmless=(False,)),
    "enable_thinking": _ignored("Qwen"),
    "think": _ignored(_OLLAMA),
    "verbosity": _ignored(_OPENAI, _ROUTER),
}

# Ways to draw tokens and to report that this server does not have, and options of other schedulers.
SAMPLING: KnownFields = {
    "use_beam_search": _refused(_VLLM, harmless=(False,)),
    "length_penalty": _ignored(_VLLM, harmless=(1,)),
    "early_stopping": _ignored(_VLLM, harmless=(False,)),
    "do_sample": _ignored(_TGI, harmless=(True,), instead="temperature"),
    "typical_p": _ignored(_LLAMA, _TGI, harmless=(1,)),
    "top_a": _ignored(_ROUTER, harmless=(0,)),
    "tfs_z": _ignored(_LLAMA, _OLLAMA, harmless=(1,)),
    "top_n_sigma": _ignored(_LLAMA, harmless=(-1,)),
    "min_keep": _ignored(_LLAMA, harmless=(0,)),
    "mirostat": _ignored(_LLAMA, _OLLAMA, harmless=(0,)),
    "mirostat_tau": _ignored(_LLAMA, _OLLAMA),
    "mirostat_eta": _ignored(_LLAMA, _OLLAMA),
    "dynatemp_range": _ignored(_LLAMA, harmless=(0,)),
    "dynatemp_exponent": _ignored(_LLAMA),
    "xtc_probability": _ignored(_LLAMA, harmless=(0,)),
    "xtc_threshold": _ignored(_LLAMA),
    "dry_multiplier": _ignored(_LLAMA, harmless=(0,)),
    "dry_base": _ignored(_LLAMA),
    "dry_allowed_length": _ignored(_LLAMA),
    "dry_penalty_last_n": _ignored(_LLAMA),
    "dry_sequence_breakers": _ignored(_LLAMA),
    "adaptive_target": _ignored(_LLAMA),
    "adaptive_decay": _ignored(_LLAMA),
    "repeat_penalty": _ignored(_LLAMA, _OLLAMA, harmless=(1,), instead="repetition_penalty"),
    "repeat_last_n": _ignored(_LLAMA, _OLLAMA),
    "penalize_nl": _ignored(_LLAMA, _OLLAMA),
    "samplers": _ignored(_LLAMA),
    "backend_sampling": _ignored(_LLAMA),
    "random_seed": _refused("Mistral", instead="seed"),
    "watermark": _ignored(_TGI, harmless=(False,)),
    "watermarking": _ignored(_VLLM, harmless=(False,)),
    "repetition_detection": _ignored(_VLLM),
    "custom_params": _ignored(_SGLANG),
    "vllm_xargs": _ignored(_VLLM),
    "logits_processors": _refused(_VLLM, harmless=([],)),
    "custom_logit_processor": _refused(_SGLANG, harmless=("",)),
    "allowed_token_ids": _refused(_VLLM, instead="grammar"),
    "bad_words": _refused(_VLLM, harmless=([],), instead="logit_bias"),
    "structural_tag": _refused(_VLLM, _SGLANG),
    "guided_decoding_backend": _ignored(_VLLM),
    "guided_whitespace_pattern": _ignored(_VLLM),
    "skip_special_tokens": _ignored(_VLLM, _SGLANG, harmless=(True,)),
    "spaces_between_special_tokens": _ignored(_VLLM, harmless=(True, False)),
    "add_special_tokens": _ignored(_VLLM, harmless=(True,)),
    "no_stop_trim": _ignored(_SGLANG, harmless=(False,), instead="include_stop_str_in_output"),
    "stop_regex": _refused(_SGLANG, harmless=("", []), instead="stop"),
    "stop_sequences": _refused(_ANTHROPIC, _TGI, harmless=([],), instead="stop"),
    "n_predict": _refused(_LLAMA, harmless=(-1,), instead="max_tokens"),
    "num_predict": _refused(_OLLAMA, harmless=(-1,), instead="max_tokens"),
    "max_new_tokens": _refused(_TGI, _SGLANG, instead="max_tokens"),
    "num_ctx": _ignored(_OLLAMA),
    "num_keep": _ignored(_OLLAMA),
    "n_keep": _ignored(_LLAMA),
    "n_discard": _ignored(_LLAMA),
    "n_indent": _ignored(_LLAMA, harmless=(0,)),
    "n_cache_reuse": _ignored(_LLAMA),
    "n_probs": _ignored(_LLAMA, harmless=(0,), instead="logprobs"),
    "post_sampling_probs": _ignored(_LLAMA, harmless=(False,)),
    "cache_prompt": _ignored(_LLAMA, harmless=(True,)),
    "id_slot": _ignored(_LLAMA, harmless=(-1,)),
    "slot_id": _ignored(_LLAMA, harmless=(-1,)),
    "t_max_predict_ms": _ignored(_LLAMA),
    "t_max_prompt_ms": _ignored(_LLAMA),
    "timings_per_token": _ignored(_LLAMA, harmless=(False,)),
    "return_progress": _ignored(_LLAMA, harmless=(False,)),
    "response_fields": _ignored(_LLAMA),
    "sse_ping_interval": _ignored(_LLAMA),
    "return_tokens": _ignored(_LLAMA, harmless=(False,), instead="return_token_ids"),
    "return_tokens_as_token_ids": _ignored(_VLLM, harmless=(False,), instead="return_token_ids"),
    "return_token_offsets": _ignored(_VLLM, harmless=(False,)),
    "return_prompt_text": _ignored(_VLLM, harmless=(False,)),
    "return_hidden_states": _refused(_SGLANG, harmless=(False,)),
    "return_routed_experts": _ignored(_SGLANG, harmless=(False,)),
    "return_cached_tokens_details": _ignored(_SGLANG, harmless=(False,)),
    "routed_experts_start_len": _ignored(_SGLANG),
    "routed_experts_prompt_start": _ignored(_VLLM),
    "logprob_token_ids": _refused(_VLLM, instead="logprobs"),
    "stream_interval": _ignored(_VLLM),
    "ngram_corpus_id": _ignored(_SGLANG),
    "images_config": _ignored(_SGLANG),
    "template": _refused(_OLLAMA, harmless=("",)),
    "images": _refused(_OLLAMA, harmless=([],)),
    "image_data": _refused(_LLAMA, _SGLANG, harmless=([],)),
    "multimodal_data": _refused(_LLAMA, harmless=([],)),
    "format": _refused(_OLLAMA, harmless=("",), instead="response_format"),
    "prompt_embeds": _refused(_VLLM),
    "input_ids": _refused(_SGLANG, instead="prompt"),
    "extra_body": _refused("OpenAI's client library", harmless=({},)),
    "usage": _ignored(_ROUTER, instead="stream_options"),
    "transforms": _ignored(_ROUTER, harmless=([],)),
    "plugins": _ignored(_ROUTER, harmless=([],)),
    "cache_control": _ignored(_ANTHROPIC, _ROUTER),
    "anthropic_beta": _ignored(_ANTHROPIC),
    "anthropic_version": _ignored(_ANTHROPIC),
    "betas": _ignored(_ANTHROPIC),
    "context_management": _ignored(_ANTHROPIC, _OPENAI),
    "speed": _ignored(_ANTHROPIC),
}

GENERATION: KnownFields = COMMON | THINKING | SAMPLING

COMPLETION: KnownFields = GENERATION | {
    "suffix": _refused(_OPENAI, _VLLM, _OLLAMA, harmless=("",)),
    "input_prefix": _refused(_LLAMA, harmless=("",)),
    "input_suffix": _refused(_LLAMA, harmless=("",)),
    "input_extra": _refused(_LLAMA, harmless=([],)),
}

CHAT: KnownFields = GENERATION | {
    "prediction": _ignored(_OPENAI),
    "web_search_options": _ignored(_OPENAI, _ROUTER),
    "functions": _refused(_OPENAI, harmless=([],), instead="tools"),
    "function_call": _refused(_OPENAI, harmless=("none", "auto"), instead="tool_choice"),
    "modalities": _refused(_OPENAI, _ROUTER, harmless=(["text"],)),
    "audio": _refused(_OPENAI),
    "image_config": _refused(_ROUTER),
    "chat_template": _refused(_VLLM, _SGLANG),
    "chat_template_kwargs": _refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
    "documents": _refused(_VLLM, "Groq", harmless=([],)),
    "data_sources": _refused("Azure OpenAI", harmless=([],)),
    "user_security_context": _ignored("Azure OpenAI"),
    "echo": _refused(_VLLM, harmless=(False,)),
    "best_of": _refused(_VLLM, harmless=(1,), instead="n"),
    "system": _refused(_ANTHROPIC, instead="messages"),
    "mcp_servers": _ignored(_ANTHROPIC, harmless=([],)),
    "container": _ignored(_ANTHROPIC),
    "parse_tool_calls": _ignored(_LLAMA, harmless=(True,)),
    "tool_prompt": _ignored(_TGI),
    "safe_prompt": _ignored("Mistral", harmless=(False,)),
    "prompt_mode": _ignored("Mistral"),
    "enable_search": _ignored("Qwen", harmless=(False,)),
    "search_parameters": _ignored("xAI"),
    "deferred": _refused("xAI", harmless=(False,)),
    "citation_options": _ignored("Groq"),
    "chat_id": _ignored("Open WebUI"),
}

# Of /v1/responses, where `metadata` comes back and `prompt` would be a template that the server keeps.
_SAMPLING_OF_RESPONSES = {
    name: field for name, field in SAMPLING.items() if name not in ("context_management", "usage")
}
RESPONSES: KnownFields = (
    {name: field for name, field in COMMON.items() if name not in ("metadata", "store")}
    | THINKING
    | _SAMPLING_OF_RESPONSES
    | {
        "stream_options": _ignored(_OPENAI),
        "background": _refused(_OPENAI, harmless=(False,)),
        "context_management": _ignored(_OPENAI, harmless=([],)),
        "conversation": _refused(_OPENAI),
        "max_tool_calls": _ignored(_OPENAI),
        "previous_response_id": _refused(_OPENAI, instead="input"),
        "prompt": _refused(_OPENAI, instead="input"),
        "truncation": _refused(_OPENAI, harmless=("disabled",)),
        "enable_response_messages": _ignored(_VLLM, harmless=(False,)),
        "previous_input_messages": _refused(_VLLM, instead="input"),
        "max_tokens": _refused(_OPENAI, instead="max_output_tokens"),
        "max_completion_tokens": _refused(_OPENAI, instead="max_output_tokens"),
        "response_format": _refused(_OPENAI, instead="text"),
        "messages": _refused(_OPENAI, instead="input"),
        "chat_template": _refused(_VLLM, _SGLANG),
        "chat_template_kwargs": _refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
    }
)

EMBEDDING: KnownFields = COMMON | {
    "add_special_tokens": _ignored(_VLLM, harmless=(True,)),
    "normalize": _ignored(_VLLM, "Sentence Transformers", harmless=(True,)),
    "embd_normalize": _ignored(_LLAMA, harmless=(2,)),
    "input_type": _ignored("Cohere", "NVIDIA", _LITELLM),
    "task": _ignored("Jina"),
    "truncate": _ignored(_OLLAMA, "NVIDIA", _TGI, harmless=(False, "NONE")),
    "embed_dtype": _ignored(_VLLM),
    "endianness": _ignored(_VLLM),
    "messages": _refused(_VLLM, instead="input"),
}

# Of /tokenize, /detokenize and /apply-template.
TOKENS: KnownFields = COMMON | {
    "chat_template": _refused(_VLLM),
    "chat_template_kwargs": _refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
    "spaces_between_special_tokens": _ignored(_VLLM, harmless=(True, False)),
    "documents": _refused(_VLLM, harmless=([],)),
    "reasoning_effort": _ignored(_SGLANG),
    "tool_choice": _ignored(_SGLANG),
}

STREAM_OPTIONS: KnownFields = {"include_obfuscation": _ignored(_OPENAI, harmless=(False,))}
TEXT_OPTIONS: KnownFields = {"verbosity": _ignored(_OPENAI, _CODEX)}
SCHEMA: KnownFields = {"description": _ignored(_OPENAI)}
TOOL: KnownFields = {
    "cache_control": _ignored(_ANTHROPIC, _ROUTER),
    "defer_loading": _ignored(_ANTHROPIC, _VLLM, _SGLANG, _CODEX, harmless=(False,)),
    "input_examples": _ignored(_ANTHROPIC),
    "allowed_callers": _ignored(_ANTHROPIC, _OPENAI),
    "output_schema": _ignored(_OPENAI),
}
CALLED_FUNCTION: KnownFields = {"parsed_arguments": _ignored("OpenAI's client library")}
TOOL_CALL: KnownFields = {"extra_content": _ignored("Gemini"), "caller": _ignored(_ANTHROPIC, _OPENAI)}

MESSAGE: KnownFields = {
    "annotations": _ignored(_OPENAI, harmless=([],)),
    "parsed": _ignored("OpenAI's client library"),
    "weight": _ignored(_OPENAI),
    "extra_content": _ignored("Gemini"),
    "provider_specific_fields": _ignored(_LITELLM),
    "thinking_blocks": _ignored(_LITELLM),
    "prefix": _refused("DeepSeek", "Mistral", harmless=(False,), instead="continue_final_message"),
    "partial": _refused("Moonshot", harmless=(False,), instead="continue_final_message"),
    "images": _refused(_OLLAMA, harmless=([],)),
}
STRUCTURED_OUTPUTS: KnownFields = {
    "structural_tag": _refused(_VLLM),
    "disable_any_whitespace": _ignored(_VLLM),
    "disable_additional_properties": _ignored(_VLLM),
    "disable_fallback": _ignored(_VLLM),
    "whitespace_pattern": _ignored(_VLLM),
}

# Of items in the input of /v1/responses.
RESPONSE_ITEM: KnownFields = {
    "phase": _ignored(_OPENAI, _CODEX),
    "created_by": _ignored(_OPENAI),
    "caller": _ignored(_OPENAI),
}
