"""StartText: what a server prints when it is ready, for the person who has started it."""

from collections.abc import Sequence

from caravan.scheduler.config import EngineConfig
from caravan.scheduler.memory_needs import MemoryPlan
from caravan.scheduler.messages import EngineReady

SHORT_LENGTH = 1024  # tokens of a request in the line `Room`
DEFAULT_ADDRESS = "http://127.0.0.1:8000"  # where `caravan chat` and `caravan top` look for a server


def start_text(
    report: EngineReady, file_name: str, names: Sequence[str], address: str, *, is_demo: bool = False
) -> str:
    """Return five lines, about the model, the pool and the address.

    There is one more for each of ranks, an adapter, a draft model and a demo. `address` is the URL of the server
    without a path, or its Unix socket after `unix:`.
    """
    config = report.config
    name = ", ".join(names)
    source = file_name.removesuffix(".gguf")
    source = "" if source == name else f"{source}, "
    return "\n".join(
        [
            f"Model    {name}: {source}{report.num_parameters / 1e6:,.0f}M parameters, "
            f"{_weights(report)}, {report.weight_bytes / 1e6:,.0f} MB",
            *([f"Ranks    {config.num_ranks} processes, each with a part of it"] if config.num_ranks > 1 else []),
            *([f"LoRA     {report.adapter}"] if report.adapter else []),
            *([f"Draft    {report.draft_model}"] if report.draft_model else []),
            f"KV pool  {config.num_tokens:,} tokens in {config.num_blocks:,} blocks of {config.block_size} "
            f"({report.kv_cache_bytes / 1e6:,.0f} MB) in {report.kv_cache_dtype}",
            f"Room     {room(config)}",
            *_address_lines(address, is_demo=is_demo),
        ]
    )


def models_text(plan: MemoryPlan, names: Sequence[Sequence[str]], address: str) -> str:
    """Return what each of several models needs, and the address; `names` has those of each model."""
    lines = [f"Models   {len(names)} in {plan.budget_bytes / 1e6:,.0f} MB, each loaded when it gets a request"]
    for own, needs in zip(names, plan.needs, strict=True):
        lines.append(
            f"Name     {', '.join(own)}: {needs.total_bytes / 1e6:,.0f} MB "
            f"(weights {needs.weight_bytes / 1e6:,.0f}, KV pool {needs.kv_cache_bytes / 1e6:,.0f} "
            f"for {needs.config.num_tokens:,} tokens)"
        )
    return "\n".join([*lines, *_address_lines(address)])


def room(config: EngineConfig) -> str:
    """Return how many requests the KV pool holds, and how many run at once."""
    longest = config.num_requests_of(config.max_model_len)
    text = f"for {longest:,} request{'' if longest == 1 else 's'} of {config.max_model_len:,} tokens"
    if longest == 2 * config.max_num_seqs:  # the default of a machine with enough memory
        return f"{text}, twice the {config.max_num_seqs:,} that run at once"
    if config.max_model_len > SHORT_LENGTH:
        text += f" or {config.num_requests_of(SHORT_LENGTH):,} of {SHORT_LENGTH:,}"
    return f"{text}; {config.max_num_seqs:,} run at once"


def _weights(report: EngineReady) -> str:
    """Return the numbers of the weights in a word, without what is done with them; on a GPU with its name."""
    kind, colon, rest = report.weights.partition(":")
    device = rest.rpartition(", on ")[2] if colon and ", on " in rest else ""
    return f"{kind}, on {device}" if device else kind


def _address_lines(address: str, *, is_demo: bool = False) -> list[str]:
    """Return the lines with the page, the chat and the API; the last begins with `Ready`."""
    if address.startswith("unix:"):
        return [f"Ready    {address} with /v1 for OpenAI clients; its reference is at /docs"]
    option = "" if address == DEFAULT_ADDRESS else f" --url {address}"
    watch = [f"Watch    {address}/#engine in a browser, or: caravan top{option}"]
    return [
        f"Chat     {address} in a browser, or: caravan chat{option}",
        *(watch if is_demo else []),
        f"Ready    {address}/v1 for OpenAI clients; its reference is at /docs",
    ]
