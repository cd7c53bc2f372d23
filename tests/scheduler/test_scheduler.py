"""Scheduler: chunked prefill, preemption, shared prefixes, waiting reasons and ends of requests."""

import gc
import sys

import pytest

from caravan.model.sampling.sample import Sample
from caravan.scheduler.step_result import StepResult
from tests.scheduler.requests import make_request
from tests.support.scheduler_steps import make_scheduler, step


def test_a_prompt_larger_than_the_budget_is_prefilled_in_chunks() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request(0, list(range(12))))
    assert [step(scheduler)[0] for _ in range(4)] == [{0: 5}, {0: 5}, {0: 2}, {0: 1}]


def test_running_sequences_decode_while_a_long_prompt_is_prefilled() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request(0, [1, 2]))
    step(scheduler)
    scheduler.add(make_request(1, list(range(10))))
    assert step(scheduler)[0] == {0: 1, 1: 4}
    assert step(scheduler)[0] == {0: 1, 1: 4}


def test_the_first_token_comes_after_the_whole_prompt_is_computed() -> None:
    scheduler = make_scheduler(max_batch_tokens=5)
    scheduler.add(make_request(0, list(range(7))))
    assert step(scheduler)[1].outputs == []
    assert step(scheduler)[1].outputs[0].token_ids == [1]


def test_at_most_max_num_seqs_run_at_once() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in range(3):
        scheduler.add(make_request(request_id, [1, 2]))
    assert step(scheduler)[0].keys() == {0, 1}


def test_the_youngest_running_sequence_is_preempted_and_waits_at_the_head_of_the_queue() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16, max_num_seqs=2)
    for request_id in range(3):
        scheduler.add(make_request(request_id, [request_id] * 7, max_tokens=9))
    step(scheduler), step(scheduler)
    computed, output = step(scheduler)
    assert computed == {0: 1}
    assert output.stats.num_preemptions == 1
    assert [sequence.request.request_id for sequence in scheduler.waiting] == [1, 2]


def test_a_preempted_sequence_computes_its_output_again_and_continues() -> None:
    scheduler = make_scheduler(num_blocks=4, max_model_len=16)
    for request_id in range(2):
        scheduler.add(make_request(request_id, [request_id] * 7, max_tokens=5))
    tokens: dict[int, list[int]] = {0: [], 1: []}
    num_preemptions = 0
    for number in range(30):
        output = step(scheduler, token_id=number)[1]
        num_preemptions += output.stats.num_preemptions
        for sequence_output in output.outputs:
            tokens[sequence_output.request_id] += sequence_output.token_ids
    assert num_preemptions >= 1
    assert len(tokens[0]) == len(tokens[1]) == 5
    assert scheduler.pool.num_free == 4


def test_a_known_prefix_is_not_computed_again_but_the_last_token_always_is() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, list(range(8)), max_tokens=1))
    step(scheduler)
    scheduler.add(make_request(1, list(range(8)), max_tokens=1))
    computed, output = step(scheduler)
    assert computed == {1: 4}  # block 0 is a hit; block 1 is known too, but its last token's logits are wanted
    assert output.outputs[0].num_cached_tokens == 4
    assert output.stats.prefix_cache_hits == 4


def test_requests_of_different_salts_share_no_prefix() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, list(range(8)), max_tokens=1, salt="one"))
    step(scheduler)
    scheduler.add(make_request(1, list(range(8)), max_tokens=1, salt="two"))
    assert step(scheduler)[0] == {1: 8}


def test_a_prefix_is_shared_only_after_it_has_been_computed() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, list(range(8))))
    scheduler.add(make_request(1, list(range(8))))
    assert step(scheduler)[0] == {0: 8}  # the other waits for block 0
    assert step(scheduler)[0] == {0: 1, 1: 4}


def test_a_shared_prefix_is_computed_once_however_many_arrive_together() -> None:
    scheduler = make_scheduler(num_blocks=200, block_size=16, max_num_seqs=16, max_batch_tokens=2048, max_model_len=640)
    for request_id in range(16):
        scheduler.add(make_request(request_id, [*range(512), *[1000 + request_id] * 64], max_tokens=8))
    num_prefill_tokens = 0
    num_steps = 0
    while scheduler.has_work:
        num_prefill_tokens += step(scheduler)[1].stats.num_prefill_tokens
        num_steps += 1
    assert num_prefill_tokens == 512 + 16 * 64
    assert num_steps == 9


