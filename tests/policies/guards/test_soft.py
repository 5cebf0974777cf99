"""Soft guards: phase, loss spike, vetoes, significance, dead-band; and Holm's correction."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixloop.policies.evidence import Claim, Veto, claims_of, holm, vetoes
from mixloop.policies.evidence.significance import tail
from mixloop.policies.guards import GuardContext, GuardResult, GuardSettings, apply_guards
from mixloop.policies.interface import (
    BenchmarkScore,
    Evaluation,
    Goal,
    Metric,
    Observation,
    PastDecision,
    Source,
)

NOW = {"a": 0.5, "b": 0.5}
NEXT = {"a": 0.4, "b": 0.6}
SETTINGS = GuardSettings(max_epochs=None)


def guarded(
    weights: dict[str, float] = NEXT, settings: GuardSettings = SETTINGS, **changes: object
) -> GuardResult:
    context = GuardContext(
        sources={name: Source(unique_tokens=1000) for name in NOW},
        weights=NOW,
        drawn=dict.fromkeys(NOW, 0),
        tokens=1000,
        budget=10_000,
        horizon=500,
    )
    return apply_guards(weights, (), dataclasses.replace(context, **changes), settings)


def blocked(result: GuardResult) -> tuple[str, str]:
    notes = [n for n in result.notes if n.action == "blocked"]
    assert len(notes) == 1, result.notes
    return notes[0].guard, notes[0].detail


STRONG, WEAK = Claim("mmlu worse", 4.0), Claim("math flat", 1.0)


@pytest.mark.parametrize(
    ("changes", "settings", "verdict", "guard"),
    [
        ({}, {}, "pass", ""),
        ({"phase": "warmup"}, {}, "hold", "phase"),
        ({"phase": "warmup"}, {"warmup": "allow"}, "pass", ""),
        ({"phase": "decay"}, {}, "pass", ""),
        ({"phase": "decay", "claims": (STRONG,)}, {}, "inconclusive", "phase"),
        ({"phase": "decay", "claims": (STRONG,)}, {"decay": "allow"}, "pass", ""),
        ({"phase": "decay"}, {"decay": "hold"}, "hold", "phase"),
        ({"loss_ratio": 1.3}, {}, "hold", "loss spike"),
        ({"loss_ratio": 1.1}, {}, "pass", ""),
        ({"loss_ratio": math.inf}, {}, "hold", "loss spike"),
        ({"loss_ratio": 9.0}, {"loss_spike": None}, "pass", ""),
        ({"claims": (STRONG,)}, {}, "pass", ""),
        ({"claims": (WEAK,)}, {}, "inconclusive", "significance"),
        ({"claims": (STRONG, WEAK)}, {}, "inconclusive", "significance"),
        ({"claims": (Claim("x", 2.0),)}, {}, "pass", ""),
        ({"claims": (Claim("x", 2.0),), "tests": 4}, {}, "inconclusive", "significance"),
        ({"claims": (Claim("x", 2.0),), "tests": 4}, {"significance": 0.2}, "pass", ""),
        ({"vetoes": (Veto("mmlu fell"),)}, {}, "hold", "veto"),
        ({"vetoes": (Veto("mmlu fell", {"a": 0.6, "b": 0.4}),)}, {}, "hold", "veto"),
        ({"vetoes": (Veto("mmlu fell", {"a": 0.3, "b": 0.7}),)}, {}, "pass", ""),
        ({}, {"dead_band": 0.2}, "hold", "dead-band"),
        ({}, {"dead_band": 0.1}, "pass", ""),
    ],
)  # fmt: skip
def test_what_holds_a_change(changes, settings, verdict, guard):
    result = guarded(settings=SETTINGS.model_copy(update=settings), **changes)
    assert result.verdict == verdict
    assert (blocked(result)[0] if guard else "") == guard


EVERYTHING = {
    "phase": "warmup",
    "loss_ratio": 9.0,
    "claims": (WEAK,),
    "vetoes": (Veto("mmlu fell"),),
}


@pytest.mark.parametrize("who", ["declared", "operator"])
def test_declared_stages_and_operators_meet_only_hard_guards(who):
    assert guarded(**EVERYTHING, **{who: True}).verdict == "pass"


def test_a_mixture_that_stays_is_not_asked_for_evidence():
    assert not any(
        note.guard in ("phase", "loss spike", "veto", "significance", "dead-band")
        for note in guarded(NOW, **EVERYTHING).notes
    )


def test_the_notes_say_why():
    weak = blocked(guarded(claims=(Claim("gsm8k worse", 1.5),), tests=3))[1]
    assert weak == "may be chance at 0.05 over 3 tests: gsm8k worse (z 1.5)"
    small = blocked(guarded({"a": 0.4995, "b": 0.5005}))[1]
    assert small == "total variation 0.0005 is below 0.002: not worth an order"


def test_the_ledger_cuts_below_the_dead_band():
    """A hard limit asks for its change however small it is."""
    tight = GuardSettings(max_epochs=1.0, dead_band=0.1)
    result = guarded(NOW, tight, drawn={"a": 0.0, "b": 760.0}, horizon=500, budget=1500)
    assert result.verdict == "pass"
    assert result.weights == pytest.approx({"a": 0.52, "b": 0.48})


scores = st.lists(st.floats(-5, 8), min_size=1, max_size=8)


@given(scores, st.integers(0, 12), st.floats(0.001, 0.4))
def test_holm_lies_between_bonferroni_and_no_correction(zs, more, level):
    family = len(zs) + more
    stands = holm(zs, level, family)
    for z, good in zip(zs, stands, strict=True):
        assert good or tail(z) > level / family  # whatever Bonferroni passes stands
        assert not good or tail(z) <= level
    # and a stronger one never falls where a weaker one stands
    weakest = min((z for z, good in zip(zs, stands, strict=True) if good), default=math.inf)
    assert all(z <= weakest for z, good in zip(zs, stands, strict=True) if not good)


def test_holm_by_hand():
    # tails 0.00135, 0.0228, 0.0668 against 0.05/3, 0.05/2, 0.05/1
    assert holm([3.0, 2.0, 1.5], 0.05) == [True, True, False]
    assert holm([2.0, 1.9, 1.9], 0.05) == [False, False, False]


@pytest.mark.parametrize(
    ("evidence", "claims", "tests"),
    [
        ({}, (), 0),
        ({"claims": [{"what": "x", "z": 2}], "tests": 5}, (Claim("x", 2.0),), 5),
        ({"claims": [{"z": "much"}, 7]}, (Claim("a benchmark", 0.0),), 1),
        ({"claims": "x", "tests": "y"}, (), 0),
        ({"claims": [{"what": "x", "z": None}], "tests": 0}, (Claim("x", 0.0),), 1),
    ],
)
def test_claims_are_read_from_whatever_a_policy_says(evidence, claims, tests):
    assert claims_of(evidence) == (claims, tests)


def seen(*values: dict[str, float], **changes: object) -> Observation:
    def scored(value: float) -> BenchmarkScore:
        metric = Metric(value=value, stderr=0.01, n=100, higher_is_better=False)
        return BenchmarkScore(metrics={"bits_per_byte": metric})

    evaluations = tuple(
        Evaluation(step=k, tokens=1000 * k, weights=NOW,
                   benchmarks={name: scored(v) for name, v in benchmarks.items()})
        for k, benchmarks in enumerate(values, 1)
    )  # fmt: skip
    return Observation(sources={}, weights=NOW, evaluations=evaluations, **changes)


DONE = PastDecision(
    id="d-1", step=1, tokens=1000, verdict="intervene", weights_before={"a": 0.6, "b": 0.4}
)


def test_a_watched_benchmark_that_fell_since_the_last_intervention_vetoes():
    before, after = {"arc": 1.0, "piqa": 1.0}, {"arc": 1.1, "piqa": 1.0}
    watch = {"watch": ("arc", "piqa"), "decisions": (DONE,)}
    (veto,) = vetoes(seen(before, after, **watch), 0.05)
    assert veto.why.startswith("watched arc fell by 0.1 ±0.014 bits_per_byte (z 6.")
    assert veto.back_to == DONE.weights_before
    assert vetoes(seen(before, after, watch=("arc", "piqa")), 0.05) == ()  # nobody intervened
    assert vetoes(seen(before, {"arc": 1.02, "piqa": 1.0}, **watch), 0.05) == ()
    assert vetoes(seen(before, {"piqa": 0.9}, **watch), 0.05) == ()


def test_many_watched_benchmarks_need_more_to_veto():
    """A fall of 2 standard errors vetoes alone, and not among thirty."""
    fell = 1.0 + 2.05 * 0.01 * math.sqrt(2)
    single = seen({"x0": 1.0}, {"x0": fell}, watch=("x0",), decisions=(DONE,))
    assert len(vetoes(single, 0.05)) == 1
    names = [f"x{k}" for k in range(30)]
    after = dict.fromkeys(names, 1.0) | {"x0": fell}
    many = seen(dict.fromkeys(names, 1.0), after, watch=tuple(names), decisions=(DONE,))
    assert vetoes(many, 0.05) == ()


def test_a_floor_is_kept_against_the_best_evaluation():
    goal = {"objective": {"mmlu": Goal(max_drop=0.05)}, "steering": {"mmlu": "bits_per_byte"}}
    rising = [{"mmlu": value} for value in (1.2, 1.15, 1.11, 1.08, 1.055, 1.035, 1.015, 1.0)]
    (veto,) = vetoes(seen(*rising, {"mmlu": 1.1}, **goal), 0.05)
    assert "from its best, max_drop is 0.05" in veto.why
    assert veto.back_to == NOW
    assert vetoes(seen(*rising, {"mmlu": 1.04}, **goal), 0.05) == ()
    assert vetoes(seen(*rising, {"mmlu": 0.9}, **goal), 0.05) == ()
