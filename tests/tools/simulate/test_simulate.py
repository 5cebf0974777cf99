"""``mixloop simulate``: policies on worlds and on configured runs, through the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from mixloop.cli.app import app, main
from mixloop.common.errors import BadInput
from mixloop.controller.config import load_config
from mixloop.policies.interface import Hold, Observation, load_policy
from mixloop.policies.worlds import Setting, WorldSource, load_world, world_sources
from mixloop.policies.worlds.conformance import check_world
from mixloop.policies.worlds.families import Power
from mixloop.policies.worlds.smollm2 import SmolLM2
from mixloop.tools.simulate import scores
from mixloop.tools.simulate.report import page
from mixloop.tools.simulate.simulate_args import SimulateArgs, plan_simulations
from mixloop.tools.simulate.simulation import simulate
from mixloop.tools.simulate.virtual_run import virtual_config

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "examples" / "smollm2.yaml"
GUIDE = ROOT / "docs" / "worlds.md"


def run(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["simulate", *arguments, "--jobs", "1", "--json"])
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def own_world(tmp_path: Path) -> Path:
    """The guide's example as a file."""
    text = GUIDE.read_text(encoding="utf-8")
    code = re.search(r"<!-- example -->\n```python\n(.*?)```", text, re.S)
    assert code is not None
    path = tmp_path / "mine.py"
    path.write_text(code[1], encoding="utf-8")
    return path


# --- SmolLM2's run ----------------------------------------------------------------------------


