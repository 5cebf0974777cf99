"""Guards: what they catch, that they never let a hard limit be broken, and that they say it."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mixloop.policies.guards import GuardContext, GuardResult, GuardSettings, apply_guards
from mixloop.policies.interface import Source
from mixloop.policies.mixture import total_variation, water_fill

T, B = 10**12, 10**9
SMOLLM2 = {
    "web": Source(unique_tokens=15 * T),
    "code": Source(unique_tokens=1 * T),
    "owm": Source(unique_tokens=12 * B),
}
STAGE2 = {"web": 0.75, "code": 0.20, "owm": 0.05}


def smollm2(**changes: object) -> GuardContext:
    context = GuardContext(
        sources=SMOLLM2,
        weights={"web": 0.9, "code": 0.1, "owm": 0.0},
        drawn={"web": 5.4 * T, "code": 0.6 * T, "owm": 0},
        tokens=6 * T,
        budget=11 * T,
        horizon=100 * B,
    )
    return dataclasses.replace(context, **changes)


def small(weights: dict[str, float] | None = None, **changes: object) -> GuardContext:
    """Four sources of 1,000 tokens; 1,000 of 10,000 tokens done; decisions every 500."""
    names = ["a", "b", "c", "d"]
    context = GuardContext(
        sources={name: Source(unique_tokens=1000, standby=name == "d") for name in names},
        weights=weights or {"a": 0.4, "b": 0.3, "c": 0.3, "d": 0.0},
        drawn=dict.fromkeys(names, 0),
        tokens=1000,
        budget=10_000,
        horizon=500,
    )
    return dataclasses.replace(context, **changes)


FREE = GuardSettings(max_epochs=None, max_change=1.0)


def note(result: GuardResult, guard: str, action: str) -> str:
    details = [n.detail for n in result.notes if n.guard == guard and n.action == action]
    assert details, [(n.guard, n.action, n.detail) for n in result.notes]
    return details[0]


def test_smollm2s_openwebmath_is_caught_as_a_declared_stage():
    context = smollm2(declared=True)
    result = apply_guards(STAGE2, [(8 * T, STAGE2)], context, GuardSettings())
    assert result.verdict == "pass"
    # 5 epochs of 12B over 2T tokens
    assert result.weights == pytest.approx({"owm": 0.03, "web": 0.97 * 0.75 / 0.95,
                                            "code": 0.97 * 0.20 / 0.95})  # fmt: skip
    detail = note(result, "epoch ledger", "changed")
    assert "owm would reach 8.33 epochs at 8T (limit 5, reached at 7.2T)" in detail
    assert "owm 0.05 -> 0.03" in detail
    assert result.plan == ((8 * T, result.weights),)


def test_smollm2s_openwebmath_is_flagged_without_a_plan():
    result = apply_guards(STAGE2, (), smollm2(budget=8 * T), GuardSettings(max_change=1.0))
    assert result.weights == STAGE2  # legal up to the next decision
    flagged = note(result, "epoch ledger", "flagged")
    assert flagged == (
        "held to the end of the budget, "
        "owm would reach 8.33 epochs at 8T (limit 5, reached at 7.2T)"
    )


def test_an_unenforced_ledger_lets_the_published_stage_through():
    context = smollm2(declared=True)
    result = apply_guards(STAGE2, [(8 * T, STAGE2)], context, GuardSettings(max_epochs=None))
    assert result.weights == STAGE2


def test_later_stretches_of_a_plan_get_what_is_left():
    plan = [(7 * T, STAGE2), (8 * T, STAGE2)]
    result = apply_guards(STAGE2, plan, smollm2(declared=True), GuardSettings())
    assert result.weights == STAGE2
    assert result.plan[0] == (7 * T, STAGE2)
    # 60B tokens are allowed, 50B go to the first
    assert result.plan[1][1]["owm"] == pytest.approx(0.01)
    assert "the plan to 8T: owm 0.05 -> 0.01" in note(result, "epoch ledger", "flagged")


@pytest.mark.parametrize(
    ("weights", "problem"),
    [
        ({"a": 0.5, "b": 0.4}, "the weights sum to 0.9, not 1"),
        ({"a": 1.5, "b": -0.5}, "b has weight -0.5, which is no share"),
        ({"a": float("nan"), "b": 1.0}, "a has weight nan"),
        ({"a": float("inf")}, "a has weight inf"),
        ({"a": 0.5, "bb": 0.5}, "no source is called 'bb'; did you mean 'b'?"),
        ({}, "the weights sum to 0, not 1"),
    ],
)
def test_what_is_no_mixture_is_refused(weights, problem):
    result = apply_guards(weights, (), small(), FREE)
    assert (result.verdict, result.weights) == ("refused", None)
    assert problem in note(result, "simplex", "blocked")


@pytest.mark.parametrize(
    ("plan", "problem"),
    [
        ([(900, {"a": 1.0})], "one after another"),
        ([(3000, {"a": 1.0}), (2000, {"a": 1.0})], "one after another"),
        ([(3000, {"b": 1.0})], "first stretch starts now"),
        ([(3000, {"a": 0.5})], "plan to 3000: the weights sum to 0.5"),
    ],
)
def test_a_malformed_plan_is_refused(plan, problem):
    result = apply_guards({"a": 1.0}, plan, small(), FREE)
    assert result.verdict == "refused"
    assert problem in note(result, "simplex", "blocked")


def test_a_sum_that_is_off_by_rounding_is_scaled_and_said():
    result = apply_guards({"a": 0.5, "b": 0.4999995}, (), small(), FREE)
    assert sum(result.weights.values()) == pytest.approx(1, abs=1e-15)
    assert "scaled to 1" in note(result, "simplex", "changed")


def test_dwell_counts_tokens_from_the_last_intervention():
    settings_ = GuardSettings(dwell="1k", max_epochs=None)
    target = {"a": 0.45, "b": 0.25, "c": 0.3}
    early = apply_guards(target, (), small(last_intervention_tokens=500), settings_)
    assert (early.verdict, early.weights) == ("hold", None)
    assert "500 tokens since the last intervention, dwell is 1k" in note(early, "dwell", "blocked")
    late = apply_guards(target, (), small(last_intervention_tokens=0), settings_)
    assert late.verdict == "pass"
    first = apply_guards(target, (), small(), settings_)
    assert first.verdict == "pass"


def test_one_order_at_a_time():
    target = {"a": 0.45, "b": 0.25, "c": 0.3}
    result = apply_guards(target, (), small(order_pending=True), FREE)
    assert result.verdict == "hold"
    assert note(result, "dwell", "blocked") == "the last order is not yet in force"
    operator = small(order_pending=True, operator=True)
    assert apply_guards(target, (), operator, FREE).verdict == "pass"


def test_the_trust_region_scales_the_change():
    target = {"a": 0.0, "b": 0.7, "c": 0.3}
    result = apply_guards(target, (), small(), GuardSettings(max_epochs=None))
    assert result.weights == pytest.approx({"a": 0.3, "b": 0.4, "c": 0.3, "d": 0.0})
    assert "0.4 cut to 0.1" in note(result, "trust region", "changed")


@pytest.mark.parametrize("kind", ["declared", "operator"])
def test_declared_stages_and_operators_skip_soft_guards_and_it_is_noted(kind):
    settings_ = GuardSettings(dwell=10**6, max_epochs=None)
    context = small(last_intervention_tokens=900, **{kind: True})
    target = {"a": 0.0, "b": 0.7, "c": 0.3, "d": 0.0}
    result = apply_guards(target, (), context, settings_)
    assert result.weights == target
    for guard in ("dwell", "trust region"):
        assert "skipped for" in note(result, guard, "passed")


def test_an_operators_order_is_refused_not_altered():
    settings_ = GuardSettings(max_epochs=1.0, cap=0.6)
    result = apply_guards({"a": 0.9, "b": 0.1}, (), small(operator=True), settings_)
    assert (result.verdict, result.weights) == ("refused", None)
    assert result.nearest == pytest.approx({"a": 0.6, "b": 0.4, "c": 0.0, "d": 0.0})
    assert "force it" in note(result, "operator", "blocked")


def test_floors_skip_sources_without_weight_and_on_standby():
    settings_ = GuardSettings(floor=0.05, max_epochs=None, max_change=1.0)
    result = apply_guards({"a": 0.97, "b": 0.02, "d": 0.01}, (), small(), settings_)
    assert result.weights["b"] == pytest.approx(0.05)
    assert result.weights["c"] == 0.0
    # standby keeps its small share, scaled with the rest
    assert 0.009 < result.weights["d"] < 0.01


def test_an_exhausted_source_loses_even_its_floor():
    settings_ = GuardSettings(floor=0.05, max_epochs=2.0, max_change=1.0)
    context = small(drawn={"a": 0, "b": 0, "c": 2500})
    result = apply_guards({"a": 0.5, "b": 0.4, "c": 0.1}, (), context, settings_)
    assert result.weights == pytest.approx({"a": 5 / 9, "b": 4 / 9, "c": 0.0, "d": 0.0})


def test_nothing_legal_left_keeps_and_alarms():
    context = small(drawn={"a": 5000, "b": 5000, "c": 5000})
    result = apply_guards({"a": 0.5, "b": 0.3, "c": 0.2}, (), context, GuardSettings())
    assert (result.verdict, result.weights, result.nearest) == ("refused", None, None)
    assert "nothing legal left" in note(result, "epoch ledger", "blocked")
    capped = apply_guards({"a": 1.0}, (), small(), GuardSettings(cap=0.5, max_change=1.0))
    assert capped.verdict == "refused"
    assert "1 sources can't share 1 from 0 to 0.5" in note(capped, "floor and cap", "blocked")


def test_going_on_as_before_meets_the_ledger_too():
    context = small(drawn={"a": 4900, "b": 0, "c": 0}, last_intervention_tokens=990)
    settings_ = GuardSettings(dwell=5000, max_change=0.1)
    result = apply_guards(context.weights, (), context, settings_)
    assert result.verdict == "pass"
    assert result.weights == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.4, "d": 0.0})
    assert "beyond max_change 0.1" in note(result, "trust region", "flagged")


def test_no_change_is_a_hold():
    result = apply_guards(small().weights, (), small(), FREE)
    assert (result.verdict, result.weights) == ("hold", None)
    assert note(result, "result", "passed") == "nothing to change"


def test_notes_are_json():
    result = apply_guards(STAGE2, (), smollm2(), GuardSettings())
    notes = [note.to_json() for note in result.notes]
    assert json.loads(json.dumps(notes)) == notes


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"floor": 0.5, "cap": 0.1}, "floor 0.5 is above cap 0.1"),
        ({"dwell": "5X"}, "not a token count"),
        ({"max_chnge": 1}, "Extra inputs"),
        ({"max_epochs": 0}, "greater than 0"),
    ],
)
def test_settings_are_validated(given_, message):
    with pytest.raises(ValueError, match=message):
        GuardSettings(**given_)


# --- properties -----------------------------------------------------------------------------------

MOST = 6


def simplex(size: int = MOST) -> st.SearchStrategy[list[float]]:
    part = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    raw = st.lists(part, min_size=size, max_size=size).filter(lambda w: sum(w) > 0)
    return raw.map(lambda w: [x / sum(w) for x in w])


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[str, float], GuardContext, GuardSettings]:
    names = [f"s{k}" for k in range(MOST)]
    sizes = draw(st.lists(st.integers(0, 5000), min_size=MOST, max_size=MOST))
    drawn = draw(st.lists(st.integers(0, 4000), min_size=MOST, max_size=MOST))
    standby = draw(st.lists(st.booleans(), min_size=MOST, max_size=MOST))
    context = GuardContext(
        sources={
            n: Source(unique_tokens=s, standby=b)
            for n, s, b in zip(names, sizes, standby, strict=True)
        },
        weights=dict(zip(names, draw(simplex()), strict=True)),
        drawn=dict(zip(names, drawn, strict=True)),
        tokens=sum(drawn),
        budget=sum(drawn) + draw(st.integers(0, 20_000)),
        horizon=draw(st.integers(0, 4000)),
        declared=draw(st.booleans()),
    )
    floor = draw(st.sampled_from([0.0, 0.001, 0.05, 0.2]))
    settings_ = GuardSettings(
        max_epochs=draw(st.sampled_from([None, 0.5, 1.0, 5.0])),
        max_change=draw(st.sampled_from([0.01, 0.1, 0.5, 1.0])),
        floor=floor,
        cap=draw(st.sampled_from([0.25, 0.5, 1.0])),
    )
    return dict(zip(names, draw(simplex()), strict=True)), context, settings_


def hard_limits_hold(w: dict[str, float], context: GuardContext, limits: GuardSettings) -> None:
    assert sum(w.values()) == pytest.approx(1, abs=1e-9)
    length = max(0, min(context.tokens + context.horizon, context.budget) - context.tokens)
    for name, source in context.sources.items():
        assert 0 <= w[name] <= limits.cap + 1e-9
        most = float("inf")
        if limits.max_epochs is not None and length:
            left = max(0, limits.max_epochs * source.unique_tokens - context.drawn[name])
            most = left / length
            assert w[name] * length <= left + 1e-6
        if w[name] > 1e-9 and not source.standby:
            assert w[name] >= min(limits.floor, most) - 1e-9


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_hard_limits_are_never_broken_and_notes_tell_all(world):
    proposed, context, limits = world
    result = apply_guards(proposed, (), context, limits)
    current = dict(proposed)
    for entry in result.notes:
        assert (entry.action == "changed") == (entry.before is not None)
        if entry.before is not None:
            assert entry.before == current
            current = entry.after
            assert sum(current.values()) == pytest.approx(1, abs=1e-9)
    if result.verdict == "pass":
        assert result.weights == current
        hard_limits_hold(result.weights, context, limits)
        assert all(result.weights[n] == 0 or w > 0 or context.weights[n] > 0
                   for n, w in proposed.items())  # fmt: skip
    else:
        assert result.weights is None


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_the_trust_region_holds_unless_a_hard_guard_says_it_moved_more(world):
    proposed, context, limits = world
    assume(not context.declared)
    result = apply_guards(proposed, (), context, limits)
    if result.verdict != "pass":
        return
    moved = total_variation(result.weights, context.weights)
    hard = {n.guard for n in result.notes if n.action == "changed"} & {
        "floor and cap", "epoch ledger",
    }  # fmt: skip
    assert moved <= limits.max_change + 1e-9 or hard
    assert (moved > limits.max_change + 1e-9) <= any(n.action == "flagged" for n in result.notes)


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_a_second_pass_changes_nothing(world):
    proposed, context, limits = world
    declared = dataclasses.replace(context, declared=True)
    first = apply_guards(proposed, (), declared, limits)
    assume(first.verdict == "pass")
    second = apply_guards(first.weights, (), declared, limits)
    assert (second.verdict, second.weights) == ("pass", first.weights)
    assert not any(entry.action == "changed" for entry in second.notes)
    change = total_variation(first.weights, context.weights)
    if limits.dead_band <= change <= limits.max_change:
        plain = dataclasses.replace(context, declared=False)
        assert apply_guards(first.weights, (), plain, limits).weights == first.weights


@settings(max_examples=80, deadline=None)
@given(worlds())
def test_refused_only_when_nothing_is_legal(world):
    proposed, context, limits = world
    declared = dataclasses.replace(context, declared=True)
    result = apply_guards(proposed, (), declared, limits)
    length = max(0, min(context.horizon, context.budget - context.tokens))
    highest, lowest = 0.0, 0.0
    for name, source in context.sources.items():
        if proposed[name] <= 0:
            continue
        most = limits.cap
        if limits.max_epochs is not None and length:
            left = limits.max_epochs * source.unique_tokens - context.drawn[name]
            most = min(most, max(0, left) / length)
        highest += most
        lowest += 0 if source.standby else min(limits.floor, most)
    assume(abs(highest - 1) > 1e-9 and abs(lowest - 1) > 1e-9)
    if result.verdict == "refused":
        assert highest < 1 or lowest > 1
    else:
        assert lowest < 1 < highest


bound = st.tuples(st.floats(0, 0.3), st.floats(0.05, 1)).map(lambda b: (min(b), max(b)))


@settings(max_examples=200, deadline=None)
@given(simplex(5), st.lists(bound, min_size=5, max_size=5))
def test_water_filling_scales_the_free_sources_alike(raw, limits):
    weights = {str(k): w for k, w in enumerate(raw)}
    bounds = {str(k): b if raw[k] > 0 else (0.0, 0.0) for k, b in enumerate(limits)}
    filled = water_fill(weights, bounds)
    if filled is None:
        low, high = (sum(b[i] for b in bounds.values()) for i in (0, 1))
        assert low > 1 - 1e-9 or high < 1 + 1e-9
        return
    assert sum(filled.values()) == pytest.approx(1, abs=1e-9)
    ratios = [filled[n] / w for n, w in weights.items()
              if w > 0 and bounds[n][0] + 1e-9 < filled[n] < bounds[n][1] - 1e-9]  # fmt: skip
    if ratios:
        scale = ratios[0]
        for name, weight in weights.items():
            low, high = bounds[name]
            assert filled[name] == pytest.approx(min(max(scale * weight, low), high), abs=1e-8)
