"""The evaluation budget: the best plan under it, from costs that trials measured."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from mixloop.common.errors import BadInput
from mixloop.controller.config import RunConfig, load_config
from mixloop.controller.journal import Journal
from mixloop.controller.loop.eval_planner import ATTEMPTS, Planner
from mixloop.controller.service import check_run
from mixloop.controller.views import tables
from mixloop.evals import BenchmarkScore, Cost, EvalSettings, Metric, Scorecard
from mixloop.evals.planning import EvalPlan, fallback_plan, make_plan, measure
from mixloop.evals.planning.allocation import (
    MIN_ITEMS,
    Candidate,
    Counts,
    Price,
    allocate,
    seconds,
)
from mixloop.evals.planning.eval_plan import FALLBACK
from mixloop.evals.planning.pilot import find_price
from mixloop.evals.workers import Failure


def loss(offer, allocation):
    """The sum of squared relative standard errors that an allocation leads to."""
    return math.fsum(
        variance / count
        for name, candidate in offer.items()
        for variance, count in (
            (candidate.read_variance, allocation[name].items),
            (candidate.generate_variance, allocation[name].generate),
        )
        if variance and count
    )


prices = st.builds(
    Price,
    st.floats(0, 5),
    st.floats(0.001, 1),
    st.floats(0.01, 5),
)
candidates = st.builds(
    Candidate,
    price=prices,
    spread=st.floats(0.05, 3),
    available=st.integers(1, 3000),
    generable=st.integers(0, 3000),
    weight=st.sampled_from([1.0, 0.25]),
)
ROUNDING = 1 + 1 / MIN_ITEMS  # one item of the fewest is what rounding down can cost
offers = st.dictionaries(st.sampled_from("abcd"), candidates, min_size=1)


@settings(max_examples=60, deadline=None)
@given(offers, st.floats(1, 2000))
def test_a_plan_keeps_the_budget_the_bounds_and_nothing_useful_unspent(offer, budget):
    plan = allocate(offer, budget)
    spent = seconds(offer, plan)
    for name, candidate in offer.items():
        assert candidate.fewest.items <= plan[name].items <= candidate.most.items
        assert candidate.fewest.generate <= plan[name].generate <= candidate.most.generate
        assert plan[name].generate <= plan[name].items
    if spent > budget:
        assert plan == {name: candidate.fewest for name, candidate in offer.items()}
        return
    for name, candidate in offer.items():
        more = plan[name].items + 1
        if more <= candidate.available:
            assert spent + candidate.price.read > budget, f"{name} could read one more item"


@settings(max_examples=60, deadline=None)
@given(offers, st.floats(1, 500), st.floats(1, 500))
def test_more_time_never_tells_less(offer, budget, more):
    poor, rich = allocate(offer, budget), allocate(offer, budget + more)
    assert loss(offer, rich) <= loss(offer, poor) * ROUNDING


@settings(max_examples=30, deadline=None)
@given(
    st.lists(candidates, min_size=2, max_size=2),
    st.floats(0.05, 0.95),
    st.integers(22, 40),
)
def test_no_other_plan_under_the_budget_is_notably_better(pair, part, most):
    """Against every plan there is, on problems small enough to try them all."""
    offer = {
        name: Candidate(
            candidate.price,
            candidate.spread,
            most,
            min(candidate.generable, most),
            candidate.weight,
        )
        for name, candidate in zip("ab", pair, strict=True)
    }
    low = seconds(offer, {n: candidate.fewest for n, candidate in offer.items()})
    high = seconds(offer, {n: candidate.most for n, candidate in offer.items()})
    budget = low + part * (high - low)
    best = min(
        (loss(offer, plan) for plan in every_plan(offer) if seconds(offer, plan) <= budget),
        default=math.inf,
    )
    assert loss(offer, allocate(offer, budget)) <= best * ROUNDING


def every_plan(offer):
    spaces = [
        [
            Counts(n, m)
            for n in range(candidate.fewest.items, candidate.most.items + 1)
            for m in range(candidate.fewest.generate, min(n, candidate.most.generate) + 1)
        ]
        for candidate in offer.values()
    ]
    # a full product is a million plans: one side in full, the other thinned out
    return (
        dict(zip(offer, pair, strict=True)) for pair in itertools.product(spaces[0], spaces[1][::7])
    )


def test_counts_follow_spread_over_the_root_of_the_price():
    """Neyman's allocation, where no bound is in the way."""
    offer = {
        "plain": Candidate(Price(0, 0.1), spread=1.0, available=10**6),
        "wide": Candidate(Price(0, 0.1), spread=2.0, available=10**6),
        "dear": Candidate(Price(0, 0.9), spread=1.0, available=10**6),
    }
    plan = allocate(offer, 5000)
    unit = math.sqrt(offer["plain"].read_variance)
    wide = math.sqrt(offer["wide"].read_variance) / unit
    assert plan["wide"].items / plan["plain"].items == pytest.approx(wide, rel=1e-3)
    assert plan["plain"].items / plan["dear"].items == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("generate", [2.0, 0.3, 0.01])
