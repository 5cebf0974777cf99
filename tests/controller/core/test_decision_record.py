"""What can't be published is refused when it is decided on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixloop.contract.orders import LARGEST_ORDER
from mixloop.controller.core import DecisionRecord, OrderRecord, bounded
from mixloop.controller.core.decision_record import LARGEST_EVIDENCE

NOW = {"web": 0.6, "code": 0.4}
THEN = {"web": 0.5, "code": 0.5}
ASKED = DecisionRecord(
    verdict="intervene", reason="more code", weights_before=NOW, weights_after=THEN,
    against_generation=3, weights_proposed=THEN, plan=((100, THEN), (200, NOW)),
    order=OrderRecord(4, "rules"),
)  # fmt: skip
HUGE = {"x" * LARGEST_ORDER: 1.0}


def test_what_can_be_published_stays_as_it_is() -> None:
    assert bounded(ASKED, "r") is not None
    assert bounded(ASKED, "r") == ASKED
    hold = replace(ASKED, verdict="hold", order=None, weights_after=NOW, plan=())
    assert bounded(hold, "r") == hold


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"weights_after": HUGE}, "bytes: the most is"),
        ({"plan": ((100, THEN), (200, {"web": 0.5}))}, "then[0] weights sum to 0.5"),
        ({"plan": ((100, THEN), (100, THEN), (100, NOW))}, "not above the stage before"),
        (
            {
                "order": None,
                "approval": "above 0.2",
                "weights_proposed": HUGE,
                "weights_after": NOW,
            },
            "bytes: the most is",
        ),
    ],
)
def test_what_can_not_be_published_is_refused(changes: dict[str, Any], why: str) -> None:
    kept = bounded(replace(ASKED, **changes), "r")
    assert kept.verdict == "refused"
    assert kept.reason.startswith("it can't be published: ")
    assert why in kept.reason
    assert kept.reason.endswith("; more code")
    assert kept.weights_after == NOW
    assert (kept.order, kept.approval, kept.plan) == (None, None, ())


def test_a_long_reason_is_cut() -> None:
    kept = bounded(replace(ASKED, reason="R" * 1_100_000), "r")
    assert len(kept.reason) < 4100
    assert kept.order is not None


def test_evidence_is_kept_as_far_as_it_fits() -> None:
    evidence = {"dump": "E" * LARGEST_EVIDENCE, "rule": "r", "all": ["x" * 99] * 9000}
    kept = bounded(replace(ASKED, evidence=evidence), "r").evidence
    assert {"rule", "all", "left out"} == set(kept)
    assert "without 'dump'" in kept["left out"]
    assert bounded(replace(ASKED, evidence={"rule": "r"}), "r") == replace(
        ASKED, evidence={"rule": "r"}
    )
