"""The options of a batch without a server that change its answers, as text that a journal keeps."""

import hashlib

from caravan.download.resolve import ALIASES, find_on_disk
from caravan.server.settings import Settings

_FIELDS = (
    *("device", "dtype", "quantization", "fast_matmul", "speculation"),
    *("kv_cache_dtype", "max_model_len"),
)  # others, such as the number of threads, leave the bits of answers as they are


def answer_options(settings: Settings) -> dict[str, str]:
    """Return the options that change answers, by flag; of models and the template with what identifies their files.

    Raises ModelNotFound, OSError (the template).
    """
    options = {_flag(name): str(getattr(settings, name)) for name in _FIELDS}
    options["--model"] = _model(settings.model)
    options["--draft-model"] = _model(settings.draft_model or "")
    options["--merge-lora"] = "" if settings.merge_lora is None else _model(str(settings.merge_lora.absolute()))
    options["--served-model-name"] = ",".join(settings.names)
    template = settings.chat_template
    options["--chat-template"] = "" if template is None else hashlib.sha256(template.read_bytes()).hexdigest()
    return options


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _model(model: str) -> str:
    """Return a name, or a path with a digest of its files' sizes and times: their contents take minutes to read."""
    path = find_on_disk(model) if model and model not in ALIASES else None
    if path is None:
        return model
    files = sorted(one for one in (path.iterdir() if path.is_dir() else (path,)) if one.is_file())
    facts = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    return f"{path.resolve()} {hashlib.sha256(repr(facts).encode()).hexdigest()}"