def test_reading_and_generating_share_the_time_best(generate):
    """Where generating is cheap, every item read is generated; else fewer are."""
    candidate = Candidate(Price(0, 0.1, generate), spread=0.5, available=10**6, generable=10**6)
    budget = 2000.0
    plans = (
        Counts(int((budget - generate * generated) / 0.1), generated)
        for generated in range(MIN_ITEMS, int(budget / (0.1 + generate)) + 1)
    )
    best = min(loss({"a": candidate}, {"a": plan}) for plan in plans)
    allocation = allocate({"a": candidate}, budget)
    assert loss({"a": candidate}, allocation) <= best * 1.001
    assert (allocation["a"].items == allocation["a"].generate) == (generate == 0.01)


def test_prices_are_recovered_from_three_trials():
    true = Price(4.0, 0.25, 1.5)
    points = [(n, m, true.of(Counts(n, m))) for n, m in ((6, 6), (18, 6), (18, 18))]
    price = find_price(points)
    assert (price.fixed, price.read, price.generate) == pytest.approx((4.0, 0.25, 1.5))


def test_a_difference_turned_around_by_noise_is_never_taken_for_a_gift():
    price = find_price([(6, 6, 9.0), (18, 6, 8.0), (18, 18, 7.5)])
    assert price.read >= 8.0 / 18
    assert price.generate >= 7.5 / 18


TRUE = {
    "mmlu": Price(3.0, 0.05),
    "gsm8k": Price(2.0, 0.1, 0.8),
    "math": Price(2.5, 0.2, 1.2),
}
AVAILABLE = {"mmlu": 281, "gsm8k": 1319, "math": 5000}
LOADING = 1.5
SETTINGS = EvalSettings(budget="2%", benchmarks={name: {} for name in TRUE}, idle_seconds=10)


def scorecard(asked: EvalSettings) -> Scorecard:
    """What a scorer gives whose costs are linear in each unit of work."""
    scores, costs = {}, {}
    for name, benchmark in asked.asked.items():
        writes = name != "mmlu"
        read = min(benchmark.items or 10**9, AVAILABLE[name])
        generated = min(
            read if benchmark.generate_items is None else benchmark.generate_items, read
        )
        bits = {"bits_per_byte": 1.0, "bytes": 50.0}
        items = {
            f"i{k}": bits | ({"exact_match": 0.0} if k < generated else {}) for k in range(read)
        }
        metric = Metric(
            value=1.0,
            stderr=0.5 / math.sqrt(read),
            n=read,
            higher_is_better=False,
            asked=read,
            excluded=0,
        )
        scores[name] = BenchmarkScore(
            status="ok",
            metrics={"bits_per_byte": metric},
            items=items,
            max_new_tokens=256 if writes else None,
            data=f"packages: {read} of {AVAILABLE[name]} items (here)",
        )
        again = TRUE[name].fixed * (math.ceil(read / asked.unit_items) - 1)
        took = TRUE[name].of(Counts(read, generated if writes else 0)) + again
        costs[name] = Cost(seconds=took, cpu_seconds=took, items=read, tokens=1, asked_tokens=1)
    total = LOADING + sum(cost.seconds for cost in costs.values())
    return Scorecard(
        checkpoint="c", benchmarks=scores, seconds=total, cost=costs, settings_digest="d"
    )


def plan_for(asked: EvalSettings, training_seconds: float) -> EvalPlan:
    trials = measure(asked, scorecard, clock=itertools.count().__next__)
    return make_plan(asked, trials, training_seconds=training_seconds, tokens_per_second=1000.0)


