"""Requests in the three shapes of Codex CLI 0.171, with few tools and short texts of our own."""

from typing import Any

Body = dict[str, Any]

# A small language of patches: a header, lines that begin with a sign, an end.
PATCH_GRAMMAR = """\
start: header hunk+ footer
header: "*** Begin Patch" LF
footer: "*** End Patch" LF?
hunk: add_file | delete_file
add_file: "*** Add File: " path LF added+
delete_file: "*** Delete File: " path LF
path: /[a-z]{1,8}\\.txt/
added: "+" /[^\\n"]{0,12}/ LF -> line

%import common.LF
"""
PATCH_PATTERN = (
    r"\*\*\* Begin Patch\n(?:\*\*\* Add File: [a-z]{1,8}\.txt\n(?:\+[^\n\"]{0,12}\n)+|"
    r"\*\*\* Delete File: [a-z]{1,8}\.txt\n)+\*\*\* End Patch\n?"
)
APPLY_PATCH: Body = {
    "type": "custom",
    "name": "apply_patch",
    "description": "Edit files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": PATCH_GRAMMAR},
}


def function(name: str, **properties: str) -> Body:
    """Return a function whose properties are required and have these types."""
    parameters: Body = {"type": "object", "properties": {one: {"type": kind} for one, kind in properties.items()}}
    parameters |= {"required": [*properties], "additionalProperties": False}
    return {"type": "function", "name": name, "description": f"Use {name}.", "strict": False, "parameters": parameters}


RUN = function("exec_command", cmd="string")
AGENTS: Body = {
    "type": "namespace",
    "name": "agents",
    "description": "Other agents.",
    "tools": [function("wait_agent", id="string"), function("close_agent", id="string")],
}


def a_message(role: str, text: str, **fields: Any) -> Body:
    """Return a message as the client writes it."""
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text}], **fields}


def opening(question: str) -> list[Body]:
    """Return the input of a first request: the base prompt is a message, and so is the environment."""
    return [
        a_message("developer", "You are a coding agent. Use your tools. Be brief."),
        a_message("user", "<environment_context>\n  <cwd>/work</cwd>\n  <shell>bash</shell>\n</environment_context>"),
        a_message("user", question),
    ]


def _common(items: list[Body], reasoning: Body) -> Body:
    return {
        "input": items,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": reasoning,
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0198-session",
        "client_metadata": {"x-codex-installation-id": "0198-installation"},
    }


def of_unknown_model(items: list[Body]) -> Body:
    """Return the shape for a model that the client does not know: functions, a namespace, a search."""
    tools = [RUN, function("write_stdin", session_id="integer", chars="string"), AGENTS, {"type": "web_search"}]
    return _common(items, {"summary": "auto"}) | {"tools": tools}


def with_custom_tools(items: list[Body]) -> Body:
    """Return the shape with a custom tool that has a grammar, and a verbosity."""
    tools = [RUN, APPLY_PATCH, {"type": "tool_search", "execution": "client"}, {"type": "web_search"}]
    return _common(items, {"effort": "medium"}) | {"tools": tools, "text": {"verbosity": "low"}}


def with_additional_tools(items: list[Body]) -> Body:
    """Return the shape without `tools`: they are an item of the input."""
    listed = {"type": "additional_tools", "role": "developer", "tools": [AGENTS, {**AGENTS, "name": "more"}]}
    return _common([listed, *items], {"effort": "medium", "context": "all_turns"})


SHAPES = {
    "unknown model": of_unknown_model,
    "custom tools": with_custom_tools,
    "additional tools": with_additional_tools,
}


def played_back(output: list[Body], result: str) -> list[Body]:
    """Return the items of an answer as the client sends them back, each call followed by its result."""
    items: list[Body] = []
    for item in output:
        items.append(item)
        kind = item["type"]
        if kind in ("function_call", "custom_tool_call"):
            items.append({"type": f"{kind}_output", "call_id": item["call_id"], "output": result})
    return items
