"""Why a prefix was not found: each reason through the scheduler, and all of them beside an oracle without limits."""

from collections.abc import Sequence

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from typing_extensions import override

from caravan.scheduler import prefix_history
from caravan.scheduler.block_manager import BlockManager
from caravan.scheduler.block_pool import BlockPool, hash_block, root_hash
from caravan.scheduler.messages import PrefixMiss, Request
from caravan.scheduler.prefix_history import BlockMiss, PrefixHistory
from caravan.scheduler.scheduler import Scheduler
from caravan.scheduler.smaller_pool import shrink_pool
from tests.scheduler.requests import FakeClock, make_request
from tests.support.scheduler_steps import make_scheduler, step

PROMPT = [*range(10, 21)]  # two blocks of 4 and a rest of 3
STEP_SECONDS = 0.5


def misses_of(scheduler: Scheduler, *requests: Request) -> list[PrefixMiss]:
    """Run requests to their ends, one after the other, and return why no more of each was found when it joined."""
    misses: list[PrefixMiss] = []
    for request in requests:
        scheduler.add(request)
        while scheduler.has_work:
            _, output = step(scheduler)
            misses += [one.miss for one in output.events if one.miss is not None]
            advance(scheduler, STEP_SECONDS)
    return misses


def advance(scheduler: Scheduler, seconds: float) -> None:
    assert isinstance(scheduler.clock, FakeClock)
    scheduler.clock.seconds += seconds


def test_a_prompt_that_nobody_sent_is_not_seen_since_the_engine_started() -> None:
    scheduler = make_scheduler()
    advance(scheduler, 7.0)
    assert misses_of(scheduler, make_request(1, PROMPT)) == [PrefixMiss("not seen", 0, 7.0, 11)]


def test_a_prompt_that_was_found_ends_with_tokens_too_few_for_a_block() -> None:
    scheduler = make_scheduler()
    _, again, short = misses_of(scheduler, *(make_request(i, PROMPT[:n]) for i, n in enumerate((11, 11, 3))))
    assert again == PrefixMiss("too short", 8, None, 3)
    assert short == PrefixMiss("too short", 0, None, 3)


def test_a_prompt_that_differs_names_the_token_and_the_age_of_the_block() -> None:
    scheduler = make_scheduler()
    other = [*PROMPT[:6], 99, *PROMPT[7:]]
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    advance(scheduler, 3.0 - STEP_SECONDS)
    assert misses_of(scheduler, make_request(2, other)) == [PrefixMiss("differs", 6, 3.0, 7)]


def test_a_continued_text_that_differs_at_the_start_of_a_block_says_so() -> None:
    scheduler = make_scheduler()
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    assert misses_of(scheduler, make_request(2, [*PROMPT[:4], 1, 2, 3, 4, 5])) == [PrefixMiss("differs", 4, 0.5, 5)]


def test_a_text_that_goes_on_where_the_cached_one_ended_is_not_seen_from_there() -> None:
    scheduler = make_scheduler()
    misses_of(scheduler, make_request(1, PROMPT[:9], max_tokens=1))
    assert misses_of(scheduler, make_request(2, [*PROMPT, 1, 2])) == [PrefixMiss("not seen", 8, 0.5, 5)]


def test_first_blocks_with_less_than_their_half_in_common_are_not_compared() -> None:
    scheduler = make_scheduler()
    prompts = [PROMPT, [PROMPT[0], 1, 2, 3, 4], [PROMPT[0], PROMPT[1], 2, 3, 4]]
    _, one, two = misses_of(scheduler, *(make_request(i, prompt, max_tokens=1) for i, prompt in enumerate(prompts)))
    assert (one.reason, one.token) == ("not seen", 0)
    assert (two.reason, two.token) == ("differs", 2)


def test_the_nearest_of_several_blocks_is_named_and_of_equally_near_ones_the_latest() -> None:
    scheduler = make_scheduler(num_blocks=32)
    ends = [(12, 1), (12, 13), (1, 1), (12, 2)]
    prompts = [[10, 11, *end, 5] for end in ends]
    *_, last = misses_of(scheduler, *(make_request(i, prompt, max_tokens=1) for i, prompt in enumerate(prompts)))
    assert last == PrefixMiss("differs", 3, 2 * STEP_SECONDS, 5)


def test_an_evicted_prefix_is_named_with_the_time_since() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    misses_of(scheduler, make_request(2, [*range(30, 44)], max_tokens=1))  # takes all four blocks
    advance(scheduler, 2.0 - STEP_SECONDS)
    assert misses_of(scheduler, make_request(3, PROMPT)) == [PrefixMiss("evicted", 0, 2.0, 11)]


