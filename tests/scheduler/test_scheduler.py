"""The scheduler's choices, one at a time."""

from model.sample import Sample
from scheduler.config import EngineConfig
from scheduler.messages import StepOutput
from scheduler.scheduler import Scheduler
from tests.scheduler.requests import make_request


def make_scheduler(**limits: int) -> Scheduler:
    defaults = {"num_blocks": 8, "block_size": 4, "max_batch_tokens": 16, "max_num_seqs": 4, "max_model_len": 32}
    return Scheduler(EngineConfig(**defaults | limits))


def step(scheduler: Scheduler, token_id: int = 1) -> tuple[dict[int, int], StepOutput]:
    """Run a step that draws token_id everywhere; return tokens computed per request, and the output."""
    plan = scheduler.schedule()
    samples = [Sample(token_id) for s in plan if s.wants_logits]
    computed = {s.sequence.request.request_id: s.num_tokens for s in plan}
    return computed, scheduler.commit(plan, samples)


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


def test_no_token_comes_out_before_the_whole_prompt_is_computed() -> None:
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
    assert [s.request.request_id for s in scheduler.waiting] == [1, 2]


def test_a_preempted_sequence_computes_its_output_again_and_goes_on() -> None:
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
    assert step(scheduler)[0] == {0: 8, 1: 8}


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
    outputs = scheduler.commit(plan, [None, Sample(3)]).outputs
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


def test_a_request_submitted_again_goes_on_behind_its_earlier_output() -> None:
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
