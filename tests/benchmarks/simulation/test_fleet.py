"""Fleets in virtual time: the same plans as a real engine, no lost request, the same figures each time."""

import pytest

from benchmarks.simulation.api_cost import ApiCost
from benchmarks.simulation.arrivals import Arrival, Load, Prompts
from benchmarks.simulation.clock import VirtualClock
from benchmarks.simulation.fleet import Fleet, simulate
from benchmarks.simulation.journal import Journal
from benchmarks.simulation.replica import Replica, simulated_replica
from benchmarks.simulation.router import ROUTERS, Router, least_outstanding, round_robin
from benchmarks.simulation.step_cost import StepLoad
from caravan.scheduler.config import EngineConfig
from caravan.scheduler.scheduler import Scheduler
from tests.benchmarks.simulation.fleets import COST, FREE, limits, poisson_load
from tests.support.tiny_llama import tiny_engine, tiny_llama

Transcript = list[tuple[float, float, list[tuple[int, int]]]]  # start, seconds, (request, tokens) of each step


def transcript_of(replica: Replica, clock: VirtualClock, load: Load) -> Transcript:
    """Run a load on one replica and return its steps."""
    steps: Transcript = []

    def on_step(index: int, seconds: float, replica: Replica) -> None:
        assert replica.plan is not None
        plan = [(one.sequence.request.request_id, one.num_tokens) for one in replica.plan]
        steps.append((clock.now, seconds, plan))

    Fleet([replica], clock, FREE, on_step=on_step).run(load.arrivals(), load.prompts())
    return steps


@pytest.mark.parametrize(
    "config",
    [limits(), limits(num_blocks=70), limits(max_inter_token_seconds=0.1, max_batch_tokens=64), limits(max_num_seqs=2)],
    ids=["by default", "with preemptions", "with a target for steps", "with a full batch"],
)
def test_a_simulated_replica_makes_the_plans_of_a_real_engine(config: EngineConfig) -> None:
    load = poisson_load(3.0, 12.0, shared_prefix_tokens=24, num_prefixes=2)
    clock = VirtualClock()
    engine = tiny_engine(
        tiny_llama(),
        **{name: getattr(config, name) for name in config.__struct_fields__},
    )
    engine.scheduler = Scheduler(config, clock)
    real = transcript_of(Replica(engine.scheduler, COST, compute=engine.run), clock, load)
    clock = VirtualClock()
    assert transcript_of(simulated_replica(config, COST, clock), clock, load) == real
    assert len(real) > 100


@pytest.mark.parametrize("router", ROUTERS.values())
def test_the_same_load_gives_the_same_figures(router: Router) -> None:
    def figures() -> object:
        load = poisson_load(9.0, 20.0, shared_prefix_tokens=16, num_prefixes=3, seed=5)
        return simulate(
            load.arrivals(), load.prompts(), config=limits(), cost=COST, api=FREE, num_replicas=3, router=router
        ).figures()

    assert figures() == figures()


def test_no_request_is_lost_when_sequences_are_preempted() -> None:
    load = poisson_load(8.0, 20.0)
    arrivals = load.arrivals()
    journal = simulate(arrivals, load.prompts(), config=limits(num_blocks=66), cost=COST, api=FREE, num_replicas=2)
    assert journal.num_preemptions > 0
    assert {number: journey.num_tokens for number, journey in journal.journeys.items()} == {
        arrival.request_id: arrival.output_tokens for arrival in arrivals
    }
    for arrival in arrivals:
        journey = journal.journeys[arrival.request_id]
        assert arrival.seconds < journey.first_token <= journey.last_token == journey.ended
    assert journal.figures().num_requests == len(arrivals)
    assert 0.5 < journal.max_pool_use <= 1.0


def run(arrivals: list[Arrival], api: ApiCost = FREE, **changes: int) -> Journal:
    """Run arrivals on one replica."""
    return simulate(arrivals, Prompts(), config=limits(**changes), cost=COST, api=api)


