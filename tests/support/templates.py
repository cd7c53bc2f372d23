"""Chat templates in the manner of well-known models', each with what makes its kind difficult."""

from caravan.server.openai.tool_calls.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, CallFormat

# Qwen: strings, calls as objects, results of tools inside user turns, reasoning of earlier answers.
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- '<tools>' }}
    {%- for tool in tools %}{{- '\\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\\n</tools>\\nAnswer with <tool_call>\\n{"name": <name>, "arguments": <object>}\\n</tool_call><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string %}
            {{- '<think>' + message.reasoning_content + '</think>' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

_MISTRAL_TURNS = """\
{%- if messages[0].role == 'system' %}
    {%- set system, turns = messages[0].content, messages[1:] %}
{%- else %}
    {%- set system, turns = '', messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in turns %}
    {%- if not (message.role == 'tool' or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message.role == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('After the optional system message, roles must alternate user/assistant/user/...') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in turns %}
    {%- if message.role == 'user' %}
        {{- '[INST]' + (system + '\\n\\n' if loop.first and system else '') + message.content + '[/INST]' }}
    {%- elif message.role == 'tool' %}
        {%- if message.tool_call_id is not defined or message.tool_call_id | length != 9 %}
            {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
        {%- endif %}
        {{- '[TOOL_RESULTS]{"content": ' + (message.content | tojson) + ', "call_id": "' }}
        {{- message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        CALLS
    {%- elif message.role == 'assistant' %}
        {{- message.content | trim + eos_token }}
    {%- else %}
        {{- raise_exception('Only user, assistant and tool roles are supported!') }}
    {%- endif %}
{%- endfor %}
"""
_CHECK_OF_ID = """\
{%- if call.id is not defined or call.id | length != 9 %}
    {{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}
{%- endif %}
"""

# Mistral 7B v0.3 and Nemo: roles alternate, ids have nine characters, calls are a list.
MISTRAL_LIST = _MISTRAL_TURNS.replace(
    "CALLS",
    "{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}"
    + _CHECK_OF_ID
    + "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' + (']' if loop.last else ', ') }}"
    "{%- endfor %}{{- eos_token }}",
)

# Mistral Small 3.2 and Devstral: names before arguments.
MISTRAL_ARGS = _MISTRAL_TURNS.replace(
    "CALLS",
    "{{- message.content or '' }}{%- for call in message.tool_calls %}"
    + _CHECK_OF_ID
    + "{%- set arguments = call.function.arguments if call.function.arguments is string "
    "else call.function.arguments | tojson %}"
    "{{- '[TOOL_CALLS]' + call.function.name + '[CALL_ID]' + call.id + '[ARGS]' + arguments }}"
    "{%- endfor %}{{- eos_token }}",
)

# Llama 3.1: one call in a message, results of tools as JSON, `'tool_calls' in message`.
LLAMA_3 = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' and tools and loop.last %}
        {{- '<|start_header_id|>user<|end_header_id|>\\n\\nAnswer as {"name": name, "parameters": object}.\\n' }}
        {%- for tool in tools %}{{- tool | tojson }}{%- endfor %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

# DeepSeek R1: arguments are text, and calls are written only where the content is null.
DEEPSEEK = """\
{{- bos_token }}{% if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or message.role == 'system' %}
        {{- '<User>' + message.content }}
    {%- elif message.role == 'assistant' and message.content is none %}
        {%- for call in message.tool_calls %}
            {{- '<call>' + call.function.name + '\\n```json\\n' + call.function.arguments + '\\n```</call>' }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- '<Assistant>' + message.content + eos_token }}
    {%- elif message.role == 'tool' %}
        {{- '<output>' + message.content + '</output>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<Assistant>' }}{%- endif %}
"""

# Llama Guard 3 Vision: parts and nothing else.
LLAMA_GUARD = """\
{{- bos_token + 'Task: check the conversation.' }}
{%- for message in messages %}
    {{- '\\n' + (message.role | title) + ': ' }}
    {%- for part in message.content %}{% if part.type == 'text' %}{{ part.text | trim }}{% endif %}{% endfor %}
{%- endfor %}
{{- '\\nIs the last message safe?' }}
"""

# Llama 3.2 Vision and SmolVLM: both forms.
BOTH_FORMS = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + ':' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}{{- '(' + part.text + ')' }}{%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
"""

# The first part alone.
ONE_PART = "{% for message in messages %}{{ message.role }}: {{ message.content[0]['text'] }}\n{% endfor %}"

# No text at all.
BLIND = "{% for message in messages %}{{ message.role }}: {{ message.text }}\n{% endfor %}"

# ChatML without tools, whose turns alternate.
ALTERNATING = """\
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == (1 if messages[0].role == 'system' else 0)) %}
        {%- if message.role != 'system' or not loop.first %}{{- raise_exception('Roles must alternate!') }}{%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{{- '<|im_start|>assistant\\n' }}
"""

# Templates with the format in which an answer calls.
WITH_CALLS: dict[str, tuple[str, CallFormat]] = {
    "qwen": (QWEN, HERMES),
    "mistral list": (MISTRAL_LIST, MISTRAL),
    "mistral args": (MISTRAL_ARGS, MISTRAL_NAMED),
    "llama": (LLAMA_3, LLAMA),
    "deepseek": (DEEPSEEK, HERMES),
    "alternating": (ALTERNATING, HERMES),
}
