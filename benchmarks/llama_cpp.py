"""llama.cpp through its C interface: quantize a file, compute the logits of a text.

`python -m benchmarks.llama_cpp LIBRARIES SOURCE.gguf FOLDER TYPE...` writes FOLDER/model-TYPE.gguf. benchmarks/peers.md
says where the folder of libraries comes from. Of its structures only the fields named here are set; all others stay as
the library fills them in.
"""

import argparse
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of a file: llama_ftype in llama.h. A type with "-pure" has one kind of blocks in all matrices whose rows allow it.
FILE_TYPES = MappingProxyType(
    {
        "Q4_0": 2,
        "Q4_1": 3,
        "Q8_0": 7,
        "Q5_0": 8,
        "Q5_1": 9,
        "Q2_K": 10,
        "Q2_K-pure": 10,
        "Q3_K_M": 12,
        "Q4_K_S": 14,
        "Q4_K_M": 15,
        "Q5_K_M": 17,
        "Q6_K": 18,
        "IQ4_NL": 25,
        "IQ4_XS": 30,
    }
)

Logits = Callable[[list[int], int], Tensor]  # (the next token ids of a text, position of the first) -> [n, vocab_size]


class LlamaCppFailed(Exception):
    """The libraries are missing, have another interface, or refused a file; the message says which."""


class _QuantizeParams(ctypes.Structure):
    _fields_ = (
        ("nthread", ctypes.c_int32),
        ("ftype", ctypes.c_int32),
        ("output_tensor_type", ctypes.c_int32),
        ("token_embedding_type", ctypes.c_int32),
        ("allow_requantize", ctypes.c_bool),
        ("quantize_output_tensor", ctypes.c_bool),
        ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool),
        ("rest", ctypes.c_byte * 236),
    )


class _ModelParams(ctypes.Structure):
    _fields_ = (("all", ctypes.c_byte * 256),)


class _ContextParams(ctypes.Structure):
    _fields_ = (
        ("n_ctx", ctypes.c_uint32),
        ("n_batch", ctypes.c_uint32),
        ("n_ubatch", ctypes.c_uint32),
        ("rest", ctypes.c_byte * 500),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.c_void_p),  # without it, all tokens are of one sequence
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),  # where not zero, a token's logits are computed
    )


@dataclass(frozen=True)
class LlamaCpp:
    """The loaded libraries, and what swallows their log: they call it, so it must live as long."""

    library: ctypes.CDLL
    log: Any


def load_llama_cpp(folder: Path) -> LlamaCpp:
    """Load the libraries in a folder, with the kernels for this processor. Raises LlamaCppFailed."""
    path, ggml_path = (next(folder.glob(f"{name}.*so"), None) for name in ("libllama", "libggml"))
    if path is None or ggml_path is None:
        raise LlamaCppFailed(f"{folder} has no libllama and libggml; benchmarks/peers.md says where they come from.")
    try:
        ggml = ctypes.CDLL(str(ggml_path), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise LlamaCppFailed(f"{path} cannot be loaded: {error}.") from None
    log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    library.llama_log_set(log, None)
    ggml.ggml_backend_load_all_from_path(str(folder).encode())
    library.llama_backend_init()
    return LlamaCpp(library, log)


def quantize(llama_cpp: LlamaCpp, source: Path, target: Path, file_type: str, num_threads: int) -> None:
    """Write a file in 16 or 32 bits as one of FILE_TYPES. Raises LlamaCppFailed."""
    library = llama_cpp.library
    library.llama_model_quantize_default_params.restype = _QuantizeParams
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_QuantizeParams)]
    params = library.llama_model_quantize_default_params()
    if not params.quantize_output_tensor or params.allow_requantize or params.pure:
        raise LlamaCppFailed(
            "This llama.cpp has other parameters of llama_model_quantize; take the version of peers.md."
        )
    params.nthread, params.ftype = num_threads, FILE_TYPES[file_type]
    params.pure = file_type.endswith("-pure")
    if library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise LlamaCppFailed(f"llama.cpp cannot write {source} as {file_type}.")


