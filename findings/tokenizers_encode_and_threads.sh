#!/usr/bin/env bash
# tokenizers 0.23.1: `encode` keeps Python's interpreter lock for the whole text, `encode_batch` of the same text does not.
#
# Expected: a call into a compiled library that takes a second lets other threads run meanwhile, so that an asyncio server
#           may call `encode` by `asyncio.to_thread`; and `encode(text)` and `encode_batch([text])` differ in form only.
# Seen:     while `encode` works, no other thread gets a turn: the longest pause of a thread that sleeps for a millisecond at a
#           time is nearly the whole call. With `encode_batch([text])` the call takes as long, gives the same ids, and the
#           pause is a small part of it.
# So:       call `encode_batch([text])` from the thread, for one text too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.1
env/bin/python - <<'PYTHON'
import sys
import threading
import time

import tokenizers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
tokenizer.train_from_iterator(["a river flows to the sea", "clouds bring the rain back"] * 10, trainer)
TEXT = "川は静かに海へ流れる。" * 60_000


def longest_pause(work):
    """Return the longest pause of another thread during the call as a share of it, and the call's seconds."""
    has_ended = threading.Event()

    def call():
        work()
        has_ended.set()

    thread = threading.Thread(target=call)
    began = last = time.perf_counter()
    pause = 0.0
    thread.start()
    while not has_ended.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        pause, last = max(pause, now - last), now
    thread.join()
    return pause / (last - began), last - began


print("tokenizers", tokenizers.__version__)
assert tokenizer.encode(TEXT).ids == tokenizer.encode_batch([TEXT])[0].ids
alone, seconds = longest_pause(lambda: tokenizer.encode(TEXT))
print(f"encode:       {seconds:.2f} s, longest pause {alone:.0%} of it; expected a small part")
batch, seconds = longest_pause(lambda: tokenizer.encode_batch([TEXT]))
print(f"encode_batch: {seconds:.2f} s, longest pause {batch:.0%} of it")
sys.exit(not (alone > 0.7 and batch < 0.4) and "The behaviour has changed.")
PYTHON
