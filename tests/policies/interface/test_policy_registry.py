"""Finding policies, validating their options, and the one line a mistake gets."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from mixloop.policies.interface import (
    Experiment,
    Hold,
    Observation,
    PastDecision,
    PolicyError,
    Proposal,
    Reply,
    Source,
    load_policy,
    policy_digest,
    policy_names,
    policy_options_schema,
    reply_from_json,
    reply_to_json,
)
from mixloop.policies.interface.policy_protocol import LARGEST_REPLY

MODULE = """
    from pydantic import BaseModel
    from mixloop.policies import Hold

    class Inner(BaseModel):
        rate: float = 0.1

    class Mine:
        class Options(BaseModel):
            inner: Inner = Inner()
            name: str

        def __init__(self, options):
            self.options = options

        def decide(self, observation):
            return Hold(self.options.name)

    class Plain:
        def __init__(self, step=0.05, *, source):
            self.step, self.source = step, source

        def decide(self, observation):
            return Hold(f"{self.source} {self.step}")

    class Bare:
        def decide(self, observation):
            return Hold("bare")

    class Idle:
        pass

    class Fails(Bare):
        def __init__(self):
            raise RuntimeError("no table")

    thing = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(MODULE))
    (tmp_path / "broken.py").write_text("x = 1\ny = undefined_name\n")
    return tmp_path


def observation(**changes: object) -> Observation:
    sources = {"a": Source(unique_tokens=100), "b": Source(unique_tokens=100)}
    return Observation(sources=sources, weights={"a": 0.9, "b": 0.1}, **changes)


def test_built_in_names():
    assert {"static", "rules"} <= set(policy_names())


def test_a_policy_from_a_file_with_a_model_keywords_or_nothing(folder):
    mine = load_policy("./mine.py:Mine", {"name": "hi", "inner": {"rate": 0.3}}, base=folder)
    assert mine.decide(observation()).reason == "hi"
    plain = load_policy("mine.py:Plain", {"source": "a"}, base=folder)
    assert plain.decide(observation()).reason == "a 0.05"
    absolute = load_policy(f"{folder}/mine.py:Bare", None)
    assert absolute.decide(observation()).reason == "bare"


def test_a_policy_from_a_module_and_an_entry_point(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    info = folder / "elsewhere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mixloop.policies]\nfancy = mine:Bare\n")
    assert load_policy("mine:Bare").decide(observation()).reason == "bare"
    assert "fancy" in policy_names()
    assert load_policy("fancy").decide(observation()).reason == "bare"
    del sys.modules["mine"]


@pytest.mark.parametrize(
    ("ref", "options", "message"),
    [
        ("ruls", None, "policy.use: no policy is called 'ruls'; did you mean 'rules'?"),
        ("mine.py", None, "mine.py names no class; write mine.py:ClassName"),
        ("./gone.py:A", None, r"there is no file .*gone.py; correct the path"),
        ("./mine.py:Mien", None, "no class 'Mien' there; did you mean 'Mine'?"),
        ("./mine.py:thing", None, "is a int, not a class"),
        ("./mine.py:", None, "is no policy; write a name"),
        ("./mine.py:Idle", None, r"has no decide\(observation\) method"),
        ("./mine.py:Fails", None, "RuntimeError: no table while it was built"),
        ("./broken.py:A", None, r"NameError: .*undefined_name.* \(broken.py line 2\)"),
        ("no_such_module:A", None, "ModuleNotFoundError: No module named 'no_such_module'"),
        ("static", [1], r"policy.with: \[1\] is no mapping"),
        ("static", {"weight": {}}, "policy.with.weight: unknown .*did you mean 'weights'?"),
        ("static", {"weights": {"a": 0.5}}, "policy.with.weights: the weights sum to 0.5, not 1"),
        ("static", {"weights": {"a": 2, "b": -1}}, "b has weight -1.0"),
        ("./mine.py:Mine", {"nam": 1}, "policy.with.nam: unknown .*did you mean 'name'?"),
        ("./mine.py:Mine", {}, "policy.with.name: missing"),
        ("./mine.py:Mine", {"name": "x", "inner": {"rate": "q"}}, "policy.with.inner.rate: .*'q'"),
        ("./mine.py:Plain", {}, "policy.with.source: missing; Plain needs it"),
        ("./mine.py:Plain", {"sorce": 1}, "did you mean 'source'?"),
        ("./mine.py:Bare", {"a": 1}, "this policy takes no options"),
    ],
)
def test_one_line_for_each_mistake(folder, ref, options, message):
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(ref, options, base=folder)
    assert "\n" not in str(caught.value)


def test_the_digest_follows_the_file(folder):
    before = policy_digest("./mine.py:Bare", folder)
    assert before.startswith("sha256:")
    assert policy_digest("./broken.py:A", folder) != before  # hashed, not imported
    (folder / "mine.py").write_text("# changed\n")
    assert policy_digest("./mine.py:Bare", folder) != before
    assert policy_digest("rules") != policy_digest("static")
    with pytest.raises(PolicyError, match="there is no file"):
        policy_digest("./gone.py:A", folder)


