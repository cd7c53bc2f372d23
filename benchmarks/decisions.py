"""What 200 questions about one text of 1,000 tokens cost, beside the text alone and 200 decode rows after it.

`python -m benchmarks.decisions [MODEL]` runs an engine in this process. Seconds are those of all threads together, so
other programs disturb them less; each is the least of several rounds, which take turns.
"""

import argparse
import secrets
import time

from caravan.download.resolve import DEFAULT_MODEL, resolve_model
from caravan.model.sampling.sampling_params import SamplingParams
from caravan.offline.engine import LocalEngine
from caravan.offline.loading import load_model
from caravan.offline.settings import engine_settings
from caravan.scheduler.messages import Request
from caravan.server.generation.answer_codes import AnswerCodes, answer_codes, continued
from caravan.server.generation.text_model import TextModel
from caravan.server.openai.decisions import IS_TRUE
from caravan.server.openai.question import yes_or_no
from caravan.server.openai.question_reading import common_length

NUM_QUESTIONS, NUM_STATE_TOKENS, NUM_ROUNDS = 200, 1000, 3
SUBJECTS = ["parcel", "letter", "driver", "customer", "box", "invoice", "shop", "lorry", "table", "lamp"]
FACTS = ["late", "open", "angry", "lost", "paid", "broken", "empty", "red", "new", "wet"]


class Costs:
    """An engine whose work is measured, request by request."""

    def __init__(self, engine: LocalEngine, model: TextModel) -> None:
        self._engine = engine.engine
        self._model = model
        self._codes: AnswerCodes = answer_codes(model.tokenizer, model.chat_template)
        self._next = 10**9

    def seconds(self, requests: list[Request]) -> float:
        """Return the processor seconds of all steps for these requests, which are added at once."""
        start = time.process_time()
        for request in requests:
            self._engine.add(request)
        while self._engine.has_work:
            self._engine.step()
        return time.process_time() - start

    def request(self, token_ids: list[int], salt: str, **fields: int | tuple[int, ...]) -> Request:
        """Return a request; `fields` are those of SamplingParams, group and num_shared_tokens."""
        self._next += 1
        own = {name: fields.pop(name) for name in ("group", "num_shared_tokens") if name in fields}
        params = SamplingParams(seed=0, temperature=0, **({"max_tokens": 1} | fields))  # type: ignore[arg-type]
        return Request(request_id=self._next, prompt_token_ids=token_ids, params=params, cache_salt=salt, **own)  # type: ignore[arg-type]

    def state(self) -> list[int]:
        """Return a text of NUM_STATE_TOKENS tokens."""
        words = " ".join(f"The {SUBJECTS[i % 10]} of order {i} was {FACTS[i * 7 % 10]}." for i in range(400))
        return self._model.tokenizer.encode(words)[:NUM_STATE_TOKENS]

    def questions(self, salt: str) -> list[Request]:
        """Return the prompts of NUM_QUESTIONS questions, as /v1/decisions makes them."""
        state, codes = self.state(), self._codes
        own_ids = []
        for index in range(NUM_QUESTIONS):
            statement = f"The {SUBJECTS[index % 10]} {'is' if index < 100 else 'was'} {FACTS[index // 10 % 10]}."
            question = yes_or_no(codes, IS_TRUE + statement)
            own_ids.append([*continued(self._model.tokenizer, question.text), *codes.tail_ids])
        wanted = tuple(code.token_id for code in codes.yes_and_no)
        fields: dict[str, int | tuple[int, ...]] = {"max_tokens": 0, "logprob_token_ids": wanted, "group": 1}
        fields["num_shared_tokens"] = len(state) + common_length(own_ids)
        return [self.request([*state, *ids], salt, **fields) for ids in own_ids]

    def round(self) -> dict[str, float]:
        """Return the seconds of each kind of work, each with a prefix cache that has nothing of it."""
        state = self.state()
        salts = [secrets.token_hex(8) for _ in range(3)]
        found = {"prefill": self.seconds([self.request(state, salts[0])])}
        # 200 decode rows in full batches: sequences that share the text and decode one token each beside their first.
        first = [self.request([*state, index + 10], salts[0], max_tokens=1) for index in range(NUM_QUESTIONS)]
        more = [self.request([*state, index + 10], salts[0], max_tokens=5) for index in range(NUM_QUESTIONS)]
        found["200 decode rows, 64 at once"] = (self.seconds(more) - self.seconds(first)) / 4
        one = self.seconds([self.request([*state, 5], salts[0], max_tokens=1)])
        found["200 decode rows, one at once"] = (
            self.seconds([self.request([*state, 5], salts[0], max_tokens=41)]) - one
        ) * (NUM_QUESTIONS / 40)
        found["200 questions"] = self.seconds(self.questions(salts[1]))
        return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decisions", description=__doc__)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--num-threads", type=int, default=1, help="one spends no time waiting for others")
    arguments = parser.parse_args()
    path = resolve_model(arguments.model, print)
    options = {"model": str(path), "speculation": "off", "num_threads": arguments.num_threads}
    engine, model = load_model(engine_settings(options))
    try:
        costs = Costs(engine, model)
        requests = costs.questions("")
        num_own = sum(len(one.prompt_token_ids) - one.num_shared_tokens for one in requests)
        print(f"{num_own / NUM_QUESTIONS:.1f} tokens of its own for each question")
        rounds = [costs.round() for _ in range(NUM_ROUNDS)]
        least = {name: min(one[name] for one in rounds) for name in rounds[0]}
        for name, seconds in least.items():
            print(f"{seconds:8.3f} s  {name}")
        for kind in ("64", "one"):
            limit = least["prefill"] + least[f"200 decode rows, {kind} at once"]
            print(f"{least['200 questions'] / limit:8.2f}    times the prefill and 200 decode rows, {kind} at once")
    finally:
        engine.close()
        if model.chat_template is not None:
            model.chat_template.close()


if __name__ == "__main__":
    main()