@contextmanager
def reading(llama_cpp: LlamaCpp, model: Path, max_position: int, chunk: int, num_threads: int) -> Iterator[Logits]:
    """Yield what computes logits of a model, at most `chunk` tokens a call, with llama.cpp's defaults for the rest.

    A text is read in consecutive calls; position 0 begins a new one. Raises LlamaCppFailed.
    """
    library = llama_cpp.library
    _declare(library)
    loaded = library.llama_model_load_from_file(str(model).encode(), library.llama_model_default_params())
    if not loaded:
        raise LlamaCppFailed(f"llama.cpp cannot load {model}.")
    params = library.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch = max_position, chunk, chunk
    context = library.llama_init_from_model(loaded, params)
    try:
        if not context or library.llama_n_batch(context) != chunk or library.llama_n_ubatch(context) != chunk:
            raise LlamaCppFailed("llama.cpp made another context than the one asked for; take the version of peers.md.")
        library.llama_set_n_threads(context, num_threads, num_threads)
        vocab_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(loaded))
        yield lambda token_ids, start: _logits(library, context, token_ids, start, vocab_size)
    finally:
        if context:
            library.llama_free(context)
        library.llama_model_free(loaded)


def _declare(library: ctypes.CDLL) -> None:
    pointer = ctypes.c_void_p
    library.llama_model_default_params.restype = _ModelParams
    library.llama_context_default_params.restype = _ContextParams
    library.llama_model_load_from_file.restype = pointer
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, _ModelParams]
    library.llama_init_from_model.restype = pointer
    library.llama_init_from_model.argtypes = [pointer, _ContextParams]
    library.llama_decode.argtypes = [pointer, _Batch]
    library.llama_get_memory.restype = pointer
    library.llama_memory_clear.argtypes = [pointer, ctypes.c_bool]
    library.llama_get_logits.restype = ctypes.POINTER(ctypes.c_float)
    library.llama_model_get_vocab.restype = pointer
    library.llama_set_n_threads.argtypes = [pointer, ctypes.c_int32, ctypes.c_int32]
    for name in (
        "free",
        "model_free",
        "model_get_vocab",
        "vocab_n_tokens",
        "n_batch",
        "n_ubatch",
        "get_memory",
        "get_logits",
    ):
        getattr(library, f"llama_{name}").argtypes = [pointer]


def _logits(library: ctypes.CDLL, context: int, token_ids: list[int], start: int, vocab_size: int) -> Tensor:
    """Return logits [n, vocab_size] of consecutive tokens from position `start`."""
    count = len(token_ids)
    if start == 0:
        library.llama_memory_clear(library.llama_get_memory(context), True)
    batch = _Batch(
        n_tokens=count,
        token=(ctypes.c_int32 * count)(*token_ids),
        pos=(ctypes.c_int32 * count)(*range(start, start + count)),
        logits=(ctypes.c_int8 * count)(*[1] * count),
    )
    status = library.llama_decode(context, batch)
    if status:
        raise LlamaCppFailed(f"llama_decode returned {status} at position {start}.")
    rows = np.ctypeslib.as_array(library.llama_get_logits(context), (count, vocab_size))
    return torch.from_numpy(rows.copy())


def main() -> None:
    """Write the files that the arguments name."""
    parser = argparse.ArgumentParser(description="Quantize a GGUF file with llama.cpp.")
    parser.add_argument("libraries", type=Path, help="folder of llama.cpp's libraries")
    parser.add_argument("source", type=Path, help="GGUF file in 16 or 32 bits")
    parser.add_argument("folder", type=Path)
    parser.add_argument("types", choices=FILE_TYPES, nargs="+", metavar="TYPE", help=", ".join(FILE_TYPES))
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    try:
        llama_cpp = load_llama_cpp(arguments.libraries)
        for file_type in arguments.types:
            target = arguments.folder / f"model-{file_type}.gguf"
            quantize(llama_cpp, arguments.source, target, file_type, arguments.threads)
            print(f"{target}: {target.stat().st_size / 1e6:.0f} MB")
    except LlamaCppFailed as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
