"""Loading a model for an engine in this process."""

import sys

from caravan.download.resolve import resolve_model
from caravan.offline.engine import LocalEngine
from caravan.server.generation.suggested_sampling import suggested_sampling
from caravan.server.generation.text_model import TextModel, text_parts
from caravan.server.openai.thought_tokens import thought_token_ids
from caravan.server.openai.tool_calls.call_format import call_token_ids
from caravan.server.settings import Settings


def load_model(settings: Settings) -> tuple[LocalEngine, TextModel]:
    """Return the engine and the tokenizer of a model, which is fetched if need be; the caller closes both.

    Raises ValueError (an option or a model that cannot be used), OSError, MemoryError, or ModelUnavailable if the model
    cannot be fetched.
    """
    settings.check_draft_model()
    settings.check_tensor_parallel()
    path = resolve_model(settings.model, _print_error)
    draft_path = None if settings.draft_model is None else resolve_model(settings.draft_model, _print_error)
    defaults = suggested_sampling(settings.model, path)
    tokenizer, template = text_parts(path, settings.chat_template)
    try:
        engine = LocalEngine(settings.start_engine(path, draft_path))
    except BaseException:
        if template is not None:
            template.close()
        raise
    model = TextModel(
        max_model_len=engine.report.config.max_model_len,
        tokenizer=tokenizer.resized(engine.report.vocab_size),
        chat_template=template,
        shown_token_ids=call_token_ids(tokenizer) | thought_token_ids(tokenizer, template),
        defaults=defaults,
    )
    return engine, model


def _print_error(line: str) -> None:
    print(line, file=sys.stderr)
