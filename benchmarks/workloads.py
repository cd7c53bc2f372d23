"""Workloads: the loads under which servers are compared."""

from dataclasses import dataclass

from caravan.cli.bench.lengths import parse_lengths
from caravan.cli.bench.run import BenchOptions


@dataclass(frozen=True)
class Workload:
    """Requests of fixed lengths, `concurrency` at a time. Prompts never repeat, except the shared prefix."""

    name: str
    concurrency: int
    requests: int
    prompt: int = 128
    output: int = 128
    shared_prefix: int = 0
    counts_prompts: bool = False  # the rate counts tokens of prompts, too, not only generated ones
    is_first_token: bool = False  # what is compared is the time to the first token, not the rate
    timeout_seconds: float = 300.0  # of a request

    def options(self, url: str, seed: int) -> BenchOptions:
        """Return it for `caravan bench`."""
        return BenchOptions(
            url=url,
            model=None,
            api_key=None,
            is_chat=False,
            is_stream=True,
            concurrency=(self.concurrency,),
            rate=None,
            trace=None,
            time_scale=1.0,
            prompt=parse_lengths(str(self.prompt)),
            output=parse_lengths(str(self.output)),
            shared_prefix_tokens=self.shared_prefix,
            max_requests=self.requests,
            max_seconds=None,
            timeout_seconds=self.timeout_seconds,
            max_first_token_seconds=None,
            max_between_tokens_seconds=None,
            temperature=0.0,
            seed=seed,
        )


WORKLOADS = (
    Workload("1 stream", 1, 6),
    Workload("8 streams", 8, 24),
    Workload("32 streams", 32, 64),
    Workload("1,024 in, 32 out, 4 streams", 4, 12, prompt=1024, output=32, counts_prompts=True),
    Workload("512 shared + 64 in, 64 out, 16 streams", 16, 48, 64, 64, shared_prefix=512, counts_prompts=True),
)

_LARGE_BYTES = 3e9  # files from here on get shorter streams
_FILE_TIMEOUT_SECONDS = 3600.0  # four long prompts of an 8B model take minutes on two cores


def file_workloads(file_bytes: int) -> tuple[Workload, ...]:
    """Return the loads under which servers of one large file are compared."""
    prompt, output = (64, 24) if file_bytes >= _LARGE_BYTES else (128, 64)
    lengths = f"{prompt} in, {output} out"
    timeout = _FILE_TIMEOUT_SECONDS
    return (
        Workload("1 stream, 128 in, 64 out", 1, 2, 128, 64, timeout_seconds=timeout),
        Workload(f"8 streams, {lengths}", 8, 16, prompt, output, timeout_seconds=timeout),
        Workload(f"32 streams, {lengths}", 32, 32, prompt, output, timeout_seconds=timeout),
        Workload("4 prompts of 512, 1 out", 4, 4, 512, 1, counts_prompts=True, timeout_seconds=timeout),
        Workload("first token of 512", 1, 3, 512, 1, is_first_token=True, timeout_seconds=timeout),
    )