def test_the_planned_evaluation_takes_the_share_it_was_given():
    plan = plan_for(SETTINGS, training_seconds=20_000)
    took = scorecard(plan.pin(SETTINGS)).seconds
    assert took <= 0.02 * 20_000
    assert took > 0.95 * 0.02 * 20_000
    assert took <= plan.seconds <= 0.02 * 20_000
    assert plan.notes == ()
    assert plan.benchmarks["mmlu"].generate_items is None
    assert plan.benchmarks["mmlu"].available == 281
    gsm8k = plan.benchmarks["gsm8k"]
    assert gsm8k.stderr == pytest.approx(0.5 / math.sqrt(gsm8k.items), rel=1e-6)


def test_items_in_the_run_file_are_upper_bounds():
    bounded = SETTINGS.model_copy(
        update={
            "benchmarks": EvalSettings(
                benchmarks={"mmlu": {"items": 30}, "gsm8k": {"generate_items": 0}, "math": {}}
            ).benchmarks
        }
    )
    plan = plan_for(bounded, training_seconds=20_000)
    assert plan.benchmarks["mmlu"].items == 30
    assert plan.benchmarks["gsm8k"].generate_items == 0
    assert plan.benchmarks["gsm8k"].items > plan_for(SETTINGS, 20_000).benchmarks["gsm8k"].items


def test_a_budget_below_the_floor_is_said_and_the_floor_is_asked():
    plan = plan_for(SETTINGS, training_seconds=100)
    assert {planned.items for planned in plan.benchmarks.values()} == {MIN_ITEMS}
    assert "more than evals.budget" in plan.notes[0]
    assert "raise evals.every" in plan.notes[0]


def test_no_more_is_planned_than_the_timeout_lets_end():
    plan = plan_for(SETTINGS.model_copy(update={"timeout": 200.0}), training_seconds=20_000)
    assert plan.seconds <= 100
    assert "raise evals.timeout" in plan.notes[0]


def test_a_plan_survives_its_file_and_keeps_the_digest(tmp_path: Path):
    plan = plan_for(SETTINGS, training_seconds=20_000)
    path = tmp_path / "evals-plan.json"
    assert EvalPlan.read(path) is None
    path.write_text(plan.to_json())
    again = EvalPlan.read(path)
    assert again == plan
    assert json.loads(path.read_text())["schema"] == "mixloop/evals-plan/1"
    assert again.pin(SETTINGS).digest() == plan.pin(SETTINGS).digest() != SETTINGS.digest()
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"evals-plan\.json: no evaluation plan"):
        EvalPlan.read(path)


def test_without_costs_there_is_no_plan_but_a_stated_default():
    trials = measure(
        SETTINGS, lambda asked: scorecard(asked).model_copy(update={"cost": {}}), lambda: 0.0
    )
    with pytest.raises(ValueError, match="no costs"):
        make_plan(SETTINGS, trials, training_seconds=100, tokens_per_second=1)
    plan = fallback_plan(SETTINGS, "c", "no costs")
    assert {planned.items for planned in plan.benchmarks.values()} == {FALLBACK.items}
    assert "nothing could be measured (no costs)" in plan.notes[0]


@pytest.mark.parametrize(("given_as", "share"), [("2%", 0.02), ("0.5 %", 0.005), (0.1, 0.1)])
def test_a_share_is_read_as_people_write_it(given_as, share):
    assert EvalSettings(budget=given_as).budget == pytest.approx(share)


@pytest.mark.parametrize("given_as", ["two%", "0%", 2, -0.1, "150%"])
def test_what_is_no_share_is_refused(given_as):
    with pytest.raises(ValidationError, match="budget"):
        EvalSettings(budget=given_as)


# -- the controller's side -------------------------------------------------------------------


