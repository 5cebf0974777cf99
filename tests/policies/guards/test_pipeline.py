"""Guards of other packages: switched on by name, met after the soft ones, never above the hard."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from mixloop.common.errors import BadInput
from mixloop.controller.config import load_config
from mixloop.policies.guards import GuardContext, GuardResult, GuardSettings, apply_guards
from mixloop.policies.guards.guard_registry import load_guard
from mixloop.policies.interface import PolicyError, Source

MODULE = """
    from mixloop.policies.guards import Guard, GuardState

    class Cap:
        name = "own cap"

        def apply(self, state: GuardState) -> None:
            if state.weights["a"] > 0.52:
                rest = state.weights["b"] + state.weights["a"] - 0.52
                state.replace({"a": 0.52, "b": rest}, "a held at 0.52")

    class Strict(Cap):
        soft = False

    def block(state):
        raise state.blocked("never on a Friday")

    friday = Guard("friday", block)

    def factory():
        return friday

    class Broken:
        name = "broken"

        def apply(self, state):
            raise RuntimeError("no table")

    class Quits(Broken):
        def apply(self, state):
            raise SystemExit(3)

    class Unscaled(Broken):
        def apply(self, state):
            state.weights["a"] += 0.3

    class Greedy(Broken):
        soft = False

        def apply(self, state):
            state.replace({"a": 1.0, "b": 0.0}, "all of it")

    class Nameless:
        def apply(self, state):
            pass

    class Fails:
        def __init__(self):
            raise RuntimeError("no licence")
"""
NAMES = {
    "cap": "Cap",
    "strict": "Strict",
    "friday": "friday",
    "factory": "factory",
    "broken": "Broken",
    "quits": "Quits",
    "unscaled": "Unscaled",
    "greedy": "Greedy",
    "nameless": "Nameless",
    "fails": "Fails",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with an entry point for each of the guards above."""
    (tmp_path / "own_guards.py").write_text(textwrap.dedent(MODULE))
    info = tmp_path / "own_guards-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-guards\nVersion: 1.0\n")
    lines = [f"{name} = own_guards:{target}" for name, target in NAMES.items()]
    (info / "entry_points.txt").write_text("\n".join(["[mixloop.guards]", *lines]) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("own_guards", None)


def guarded(*use: str, weights: dict[str, float] | None = None, **changes: object) -> GuardResult:
    context = GuardContext(
        sources={name: Source(unique_tokens=10**9) for name in "ab"},
        weights={"a": 0.5, "b": 0.5},
        drawn={"a": 0, "b": 0},
        tokens=0,
        budget=1000,
        horizon=100,
        **changes,  # type: ignore[arg-type]
    )
    settings = GuardSettings(max_epochs=None, cap=0.9, use=use)
    return apply_guards(weights or {"a": 0.55, "b": 0.45}, (), context, settings)


def said(result: GuardResult, guard: str) -> list[str]:
    return [f"{note.action}: {note.detail}" for note in result.notes if note.guard == guard]


def test_a_guard_changes_the_mixture_between_the_soft_and_the_hard_ones():
    result = guarded("cap")
    assert result.weights == pytest.approx({"a": 0.52, "b": 0.48})
    order = [note.guard for note in result.notes]
    assert order.index("trust region") < order.index("own cap") < order.index("floor and cap")
    assert guarded().weights == {"a": 0.55, "b": 0.45}


@pytest.mark.parametrize("name", ["friday", "factory"])
def test_a_guard_blocks_with_its_reason(name):
    result = guarded(name)
    assert (result.verdict, result.weights) == ("hold", None)
    assert said(result, "friday") == ["blocked: never on a Friday"]


def test_a_soft_guard_is_passed_by_where_nobody_asks_it():
    assert guarded("friday", operator=True).verdict == "pass"
    assert guarded("friday", declared=True).verdict == "pass"
    kept = guarded("friday", weights={"a": 0.5, "b": 0.5})
    assert not said(kept, "friday")
    refused = guarded("strict", operator=True)
    assert refused.verdict == "refused"
    assert refused.nearest == pytest.approx({"a": 0.52, "b": 0.48})


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("broken", "RuntimeError: no table (own_guards.py line 27)"),
        ("quits", "SystemExit: 3 (own_guards.py line 31)"),
        ("unscaled", "the weights sum to 1.3, not 1"),
    ],
)
def test_a_guard_that_fails_costs_the_decision(name, problem):
    result = guarded(name)
    assert (result.verdict, result.weights) == ("hold", None)
    assert said(result, "broken") == [f"blocked: the guard failed: {problem}; the mixture stays"]


def test_a_guard_that_is_gone_while_the_run_goes_on_costs_the_decision(tmp_path):
    settings = GuardSettings(use=("cap",))
    (tmp_path / "own_guards-1.0.dist-info" / "entry_points.txt").write_text("")
    context = GuardContext({"a": Source(unique_tokens=9)}, {"a": 1.0}, {}, 0, 10, 1)
    assert apply_guards({"a": 1.0}, (), context, settings).verdict == "hold"


def test_the_hard_guards_have_the_last_word():
    result = guarded("greedy")
    assert result.verdict == "refused"  # b has no weight left that could take the excess
    assert said(result, "floor and cap")


@pytest.mark.parametrize(
    ("use", "message"),
    [
        ("cup", "no guard is called 'cup'; did you mean 'cap'?"),
        ("nameless", r"guard nameless \(own_guards:Nameless\) needs a name and apply"),
        ("fails", r"guard fails \(own_guards:Fails\) doesn't load: RuntimeError: no licence"),
    ],
)
def test_mistakes_are_refused_when_the_run_starts(tmp_path, use, message):
    with pytest.raises(PolicyError, match=message):
        load_guard(use)
    path = tmp_path / "run.yaml"
    path.write_text(
        f"run: {{id: r, dir: r}}\nbudget: 1M\nsources: {{a: {{path: a}}}}\nguards: {{use: {use}}}\n"
    )
    with pytest.raises(BadInput, match=f"guards.use.*{message}"):
        load_config(path)
