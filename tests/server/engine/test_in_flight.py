"""InFlightRequests: which requests a new engine gets, and how often a request is retried."""

import time

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request, SequenceOutput, TokenLogprobs
from caravan.server.engine.in_flight import GIVEN_UP, InFlightRequest, InFlightRequests
from caravan.server.engine.output_queue import EngineDied, OutputQueue


def an_in_flight_request(request_id: int, group: int = 0, **params: object) -> InFlightRequest:
    sampling = SamplingParams(max_tokens=10, seed=1, **params)  # type: ignore[arg-type]
    request = Request(request_id=request_id, prompt_token_ids=[5, 6, 7], params=sampling)
    return InFlightRequest(request, OutputQueue(request_id, lambda _: None), group or -request_id)


def a_token(request_id: int, token_id: int = 1) -> SequenceOutput:
    return SequenceOutput(request_id=request_id, token_ids=[token_id])


def ids_of(released: list[InFlightRequest]) -> list[int]:
    return [request.outputs.request_id for request in released]


def three_requests() -> InFlightRequests:
    requests = InFlightRequests()
    for request_id in (1, 2, 3):
        requests.add(an_in_flight_request(request_id))
    assert ids_of(requests.released()) == [1, 2, 3]
    return requests


def crash_with(requests: InFlightRequests, *batch: int) -> None:
    requests.begin_batch([*batch])
    requests.lose_engine()


def test_a_new_engine_resumes_every_request_after_its_last_token() -> None:
    requests = three_requests()
    requests.put(a_token(2, 40))
    requests.put(a_token(2, 41))
    crash_with(requests, 2)
    resumed = [request.resumed() for request in requests.released()]
    assert [(request.request_id, request.output_token_ids) for request in resumed] == [(1, []), (2, [40, 41]), (3, [])]
    assert requests.released() == []


def test_requests_that_ended_or_were_dropped_are_not_resumed() -> None:
    requests = three_requests()
    requests.put(SequenceOutput(request_id=1, token_ids=[9], finish_reason="stop"))
    assert requests.drop(3)
    crash_with(requests, 1, 2, 3)
    assert ids_of(requests.released()) == [2]


def test_a_request_in_the_batch_at_two_crashes_runs_alone_until_its_next_token() -> None:
    requests = three_requests()
    crash_with(requests, 2)
    assert ids_of(requests.released()) == [1, 2, 3]
    crash_with(requests, 2, 3)
    assert ids_of(requests.released()) == [2]
    requests.add(an_in_flight_request(4))
    assert requests.released() == []
    requests.put(a_token(2))
    assert ids_of(requests.released()) == [1, 3, 4]
    crash_with(requests, 1, 2, 3, 4)
    assert ids_of(requests.released()) == [3]  # its second; the others had one, or a token since


def test_other_requests_are_released_when_a_quarantined_one_ends_or_is_dropped() -> None:
    for end in (
        lambda requests: requests.drop(2),
        lambda requests: requests.put(SequenceOutput(request_id=2, token_ids=[], finish_reason="error")),
    ):
        requests = three_requests()
        crash_with(requests, 2)
        requests.released()
        crash_with(requests, 2)
        assert ids_of(requests.released()) == [2]
        end(requests)
        assert ids_of(requests.released()) == [1, 3]


def test_a_request_fails_after_three_crashes_alone_and_others_do_not() -> None:
    requests = InFlightRequests()
    in_flight = [an_in_flight_request(request_id) for request_id in (1, 2)]
    for request in in_flight:
        requests.add(request)
    for batch in ([1, 2], [1, 2]):
        requests.released()
        crash_with(requests, *batch)
        requests.put(a_token(1))
    for _ in range(3):
        assert ids_of(requests.released()) == [2]
        assert in_flight[1].outputs.take() is None
        crash_with(requests, 2)
    failed = in_flight[1].outputs.take()
    assert failed is not None
    assert (failed.finish_reason, failed.error) == ("error", GIVEN_UP)
    assert in_flight[0].outputs.take() is not None
    assert ids_of(requests.released()) == [1]