def test_the_times_of_a_request_are_sums_of_the_costs_of_its_steps() -> None:
    journal = run([Arrival(1, 5.0, prompt_tokens=200, output_tokens=3)])
    chunks = [StepLoad(128, 0, 0, sum(range(1, 129))), StepLoad(72, 0, 0, sum(range(129, 201)))]
    first = 5.0 + sum(map(COST.seconds, chunks))
    rows = [COST.seconds(StepLoad(0, 1, position, 0)) for position in (201, 202)]
    journey = journal.journeys[1]
    assert journey.first_token == pytest.approx(first)
    assert list(journal.gaps) == pytest.approx(rows)
    assert journey.ended == pytest.approx(first + sum(rows))


def test_requests_that_arrive_together_are_in_one_step() -> None:
    journal = run([Arrival(number, 1.0, 30, 1) for number in (1, 2, 3, 4)])
    assert journal.num_steps == 1


def test_a_request_that_arrives_during_a_step_waits_for_its_end() -> None:
    journal = run([Arrival(1, 0.0, 100, 1), Arrival(2, 0.01, 100, 1)])
    step = journal.journeys[1].ended
    assert journal.journeys[2].ended == pytest.approx(2 * step)


def test_a_request_without_room_for_an_output_is_rejected() -> None:
    journal = run([Arrival(1, 0.0, 512, 1), Arrival(2, 0.0, 511, 1)])
    assert [*journal.journeys] == [2]
    assert journal.figures().num_rejected == 1


def test_the_api_process_delivers_tokens_one_after_the_other() -> None:
    arrivals = [Arrival(number, 0.0, 30, 1) for number in (1, 2, 3)]
    free = run(arrivals).journeys[1].ended
    journal = run(arrivals, ApiCost(request_seconds=0.5, token_seconds=0.1))
    ends = [journal.journeys[number].ended for number in (1, 2, 3)]
    assert ends == pytest.approx([free + 0.6, free + 0.7, free + 0.8])


def test_an_api_process_that_is_slower_than_the_engine_delays_all_later_tokens() -> None:
    arrivals = [Arrival(1, 0.0, 30, 20)]
    journal = run(arrivals, ApiCost(token_seconds=0.1))
    assert list(journal.gaps) == pytest.approx([0.1] * 19)


@pytest.mark.parametrize("changes", [{"token_seconds": -0.1}, {"request_seconds": 61.0}])
def test_a_cost_of_the_api_process_without_sense_is_an_error(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be seconds from 0 on"):
        ApiCost(**changes)


def test_a_shared_prefix_is_found_in_the_cache() -> None:
    load = poisson_load(2.0, 30.0, prompt="16", shared_prefix_tokens=160)
    journal = simulate(load.arrivals(), load.prompts(), config=limits(), cost=COST, api=FREE)
    assert journal.figures().hit_rate == pytest.approx(160 / 176 * (1 - 1 / len(load.planned)), abs=0.001)


def test_a_request_goes_to_the_replica_with_the_fewest_requests() -> None:
    clock = VirtualClock()
    replicas = [simulated_replica(limits(), COST, clock) for _ in range(3)]
    chosen = []
    for number in range(7):
        chosen.append(least_outstanding(number, replicas))
        replicas[chosen[-1]].submit(Prompts().request(Arrival(number, 0.0, 8, 1)))
    assert sorted(chosen[:3]) == sorted(chosen[3:6]) == [0, 1, 2]
    replicas[2].num_outstanding = 0
    assert least_outstanding(99, replicas) == 2


def test_round_robin_takes_replicas_in_turn() -> None:
    clock = VirtualClock()
    replicas = [simulated_replica(limits(), COST, clock) for _ in range(3)]
    assert [round_robin(number, replicas) for number in range(4)] == [0, 1, 2, 0]