def test_a_sequence_waits_for_all_chunks_of_a_shared_prefix() -> None:
    scheduler = make_scheduler(max_batch_tokens=8)
    scheduler.add(make_request(0, list(range(12)), max_tokens=1))
    scheduler.add(make_request(1, [*range(12), 50, 51], max_tokens=1))
    assert [step(scheduler)[0] for _ in range(3)] == [{0: 8}, {0: 4}, {1: 2}]


def test_a_request_passes_those_that_wait_for_a_prefix() -> None:
    scheduler = make_scheduler()
    for request_id in range(2):
        scheduler.add(make_request(request_id, list(range(6))))
    scheduler.add(make_request(2, [9] * 6))
    assert step(scheduler)[0] == {0: 6, 2: 6}
    assert step(scheduler)[0] == {0: 1, 2: 1, 1: 2}


def test_sequences_that_wait_for_one_prefix_join_in_order() -> None:
    scheduler = make_scheduler(max_num_seqs=2)
    for request_id in range(4):
        scheduler.add(make_request(request_id, [*range(4), request_id], max_tokens=2))
    assert [step(scheduler)[0] for _ in range(5)] == [{0: 5}, {0: 1, 1: 1}, {1: 1, 2: 1}, {2: 1, 3: 1}, {3: 1}]


@pytest.mark.parametrize("end", ["abort", "failure", "preemption"])
def test_a_waiting_sequence_computes_a_prefix_itself_when_the_one_computing_it_ends(end: str) -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, list(range(6))))
    scheduler.add(make_request(1, list(range(6))))
    plan = scheduler.schedule()
    assert [s.sequence.request.request_id for s in plan] == [0]
    match end:
        case "abort":
            scheduler.abort(0)
        case "failure":
            scheduler.commit(plan, StepResult([None]))
        case "preemption":
            scheduler.preempt(plan[0].sequence)
            scheduler.abort(0)
    assert step(scheduler)[0] == {1: 6}
    assert scheduler.pool.num_pending == 0


def test_a_sequence_waits_for_a_block_whose_last_token_was_just_sampled() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1, 1, 1]))
    step(scheduler)  # draws the fourth token, whose keys and values the next step computes
    scheduler.add(make_request(1, [1] * 6))
    assert step(scheduler)[0] == {0: 1}
    assert step(scheduler)[0] == {0: 1, 1: 2}


def test_the_cost_of_a_step_does_not_depend_on_the_number_of_waiting_sequences() -> None:
    def num_calls(num_waiting: int, *, is_prefix_shared: bool) -> int:
        scheduler = make_scheduler(num_blocks=1000)
        # It takes the whole budget of a step and shares no prefix.
        scheduler.add(make_request(num_waiting, [1_000_000] * 16))
        for request_id in range(num_waiting):
            start = 0 if is_prefix_shared else 10 * request_id
            scheduler.add(make_request(request_id, [*range(start, start + 5), request_id], max_tokens=20))
        step(scheduler)  # new requests are looked at once
        scheduler.abort(num_waiting)
        calls: list[str] = []
        gc.disable()  # it runs callbacks of libraries such as hypothesis
        sys.setprofile(lambda frame, event, argument: calls.append(event))
        try:
            plan = scheduler.schedule()
            events = scheduler.commit(plan, StepResult([Sample(1)] * len(plan))).events
            scheduler.abort(num_waiting - 1)
        finally:
            sys.setprofile(None)
            gc.enable()
        assert is_prefix_shared == any(event.reason == "prefix being computed" for event in events)
        return len(calls)

    for is_prefix_shared in (False, True):
        few = num_calls(20, is_prefix_shared=is_prefix_shared)
        assert num_calls(10_000, is_prefix_shared=is_prefix_shared) == few


def test_each_waiting_sequence_has_one_event_with_its_reason() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    for request_id in range(4):
        scheduler.add(make_request(request_id, [request_id, 2, 3], max_tokens=9))
    events = [(event.request_id, event.kind, event.reason) for event in step(scheduler)[1].events]
    waits = {request_id: reason for request_id, kind, reason in events if kind == "wait"}
    assert waits == {1: "batch full", 2: "behind others", 3: "behind others"}
    assert not step(scheduler)[1].events  # no reason has changed
    scheduler.abort(0)
    events = [(event.request_id, event.kind, event.reason) for event in step(scheduler)[1].events]
    assert (2, "wait", "batch full") in events
    assert {request_id for request_id, kind, _ in events if kind == "wait"} == {2}