def test_smollm2_replays_in_seconds_reported_and_enforced(tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    report = run(str(EXAMPLE), "--seeds", "1", "--html", str(out))
    (ledger,) = report["ledgers"]
    stages = load_config(EXAMPLE).policy.options["stages"]
    spans = ledger["reporting"]
    assert [each["until"] for each in spans] == [6e12, 8e12, 10e12, 11e12]
    for span, stage in zip(spans, stages, strict=True):
        published = {n: w for n, w in span["weights"].items() if w > 0}
        assert published == pytest.approx(stage["weights"], abs=1e-6)
    assert spans[1]["epochs"]["starcoderdata"] == pytest.approx(4.0, abs=1e-9)
    assert spans[1]["epochs"]["openwebmath"] == pytest.approx(8.333, abs=0.001)
    held = ledger["enforcing"]
    assert held[1]["epochs"]["openwebmath"] == pytest.approx(5.0, abs=1e-6)
    assert all(epochs <= 5 + 1e-9 for epochs in held[-1]["epochs"].values())
    assert ledger["changed"][0]["source"] == "openwebmath"
    scores = report["standings"][0]["runs"][0]["scores"]
    assert scores == pytest.approx(
        {"mmlu": 0.4887, "gsm8k": 0.3260, "math": 0.1154, "humaneval": 0.2260}
    )
    text = out.read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert re.search(r"openwebmath: 12\.18 epochs, held to 5\.00", text)


def test_a_long_run_takes_less_than_a_second() -> None:
    config = load_config(EXAMPLE)
    sizes = {n: WorldSource(s.tokens or 1, s.tags, s.standby) for n, s in config.sources.items()}
    setting = Setting(segments=110, budget=config.budget, sources=sizes, benchmarks=("mmlu",))
    world = load_world("power", setting)
    policy = load_policy("rules", config.policy.options)
    begun = time.process_time()
    simulated = simulate(world, policy, config, segments=110)
    assert time.process_time() - begun < 1
    assert len(simulated.timeline) == 110
    assert sum(simulated.drawn.values()) == pytest.approx(11e12)


def test_names_in_the_page_are_escaped(tmp_path: Path) -> None:
    # a source's name can't hold markup, a policy's reference can
    (tmp_path / "p&<b>.py").write_text(
        "from mixloop.policies import Hold\n"
        "class Waits:\n    def decide(self, observation):\n        return Hold('waiting')\n"
    )
    policy = f"{tmp_path}/p&<b>.py:Waits"
    report = run("--policy", policy, "--world", "flat:segments=3", "--seeds", "1")
    (tmp_path / "picture.png").write_bytes(b"")
    text = page(report, tmp_path / "picture.png")
    assert "p&amp;&lt;b&gt;.py" in text
    assert "<b>" not in text


# --- scores -----------------------------------------------------------------------------------


def test_the_optimum_closes_the_gap_and_the_start_none(own_world: Path) -> None:
    where = f"{own_world}:Saturating:noise=0.001"
    world = load_world(where)
    best = world.optimum()  # type: ignore[attr-defined]
    arguments = ("--world", where, "--seeds", "2", "--guard", "max_change=1")
    kept = run("--policy", "static", *arguments)["standings"][0]
    assert kept["gap"]["median"] == pytest.approx(0, abs=1e-9)
    moved = run("--policy", "static", "--with", json.dumps({"weights": best}), *arguments)
    (scored,) = moved["standings"]
    # the first of twenty segments is spent on the start
    assert 0.9 < scored["gap"]["median"] < 1
    assert 0 < scored["regret"]["median"] < moved["control"][0]["regret"]["median"] / 10
    assert scored["below"] == 0
    assert scored["runs"][0]["verdicts"]["intervene"] == 1


def test_processes_don_t_change_the_result() -> None:
    arguments = ["simulate", "--policy", "proportional", "--world", "P", "--seeds", "2"]
    reports = []
    for jobs in ("1", "2"):
        again = [*arguments, "--segments", "5", "--jobs", jobs, "--json"]
        done = CliRunner().invoke(app, again)
        assert done.exit_code == 0, done.output
        assert "simulating: 4 of 4" in done.stderr
        report = json.loads(done.stdout)
        runs = [run for scored in report["standings"] for run in scored["runs"]]
        reports.append([{n: run[n] for n in ("seed", "final", "control", "gap")} for run in runs])
    assert reports[0] == reports[1]


def test_scores_of_one_run() -> None:
    assert scores.score(2.0, 1.0, 1.25) == {"gain": 0.75, "regret": 0.25, "gap": 0.75}
    assert scores.score(2.0, None, 2.5) == {"gain": -0.5, "regret": None, "gap": None}
    assert scores.score(1.0, 1.0, 1.5)["gap"] is None


def test_intervals_cover_the_median_as_often_as_they_say() -> None:
    drawing = np.random.default_rng(5)
    covered = 0
    for _ in range(40):
        spread = scores.spread(list(drawing.normal(0, 1, 20)))
        assert spread is not None
        low, high = spread["mean_interval"]
        covered += low <= 0 <= high
    assert 33 <= covered <= 40


def test_tenth_and_worst_look_towards_the_worse() -> None:
    values = [float(n) for n in range(11)]
    gap, regret = scores.spread(values), scores.spread(values, high=True)
    assert gap is not None
    assert regret is not None
    assert (gap["tenth"], gap["worst"]) == (1, 0)
    assert (regret["tenth"], regret["worst"]) == (9, 10)


def test_table_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "out.png"
    arguments = ["simulate", "--policy", "static", "--policy", "proportional", "--world", "power"]
    arguments += ["--k", "3", "--segments", "5", "--seeds", "2", "--jobs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--plot", str(picture)])
    assert done.exit_code == 0, done.output
    assert "proportional" in done.stdout
    assert "power k=3" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


