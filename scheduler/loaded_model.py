"""LoadedModel: a model in memory, before there is a KV pool for it."""

import functools
import gc
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import torch

from caravan.model.backend import Backend, choose_backend, choose_device
from caravan.model.checkpoint.checkpoint import num_parameters
from caravan.model.cpu.weights_cache import WeightsCache
from caravan.model.kv_cache import choose_kv_dtype, kv_bytes_per_token
from caravan.model.llama import Llama
from caravan.model.loader import load_model, open_checkpoint
from caravan.model.spill_header import SpillKey
from caravan.model.tokenizer.grammar_tokenizer import grammar_tokenizer
from caravan.model.tokenizer.loader import load_tokenizer
from caravan.model.weights_files import weights_files, weights_folder
from caravan.model.weights_header import WeightsKey
from caravan.scheduler.config import EngineConfig, Shortage
from caravan.scheduler.draft_loading import LoadedDraft, load_draft, open_draft
from caravan.scheduler.draft_model import DraftModel
from caravan.scheduler.engine import Engine
from caravan.scheduler.engine_plan import CPU_DEFAULTS, GPU_DEFAULTS, choose_max_model_len, plan_engine
from caravan.scheduler.fingerprint import fingerprint
from caravan.scheduler.grammar import Grammars
from caravan.scheduler.memory import free_gpu_memory_bytes, free_memory_bytes, give_back_freed_memory, gpu_step_bytes
from caravan.scheduler.memory_shortage import explained_shortage
from caravan.scheduler.messages import EngineReady, StartEngine
from caravan.scheduler.profile import Profile
from caravan.scheduler.resident_adapters import ResidentAdapters, check_adapter_device, resident_adapters
from caravan.scheduler.speculation import MAX_ROWS
from caravan.scheduler.spill_plan import check_spill_device

if TYPE_CHECKING:  # most models have one rank
    from caravan.model.exchange import Exchange
    from caravan.model.share import Share
    from caravan.scheduler.ranks import Ranks


