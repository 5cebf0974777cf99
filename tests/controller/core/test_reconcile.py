"""The controller's core: whatever the world, one action, the most harmful thing first."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mixloop.controller.core import Action, Applied, FileState, RunState, next_action

worlds = st.builds(
    RunState,
    file=st.sampled_from(FileState),
    asked=st.none() | st.integers(1, 9),
    newly_applied=st.sampled_from([(), (Applied(1, 0, 0),)]),
    newly_rejected=st.sampled_from([{}, {2: "no"}]),
    unrecorded=st.sampled_from([(), ("step-00000010",)]),
    to_score=st.none() | st.integers(1, 99),
    unplanned=st.booleans(),
    trying=st.booleans(),
    tried=st.booleans(),
    to_decide=st.none() | st.integers(1, 99),
    scoring=st.booleans(),
    scored=st.booleans(),
    deciding=st.booleans(),
    decided=st.booleans(),
    to_skip=st.sampled_from([{}, {5: "behind"}]),
    began=st.booleans(),
    finished=st.booleans(),
    status_changed=st.booleans(),
    outbox=st.integers(0, 3),
    draining=st.booleans(),
    drain_due=st.booleans(),
    drain_failed=st.booleans(),
    closed=st.booleans(),
)


def calm(**changes: Any) -> RunState:
    return RunState(file=FileState.CURRENT, asked=1, **changes)


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_a_wrong_shared_file_is_mended_before_anything_else(world: RunState) -> None:
    action = next_action(world)
    if world.file is FileState.STRANGER:
        assert action is Action.RESTORE
    elif world.asked is not None and world.file is not FileState.CURRENT:
        assert action is Action.PUBLISH
    else:
        assert action not in (Action.RESTORE, Action.PUBLISH)


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_it_never_ends_or_drains_with_a_fact_unrecorded(world: RunState) -> None:
    owed = (world.newly_applied or world.newly_rejected or world.unrecorded or world.scored) or (
        world.decided or world.tried or world.to_skip or world.began
    )
    if next_action(world) in (Action.END, Action.DRAIN, Action.CLOSE, Action.WAIT):
        assert not owed


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_it_ends_only_when_told_everything_or_out_of_patience(world: RunState) -> None:
    if next_action(world) is Action.END:
        assert world.finished
        assert world.closed
        assert not world.scoring
        assert not world.trying
        assert not world.deciding
        assert not world.draining
        assert not world.outbox or world.drain_failed


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_one_child_of_a_kind(world: RunState) -> None:
    action = next_action(world)
    assert not (action is Action.START_SCORING and world.scoring)
    assert not (action is Action.START_TRIAL and (world.trying or world.scoring))
    assert not (action is Action.START_DECIDING and world.deciding)
    assert not (action is Action.DRAIN and world.draining)


def test_deciding_comes_before_scoring_the_next() -> None:
    assert next_action(calm(to_decide=10, to_score=20)) is Action.START_DECIDING


@given(worlds)
@settings(max_examples=300, deadline=None)
def test_nothing_is_scored_before_it_is_planned(world: RunState) -> None:
    if next_action(world) is Action.START_SCORING:
        assert not world.unplanned
        assert not world.trying


def test_trials_come_before_the_first_score() -> None:
    assert next_action(calm(to_score=10, unplanned=True)) is Action.START_TRIAL
    assert next_action(calm(to_score=10, unplanned=True, trying=True)) is Action.WAIT
    assert next_action(calm(unplanned=True, trying=True, tried=True)) is Action.TAKE_TRIAL
    assert next_action(calm(to_score=10)) is Action.START_SCORING


def test_an_idle_world_rests() -> None:
    assert next_action(calm()) is Action.WAIT
    assert next_action(RunState()) is Action.WAIT


def test_an_ended_run_is_closed_then_drained_then_left() -> None:
    assert next_action(calm(finished=True, outbox=2, drain_due=True)) is Action.CLOSE
    closing = {"finished": True, "closed": True}
    assert next_action(calm(**closing, outbox=3, drain_due=True)) is Action.DRAIN
    assert next_action(calm(**closing, outbox=3, draining=True)) is Action.WAIT
    assert next_action(calm(**closing)) is Action.END