# --- configured runs --------------------------------------------------------------------------


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    data = {
        "run": {"id": "planned", "dir": "run"},
        "budget": "40B",
        "sources": {
            "web": {"path": "web", "tokens": "400B", "tags": ["web"], "weight": 0.9},
            "maths-a": {"path": "a", "tokens": "3B", "tags": ["math"], "weight": 0.05},
            "maths-b": {"path": "b", "tokens": "3B", "tags": ["math"], "weight": 0.05},
        },
        "evals": {"every": "2B", "benchmarks": {"gsm8k": {}, "mmlu": {}}},
        "policy": {"use": "static", "with": {"weights": {"web": 0.2, "maths-a": 0.8}}},
        "trainer": {"warmup": "2B", "decay": "4B", "sequence_length": 8, "micro_batch": 1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def test_a_configured_run_starts_and_is_bounded_as_it_says(config_file: Path) -> None:
    report = run(str(config_file), "--seeds", "1")
    assert report["worlds"] == ["power"]
    (ledger,) = report["ledgers"]
    assert ledger["reporting"][0]["weights"] == pytest.approx(
        {"web": 0.9, "maths-a": 0.05, "maths-b": 0.05}, abs=0.2
    )
    assert ledger["reporting"][-1]["epochs"]["maths-a"] > 6
    assert ledger["enforcing"][-1]["epochs"]["maths-a"] == pytest.approx(5, abs=1e-6)
    assert report["control"][0]["regret"]["median"] > 0


class Watcher:
    """Notes the phases it sees."""

    def __init__(self) -> None:
        self.phases: list[tuple[int, str | None]] = []

    def decide(self, observation: Observation) -> Hold:
        self.phases.append((observation.tokens, observation.phase))
        return Hold("watching")


def test_phases_come_from_the_runs_learning_rate(config_file: Path) -> None:
    config = load_config(config_file)
    sources = {n: WorldSource(s.tokens or 1, s.tags) for n, s in config.sources.items()}
    setting = Setting(40, config.budget, sources=sources, benchmarks=("gsm8k", "mmlu"))
    watcher = Watcher()
    simulate(load_world("power", setting), watcher, config, segments=40)
    phases = dict(watcher.phases)
    assert phases[10**9] == "warmup"
    assert phases[2 * 10**9] == "stable"
    assert phases[35 * 10**9] == "stable"
    assert phases[36 * 10**9] == "decay"


def test_sources_without_a_size_are_named(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config_file.write_text(config_file.read_text().replace("tokens: 400B", "weight: 0.9"))
    data = yaml.safe_load(config_file.read_text())
    config_file.write_text(yaml.safe_dump(data))
    monkeypatch.setattr(sys, "argv", ["mixloop", "simulate", str(config_file)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "sources.web.tokens: 250B" in capsys.readouterr().err


def test_tags_decide_transfer_over_given_sources() -> None:
    sources = {
        "web": WorldSource(10**15, ("web",)),
        "a": WorldSource(10**15, ("math",)),
        "b": WorldSource(10**15, ("math",)),
    }
    setting = Setting(10, 10**10, None, sources=sources, benchmarks=("gsm8k", "mmlu"))
    for name in ("power", "exponential", "dilution"):
        for seed in range(5):
            ends = []
            for weights in ({"a": 1.0}, {"b": 1.0}, {"web": 1.0}):
                world = load_world(name, setting)
                world.reset(seed)
                world.advance(weights, 10**9)
                ends.append(world.truth())  # type: ignore[attr-defined]
            assert ends[0] == pytest.approx(ends[1])
            assert ends[0]["gsm8k"] <= ends[2]["gsm8k"]
            assert ends[0]["mmlu"] >= ends[2]["mmlu"]


# --- worlds by reference ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--world", "powder"], "did you mean 'power'"),
        (["--world", "power:sigme=1"], "did you mean 'sigma'"),
        (["--world", "power:sigma"], "write key=value"),
        (["--world", "./none.py:World"], "there is no file"),
        (["--policy", "lawn"], "did you mean 'law'"),
        (["--guard", "max_epoch=5"], "did you mean 'max_epochs'"),
        (["--guard", "five"], "write key=value"),
        (["--budget", "many"], "--budget"),
        (["--plot", "out.pdf"], ".png or .svg"),
        (["--policy", "rules", "--with", "{}"], "give one --policy"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["mixloop", "simulate", "--policy", "static", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    "ref",
    [
        *("power", "E", "dilution:k=3,missing=0.3", "flat:delay=2", "smollm2"),
        *("skills:k=4", "interference", "S:jitter=0.02"),
    ],
)
def test_built_in_worlds_keep_to_the_protocol(ref: str) -> None:
    check_world(load_world(ref))


def test_the_guides_world_keeps_to_the_protocol(own_world: Path) -> None:
    check_world(load_world(f"{own_world}:Saturating"))


def test_sources_may_be_listed_in_any_reasonable_form() -> None:
    class Loose(Power):
        def reset(self, seed: int) -> None:
            super().reset(seed)
            names = list(self.sources)
            forms: list[Any] = [None, 5, float("inf"), {"unique_tokens": 7, "tags": "code"}]
            self.sources = dict(zip(names, [*forms, self.sources[names[4]]], strict=True))

    sources = list(world_sources(Loose()).values())
    assert [source.unique_tokens for source in sources[:4]] == [10**15, 5, 10**15, 7]
    assert sources[3].tags == ("code",)
    config = virtual_config(Loose(), segments=3)
    assert len(simulate(Loose(), load_policy("static"), config, segments=3).timeline) == 3


class Forgets(SmolLM2):
    def reset(self, seed: int) -> None:
        if not hasattr(self, "_drawing"):
            super().reset(seed)
        self.tokens = 0


class Bare(SmolLM2):
    def evaluate(self) -> Any:
        return {name: value for name, (value, _) in super().evaluate().items()}


class Broken(SmolLM2):
    def evaluate(self) -> Any:
        return dict.fromkeys(self.benchmarks, (float("nan"), 0.1))


class Meddles(SmolLM2):
    def advance(self, weights: Mapping[str, float], tokens: int) -> None:
        super().advance(weights, tokens)
        assert isinstance(weights, dict)
        weights.clear()


class Overfull(SmolLM2):
    def optimum(self) -> dict[str, float]:
        return {"dclm": 0.8, "fineweb-edu": 0.8}


class Silent(SmolLM2):
    benchmarks = ("mmlu", "gsm8k", "math", "humaneval", "drop")


@pytest.mark.parametrize(
    ("world", "problem"),
    [
        (Forgets, "same seed, the same scores"),
        (Bare, "return \\(value, standard error\\)"),
        (Broken, "leave a missing benchmark out"),
        (Meddles, "changed the mixture"),
        (Overfull, "no mixture"),
        (Silent, "drop was never scored"),
    ],
)
def test_a_world_that_breaks_the_protocol_is_told(world: type[SmolLM2], problem: str) -> None:
    with pytest.raises(AssertionError, match=problem):
        check_world(world())


def test_a_world_that_fails_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "poor.py").write_text(
        "from mixloop.policies.worlds import SmolLM2\n"
        "class Poor(SmolLM2):\n    def evaluate(self):\n        return 1 / 0\n"
    )
    command = [
        "simulate",
        "--policy",
        "static",
        "--world",
        f"{tmp_path}/poor.py:Poor",
        "--jobs",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", ["mixloop", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "seed 0: ZeroDivisionError: division by zero (poor.py line 4)" in capsys.readouterr().err


# --- interrupted ------------------------------------------------------------------------------


@pytest.mark.soak
def test_ctrl_c_ends_every_process_at_once(tmp_path: Path) -> None:
    import psutil

    (tmp_path / "slow.py").write_text(
        "import time\nfrom mixloop.policies import Hold\n"
        "class Slow:\n    def decide(self, observation):\n"
        "        time.sleep(60)\n        return Hold('slow')\n"
    )
    command = [sys.executable, "-m", "mixloop.cli.app", "simulate"]
    command += ["--policy", f"{tmp_path}/slow.py:Slow", "--seeds", "2", "--jobs", "2"]
    started = subprocess.Popen(
        [*command, "--world", "F"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stderr is not None
    while "simulating" not in started.stderr.readline():
        assert started.poll() is None
    children = psutil.Process(started.pid).children(recursive=True)
    assert children
    os.killpg(started.pid, signal.SIGINT)
    assert started.wait(timeout=20) == 130
    said = started.stderr.read()
    started.stderr.close()
    assert "Traceback" not in said
    psutil.wait_procs(children, timeout=5)
    assert not any(child.is_running() for child in children)


SIZED = """
from mixloop.policies.worlds.families import Power


class Sized(Power):
    def __init__(self, k: int = 4) -> None:
        super().__init__(k=k)


class Fixed(Power):
    def __init__(self) -> None:
        super().__init__(k=4)
"""


def test_the_number_of_sources_is_honoured_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "sized.py"
    file.write_text(SIZED)
    plan = plan_simulations(
        SimulateArgs(policies=["static"], worlds=[f"{file}:Sized"], k=[3, 6], segments=4)
    )
    assert [len(world_sources(setup.world(0))) for setup in plan.setups] == [3, 6]
    assert [setup.label.rpartition(" ")[2] for setup in plan.setups] == ["k=3", "k=6"]
    for world, message in {
        f"{file}:Fixed": "no option k",
        f"{file}:Sized:k=5": "says k too",
        "power:k=5": "says k too",
        "smollm2": "sources of its own; leave --k out",
    }.items():
        with pytest.raises(BadInput, match=message):
            plan_simulations(SimulateArgs(policies=["static"], worlds=[world], k=[3]))
