"""The controller's core: whatever the state, one action, the most harmful thing first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.contract import Manifest, OpenLine
from mixloop.contract.status import OrderInForce
from mixloop.controller.core import Action, Applied, FileState, JobState, RunState, next_action

BEGAN = OpenLine(2, None, 0, 0, 7, (), 10, 8, 1, 8, 1)
MANIFEST = Manifest("r", 10, 80, 800, "stable", OrderInForce(1, 1, 0, 0, {}), {}, 1, 10, 8, {})
ORDER = {"generation": 1}

states = st.builds(
    RunState,
    training_ended=st.booleans(),
    began=st.sampled_from([(), (BEGAN,)]),
    file=st.sampled_from(FileState),
    asked=st.sampled_from([None, ORDER]),
    newly_applied=st.sampled_from([(), (Applied(1, 0, 0),)]),
    newly_rejected=st.sampled_from([{}, {2: "no"}]),
    request=st.sampled_from([None, Path("requests/1.json")]),
    expired=st.sampled_from(["", "d-000001"]),
    unrecorded=st.sampled_from([{}, {Path("step-00000010"): MANIFEST}]),
    waiting=st.sampled_from([(), (10,), (10, 20)]),
    to_skip=st.sampled_from([{}, {5: "behind"}]),
    to_decide=st.none() | st.integers(1, 99),
    paused=st.booleans(),
    experiment=st.sampled_from(["", "e-000001"]),
    experiment_over=st.sampled_from(["", "training has ended"]),
    curves_due=st.booleans(),
    outbox=st.integers(0, 3),
    closed=st.booleans(),
    jobs=st.builds(
        JobState,
        scoring=st.booleans(),
        scored=st.booleans(),
        writing=st.booleans(),
        unplanned=st.booleans(),
        piloting=st.booleans(),
        piloted=st.booleans(),
        deciding=st.booleans(),
        decided=st.booleans(),
        experimenting=st.booleans(),
        experimented=st.booleans(),
        draining=st.booleans(),
        drain_due=st.booleans(),
        drain_failed=st.booleans(),
    ),
)


def calm(jobs: JobState | None = None, **changes: Any) -> RunState:
    return RunState(file=FileState.CURRENT, asked=ORDER, jobs=jobs or JobState(), **changes)


@given(states)
@settings(max_examples=300, deadline=None)
def test_a_wrong_shared_file_is_mended_before_anything_else(state: RunState) -> None:
    action = next_action(state)
    if state.file is FileState.FOREIGN:
        assert action is Action.RESTORE
    elif state.asked is not None and state.file is not FileState.CURRENT:
        assert action is Action.PUBLISH
    else:
        assert action not in (Action.RESTORE, Action.PUBLISH)


@given(states)
@settings(max_examples=300, deadline=None)
def test_it_never_ends_or_drains_with_a_fact_unrecorded(state: RunState) -> None:
    jobs = state.jobs
    owed = (state.newly_applied or state.newly_rejected or state.unrecorded or jobs.scored) or (
        jobs.decided or jobs.piloted or state.to_skip or state.began or jobs.experimented
    )
    if next_action(state) in (Action.END, Action.DRAIN, Action.CLOSE, Action.WAIT):
        assert not owed
        assert not state.request


@given(states)
@settings(max_examples=300, deadline=None)
def test_it_ends_only_when_told_everything_or_out_of_patience(state: RunState) -> None:
    if next_action(state) is Action.END:
        jobs = state.jobs
        assert state.finished
        assert state.closed
        assert not jobs.scoring
        assert not jobs.piloting
        assert not jobs.deciding
        assert not jobs.draining
        assert not state.outbox or jobs.drain_failed


@given(states)
@settings(max_examples=300, deadline=None)
def test_one_child_of_a_kind(state: RunState) -> None:
    action, jobs = next_action(state), state.jobs
    assert not (action is Action.START_SCORING and jobs.scoring)
    assert not (action is Action.START_PILOT and (jobs.piloting or jobs.scoring))
    assert not (action is Action.START_DECIDING and jobs.deciding)
    assert not (action is Action.START_EXPERIMENT and jobs.experimenting)
    assert not (action is Action.DRAIN and jobs.draining)


@given(states)
@settings(max_examples=300, deadline=None)
def test_an_experiment_waits_for_all_that_is_more_urgent_and_no_longer_than_it_may(
    state: RunState,
) -> None:
    action, jobs = next_action(state), state.jobs
    if action is Action.START_EXPERIMENT:
        assert state.experiment
        assert not state.experiment_over
        assert not state.paused
        assert state.to_decide is None or jobs.deciding
        assert not state.waiting or jobs.scoring or jobs.piloting
    if action in (Action.CLOSE, Action.END):
        assert not (state.experiment and state.experiment_over)
    if action is Action.ABANDON_EXPERIMENT:
        assert state.experiment_over
        assert not jobs.experimented, "what came of it is taken first"


def test_an_experiment_runs_beside_the_scoring() -> None:
    assert next_action(calm(waiting=(10,), experiment="e-000001")) is Action.START_SCORING
    scoring = JobState(scoring=True)
    assert next_action(calm(scoring, waiting=(10,), experiment="e-000001")) is (
        Action.START_EXPERIMENT
    )
    running = JobState(experimenting=True)
    assert next_action(calm(running, waiting=(10,), experiment="e-000001")) is Action.START_SCORING


def test_deciding_comes_before_scoring_the_next() -> None:
    assert next_action(calm(to_decide=10, waiting=(20,))) is Action.START_DECIDING


@given(states)
@settings(max_examples=300, deadline=None)
def test_nothing_is_scored_before_it_is_planned(state: RunState) -> None:
    if next_action(state) is Action.START_SCORING:
        assert not state.jobs.unplanned
        assert not state.jobs.piloting


def test_pilots_come_before_the_first_score() -> None:
    unplanned = JobState(unplanned=True)
    piloting = JobState(unplanned=True, piloting=True)
    piloted = JobState(unplanned=True, piloting=True, piloted=True)
    assert next_action(calm(unplanned, waiting=(10,))) is Action.START_PILOT
    assert next_action(calm(piloting, waiting=(10,))) is Action.WAIT
    assert next_action(calm(piloted)) is Action.TAKE_PILOT
    assert next_action(calm(waiting=(10,))) is Action.START_SCORING


def test_an_idle_run_rests() -> None:
    assert next_action(calm()) is Action.WAIT
    assert next_action(RunState()) is Action.WAIT


def test_an_ended_run_is_closed_then_drained_then_left() -> None:
    due, draining = JobState(drain_due=True), JobState(draining=True)
    assert next_action(calm(due, training_ended=True, outbox=2)) is Action.CLOSE
    closing = {"training_ended": True, "closed": True}
    assert next_action(calm(due, **closing, outbox=3)) is Action.DRAIN
    assert next_action(calm(draining, **closing, outbox=3)) is Action.WAIT
    assert next_action(calm(**closing)) is Action.END
    assert next_action(calm(JobState(writing=True), **closing)) is Action.WAIT
    assert next_action(calm(**closing, waiting=(10,))) is Action.START_SCORING
