"""Draft tokens from earlier answers: who gets them, which ones, and how much is kept."""

import random
import tracemalloc

from caravan.model.sampling.sample import Sample
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.earlier_answers import MAX_OWNERS, SECTION_TOKENS, AnswerLookup, EarlierAnswers, OwnAnswers
from caravan.scheduler.messages import StepStats
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import make_request
from tests.support.engine_kinds import model_in
from tests.support.tiny_llama import Transcript, run_to_end, tiny_engine

ANSWER = [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]


def answers_with(*answers: list[int]) -> OwnAnswers:
    own = OwnAnswers()
    for answer in answers:
        own.add(answer)
    return own


def lookup_after(own: OwnAnswers, token_ids: list[int], num_prompt_tokens: int = 0) -> AnswerLookup:
    lookup = AnswerLookup(own, num_prompt_tokens)
    lookup.observe(token_ids)
    return lookup


def test_the_draft_is_what_followed_the_last_four_tokens_in_an_answer() -> None:
    text = [1, 2, 11, 12, 13, 14]
    assert lookup_after(answers_with(ANSWER), text).draft(text, 3) == (15, 16, 17)
    assert lookup_after(answers_with(ANSWER), [1, 2, 12, 13, 14]).acceptance == 0


def test_the_latest_answer_is_followed_and_a_draft_ends_with_it() -> None:
    own = answers_with(ANSWER, [*ANSWER[:5], 90, 91], ANSWER[:2])
    assert lookup_after(own, ANSWER[:5]).draft(ANSWER[:5], 8) == (90, 91)


def test_an_answer_without_a_token_after_the_match_gives_no_draft() -> None:
    lookup = lookup_after(answers_with(ANSWER), ANSWER)
    assert lookup.acceptance == 0


def test_a_lookup_follows_its_answer_and_learns_whether_it_was_right() -> None:
    own = answers_with([*range(100, 200)])
    right = lookup_after(own, [*range(100, 150)])
    assert right.next_acceptance > 0.95
    assert right.acceptance == right.next_acceptance
    assert right.draft([], 2) == (150, 151)
    wrong = lookup_after(own, [token for start in range(100, 190, 5) for token in (*range(start, start + 4), 7)])
    assert wrong.first_acceptance < 0.1
    assert wrong.acceptance == 0


def test_tokens_of_the_prompt_are_not_predicted() -> None:
    lookup = lookup_after(answers_with(ANSWER), ANSWER[:8], num_prompt_tokens=8)
    assert lookup.acceptance == 0
    assert lookup.first_acceptance == AnswerLookup(OwnAnswers(), 0).first_acceptance


def test_a_lookup_that_sees_its_text_piece_by_piece_finds_the_same() -> None:
    rng = random.Random(0)
    own = answers_with([rng.randrange(3) for _ in range(300)])
    text = [rng.randrange(3) for _ in range(200)]
    at_once, piecewise = lookup_after(own, text), AnswerLookup(own, 0)
    for end in range(0, 201, 7):
        piecewise.observe(text[:end])
    piecewise.observe(text)
    assert vars(piecewise) == vars(at_once)


def test_answers_are_kept_for_each_key_and_salt_by_itself() -> None:
    answers = EarlierAnswers()
    answers.of(make_request(1, [1], key="a")).add(ANSWER)
    assert answers.of(make_request(2, [2], key="a")).num_tokens == len(ANSWER) + 1
    assert answers.of(make_request(3, [1], key="b")).num_tokens == 0
    assert answers.of(make_request(4, [1], key="a", salt="mine")).num_tokens == 0


def test_the_memory_of_answers_is_bounded() -> None:
    answers = EarlierAnswers()
    rng = random.Random(0)
    texts = [[rng.randrange(100_000) for _ in range(length)] for length in (3000, 2 * SECTION_TOKENS)]
    tracemalloc.start()
    try:
        for number in range(MAX_OWNERS + 1):
            own = answers.of(make_request(number, [1], key=f"key {number}"))
            for text in texts:
                own.add(text)
                assert own.num_tokens <= 2 * SECTION_TOKENS
        num_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert num_bytes < MAX_OWNERS * 2 * SECTION_TOKENS * 250
    assert answers.of(make_request(0, [1], key="key 0")).num_tokens == 0
    assert answers.of(make_request(0, [1], key="key 2")).num_tokens > SECTION_TOKENS