def test_a_sequence_that_a_step_does_not_look_at_gets_another_reason() -> None:
    scheduler = make_scheduler(num_blocks=100, max_num_seqs=2)
    reasons: dict[int, str | None] = {}

    def run() -> None:
        for event in step(scheduler)[1].events:
            reasons[event.request_id] = event.reason if event.kind == "wait" else event.kind

    for request_id in range(3):
        scheduler.add(make_request(request_id, [1, 2, 3, 4, 5, request_id], max_tokens=20))
    run()
    assert (reasons[1], reasons[2]) == ("prefix being computed", "prefix being computed")
    scheduler.add(make_request(3, [9], max_tokens=20, priority=-1))
    run()
    assert len(scheduler.running) == 2
    assert {reasons[number] for number in (1, 2) if reasons[number] != "chunk"} == {"batch full", "behind others"}


def test_an_aborted_request_gives_its_blocks_back_at_once() -> None:
    scheduler = make_scheduler(max_num_seqs=1)
    scheduler.add(make_request(0, [1, 2, 3]))
    scheduler.add(make_request(1, [1, 2, 3]))
    step(scheduler)
    scheduler.abort(0)
    scheduler.abort(1)
    scheduler.abort(99)
    assert scheduler.pool.num_free == 8
    assert not scheduler.has_work


def test_a_row_without_finite_logits_ends_its_request_alone_and_leaves_nothing_in_the_prefix_cache() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, list(range(9))))
    scheduler.add(make_request(1, list(range(20, 25))))
    step(scheduler)
    plan = scheduler.schedule()
    outputs = scheduler.commit(plan, StepResult([None, Sample(3)])).outputs
    assert [(o.request_id, o.finish_reason, o.token_ids) for o in outputs] == [(0, "error", []), (1, None, [3])]
    scheduler.add(make_request(2, list(range(9))))
    assert step(scheduler)[0][2] == 9
    scheduler.pool.check()


def test_a_stop_token_ends_a_request_with_stop_and_is_part_of_its_tokens() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1, 2], stop_token_ids=(9,)))
    output = step(scheduler, token_id=9)[1].outputs[0]
    assert (output.token_ids, output.finish_reason) == ([9], "stop")


def test_a_request_ends_with_length_at_max_model_len_even_if_it_wants_more() -> None:
    scheduler = make_scheduler(max_model_len=4)
    scheduler.add(make_request(0, [1, 2], max_tokens=100))
    assert step(scheduler)[1].outputs[0].finish_reason is None
    assert step(scheduler)[1].outputs[0].finish_reason == "length"


def test_a_request_submitted_again_continues_after_its_earlier_output() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1, 2], output=[5, 6], max_tokens=3))
    computed, output = step(scheduler)
    assert computed == {0: 4}
    assert output.outputs[0].finish_reason == "length"


def test_an_idle_step_does_nothing_and_does_not_count() -> None:
    scheduler = make_scheduler()
    computed, output = step(scheduler)
    assert computed == {}
    assert output.outputs == []
    assert output.stats.step == 0


def test_prompt_tokens_count_as_prefill_and_single_output_tokens_as_decode() -> None:
    scheduler = make_scheduler()
    scheduler.add(make_request(0, [1, 2, 3]))
    stats = step(scheduler)[1].stats
    assert (stats.num_prefill_tokens, stats.num_decode_tokens) == (3, 0)
    stats = step(scheduler)[1].stats
    assert (stats.num_prefill_tokens, stats.num_decode_tokens) == (0, 1)


def test_choices_compute_their_prompt_once_and_copy_its_last_block() -> None:
    scheduler = make_scheduler(num_blocks=16)
    for request_id in range(3):
        scheduler.add(make_request(request_id, list(range(10)), group=7, max_tokens=8))
    assert step(scheduler)[0] == {0: 10}
    plan = scheduler.schedule()
    assert [(s.num_tokens, s.copied_block is None) for s in plan] == [(1, True), (1, False), (1, False)]
    owner, *others = (s.sequence.block_table for s in plan)
    assert all(table[:2] == owner[:2] and table[2] != owner[2] for table in others)
    assert [s.copied_block for s in plan[1:]] == [owner[2]] * 2
    output = scheduler.commit(plan, StepResult([Sample(1)] * 3))
    assert [one.num_cached_tokens for one in output.outputs] == [0, 9, 9]
    scheduler.pool.check()


def test_the_end_of_a_prompt_is_copied_only_while_a_choice_of_it_runs_and_only_within_the_group() -> None:
    scheduler = make_scheduler(num_blocks=16)
    scheduler.add(make_request(0, list(range(10)), group=7, max_tokens=2))
    step(scheduler)
    scheduler.add(make_request(1, list(range(10)), group=8, max_tokens=1))
    assert step(scheduler)[0] == {0: 1, 1: 2}
    scheduler.add(make_request(2, list(range(10)), group=7, max_tokens=1))
    assert step(scheduler)[0] == {2: 2}
