"""Plan the memory of several engines that share a budget. Run as `python -m caravan.scheduler.memory_plan`.

It reads a PlanMemory on standard input and writes a MemoryPlan or PlanFailed on standard output. The API process runs
it as a process of its own, since the plan needs PyTorch.
"""

import sys
from pathlib import Path

import msgspec

from caravan.model.backend import choose_device
from caravan.scheduler.block_pool import num_blocks_for
from caravan.scheduler.config import PROCESS_BYTES
from caravan.scheduler.engine_plan import (
    CPU_DEFAULTS,
    GPU_DEFAULTS,
    choose_max_model_len,
    max_pool_blocks,
    plan_engine,
    standby_bytes,
)
from caravan.scheduler.memory import free_gpu_memory_bytes, free_memory_bytes, gpu_step_bytes
from caravan.scheduler.memory_needs import MemoryNeeds, MemoryPlan, PlanFailed, PlanMemory
from caravan.scheduler.messages import StartEngine
from caravan.scheduler.model_costs import model_costs
from caravan.scheduler.rank_memory import check_rank_device
from caravan.scheduler.spill_plan import check_spill_device, check_spill_files

BUDGET_SHARE = 0.8  # of the free memory of a machine; the API process and the page cache need the rest
POOL_SHARE = 0.5  # of a model's equal share of the budget, for its KV pool


def main() -> None:
    """Answer one question."""
    question = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=PlanMemory)
    sys.stdout.buffer.write(msgspec.msgpack.encode(plan_memory(question)))


def plan_memory(question: PlanMemory) -> MemoryPlan | PlanFailed:
    """Return what each engine needs, or the first one that does not fit into the budget, or whose spill file cannot."""
    budget_bytes = question.budget_bytes
    needs: list[MemoryNeeds] = []
    for index, start in enumerate(question.starts):
        try:
            if budget_bytes is None:
                budget_bytes = default_budget_bytes(start)
            needs.append(memory_needs(start, budget_bytes, budget_bytes // len(question.starts)))
        except (ValueError, OSError) as error:
            return PlanFailed(index=index, reason=str(error))
    assert budget_bytes is not None, "there is at least one engine"
    try:
        failed = check_spill_files(question.starts)
    except OSError as error:
        return PlanFailed(index=0, reason=f"--kv-spill: {error}")
    if failed is not None:
        return failed
    return MemoryPlan(budget_bytes=budget_bytes, needs=needs)


def default_budget_bytes(start: StartEngine) -> int:
    """Return the share of the free memory of the device that engines may have."""
    device = choose_device(start.device)
    if device.type == "cpu":
        return int(free_memory_bytes() * BUDGET_SHARE)
    return int(free_gpu_memory_bytes(device) * GPU_DEFAULTS.pool_share)


def memory_needs(start: StartEngine, budget_bytes: int, share_bytes: int) -> MemoryNeeds:
    """Return what an engine needs; raises ValueError if that is more than the budget.

    Without a size of its own the KV pool gets half of the engine's share of the budget, or the room for one request of
    max_model_len tokens if that is more, but not more than the weights leave, or than twice the largest batch.
    """
    device = choose_device(start.device)
    check_spill_device(start, device)
    check_rank_device(start.num_ranks, device)
    is_gpu = device.type == "cuda"
    limits = start.limits
    costs = model_costs(
        Path(start.model_path),
        Path(start.draft_model_path) if start.draft_model_path else None,
        Path(start.merge_lora_path) if start.merge_lora_path else None,
        dtype=start.dtype,
        quantization=start.quantization,
        kv_cache_dtype=start.kv_cache_dtype,
        block_size=limits.block_size,
        is_gpu=is_gpu,
        num_ranks=start.num_ranks,
    )
    config = costs.checkpoint.config
    defaults = GPU_DEFAULTS if is_gpu else CPU_DEFAULTS
    rest_bytes = PROCESS_BYTES * start.num_ranks
    if is_gpu:
        rest_bytes = gpu_step_bytes(
            config,
            None if costs.draft is None else costs.draft.checkpoint.config,
            limits.max_batch_tokens or defaults.max_batch_tokens,
            limits.max_num_seqs or defaults.max_num_seqs,
            choose_max_model_len(limits, config.max_position),
        )
    if limits.has_standby:
        rest_bytes += standby_bytes(costs.weight_bytes)
    free_bytes = budget_bytes - costs.weight_bytes - rest_bytes
    if free_bytes <= 0:
        raise ValueError(
            f"It needs {costs.weight_bytes + rest_bytes:,} bytes without its KV pool, more than the {budget_bytes:,} "
            "of all models. Raise --models-memory, or set its quantization."
        )
    pool_bytes = limits.kv_cache_memory_bytes
    if pool_bytes is None:
        max_model_len = choose_max_model_len(limits, config.max_position)
        block_bytes = limits.block_size * costs.token_bytes
        least_bytes = num_blocks_for(max_model_len, limits.block_size) * block_bytes
        most_blocks = max_pool_blocks(limits, max_model_len, defaults)
        most_bytes = free_bytes if most_blocks is None else min(most_blocks * block_bytes, free_bytes)
        pool_bytes = min(max(int(share_bytes * POOL_SHARE), least_bytes), most_bytes)
    engine = plan_engine(
        msgspec.structs.replace(limits, kv_cache_memory_bytes=pool_bytes, has_standby=False),
        kv_bytes_per_token=costs.token_bytes,
        max_position=config.max_position,
        free_memory_bytes=free_bytes,
        weight_bytes=costs.weight_bytes,
        max_draft_position=costs.draft.checkpoint.config.max_position if costs.draft is not None else 0,
        defaults=defaults,
    )
    return MemoryNeeds(
        config=msgspec.structs.replace(engine, num_ranks=start.num_ranks),
        vocab_size=config.vocab_size,
        weight_bytes=costs.weight_bytes,
        kv_cache_bytes=pool_bytes,
        rest_bytes=rest_bytes,
    )


if __name__ == "__main__":
    main()