@dataclass(frozen=True)
class RankPlace:
    """The place of this process among the ranks of a model."""

    share: "Share"
    exchange: "Exchange"


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model, and what an engine needs to know about it."""

    start: StartEngine
    device: torch.device
    backend: Backend
    kv_dtype: torch.dtype
    model: Llama
    cache: WeightsCache
    weights_key: WeightsKey | None  # None: its files cannot be examined
    spill_key: SpillKey | None  # None: there is no spill file
    draft: LoadedDraft | None
    num_parameters: int
    file_type: str  # of the weights in the files
    adapter: str  # merged into the weights, for people
    adapters: ResidentAdapters | None  # that requests can name
    load_seconds: float
    ranks: "Ranks | None" = None  # the others, in the first rank of several

    def make_engine(self) -> tuple[Engine, EngineReady, Profile | None]:
        """Return an engine with its KV pool, the message about it, and a profile if the start message asks for one.

        Raises ValueError if the limits do not fit into the free memory.
        """
        model, draft, is_cpu = self.model, self.draft, self.device.type == "cpu"
        others = self.ranks.reports if self.ranks is not None else []
        weight_bytes = sum(weight.nbytes for weight in model.parameters()) + sum(one.weight_bytes for one in others)
        mapped_bytes = self.cache.mapped_bytes + sum(one.mapped_bytes for one in others if one.free_bytes is None)
        free_bytes = free_memory_bytes(mapped_bytes=mapped_bytes) if is_cpu else free_gpu_memory_bytes(self.device)
        unshared_bytes = max(0, weight_bytes - mapped_bytes)  # a standby has these again
        if self.adapters is not None:
            free_bytes -= self.adapters.max_bytes
        token_bytes = kv_bytes_per_token(model.config, self.kv_dtype) + (draft.kv_bytes_per_token if draft else 0)
        if self.ranks is not None:
            from caravan.scheduler.rank_memory import rank_token_bytes, usable_bytes  # here: most models have one rank

            draft_bytes = draft.kv_bytes_per_token if draft else 0
            by_rank = rank_token_bytes(model.config, self.kv_dtype, self.start.num_ranks, draft_bytes)
            token_bytes, free_bytes = sum(by_rank), usable_bytes(self.ranks.hosts(free_bytes), by_rank)
        config = plan_engine(
            self.start.limits,
            kv_bytes_per_token=token_bytes,
            max_position=model.config.max_position,
            free_memory_bytes=free_bytes,
            weight_bytes=unshared_bytes + (draft.weight_bytes if draft else 0),
            max_draft_position=draft.model.config.max_position if draft else 0,
            defaults=CPU_DEFAULTS if is_cpu else GPU_DEFAULTS,
            step_bytes=None
            if is_cpu
            else functools.partial(gpu_step_bytes, model.config, draft.model.config if draft else None),
        )
        if self.ranks is not None:
            config = msgspec.structs.replace(config, num_ranks=self.ranks.num_ranks)
        profile = Profile(model, sys.stderr.write) if self.start.is_profiled else None
        model_path = Path(self.start.model_path)
        grammars = Grammars(
            lambda: grammar_tokenizer(load_tokenizer(model_path).resized(model.config.vocab_size)),
            torch.get_num_threads(),
        )
        with explained_shortage("the KV pool and the tensors of a step"):
            draft_model = DraftModel(draft.model, config, draft.kv_dtype, self.device) if draft else None
            engine = self._make_engine(config, profile, grammars, draft_model)
        engine.adapters = engine.scheduler.adapters = self.adapters
        if self.spill_key is not None:
            from caravan.scheduler.spill_start import attach_spill  # here: most engines have none

            attach_spill(engine, self.start, self.spill_key)
        weights = self.backend.text
        ready = EngineReady(
            config=config,
            vocab_size=model.config.vocab_size,
            num_parameters=self.num_parameters,
            weight_bytes=weight_bytes,
            kv_cache_bytes=sum(kv_cache.num_bytes for kv_cache in engine.kv_caches)
            + (self.ranks.pool_bytes() if self.ranks is not None else 0),
            kv_cache_dtype=str(self.kv_dtype).removeprefix("torch."),
            weights=weights if is_cpu else f"{weights}, on {torch.cuda.get_device_name(self.device)}",
            load_seconds=self.load_seconds,
            file_type=self.file_type,
            draft_model=draft.text if draft else "",
            adapter=self.adapter,
            fingerprint=self._fingerprint(config.max_model_len),
        )
        return engine, ready, profile

    def _fingerprint(self, max_model_len: int) -> str:
        """Return the fingerprint of the engine, empty if it is not known which files the weights are from."""
        if self.weights_key is None:
            return ""
        is_cpu = self.device.type == "cpu"
        return fingerprint(
            self.weights_key,
            self.model,
            self.kv_dtype,
            max_model_len=max_model_len,
            backend=self.backend.text,
            device="" if is_cpu else f"{torch.cuda.get_device_name(self.device)}, CUDA {torch.version.cuda}",
        )

    def _make_engine(
        self, config: EngineConfig, profile: Profile | None, grammars: Grammars, draft_model: DraftModel | None
    ) -> Engine:
        """Return the engine for the device: on a GPU its steps overlap, and those that can be graphs are recorded."""
        if self.ranks is not None:
            from caravan.scheduler.ranked_engine import RankedEngine
            from caravan.scheduler.ranked_model import RankedModel

            ranked = RankedModel(self.model, self.ranks)
            return RankedEngine(ranked, config, self.kv_dtype, self.device, profile, grammars, draft_model)
        if self.device.type == "cpu":
            return Engine(self.model, config, self.kv_dtype, self.device, profile, grammars, draft_model)
        # Imported late: an engine on a CPU starts without them, and Triton is needed for the kernels alone.
        from caravan.scheduler.overlapped_engine import OverlappedEngine
        from caravan.scheduler.sampling_launch import HostSampler, LaunchedSampler
        from caravan.scheduler.step_graph import cuda_graph_capture, without_graph

        sampler: LaunchedSampler = HostSampler()
        if self.model.can_be_graph:
            from caravan.model.cuda.sampler import CudaSampler

            num_rows = max(config.max_num_seqs, MAX_ROWS)  # a sequence with draft tokens has several
            sampler = CudaSampler(num_rows, self.model.config.vocab_size, self.device)
        engine = OverlappedEngine(
            self.model,
            config,
            self.kv_dtype,
            self.device,
            sampler,
            profile=profile,
            grammars=grammars,
            draft_model=draft_model,
            capture=cuda_graph_capture() if self.model.can_be_graph else without_graph,
        )
        if self.model.can_be_graph:
            engine.warm_up()
        gc.collect()
        gc.freeze()  # else the garbage collector passes over all modules now and then, for as long as ten steps
        return engine


def load(start: StartEngine, *, must_fit: bool = False, place: RankPlace | None = None) -> LoadedModel:
    """Return the model of a start message, or the part of a place among several ranks; the first starts the others.

    Raises ValueError (a broken or unsupported model, limits that it cannot have; with `must_fit` also weights for which
    there is not enough free memory, unless they are in the cache), OSError, MemoryError.
    """
    if start.num_ranks > 1 and place is None:
        from caravan.scheduler.ranked_loading import load_ranked  # here: most models have one rank

        return load_ranked(start)
    started = time.monotonic()
    cache = WeightsCache(start.weights_cache_bytes)  # before a file of the model is opened: it notices later changes
    if start.num_threads:
        torch.set_num_threads(start.num_threads)
    device = choose_device(start.device)
    check_spill_device(start, device)
    check_adapter_device(start, device)
    adapter_path = Path(start.merge_lora_path) if start.merge_lora_path else None
    checkpoint = open_checkpoint(Path(start.model_path), adapter_path)
    if place is not None:
        place.share.check(checkpoint.config)
    draft_checkpoint = open_draft(Path(start.draft_model_path), checkpoint) if start.draft_model_path else None
    max_model_len = choose_max_model_len(start.limits, checkpoint.config.max_position)
    choose = functools.partial(
        choose_backend,
        dtype=start.dtype,
        quantization=start.quantization,
        block_size=start.limits.block_size,
        is_gpu=device.type == "cuda",
        fast_matmul=start.fast_matmul,
    )
    backend = choose(checkpoint)
    draft_backend = choose(draft_checkpoint) if draft_checkpoint is not None else None
    if must_fit:
        is_shared = start.weights_cache_bytes > 0 and adapter_path is None and are_packed(Path(start.model_path))
        unshared_bytes = 0 if is_shared else backend.weight_bytes
        check_weights_fit(unshared_bytes + (draft_backend.weight_bytes if draft_backend is not None else 0), device)
    kv_dtype = choose_kv_dtype(start.kv_cache_dtype, backend.dtype)
    draft: LoadedDraft | None = None
    with explained_shortage("the weights"):
        share, exchange = (None, None) if place is None else (place.share, place.exchange)
        model = load_model(
            checkpoint, backend.dtype, device, max_model_len, backend.make_model, cache, share=share, exchange=exchange
        )
        if draft_checkpoint is not None and draft_backend is not None:
            draft = load_draft(draft_checkpoint, draft_backend, start, max_model_len, device)
    spill_key: SpillKey | None = None
    if start.kv_spill_bytes:
        from caravan.scheduler.spill_key import unchanged_spill_key

        spill_key = unchanged_spill_key(
            cache.opened_ns, checkpoint, model, backend.dtype, kv_dtype, start.limits.block_size, max_model_len
        )
    give_back_freed_memory()
    return LoadedModel(
        start=start,
        device=device,
        backend=backend,
        kv_dtype=kv_dtype,
        model=model,
        cache=cache,
        weights_key=cache.key_of(model, checkpoint, backend.dtype),
        spill_key=spill_key,
        draft=draft,
        num_parameters=num_parameters(checkpoint),
        file_type=checkpoint.file_type,
        adapter="" if checkpoint.merged is None else checkpoint.merged.text,
        adapters=resident_adapters(start, model.make_adapters, checkpoint),
        load_seconds=time.monotonic() - started,
    )


def are_packed(model_path: Path) -> bool:
    """Return whether the cache has packed weights of a model, which other engines probably have in memory."""
    try:
        headers = [file.header for file in weights_files(weights_folder(os.environ))]
    except OSError:  # a user without a home folder
        return False
    return any(header is not None and header.model_path == str(model_path.resolve()) for header in headers)


def check_weights_fit(weight_bytes: int, device: torch.device) -> None:
    """Raise Shortage, a ValueError, if there is not enough free memory for weights."""
    free_bytes = free_memory_bytes() if device.type == "cpu" else free_gpu_memory_bytes(device)
    if weight_bytes > free_bytes:
        raise Shortage(
            f"The weights take {weight_bytes:,} bytes, but only {free_bytes:,} are free. Lower --kv-cache-memory."
        )


def start_engine(start: StartEngine) -> tuple[Engine, EngineReady, Profile | None]:
    """Return the engine of a start message; see `load` and `LoadedModel.make_engine`."""
    loaded = load(start)
    try:
        return loaded.make_engine()
    except BaseException:
        if loaded.ranks is not None:
            loaded.ranks.close()
        raise
