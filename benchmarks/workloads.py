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
            timeout_seconds=300.0,
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