class Worker:
    """Answers at once, with a scorecard or with what it is told to fail with."""

    writing = False

    def __init__(self, asked: EvalSettings, failures: list[str]) -> None:
        self.asked, self.failures = asked, failures

    def start(self, checkpoint: Path, out: Path, earlier: object = ()) -> None:
        pass

    def poll(self) -> Scorecard | Failure:
        return Failure(self.failures.pop()) if self.failures else scorecard(self.asked)

    def stop(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """A run that trains 20,000 s between two evaluations at 1,000 tokens per second."""
    store = tmp_path / "web"
    store.mkdir()
    (store / "tokens.bin").write_bytes(bytes(2000))
    header = {"schema": "mixloop/store/1", "tokens": 1000, "documents": 1, "dtype": "uint16"}
    header |= {"vocab_size": 65536, "tokenizer": "t", "fingerprint": "f", "eos_id": 0}
    (store / "store.json").write_text(json.dumps(header))
    file = tmp_path / "run.yaml"
    file.write_text(
        "run: {id: r, dir: run}\nbudget: 400M\nsources: {web: {path: web}}\n"
        "guards: {max_epochs: null}\ntrainer: {sequence_length: 10}\n"
        "evals: {every: 20M, budget: 2%, idle_seconds: 10, "
        "benchmarks: {mmlu: {}, gsm8k: {}, math: {}}}\n"
    )
    return load_config(file)


def journal_of(config: RunConfig) -> Journal:
    journal = Journal(config.run.dir / "journal.db", create=True)
    journal.claim("r")
    return journal


def planned(
    config: RunConfig, journal: Journal, failures: list[str], speed: float | None = 1000.0
) -> tuple[Planner, list[str]]:
    ticks = itertools.count()
    planner = Planner(
        config, journal, config.evals, lambda s: Worker(s, failures), lambda: float(next(ticks))
    )
    said = []
    while planner.needed:
        planner.start(Path("c"), speed)
        planner.poll()
        said.append(planner.take())
    return planner, said


def test_a_pilot_has_ended_when_its_samples_are_written(config: RunConfig):
    worker = Worker(config.evals, [])
    worker.writing = True
    planner = Planner(config, journal_of(config), config.evals, lambda s: worker, lambda: 0.0)
    planner.start(Path("c"), 1000.0)
    planner.poll()
    assert not planner.ended
    worker.writing = False
    worker.poll = lambda: None  # it has told its scorecard
    planner.poll()
    assert planner.ended
    assert planner.take() == "trial evaluation 1 took 0 s"


def test_the_planner_keeps_what_it_found_whatever_is_lost(config: RunConfig):
    journal = journal_of(config)
    planner, said = planned(config, journal, [])
    assert len(said) == 3
    assert "planned for the whole run: mmlu 281, gsm8k" in said[-1]
    path = config.run.dir / "evals-plan.json"
    plan = EvalPlan.read(path)
    assert plan is not None
    assert plan.training_seconds == 20_000
    path.unlink()
    again, said = planned(config, journal, [], speed=5.0)
    assert said == []
    assert again.settings == planner.settings
    assert EvalPlan.read(path) == plan
    journal.close()


def test_a_failed_trial_is_repeated(config: RunConfig):
    journal = journal_of(config)
    planner, said = planned(config, journal, ["worker died"])
    assert said[0] == "a trial evaluation failed: worker died; once more"
    assert planner.settings.benchmarks["mmlu"].items == 281
    journal.close()


def test_trials_that_go_on_failing_lead_to_the_stated_default(config: RunConfig):
    journal = journal_of(config)
    planner, said = planned(config, journal, ["worker died"] * ATTEMPTS)
    assert len(said) == ATTEMPTS
    assert "nothing could be measured (worker died): 50 items" in said[-1]
    assert {benchmark.items for benchmark in planner.settings.benchmarks.values()} == {50}
    events = journal.cells("SELECT kind FROM events ORDER BY seq")
    assert [kind for (kind,) in events] == ["trial-failed"] * ATTEMPTS + ["evals-planned"]
    journal.close()


def test_a_trainer_that_does_not_tell_its_speed_gets_the_default(config: RunConfig):
    journal = journal_of(config)
    _, said = planned(config, journal, [], speed=None)
    assert "does not say how many tokens per second" in said[-1]
    journal.close()


def test_check_shows_the_runs_plan(config: RunConfig):
    file = config.run.dir.parent / "run.yaml"
    assert any("planned at the first checkpoint" in note for note in check_run(file)["notes"])
    with pytest.raises(BadInput, match="--speed"):
        check_run(file, checkpoint=file.parent)
    journal = journal_of(config)
    planned(config, journal, [])
    journal.close()
    report = check_run(file)
    assert report["evals_plan"]["benchmarks"]["mmlu"]["items"] == 281
    table = tables.plan_table(report["evals_plan"])
    assert table.row_count == 4  # three benchmarks and what starting takes
    file.write_text(file.read_text().replace("2%", "5%"))
    assert any("keeps the plan it made for 2%" in note for note in check_run(file)["notes"])
