"""Rows of the dashboard about the server: its scheduler, its KV pool, its health, its processes."""

from docker.grafana.panels import PROCESS, SERIES, TOKENS_PER_SECOND, Panel, increase, lines, quantiles, rate, total


def engine_rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows about the scheduler and the KV pool."""
    return [
        (
            "Scheduler",
            [
                lines(
                    "Sequences",
                    "In the batch and in the queue.",
                    "short",
                    {"running": total("num_requests_running"), "wait": total("num_requests_waiting")},
                ),
                quantiles(
                    "Tokens per step",
                    "One token for each decoding sequence, and parts of prompts, up to --max-batch-tokens.",
                    "iteration_tokens",
                    unit="short",
                ),
                lines(
                    "Preemptions",
                    "Sequences that lost their blocks to others and are computed again. Many mean that the KV pool is "
                    "too small for --max-num-seqs.",
                    "cps",
                    {"preemptions": rate("num_preemptions")},
                ),
            ],
        ),
        (
            "KV pool",
            [
                lines(
                    "Blocks",
                    "Cached blocks are free, but hold prefixes that another request can use.",
                    "short",
                    {"{{state}}": total("kv_cache_blocks", "state")},
                    is_stacked=True,
                ),
                lines(
                    "Fraction in use",
                    "The fullest pool. The alert CaravanKVPoolFull fires above 95 %.",
                    "percentunit",
                    {"in use": f"max(caravan_kv_cache_usage_perc{SERIES})"},
                    most=1,
                    limits=[(0.95, "red")],
                ),
                lines(
                    "Prefix cache hit rate",
                    "Share of the prompt tokens that were found in the cache and not computed.",
                    "percentunit",
                    {"found": f"{rate('prefix_cache_hits')} / {rate('prefix_cache_queries')}"},
                    most=1,
                ),
                lines(
                    "Prefix cache misses, in tokens",
                    "By the reason of the first token that was not found. evicted: the pool is too small for what "
                    "comes back. differs: the beginning of the prompt changes from request to request.",
                    TOKENS_PER_SECOND,
                    {"{{reason}}": rate("prefix_cache_misses", "reason")},
                    is_stacked=True,
                ),
            ],
        ),
    ]


def server_rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows about health, versions and processes."""
    return [
        (
            "Health",
            [
                lines(
                    "Ready",
                    "1 while a server accepts requests, as /readyz.",
                    "short",
                    {"{{instance}}": f"min by (instance) (caravan_ready{SERIES})"},
                    most=1,
                ),
                lines(
                    "Engine restarts and resumed sequences",
                    "A restarted engine resumes what was running. The log says why the one before ended.",
                    "short",
                    {"restarts": increase("engine_restarts"), "requests replayed": increase("requests_replayed")},
                ),
                lines(
                    "Engine downtime",
                    "Time without an engine. --standby makes it a fraction of a second.",
                    "s",
                    {"down": increase("engine_down_seconds")},
                ),
                lines(
                    "Versions",
                    "Servers by version, model and quantization.",
                    "short",
                    {
                        "{{version}} {{model_name}} {{quantization}}": "count by (version, model_name, quantization) "
                        f"(caravan_build_info{SERIES})"
                    },
                    is_stacked=True,
                ),
            ],
        ),
        (
            "Processes",
            [
                lines(
                    "Memory",
                    "The engine has the weights and the KV pool, of which a block is resident from its first use on.",
                    "bytes",
                    {
                        "API {{instance}}": f"process_resident_memory_bytes{PROCESS}",
                        "engine {{instance}}": f"caravan_engine_resident_memory_bytes{SERIES}",
                    },
                ),
                lines(
                    "CPU",
                    "1 is one core. An API process near 1 limits the server: then add another one.",
                    "short",
                    {
                        "API {{instance}}": f"rate(process_cpu_seconds_total{PROCESS}[$__rate_interval])",
                        "engine {{instance}}": f"rate(caravan_engine_cpu_seconds_total{SERIES}[$__rate_interval])",
                    },
                ),
                lines(
                    "Open file descriptors",
                    "Of the API process; each connection has one.",
                    "short",
                    {"{{instance}}": f"process_open_fds{PROCESS}"},
                ),
            ],
        ),
    ]