def test_a_partly_evicted_prefix_is_evicted_from_its_first_missing_block() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    misses_of(scheduler, make_request(1, [*PROMPT, 1, 2], max_tokens=1))  # three full blocks and one token
    misses_of(scheduler, make_request(2, [50, 51, 52, 53, 54], max_tokens=1))
    (miss,) = misses_of(scheduler, make_request(3, [*PROMPT, 1, 2], max_tokens=1))
    assert (miss.reason, miss.token, miss.num_tokens) == ("evicted", 8, 5)


def test_a_prefix_of_another_salt_is_of_another_key_until_this_one_has_it_too() -> None:
    scheduler = make_scheduler()
    requests = [make_request(i, PROMPT, salt=salt, max_tokens=1) for i, salt in enumerate(("a", "b", "b"))]
    reasons = [miss.reason for miss in misses_of(scheduler, *requests)]
    assert reasons == ["not seen", "other key", "too short"]


def test_a_text_in_the_middle_of_another_key_s_prompt_is_not_seen() -> None:
    scheduler = make_scheduler()
    misses_of(scheduler, make_request(1, PROMPT, salt="a", max_tokens=1))
    (miss,) = misses_of(scheduler, make_request(2, PROMPT[4:], salt="b", max_tokens=1))
    assert miss.reason == "not seen"


def test_a_prompt_whose_positions_are_scored_is_computed_though_it_is_cached() -> None:
    scheduler = make_scheduler()
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    assert misses_of(scheduler, make_request(2, PROMPT, num_prompt_logprobs=1, max_tokens=1)) == [
        PrefixMiss("scored", 0, None, 11)
    ]


def test_the_tokens_of_all_reasons_are_those_looked_up_and_not_found() -> None:
    scheduler = make_scheduler()
    num_missing = num_queries = num_hits = 0
    for request_id, length in enumerate((11, 11, 3, 9, 5)):
        scheduler.add(make_request(request_id, PROMPT[:length]))
    while scheduler.has_work:
        _, output = step(scheduler)
        num_missing += sum(one.miss.num_tokens for one in output.events if one.miss is not None)
        num_queries += output.stats.prefix_cache_queries
        num_hits += output.stats.prefix_cache_hits
    assert num_hits > 0
    assert num_missing == num_queries - num_hits


def test_blocks_of_a_smaller_pool_count_as_evicted() -> None:
    scheduler = make_scheduler(num_blocks=32)
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    shrink_pool(scheduler, [])
    assert misses_of(scheduler, make_request(2, PROMPT, max_tokens=1)) == [PrefixMiss("evicted", 0, 0.0, 11)]


def test_a_new_engine_says_for_how_long_it_knows() -> None:
    scheduler = make_scheduler()
    misses_of(scheduler, make_request(1, PROMPT))
    replacement = make_scheduler()  # the first one has crashed
    advance(replacement, 0.25)
    (miss,) = misses_of(replacement, make_request(1, PROMPT, output=[1, 1]))
    assert miss == PrefixMiss("not seen", 0, 0.25, 13)


def test_a_block_that_was_cached_before_is_not_recorded_again() -> None:
    clock = FakeClock()
    pool = BlockPool(8, clock)
    blocks = BlockManager(pool, 4)
    scheduler = make_scheduler(max_batch_tokens=32)
    scheduler.pool, scheduler.blocks = pool, blocks
    second = hash_block(hash_block(root_hash(""), PROMPT[:4]), PROMPT[4:8])
    pool.cache_block(pool.allocate(1)[0], second)  # by a sequence whose first block is gone
    misses_of(scheduler, make_request(1, PROMPT, max_tokens=1))
    other = misses_of(scheduler, make_request(2, [*PROMPT[:5], 1, 2, 3, 4], max_tokens=1))
    assert other == [PrefixMiss("not seen", 4, 0.0, 5)]  # nothing was recorded of the second block
    assert misses_of(scheduler, make_request(3, [*PROMPT[:3], 1, 2], max_tokens=1))[0].reason == "differs"