def test_threat_27_choices_of_one_request_are_quarantined_and_fail_together() -> None:
    requests = InFlightRequests()
    in_flight = [an_in_flight_request(1), *(an_in_flight_request(request_id, group=7) for request_id in (2, 3, 4))]
    for request in in_flight:
        requests.add(request)
    for batch in ([1, 2, 3], [1, 2]):
        requests.released()
        crash_with(requests, *batch)
        requests.put(a_token(1))
    for _ in range(3):
        assert ids_of(requests.released()) == [2, 3, 4]
        requests.put(a_token(3))  # a choice that gets further clears itself, not the one in doubt
        assert requests.released() == []
        crash_with(requests, 2)
    for request in in_flight[1:]:
        outputs = []
        while (output := request.outputs.take()) is not None:
            outputs.append(output)
        assert outputs[-1].error == GIVEN_UP
    assert ids_of(requests.released()) == [1]


def test_threat_27_a_request_crashes_five_engines_for_any_number_of_choices() -> None:
    for num_choices in (1, 3, 8):
        requests = InFlightRequests()
        requests.add(an_in_flight_request(99))
        for request_id in range(1, num_choices + 1):
            requests.add(an_in_flight_request(request_id, group=7))
        crash_count = 0
        while any(request_id < 99 for request_id in ids_of(requests.released())):
            crash_with(requests, crash_count % num_choices + 1)  # another choice each time
            crash_count += 1
        assert crash_count == 5


def test_a_group_is_cleared_when_each_uncleared_choice_has_a_token_or_ended() -> None:
    requests = InFlightRequests()
    for request_id, group in ((1, 0), (2, 7), (3, 7), (4, 7)):
        requests.add(an_in_flight_request(request_id, group))
    for _ in range(2):
        requests.released()
        crash_with(requests, 2, 3)
    assert ids_of(requests.released()) == [2, 3, 4]
    requests.put(a_token(4))
    requests.put(a_token(2))
    assert requests.released() == []
    requests.put(SequenceOutput(request_id=3, token_ids=[], finish_reason="stop"))
    assert ids_of(requests.released()) == [1]


def test_crashes_with_tokens_in_between_are_not_counted() -> None:
    requests = three_requests()
    for _ in range(10):
        crash_with(requests, 1, 2, 3)
        assert ids_of(requests.released()) == [1, 2, 3]
        for request_id in (1, 2, 3):
            requests.put(a_token(request_id))


def test_dropping_a_request_that_was_never_sent_needs_no_abort() -> None:
    requests = InFlightRequests()
    requests.add(an_in_flight_request(1))
    assert not requests.drop(1)
    assert requests.released() == []


def test_prompt_logprobs_are_sent_once_across_engines() -> None:
    scores = [TokenLogprobs(logprob=-1.0), TokenLogprobs(logprob=-2.0)]
    for num_before in (0, 1, 2):
        request = an_in_flight_request(1, num_prompt_logprobs=0)
        request.put(SequenceOutput(request_id=1, token_ids=[], prompt_logprobs=scores[:num_before]))
        assert request.resumed().params.num_prompt_logprobs == 0
        for score in scores:
            request.put(SequenceOutput(request_id=1, token_ids=[], prompt_logprobs=[score]))
        request.put(a_token(1))
        taken = request.outputs.take()
        assert taken is not None
        assert taken.prompt_logprobs == scores
        assert request.resumed().params.num_prompt_logprobs is None  # they are all there


def test_postponed_requests_are_for_the_next_engine_and_never_for_this_one() -> None:
    requests = three_requests()
    requests.add(an_in_flight_request(4), is_postponed=True)
    requests.add(an_in_flight_request(5), is_postponed=True)
    assert (len(requests), requests.num_active) == (5, 3)
    assert not requests.released()
    assert not requests.drop(5), "the engine has not got it"
    assert requests.lose_engine() == 3
    assert ids_of(requests.released()) == [1, 2, 3]
    requests.end_postponement()
    assert requests.num_active == 4
    assert ids_of(requests.released()) == [4]
    assert requests.drop(4), "the engine has it"
    requests.add(an_in_flight_request(6), is_postponed=True)
    requests.fail(EngineDied())
    assert (len(requests), requests.num_active) == (0, 0)
    requests.end_postponement()
    assert not requests.released()


def test_the_last_use_is_the_latest_begin_or_end_of_a_request() -> None:
    requests = three_requests()
    begun = requests.last_used_seconds
    time.sleep(0.002)
    requests.put(a_token(1))
    assert requests.last_used_seconds == begun
    requests.drop(1)
    assert requests.last_used_seconds > begun
