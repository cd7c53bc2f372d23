"""Known fields: fields of Anthropic's API that have no effect here, as in server/openai/protocol/known_fields.py."""

from caravan.server.openai.protocol.known_field import KnownFields, all_ignored, ignored, refused
from caravan.server.openai.protocol.known_fields import COMMON

_ANTHROPIC, _CLAUDE_CODE, _OPENAI, _VLLM = "Anthropic", "Claude Code", "OpenAI", "vLLM"

BODY: KnownFields = COMMON | {
    "metadata": ignored(_ANTHROPIC, _CLAUDE_CODE),
    "service_tier": ignored(_ANTHROPIC, harmless=("auto", "standard_only")),
    "context_management": ignored(_ANTHROPIC, _CLAUDE_CODE),
    "cache_control": ignored(_ANTHROPIC),
    "mcp_servers": ignored(_ANTHROPIC, harmless=([],)),
    "container": ignored(_ANTHROPIC),
    "speed": ignored(_ANTHROPIC, harmless=("standard",)),
    "n": refused(_OPENAI, harmless=(1,)),
    "response_format": refused(_OPENAI, instead="output_config"),
    "max_completion_tokens": refused(_OPENAI, instead="max_tokens"),
    "max_tokens_to_sample": refused(_ANTHROPIC, instead="max_tokens"),
    "prompt": refused(_ANTHROPIC, instead="messages"),
    "reasoning_effort": refused(_OPENAI, instead="output_config"),
    "chat_template": refused(_VLLM),
    "thread": refused(_ANTHROPIC, instead="messages"),
    **all_ignored(
        _ANTHROPIC,
        "compaction diagnostics fallbacks fallback_credit_token billing_policy inference_geo betas anthropic_beta "
        "anthropic_version user_profile_id workspace_id",
    ),
}

# Of /v1/messages/count_tokens: what does not change the prompt.
COUNT: KnownFields = BODY | all_ignored(
    _ANTHROPIC, "max_tokens stream stop_sequences temperature top_p top_k priority cache_salt seed"
)

OUTPUT_CONFIG: KnownFields = {"task_budget": ignored(_ANTHROPIC)}
THINKING: KnownFields = {"display": ignored(_ANTHROPIC, _CLAUDE_CODE)}
BLOCK: KnownFields = {
    "cache_control": ignored(_ANTHROPIC, _CLAUDE_CODE),
    "citations": ignored(_ANTHROPIC, harmless=([],)),
    "caller": ignored(_ANTHROPIC),
}
TOOL: KnownFields = {
    "cache_control": ignored(_ANTHROPIC, _CLAUDE_CODE),
    "defer_loading": ignored(_ANTHROPIC, _CLAUDE_CODE, harmless=(False,)),
    "eager_input_streaming": ignored(_ANTHROPIC, harmless=(False, True)),
    "input_examples": ignored(_ANTHROPIC),
    "allowed_callers": ignored(_ANTHROPIC),
}
TURN: KnownFields = {"id": ignored(_ANTHROPIC), "name": ignored(_OPENAI), "cache_control": ignored(_ANTHROPIC)}
