"""The worker process of the grammar check: it compiles grammars and does nothing else.

Run by path, with three arguments: the processor time limit per line in seconds, the memory limit in bytes, and the
niceness of the process (see nice(2)). Each line of standard input is {"grammar": ...}; the reply is {} or
{"failed": why}. An untrusted grammar may take any time and memory: SIGPROF ends the process at the time limit, and exit
status 77 means that memory ran out.
"""

import json
import os
import resource
import signal
import sys

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper


class Bytes:
    """A vocabulary of all bytes and an end token: a verdict does not depend on the model's vocabulary."""

    eos_token_id = 256
    bos_token_id = None
    special_token_ids = (256,)
    tokens = (*(bytes([byte]) for byte in range(256)), b"</s>")

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the tokens of a text."""
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Reply to lines until standard input ends."""
    time_limit_seconds, memory_limit_bytes = float(sys.argv[1]), int(sys.argv[2])
    os.nice(int(sys.argv[3]))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # service managers send it to all processes; the server ends this one
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
    tokenizer = LLTokenizer(TokenizerWrapper(Bytes()), slices=[])
    for line in sys.stdin.buffer:
        # It counts processor time, so load does not matter. There is no handler: the kernel ends this process.
        signal.setitimer(signal.ITIMER_PROF, time_limit_seconds)
        try:
            reply = _check(tokenizer, json.loads(line)["grammar"])
        except MemoryError:
            os._exit(77)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        sys.stdout.buffer.flush()


def _check(tokenizer: LLTokenizer, grammar: str) -> dict[str, str]:
    limits = LLParserLimits(verbose_errors=False)
    is_error, messages = LLMatcher.validate_grammar_with_warnings(grammar, tokenizer, limits=limits)
    if messages:  # a warning means that something is ignored
        return {"failed": messages[0]}
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    if not is_error and not matcher.is_error():
        allowed = matcher.compute_bitmask()
        if not matcher.is_error() and any(allowed):
            return {}
    return {"failed": matcher.get_error() or "it matches no text"}


if __name__ == "__main__":
    main()