def test_option_schemas(folder):
    rules = policy_options_schema("rules")
    assert set(rules["properties"]) == {
        "initial", "stages", "interventions", "introduce", "anneal", "combine",
        "exhaust",
    }  # fmt: skip
    assert {"to", "from", "step", "cap", "floor"} == set(rules["$defs"]["Move"]["properties"])
    assert json.loads(json.dumps(rules)) == rules
    plain = policy_options_schema("./mine.py:Plain", folder)
    assert plain["required"] == ["source"]
    assert plain["properties"]["step"] == {"default": 0.05}
    assert policy_options_schema("./mine.py:Bare", folder)["properties"] == {}


def test_replies_cross_a_process_boundary():
    evidence = {"n": np.int64(3), "z": np.float32(0.5), "bad": float("nan"), "all": np.arange(2)}
    sent = Proposal({"a": 0.5, "b": 0.5}, "why", plan=[(100, {"a": 1.0})], evidence=evidence)
    back = reply_from_json(reply_to_json(sent))
    assert back == sent
    assert sent.evidence == {"n": 3, "z": 0.5, "bad": None, "all": [0, 1]}
    hold = Hold("wait", verdict="inconclusive")
    assert reply_from_json(reply_to_json(hold)) == hold
    for nonsense in (None, {"weights": {}}, 3):
        with pytest.raises(PolicyError, match="not a Proposal, a Hold or an Experiment"):
            reply_to_json(nonsense)
    for text in ("", "{}", '{"kind":"proposal"}', "[1]"):
        with pytest.raises(PolicyError, match="no policy answer"):
            reply_from_json(text)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Proposal({"a": float("nan")}, "oops"), "Proposal with weights.a nan"),
        (Experiment([{"a": 1.0}, {"b": float("inf")}], 9, "oops"), "with branches.2.b inf"),
        (Hold("because", {"all": "x" * LARGEST_REPLY}), "4.0 MiB, .* detail out of reason and"),
    ],
)
def test_what_no_journal_could_keep_is_told_by_its_place(broken: Reply, words: str):
    with pytest.raises(PolicyError, match=words):
        reply_to_json(broken)


def test_static_holds_or_reaches_its_mixture_once():
    assert isinstance(load_policy("static").decide(observation()), Hold)
    target = {"a": 0.5, "b": 0.5}
    policy = load_policy("static", {"weights": target})
    first = policy.decide(observation())
    assert isinstance(first, Proposal)
    assert first.weights == target

    def past(after: dict[str, float], **more: object) -> PastDecision:
        fields = {"id": "d", "step": 1, "tokens": 1, "verdict": "intervene", "rule": "static"}
        return PastDecision(**fields | {"weights_before": {"a": 0.9, "b": 0.1}} | more,
                            weights_after=after)  # fmt: skip

    half = past({"a": 0.8, "b": 0.2})
    assert isinstance(policy.decide(observation(decisions=(half,))), Proposal)
    done = past(target)
    assert isinstance(policy.decide(observation(decisions=(done,))), Hold)
    operator = past({"a": 0.3, "b": 0.7}, rule=None)
    assert isinstance(policy.decide(observation(decisions=(half, operator))), Hold)
    stuck = past({"a": 0.9, "b": 0.1})
    assert isinstance(policy.decide(observation(decisions=(stuck,))), Hold)
    waiting = past({"a": 0.9, "b": 0.1}, verdict="hold")
    assert isinstance(policy.decide(observation(decisions=(waiting,))), Proposal)


def test_static_names_are_checked():
    policy = load_policy("static", {"weights": {"aa": 1.0}})
    for call in (lambda: policy.check({"a": ()}, []), lambda: policy.decide(observation())):
        with pytest.raises(PolicyError, match=r"no source is called 'aa'; did you mean 'a'\?"):
            call()


def test_the_package_imports_light():
    code = (
        "import sys, time; start = time.process_time(); import mixloop.policies;"
        "lazy = time.process_time() - start;"
        "from mixloop.policies import load_policy, Observation; load_policy('rules', {});"
        "heavy = {'torch','scipy','numpy','optuna','mlflow','lm_eval'} & set(sys.modules);"
        "assert not heavy, heavy; assert lazy < 0.15, lazy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    (tmp_path / "beside_now.py").write_text("WHY = 'now'\n")
    (tmp_path / "beside_later.py").write_text("WHY = 'later'\n")
    (tmp_path / "own.py").write_text(
        "from beside_now import WHY\n"
        "class Own:\n"
        "    def decide(self, observation):\n"
        "        import beside_later\n"
        "        return WHY, beside_later.WHY\n"
    )
    code = (
        "import sys; from mixloop.policies import load_policy;"
        "assert load_policy('./own.py:Own', base=sys.argv[1]).decide(None) == ('now', 'later')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
