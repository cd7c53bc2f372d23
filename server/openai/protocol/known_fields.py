"""Known fields: request fields of other servers and clients that have no effect here, with their sources.

A field is accepted, with a warning and a count, if the response is still of the requested kind. That holds for options
of sampling, thinking, caches and scheduling that this server does not have, for labels, and for reports beside the
text. A field is refused by name if it requests something else: inputs or outputs other than text, a prompt or template
of the request's own, code or adapters, a form or length of the text. Such a field may have harmless values.
"""

from caravan.server.openai.protocol.known_field import KnownFields, all_ignored, ignored, refused

_OPENAI, _VLLM, _SGLANG, _LLAMA, _OLLAMA = "OpenAI", "vLLM", "SGLang", "llama.cpp", "Ollama"
_ROUTER, _LITELLM, _ANTHROPIC, _TGI, _CODEX = "OpenRouter", "LiteLLM", "Anthropic", "TGI", "Codex CLI"

# Of all endpoints: labels, caches, routing.
COMMON: KnownFields = {
    "metadata": ignored(_OPENAI, _LITELLM),
    "prompt_cache_key": ignored(_OPENAI, _CODEX),
    "service_tier": ignored(_OPENAI, _ANTHROPIC, harmless=("auto", "default")),
    "store": ignored(_OPENAI, harmless=(False,)),
    "client_metadata": ignored(_CODEX),
    "session_id": ignored(_VLLM, _SGLANG, _ROUTER),
    "keep_alive": ignored(_OLLAMA),
    "options": refused(_OLLAMA, harmless=({},)),  # lengths and stop strings are among them
    "lora_path": refused(_SGLANG, harmless=("", [])),
    "lora_request": refused(_VLLM),
    "lora": refused(_LLAMA, harmless=([],)),
    "adapter_id": refused(_TGI, harmless=("",)),
    "truncate_prompt_tokens": refused(_VLLM),
    **all_ignored(_OPENAI, "user safety_identifier prompt_cache_options prompt_cache_retention moderation"),
    **all_ignored(
        _VLLM,
        "request_id kv_transfer_params ec_transfer_params mm_processor_kwargs media_io_kwargs "
        "return_mm_kwargs truncation_side",
    ),
    **all_ignored(
        _SGLANG,
        "rid extra_key custom_labels data_parallel_rank routed_dp_rank disagg_prefill_dp_rank bootstrap_host "
        "bootstrap_port bootstrap_room session_params",
    ),
    **all_ignored(_ROUTER, "provider models route trace"),
    **all_ignored(_LITELLM, "tags fallbacks litellm_session_id litellm_trace_id"),
}

# Thinking, of endpoints without a chat template.
THINKING: KnownFields = {
    "reasoning": ignored(_OPENAI, _ROUTER, _SGLANG),
    "reasoning_effort": ignored(_OPENAI, _VLLM, _SGLANG, _LLAMA, _OLLAMA),
    "reasoning_format": ignored(_LLAMA, "Groq", harmless=("none",)),
    "reasoning_budget": ignored(_LLAMA),
    "include_reasoning": ignored(_VLLM, _ROUTER, harmless=(True,)),
    "separate_reasoning": ignored(_SGLANG, harmless=(False,)),
    "stream_reasoning": ignored(_SGLANG, harmless=(True,)),
    "thinking": ignored(_ANTHROPIC, _LITELLM, "DeepSeek"),
    "thinking_budget": ignored("Qwen"),
    "thinking_token_budget": ignored(_VLLM, harmless=(-1,)),
    "thinking_budget_tokens": ignored(_LLAMA, harmless=(-1,)),
    "thinking_forced_open": ignored(_LLAMA, harmless=(False,)),
    "enable_thinking": ignored("Qwen"),
    "think": ignored(_OLLAMA),
    "verbosity": ignored(_OPENAI, _ROUTER),
}
REASONING: KnownFields = {
    "summary": ignored(_OPENAI),
    "generate_summary": ignored(_OPENAI),
    "context": ignored(_OPENAI, _CODEX),
    "mode": ignored(_OPENAI),
}
THINKING_OPTIONS: KnownFields = {"display": ignored(_ANTHROPIC)}

