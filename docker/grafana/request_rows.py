"""Rows of the dashboard about requests: their time, their lengths and ends, their keys."""

from docker.grafana.panels import TOKENS_PER_SECOND, Panel, heat_map, lines, quantiles, rate


def time_rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows about where the time goes."""
    return [
        (
            "Latency",
            [
                quantiles(
                    "End to end", "Time from the arrival of a request to its last token.", "e2e_request_latency_seconds"
                ),
                quantiles(
                    "Time to first token",
                    "Queue and prefill together. The alert CaravanFirstTokenSlow looks at p99.",
                    "time_to_first_token_seconds",
                    limits=[(10, "red")],
                ),
                quantiles(
                    "Time between tokens",
                    "What a reader of a stream notices. Long prompts of others are the usual cause of a high p99: "
                    "--max-inter-token-latency limits it.",
                    "inter_token_latency_seconds",
                ),
            ],
        ),
        (
            "Time by phase",
            [
                quantiles(
                    "Queue",
                    "Time until a sequence joins the batch. If it grows, add a server or limit it with --max-wait.",
                    "request_queue_time_seconds",
                ),
                quantiles(
                    "Prefill",
                    "Time to compute the prompt. It grows with long prompts and with their number in the batch.",
                    "request_prefill_time_seconds",
                ),
                quantiles("Decode", "Time from the first to the last token.", "request_decode_time_seconds"),
            ],
        ),
        (
            "Throughput",
            [
                lines(
                    "Tokens",
                    "Prompt tokens count when the first token of a request is generated.",
                    TOKENS_PER_SECOND,
                    {"prompt": rate("prompt_tokens"), "generated": rate("generation_tokens")},
                ),
                lines(
                    "HTTP responses",
                    "By route and status. 429: refused; 499: the client left; 503: no engine, or shutdown.",
                    "reqps",
                    {"{{route}} {{status}}": rate("http_requests", "route, status")},
                ),
            ],
        ),
    ]


def request_rows() -> list[tuple[str, list[Panel]]]:
    """Return the rows about lengths, ends, refusals and keys."""
    return [
        (
            "Request lengths",
            [
                heat_map("Prompt tokens", "How many requests had prompts of each length.", "request_prompt_tokens"),
                heat_map(
                    "Generated tokens", "How many requests had answers of each length.", "request_generation_tokens"
                ),
                heat_map(
                    "max_tokens",
                    "What clients allow. Far more than they use makes the forecast of the queue less certain.",
                    "request_params_max_tokens",
                ),
            ],
        ),
        (
            "Finished sequences",
            [
                lines(
                    "Finish reasons",
                    "length: cut off at max_tokens. abort: the client left or its deadline passed.",
                    "cps",
                    {
                        "{{finished_reason}}": rate("request_success", "finished_reason"),
                        "incomplete: {{finished_reason}}": rate("request_incomplete", "finished_reason"),
                    },
                    is_stacked=True,
                ),
                lines(
                    "Draft token acceptance rate",
                    "Share of the draft tokens that were right. Speculation stops by itself where it does not pay.",
                    "percentunit",
                    {"right": f"{rate('spec_decode_num_accepted_tokens')} / {rate('spec_decode_num_draft_tokens')}"},
                    most=1,
                ),
            ],
        ),
        (
            "Admission",
            [
                lines(
                    "Rejected requests",
                    "Status 429 by reason. queue_full and queue_tokens: the queue is at its limit; wait and deadline: "
                    "the forecast was too long.",
                    "cps",
                    {"{{reason}}": rate("admission_rejections", "reason")},
                    is_stacked=True,
                ),
                quantiles(
                    "Predicted minus actual wait",
                    "Near zero is good. Above zero, requests are refused that would have been served in time.",
                    "admission_wait_error_seconds",
                    (0.1, 0.5, 0.9),
                    least=None,
                ),
            ],
        ),
        (
            "API keys",
            [
                lines(
                    "Requests by key",
                    "Empty where the server has no keys.",
                    "reqps",
                    {"{{key}}": rate("key_requests", "key")},
                ),
                lines(
                    "Prompt tokens by key",
                    "Found in the cache or not.",
                    TOKENS_PER_SECOND,
                    {"{{key}}": rate("key_prompt_tokens", "key")},
                    is_stacked=True,
                ),
                lines(
                    "Generated tokens by key",
                    "Under load the keys share the engine by tokens: the next request is from the key with the fewest.",
                    TOKENS_PER_SECOND,
                    {"{{key}}": rate("key_generation_tokens", "key")},
                    is_stacked=True,
                ),
            ],
        ),
    ]
