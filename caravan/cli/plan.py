"""caravan plan."""

from typing import Annotated, get_args

import typer

from caravan.cli.fail import USAGE_ERROR, fail
from caravan.cli.gpu_memory import GpuName, gpu_memory_bytes
from caravan.cli.model_argument import Model, resolved
from caravan.cli.serve_options import like_serve
from caravan.download.resolve import DEFAULT_MODEL
from caravan.server.settings import WrongSettings, load_settings


def plan(
    model: Model = DEFAULT_MODEL,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Memory for weights and KV cache, such as 24GiB. Default: the free memory.", metavar="<size>"
        ),
    ] = None,
    device: Annotated[
        GpuName | None,
        typer.Option(
            help="GPU to plan for, which need not be there. Default: the CPU.",
            metavar=f"<{'|'.join(get_args(GpuName))}>",
        ),
    ] = None,
    prompt: Annotated[int, typer.Option(help="Prompt length, in tokens.", min=1)] = 512,
    output: Annotated[int, typer.Option(help="Output length, in tokens.", min=1)] = 128,
    kv_cache_memory: Annotated[str | None, like_serve("kv_cache_memory")] = None,
    dtype: Annotated[str | None, like_serve("dtype")] = None,
    quantization: Annotated[str | None, like_serve("quantization")] = None,
    kv_cache_dtype: Annotated[str | None, like_serve("kv_cache_dtype")] = None,
    max_model_len: Annotated[str | None, like_serve("max_model_len")] = None,
    max_num_seqs: Annotated[str | None, like_serve("max_num_seqs")] = None,
    max_batch_tokens: Annotated[str | None, like_serve("max_batch_tokens")] = None,
    block_size: Annotated[str | None, like_serve("block_size")] = None,
    standby: Annotated[bool, like_serve("standby")] = False,
    draft_model: Annotated[str | None, like_serve("draft_model")] = None,
    merge_lora: Annotated[str | None, like_serve("merge_lora")] = None,
    tensor_parallel: Annotated[str | None, like_serve("tensor_parallel")] = None,
) -> None:
    """Compute how many requests of a model fit into memory."""
    if device is not None and memory is not None:
        fail("--device has the memory of that GPU; it cannot be combined with --memory.", USAGE_ERROR)
    flags = {
        "kv_cache_memory": kv_cache_memory,
        "dtype": dtype,
        "quantization": quantization,
        "kv_cache_dtype": kv_cache_dtype,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_batch_tokens": max_batch_tokens,
        "block_size": block_size,
        "standby": standby or None,
        "draft_model": draft_model,
        "merge_lora": merge_lora,
        "tensor_parallel": tensor_parallel,
    }
    try:
        settings = load_settings({"model": model} | {name: value for name, value in flags.items() if value is not None})
        settings.check_tensor_parallel()
        memory_bytes = None if memory is None else load_settings({"kv_cache_memory": memory}).kv_cache_memory
    except WrongSettings as error:
        fail(str(error).replace("--kv-cache-memory", "--memory") if memory else str(error), USAGE_ERROR)
    if device is not None and settings.tensor_parallel > 1:
        fail("--tensor-parallel is for CPUs; it cannot be combined with --device.", USAGE_ERROR)
    from caravan.cli.report import plan_model, text_of
    from caravan.scheduler.memory import free_memory_bytes

    available = gpu_memory_bytes(device) if device is not None else memory_bytes
    path = resolved(model)
    draft_path = None if settings.draft_model is None else resolved(settings.draft_model)
    try:
        rows = plan_model(
            path,
            memory_bytes=free_memory_bytes() if available is None else int(available),
            prompt_tokens=prompt,
            output_tokens=output,
            dtype=settings.dtype,
            quantization=settings.quantization,
            kv_cache_dtype=settings.kv_cache_dtype,
            limits=settings.start_engine(path).limits,
            draft_path=draft_path,
            adapter_path=settings.merge_lora,
            gpu=device,
            num_ranks=settings.tensor_parallel,
        )
    except (ValueError, OSError) as error:
        fail(f"Cannot plan {model}: {error}")
    typer.echo(text_of(rows))