# Sampling methods and reports that this server does not have, and options of other schedulers.
SAMPLING: KnownFields = {
    "use_beam_search": refused(_VLLM, harmless=(False,)),
    "length_penalty": ignored(_VLLM, harmless=(1,)),
    "early_stopping": ignored(_VLLM, harmless=(False,)),
    "do_sample": ignored(_TGI, harmless=(True,), instead="temperature"),
    "typical_p": ignored(_LLAMA, _TGI, harmless=(1,)),
    "top_a": ignored(_ROUTER, harmless=(0,)),
    "tfs_z": ignored(_LLAMA, _OLLAMA, harmless=(1,)),
    "top_n_sigma": ignored(_LLAMA, harmless=(-1,)),
    "min_keep": ignored(_LLAMA, harmless=(0,)),
    "mirostat": ignored(_LLAMA, _OLLAMA, harmless=(0,)),
    "mirostat_tau": ignored(_LLAMA, _OLLAMA),
    "mirostat_eta": ignored(_LLAMA, _OLLAMA),
    "dynatemp_range": ignored(_LLAMA, harmless=(0,)),
    "xtc_probability": ignored(_LLAMA, harmless=(0,)),
    "dry_multiplier": ignored(_LLAMA, harmless=(0,)),
    "repeat_penalty": ignored(_LLAMA, _OLLAMA, harmless=(1,), instead="repetition_penalty"),
    "repeat_last_n": ignored(_LLAMA, _OLLAMA),
    "penalize_nl": ignored(_LLAMA, _OLLAMA),
    "random_seed": refused("Mistral", instead="seed"),
    "watermark": ignored(_TGI, harmless=(False,)),
    "watermarking": ignored(_VLLM, harmless=(False,)),
    "logits_processors": refused(_VLLM, harmless=([],)),
    "custom_logit_processor": refused(_SGLANG, harmless=("",)),
    "structural_tag": refused(_VLLM, _SGLANG),
    "spaces_between_special_tokens": ignored(_VLLM, harmless=(True, False)),
    "add_special_tokens": ignored(_VLLM, harmless=(True,)),
    "no_stop_trim": ignored(_SGLANG, harmless=(False,), instead="include_stop_str_in_output"),
    "stop_regex": refused(_SGLANG, harmless=("", []), instead="stop"),
    "stop_sequences": refused(_ANTHROPIC, _TGI, harmless=([],), instead="stop"),
    "n_predict": refused(_LLAMA, harmless=(-1,), instead="max_tokens"),
    "num_predict": refused(_OLLAMA, harmless=(-1,), instead="max_tokens"),
    "max_new_tokens": refused(_TGI, _SGLANG, instead="max_tokens"),
    "num_ctx": ignored(_OLLAMA),
    "num_keep": ignored(_OLLAMA),
    "n_indent": ignored(_LLAMA, harmless=(0,)),
    "n_probs": ignored(_LLAMA, harmless=(0,), instead="logprobs"),
    "post_sampling_probs": ignored(_LLAMA, harmless=(False,)),
    "cache_prompt": ignored(_LLAMA, harmless=(True,)),
    "id_slot": ignored(_LLAMA, harmless=(-1,)),
    "slot_id": ignored(_LLAMA, harmless=(-1,)),
    "timings_per_token": ignored(_LLAMA, harmless=(False,)),
    "return_progress": ignored(_LLAMA, harmless=(False,)),
    "return_tokens": ignored(_LLAMA, harmless=(False,), instead="return_token_ids"),
    "return_tokens_as_token_ids": ignored(_VLLM, harmless=(False,), instead="return_token_ids"),
    "return_token_offsets": ignored(_VLLM, harmless=(False,)),
    "return_prompt_text": ignored(_VLLM, harmless=(False,)),
    "return_hidden_states": refused(_SGLANG, harmless=(False,)),
    "return_routed_experts": ignored(_SGLANG, harmless=(False,)),
    "return_cached_tokens_details": ignored(_SGLANG, harmless=(False,)),
    "template": refused(_OLLAMA, harmless=("",)),
    "images": refused(_OLLAMA, harmless=([],)),
    "image_data": refused(_LLAMA, _SGLANG, harmless=([],)),
    "multimodal_data": refused(_LLAMA, harmless=([],)),
    "format": refused(_OLLAMA, harmless=("",), instead="response_format"),
    "prompt_embeds": refused(_VLLM),
    "input_ids": refused(_SGLANG, instead="prompt"),
    "extra_body": refused("OpenAI's client library", harmless=({},)),
    "usage": ignored(_ROUTER, instead="stream_options"),
    "transforms": ignored(_ROUTER, harmless=([],)),
    "plugins": ignored(_ROUTER, harmless=([],)),
    "cache_control": ignored(_ANTHROPIC, _ROUTER),
    "context_management": ignored(_ANTHROPIC, _OPENAI),
    **all_ignored(
        _LLAMA,
        "dynatemp_exponent xtc_threshold dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers "
        "adaptive_target adaptive_decay samplers backend_sampling n_keep n_discard n_cache_reuse "
        "t_max_predict_ms t_max_prompt_ms response_fields sse_ping_interval",
    ),
    **all_ignored(
        _VLLM,
        "vllm_xargs guided_decoding_backend guided_whitespace_pattern routed_experts_prompt_start stream_interval",
    ),
    **all_ignored(_SGLANG, "custom_params routed_experts_start_len ngram_corpus_id images_config"),
    **all_ignored(_ANTHROPIC, "anthropic_beta anthropic_version betas speed"),
}