def test_a_key_with_many_salts_drops_its_own_answers_also_for_running_sequences() -> None:
    answers = EarlierAnswers()
    answers.of(make_request(1, [1], key="a")).add(ANSWER)
    first = answers.of(make_request(2, [1], key="b", salt="0"))
    first.add(ANSWER)
    for number in range(1, MAX_OWNERS):
        answers.of(make_request(number, [1], key="b", salt=f"{number}")).add(ANSWER)
    assert answers.of(make_request(1, [1], key="a")).num_tokens
    assert first.num_tokens == 0


def test_the_oldest_answers_are_dropped_first() -> None:
    own = answers_with(ANSWER, [5] * SECTION_TOKENS)
    assert lookup_after(own, ANSWER[:5]).acceptance > 0
    own.add([6] * SECTION_TOKENS)
    assert lookup_after(own, ANSWER[:5]).acceptance == 0


def stats_of(scheduler: Scheduler, request_id: int, key: str, salt: str = "") -> list[StepStats]:
    """Return the steps of a request whose text has no repetition of its own, but always counts on."""
    scheduler.add(make_request(request_id, [100 + request_id, 200], key=key, salt=salt, max_tokens=30))
    stats = []
    while scheduler.has_work:
        plan = scheduler.schedule()
        texts = [[*s.sequence.token_ids, *s.draft_token_ids] for s in plan]
        samples = [
            Sample(text[end - 1] + 1)
            for s, text in zip(plan, texts, strict=True)
            for end in range(s.sequence.num_tokens, len(text) + 1)
            if s.num_logits
        ]
        stats.append(scheduler.commit(plan, StepResult(samples)).stats)
    return stats


def test_the_second_answer_of_a_key_takes_fewer_steps_and_those_of_others_do_not() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=64, max_model_len=64, speculation="on"))
    assert len(stats_of(scheduler, 1, "a")) == 30
    again = stats_of(scheduler, 2, "a")
    assert len(again) < 15
    assert sum(one.num_answer_accepted_tokens for one in again) == 30 - len(again)
    assert again[-1].draft_tokens_by_source()["text"] == (0, 0)
    assert len(stats_of(scheduler, 3, "b")) == 30
    assert len(stats_of(scheduler, 4, "a", salt="mine")) == 30


def test_an_aborted_answer_is_kept_and_a_preempted_one_is_not_kept_twice() -> None:
    scheduler = Scheduler(EngineConfig(num_blocks=64, max_model_len=64, speculation="on"))
    scheduler.add(make_request(1, [1, 2], key="a", max_tokens=30))
    for _ in range(20):
        plan = scheduler.schedule()
        scheduler.commit(
            plan, StepResult([Sample(len(s.sequence.token_ids)) for s in plan for _ in range(s.num_logits)])
        )
    scheduler.abort(1)
    assert scheduler.draft_tokens is not None
    own = scheduler.draft_tokens._answers.of(make_request(2, [1], key="a"))
    assert own.num_tokens >= 20


def test_bits_are_equal_when_earlier_answers_are_followed() -> None:
    prompts = [[3, 4, 5], [3, 4, 5], [9, 8, 7], [3, 4, 5]]
    requests = [
        make_request(index, prompt, max_tokens=40, num_logprobs=2, temperature=0.3 * (index % 2), seed=7)
        for index, prompt in enumerate(prompts)
    ]

    def run(engine_requests: list[int], speculation: str) -> tuple[dict[int, Transcript], int]:
        engine = tiny_engine(model_in("none"), block_size=16, speculation=speculation)
        transcripts: dict[int, Transcript] = {}
        stats: list[StepStats] = []
        for index in engine_requests:  # one after another
            transcripts |= run_to_end(engine, [requests[index]], on_step=lambda step: stats.append(step.stats))
        return transcripts, sum(one.num_answer_accepted_tokens for one in stats)

    plain, _ = run([0, 1, 2, 3], "off")
    followed, num_accepted = run([0, 1, 2, 3], "on")
    assert followed == plain
    assert num_accepted > 0