class CheckedHistory(PrefixHistory):
    """A history beside an oracle that forgets nothing; each of its answers is compared."""

    def __init__(self, num_blocks: int, clock: FakeClock) -> None:
        super().__init__(num_blocks, clock)
        self.clock = clock
        self.reasons: set[str] = set()
        self.cached: list[tuple[float, bytes, tuple[int, ...], bool]] = []  # when, parent, tokens, is first
        self.removed_at: dict[bytes, float] = {}
        self.live: set[bytes] = set()
        self.num_removed = 0

    @override
    def add(self, parents: Sequence[bytes], token_ids: Sequence[int], *, has_first: bool) -> None:
        super().add(parents, token_ids, has_first=has_first)
        size = len(token_ids) // len(parents)
        for index, parent in enumerate(parents):
            content = tuple(token_ids[index * size : (index + 1) * size])
            self.cached.append((self.clock(), parent, content, has_first and not index))
            self.live.add(hash_block(parent, content))

    @override
    def remove(self, block_hashes: Sequence[bytes]) -> None:
        super().remove(block_hashes)
        for block_hash in block_hashes:
            self.live.remove(block_hash)
            self.removed_at[block_hash] = self.clock()
            self.num_removed += 1

    @override
    def explain(self, parent: bytes, block_hash: bytes, token_ids: Sequence[int], *, is_first: bool) -> BlockMiss:
        miss = super().explain(parent, block_hash, token_ids, is_first=is_first)
        self.reasons.add(miss.reason)
        content, at = tuple(token_ids), self.clock() - miss.seconds
        assert block_hash not in self.live
        similar = [(num_equal(tokens, content), when) for when, p, tokens, _ in self.cached if p == parent]
        similar = [one for one in similar if one[0] < len(content) and (not is_first or 2 * one[0] >= len(content))]
        others = [p for _, p, tokens, is_root in self.cached if is_root and tokens == content and p != parent]
        match miss.reason:
            case "evicted":
                assert self.removed_at[block_hash] == at
            case "differs":
                assert (miss.offset, at) in similar
            case _:
                assert self.removed_at.get(block_hash, -1.0) <= at, "it was in the cache since then"
                assert miss.reason == "not seen" or (others and is_first)
        if self.num_removed <= self._max_removed and len(self.cached) <= prefix_history.MAX_FIRST:  # all is remembered
            if block_hash in self.removed_at:
                assert miss.reason == "evicted"
            elif similar:
                assert (miss.reason, miss.offset, at) == ("differs", *max(similar))
            elif is_first and others:
                assert miss.reason == "other key"
        return miss

    def check_size(self) -> None:
        for section in (self._removed, self._removed_before):
            assert len(section) <= self._max_removed
        for nexts in (self._next, self._next_before):
            assert len(nexts) <= prefix_history.MAX_PARENTS
            assert all(len(self._blocks_after(parent)) <= prefix_history.MAX_NEXT for parent in nexts)
        for first in (self._first, self._first_before):
            assert len(first) <= prefix_history.MAX_FIRST


def num_equal(one: Sequence[int], other: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


@pytest.mark.slow
@pytest.mark.parametrize("maximum", [2, 1000])
@settings(max_examples=150, deadline=None)
@given(
    num_blocks=st.integers(4, 12),
    block_size=st.integers(1, 4),
    prompts=st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.lists(st.integers(0, 2), min_size=1, max_size=14)),
        min_size=2,
        max_size=14,
    ),
    pauses=st.lists(st.integers(0, 3), min_size=14, max_size=14),
)
def test_every_reason_is_true_and_the_history_stays_within_its_limits(
    num_blocks: int, block_size: int, prompts: list[tuple[str, list[int]]], pauses: list[int], maximum: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("MAX_REMOVED", "MAX_PARENTS", "MAX_NEXT", "MAX_FIRST"):
            patch.setattr(prefix_history, limit, maximum)
        max_model_len = min(num_blocks * block_size, 20)
        scheduler = make_scheduler(num_blocks=num_blocks, block_size=block_size, max_model_len=max_model_len)
        clock = scheduler.clock
        assert isinstance(clock, FakeClock)
        history = scheduler.pool.history = CheckedHistory(num_blocks * maximum, clock)
        for request_id, ((salt, prompt), pause) in enumerate(zip(prompts, pauses, strict=False)):
            scheduler.add(make_request(request_id, prompt[: max_model_len - 1], salt=salt, max_tokens=3))
            for _ in range(pause):
                check_step(scheduler, history)
        while scheduler.has_work:
            check_step(scheduler, history)
        for reason in history.reasons:
            event(reason)
        event(f"a section was dropped: {history.num_removed > 2 * history._max_removed}")


def check_step(scheduler: Scheduler, history: CheckedHistory) -> None:
    step(scheduler)
    advance(scheduler, 1.0)
    history.check_size()
    assert history.live == {one for one in history.live if scheduler.pool.lookup(one) is not None}
    assert len(history.live) == len(scheduler.pool._hash_of), "each cached block is recorded"