GENERATION: KnownFields = COMMON | THINKING | SAMPLING

# Without `add_special_tokens`, which completions have.
COMPLETION: KnownFields = {name: field for name, field in GENERATION.items() if name != "add_special_tokens"} | {
    "suffix": refused(_OPENAI, _VLLM, _OLLAMA, harmless=("",)),
    "input_prefix": refused(_LLAMA, harmless=("",)),
    "input_suffix": refused(_LLAMA, harmless=("",)),
    "input_extra": refused(_LLAMA, harmless=([],)),
}

CHAT: KnownFields = GENERATION | {
    "prediction": ignored(_OPENAI),
    "web_search_options": ignored(_OPENAI, _ROUTER),
    "functions": refused(_OPENAI, harmless=([],), instead="tools"),
    "function_call": refused(_OPENAI, harmless=("none", "auto"), instead="tool_choice"),
    "modalities": refused(_OPENAI, _ROUTER, harmless=(["text"],)),
    "audio": refused(_OPENAI),
    "image_config": refused(_ROUTER),
    "chat_template": refused(_VLLM, _SGLANG),
    "documents": refused(_VLLM, "Groq", harmless=([],)),
    "data_sources": refused("Azure OpenAI", harmless=([],)),
    "user_security_context": ignored("Azure OpenAI"),
    "echo": refused(_VLLM, harmless=(False,)),
    "best_of": refused(_VLLM, harmless=(1,), instead="n"),
    "system": refused(_ANTHROPIC, instead="messages"),
    "mcp_servers": ignored(_ANTHROPIC, harmless=([],)),
    "container": ignored(_ANTHROPIC),
    "parse_tool_calls": ignored(_LLAMA, harmless=(True,)),
    "tool_prompt": refused(_TGI),
    "safe_prompt": ignored("Mistral", harmless=(False,)),
    "prompt_mode": ignored("Mistral"),
    "enable_search": ignored("Qwen", harmless=(False,)),
    "search_parameters": ignored("xAI"),
    "deferred": refused("xAI", harmless=(False,)),
    "citation_options": ignored("Groq"),
    "chat_id": ignored("Open WebUI"),
}

# Of /v1/responses, which returns `metadata`; its `prompt` is a stored template.
_SAMPLING_OF_RESPONSES = {
    name: field for name, field in SAMPLING.items() if name not in ("context_management", "usage")
}
RESPONSES: KnownFields = (
    {name: field for name, field in COMMON.items() if name not in ("metadata", "store")}
    | THINKING
    | _SAMPLING_OF_RESPONSES
    | {
        "stream_options": ignored(_OPENAI),
        "context_management": ignored(_OPENAI, harmless=([],)),
        "conversation": refused(_OPENAI),
        "max_tool_calls": ignored(_OPENAI),
        "previous_response_id": refused(_OPENAI, instead="input"),
        "prompt": refused(_OPENAI, instead="input"),
        "truncation": refused(_OPENAI, harmless=("disabled",)),
        "enable_response_messages": ignored(_VLLM, harmless=(False,)),
        "previous_input_messages": refused(_VLLM, instead="input"),
        "logprob_token_ids": refused(_VLLM, instead="top_logprobs"),
        "max_tokens": refused(_OPENAI, instead="max_output_tokens"),
        "max_completion_tokens": refused(_OPENAI, instead="max_output_tokens"),
        "response_format": refused(_OPENAI, instead="text"),
        "messages": refused(_OPENAI, instead="input"),
        "chat_template": refused(_VLLM, _SGLANG),
    }
)

EMBEDDING: KnownFields = COMMON | {
    "add_special_tokens": ignored(_VLLM, harmless=(True,)),
    "normalize": ignored(_VLLM, "Sentence Transformers", harmless=(True,)),
    "embd_normalize": ignored(_LLAMA, harmless=(2,)),
    "input_type": ignored("Cohere", "NVIDIA", _LITELLM),
    "task": ignored("Jina"),
    "truncate": ignored(_OLLAMA, "NVIDIA", _TGI, harmless=(False, "NONE")),
    "embed_dtype": refused(_VLLM, harmless=("float32",)),
    "endianness": refused(_VLLM, harmless=("native", "little")),
    "messages": refused(_VLLM, instead="input"),
}

