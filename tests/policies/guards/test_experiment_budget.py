"""The guard of experiments: what passes is within every bound; what doesn't says why."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixloop.policies.guards import bound_experiment, planned_cost
from mixloop.policies.interface import Experiment, MergeDesign, PolicyError

NAMES = ["web", "code", "maths"]
shares = st.floats(-0.2, 1.2) | st.sampled_from([0.0, 1.0, math.nan, math.inf])
mixtures = st.dictionaries(st.sampled_from([*NAMES, "moon"]), shares, max_size=4)
whole = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda raw: dict(zip(NAMES, (share / sum(raw) for share in raw), strict=True))
)


@given(
    branches=st.lists(mixtures | whole, min_size=1, max_size=5),
    tokens=st.integers(1, 3000),
    left=st.integers(-10, 5000),
    step=st.integers(1, 400),
)
def test_what_passes_is_within_its_bounds_and_nothing_else_happens(
    branches: list[dict[str, float]], tokens: int, left: int, step: int
) -> None:
    asked = Experiment(branches, tokens, "why")
    try:
        found = bound_experiment(asked, NAMES, left=left, step_tokens=step)
    except PolicyError:
        return
    assert planned_cost(found) <= left
    assert 0 < found.tokens <= tokens
    assert found.tokens % step == 0
    assert len(found.branches) == len(branches)
    for weights, wanted in zip(found.branches, branches, strict=True):
        assert list(weights) == NAMES
        assert math.fsum(weights.values()) == pytest.approx(1, abs=1e-12)
        assert all(weights[name] == pytest.approx(wanted.get(name, 0), abs=2e-6) for name in NAMES)


@given(count=st.integers(1, 12), tokens=st.integers(80, 4000), mixture=whole)
def test_whatever_fits_is_let_through(count: int, tokens: int, mixture: dict[str, float]) -> None:
    asked = Experiment([mixture] * count, tokens, "why")
    cost = (count + 1) * (tokens - tokens % 80)
    assert planned_cost(bound_experiment(asked, NAMES, left=cost, step_tokens=80)) == cost
    with pytest.raises(PolicyError, match="the budget has"):
        bound_experiment(asked, NAMES, left=cost - 1, step_tokens=80)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (Experiment([{"moon": 1.0}], 80, ""), "branch 1: no source is called 'moon'"),
        (Experiment([{"wbe": 1.0}], 80, ""), "did you mean 'web'"),
        (Experiment([{"web": 1.0}] * 129, 80, ""), "129 branches are too many: 128 at most"),
        (Experiment([{"web": 0.5}], 80, ""), "branch 1: the weights sum to 0.5, not 1"),
        (
            Experiment([{"web": 1.0}], 80, "", merge=MergeDesign(prior={"web": 0.5})),
            "merge.prior: the weights sum to 0.5",
        ),
        (
            Experiment([{"web": 1.0}], 80, "", merge=MergeDesign(prior={"web": 1}, most={"x": 1})),
            "merge.most: x 1 is no bound",
        ),
    ],
)
def test_what_is_refused_says_why(asked: Experiment, why: str) -> None:
    with pytest.raises(PolicyError, match=why.replace("(", r"\(")):
        bound_experiment(asked, NAMES, left=10**6, step_tokens=80)
