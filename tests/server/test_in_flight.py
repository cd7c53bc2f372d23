"""Which requests another engine gets, and how often one is tried."""

from caravan.model.sampling.sampling_params import SamplingParams
from caravan.scheduler.messages import Request, SequenceOutput, TokenLogprobs
from caravan.server.engine.in_flight import GIVEN_UP, InFlightRequest, InFlightRequests
from caravan.server.engine.output_queue import OutputQueue


def a_live_request(request_id: int, exchange: int = 0, **params: object) -> InFlightRequest:
    sampling = SamplingParams(max_tokens=10, seed=1, **params)  # type: ignore[arg-type]
    request = Request(request_id=request_id, prompt_token_ids=[5, 6, 7], params=sampling)
    return InFlightRequest(request, OutputQueue(request_id, lambda _: None), exchange or -request_id)


def a_token(request_id: int, token_id: int = 1) -> SequenceOutput:
    return SequenceOutput(request_id=request_id, token_ids=[token_id])


def ids_of(released: list[InFlightRequest]) -> list[int]:
    return [live.stream.request_id for live in released]


def three_requests() -> InFlightRequests:
    requests = InFlightRequests()
    for request_id in (1, 2, 3):
        requests.add(a_live_request(request_id))
    assert ids_of(requests.released()) == [1, 2, 3]
    return requests


def die_with(requests: InFlightRequests, *batch: int) -> None:
    requests.begin_batch([*batch])
    requests.lose_engine()


def test_another_engine_gets_every_request_behind_its_tokens() -> None:
    requests = three_requests()
    requests.put(a_token(2, 40))
    requests.put(a_token(2, 41))
    die_with(requests, 2)
    again = [live.again() for live in requests.released()]
    assert [(request.request_id, request.output_token_ids) for request in again] == [(1, []), (2, [40, 41]), (3, [])]
    assert requests.released() == []


def test_what_ended_or_was_dropped_is_not_given_again() -> None:
    requests = three_requests()
    requests.put(SequenceOutput(request_id=1, token_ids=[9], finish_reason="stop"))
    assert requests.drop(3)
    die_with(requests, 1, 2, 3)
    assert ids_of(requests.released()) == [2]


def test_a_request_in_the_batch_at_two_deaths_runs_alone_until_its_next_token() -> None:
    requests = three_requests()
    die_with(requests, 2)
    assert ids_of(requests.released()) == [1, 2, 3]
    die_with(requests, 2, 3)
    assert ids_of(requests.released()) == [2]
    requests.add(a_live_request(4))
    assert requests.released() == []
    requests.put(a_token(2))
    assert ids_of(requests.released()) == [1, 3, 4]
    die_with(requests, 1, 2, 3, 4)
    assert ids_of(requests.released()) == [3]  # its second; the others had one, or a token since


def test_a_suspect_that_ends_or_is_dropped_lets_the_others_go_on() -> None:
    for end in (
        lambda requests: requests.drop(2),
        lambda requests: requests.put(SequenceOutput(request_id=2, token_ids=[], finish_reason="error")),
    ):
        requests = three_requests()
        die_with(requests, 2)
        requests.released()
        die_with(requests, 2)
        assert ids_of(requests.released()) == [2]
        end(requests)
        assert ids_of(requests.released()) == [1, 3]


def test_at_the_third_death_alone_a_request_fails_and_no_other() -> None:
    requests = InFlightRequests()
    lives = [a_live_request(request_id) for request_id in (1, 2)]
    for live in lives:
        requests.add(live)
    for batch in ([1, 2], [1, 2]):
        requests.released()
        die_with(requests, *batch)
        requests.put(a_token(1))
    for _ in range(3):
        assert ids_of(requests.released()) == [2]
        assert lives[1].stream.take() is None
        die_with(requests, 2)
    failed = lives[1].stream.take()
    assert failed is not None
    assert (failed.finish_reason, failed.error) == ("error", GIVEN_UP)
    assert lives[0].stream.take() is not None
    assert ids_of(requests.released()) == [1]


def test_threat_27_choices_of_one_request_are_suspected_run_and_given_up_together() -> None:
    requests = InFlightRequests()
    lives = [a_live_request(1), *(a_live_request(request_id, exchange=7) for request_id in (2, 3, 4))]
    for live in lives:
        requests.add(live)
    for batch in ([1, 2, 3], [1, 2]):
        requests.released()
        die_with(requests, *batch)
        requests.put(a_token(1))
    for _ in range(3):
        assert ids_of(requests.released()) == [2, 3, 4]
        requests.put(a_token(3))  # a choice that gets further clears itself, not the one in doubt
        assert requests.released() == []
        die_with(requests, 2)
    for live in lives[1:]:
        outputs = []
        while (output := live.stream.take()) is not None:
            outputs.append(output)
        assert outputs[-1].error == GIVEN_UP
    assert ids_of(requests.released()) == [1]


def test_threat_27_a_request_ends_five_engines_however_many_choices_it_has() -> None:
    for num_choices in (1, 3, 8):
        requests = InFlightRequests()
        requests.add(a_live_request(99))
        for request_id in range(1, num_choices + 1):
            requests.add(a_live_request(request_id, exchange=7))
        crash_count = 0
        while any(request_id < 99 for request_id in ids_of(requests.released())):
            die_with(requests, crash_count % num_choices + 1)  # another choice each time
            crash_count += 1
        assert crash_count == 5


def test_the_choices_of_a_request_are_cleared_when_each_one_in_doubt_has_a_token_or_ended() -> None:
    requests = InFlightRequests()
    for request_id, exchange in ((1, 0), (2, 7), (3, 7), (4, 7)):
        requests.add(a_live_request(request_id, exchange))
    for _ in range(2):
        requests.released()
        die_with(requests, 2, 3)
    assert ids_of(requests.released()) == [2, 3, 4]
    requests.put(a_token(4))
    requests.put(a_token(2))
    assert requests.released() == []
    requests.put(SequenceOutput(request_id=3, token_ids=[], finish_reason="stop"))
    assert ids_of(requests.released()) == [1]


def test_deaths_with_tokens_in_between_do_not_add_up() -> None:
    requests = three_requests()
    for _ in range(10):
        die_with(requests, 1, 2, 3)
        assert ids_of(requests.released()) == [1, 2, 3]
        for request_id in (1, 2, 3):
            requests.put(a_token(request_id))


def test_a_dropped_request_that_the_engine_never_had_need_not_be_told_of() -> None:
    requests = InFlightRequests()
    requests.add(a_live_request(1))
    assert not requests.drop(1)
    assert requests.released() == []


def test_log_probabilities_of_a_prompt_come_once_however_far_the_first_engine_came() -> None:
    scores = [TokenLogprobs(logprob=-1.0), TokenLogprobs(logprob=-2.0)]
    for num_before in (0, 1, 2):
        live = a_live_request(1, num_prompt_logprobs=0)
        live.put(SequenceOutput(request_id=1, token_ids=[], prompt_logprobs=scores[:num_before]))
        assert live.again().params.num_prompt_logprobs == 0
        for score in scores:
            live.put(SequenceOutput(request_id=1, token_ids=[], prompt_logprobs=[score]))
        live.put(a_token(1))
        taken = live.stream.take()
        assert taken is not None
        assert taken.prompt_logprobs == scores
        assert live.again().params.num_prompt_logprobs is None  # they are all there