# Of /v1/decisions, /v1/systemone, /v1/score and /v1/rerank.
DECISION: KnownFields = COMMON | {
    "joint": refused(_VLLM, harmless=(False,)),
    "stream": refused(_OPENAI, harmless=(False,)),
    "temperature": refused(_SGLANG, harmless=(1,)),
    "prompt_format_version": ignored(_SGLANG),
    "return_prompt_token_ids": ignored(_SGLANG, harmless=(False,)),
    "chat_template_kwargs": refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
}
SYSTEM_ONE: KnownFields = COMMON | {
    "images": refused("TypeSafe", harmless=([],)),
    "stream": refused(_OPENAI, harmless=(False,)),
    "chat_template_kwargs": refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
}
SCORE: KnownFields = COMMON | {
    "data_1": refused(_VLLM, instead="text_1"),
    "data_2": refused(_VLLM, instead="text_2"),
    "items": refused(_VLLM, _SGLANG, instead="documents"),
    "activation": refused(_VLLM, harmless=(True,)),
    "use_activation": refused(_VLLM, harmless=(True,)),
}
RERANK: KnownFields = COMMON | {
    "max_chunks_per_doc": refused("Cohere", "Jina"),
    "max_tokens_per_doc": refused("Cohere", _VLLM, harmless=(0,)),
    "rank_fields": refused("Cohere"),
    "activation": refused(_VLLM, harmless=(True,)),
    "use_activation": refused(_VLLM, harmless=(True,)),
}

# Of /tokenize, /detokenize and /apply-template.
TOKENS: KnownFields = COMMON | {
    "chat_template": refused(_VLLM),
    "chat_template_kwargs": refused(_VLLM, _SGLANG, _LLAMA, harmless=({},)),
    "spaces_between_special_tokens": ignored(_VLLM, harmless=(True, False)),
    "documents": refused(_VLLM, harmless=([],)),
    "reasoning_effort": ignored(_SGLANG),
    "tool_choice": ignored(_SGLANG),
}
TOKENIZE: KnownFields = TOKENS | {
    "content": refused(_LLAMA, instead="prompt"),
    "add_special": refused(_LLAMA, instead="add_special_tokens"),
    "with_pieces": refused(_LLAMA, harmless=(False,), instead="return_pieces"),
}

STREAM_OPTIONS: KnownFields = {"include_obfuscation": ignored(_OPENAI, harmless=(False,))}
TEXT_OPTIONS: KnownFields = {"verbosity": ignored(_OPENAI, _CODEX)}
SCHEMA: KnownFields = {"description": ignored(_OPENAI)}
TOOL: KnownFields = {
    "cache_control": ignored(_ANTHROPIC, _ROUTER),
    "defer_loading": ignored(_ANTHROPIC, _VLLM, _SGLANG, _CODEX, harmless=(False,)),
    "input_examples": ignored(_ANTHROPIC),
    "allowed_callers": ignored(_ANTHROPIC, _OPENAI),
    "output_schema": ignored(_OPENAI),
}
CALLED_FUNCTION: KnownFields = {"parsed_arguments": ignored("OpenAI's client library")}
TOOL_CALL: KnownFields = {"extra_content": ignored("Gemini"), "caller": ignored(_ANTHROPIC, _OPENAI)}

MESSAGE: KnownFields = {
    "annotations": ignored(_OPENAI, harmless=([],)),
    "parsed": ignored("OpenAI's client library"),
    "weight": ignored(_OPENAI),
    "extra_content": ignored("Gemini"),
    "provider_specific_fields": ignored(_LITELLM),
    "thinking_blocks": ignored(_LITELLM),
    "prefix": refused("DeepSeek", "Mistral", harmless=(False,), instead="continue_final_message"),
    "partial": refused("Moonshot", harmless=(False,), instead="continue_final_message"),
    "images": refused(_OLLAMA, harmless=([],)),
}
STRUCTURED_OUTPUTS: KnownFields = {
    "structural_tag": refused(_VLLM),
    **all_ignored(_VLLM, "disable_any_whitespace disable_additional_properties disable_fallback whitespace_pattern"),
}

# Of items in the input of /v1/responses.
RESPONSE_ITEM: KnownFields = {
    "phase": ignored(_OPENAI, _CODEX),
    "created_by": ignored(_OPENAI),
    "caller": ignored(_OPENAI),
}
