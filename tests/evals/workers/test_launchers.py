"""Workers started in every way there is, and everything that can go wrong with one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from mixloop.common.errors import BadInput
from mixloop.controller.config import load_config
from mixloop.evals import EvalSettings, Scorecard
from mixloop.evals.scoring import Samples, WorkUnit
from mixloop.evals.scoring.work_units import assemble_score
from mixloop.evals.workers import Evaluator, Failure, launcher_problem
from mixloop.evals.workers.launchers import worker_command

# says a word of its own among the worker's, and becomes the worker in another session
WRAPPER = """
import os, sys
print("job 17 queued", flush=True)
os.setsid() if os.getpid() != os.getsid(0) else None
os.environ["FROM_THE_WRAPPER"] = sys.argv[1]
os.execvp(sys.argv[2], sys.argv[2:])
"""
TEMPLATE = [sys.executable, "-c", WRAPPER, 1, "{command}"]
OWN = {"data": "packages", "max_new_tokens": 24, "shots": 0}


def settings(**changes: Any) -> EvalSettings:
    benchmarks = {"mmlu": {"items": 8, "shots": 0, "data": "packages"}, "gsm8k": OWN, "math": OWN}
    content = {"benchmarks": benchmarks, "threads": 1, "timeout": 200, "unit_items": 2}
    content |= {"samples": False, "samples_tokens": 4}
    return EvalSettings.model_validate(content | changes)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights over bytes, with a manifest as the trainer leaves it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bytes")
    vocabulary = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    raw = Tokenizer(models.BPE({text: index for index, text in enumerate(vocabulary)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>").save_pretrained(folder)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=0,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "manifest.json").write_text(json.dumps({"step": 40, "tokens": 4000}))
    return folder


# --- settings


def test_a_template_takes_the_workers_command_in_its_place() -> None:
    parsed = settings(launcher=["srun", "-G", 1, "{command}", "--quiet"])
    assert worker_command(parsed.launcher) == [
        *("srun", "-G", "1", sys.executable, "-m", "mixloop.evals.workers.worker", "--quiet")
    ]
    again = EvalSettings.model_validate_json(parsed.model_dump_json())
    assert again == parsed
    assert worker_command("local")[-1] == "mixloop.evals.workers.worker"


@pytest.mark.parametrize(
    ("evals", "said"),
    [
        ({"launcher": "srun {command}"}, "evals.launcher: must be local, ray"),
        ({"launcher": ["srun", "-G1"]}, "exactly one argument must be '{command}'"),
        ({"launcher": ["{command}", "{command}"]}, "there are 2"),
        ({"launcher": ["srun", None, "{command}"]}, "every argument must be a text or a number"),
        ({"workers": 3}, "workers is for launcher: ray"),
        ({"launcher": "ray", "device": "cuda"}, "needs worker_gpus above 0"),
        ({"launcher": "ray", "workers": 0}, "evals.workers: input should be greater than or"),
    ],
)
def test_a_launcher_that_is_none_is_refused(
    evals: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as refused:
        load_config(run_file(tmp_path, evals))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def run_file(folder: Path, evals: dict[str, Any]) -> Path:
    path = folder / "run.yaml"
    content = {"run": {"id": "r", "dir": "run"}, "budget": "1M", "sources": {"w": {"path": "w"}}}
    path.write_text(yaml.safe_dump(content | {"evals": evals}))
    return path


def test_a_launcher_that_can_not_run_is_told_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixloop.controller.service import check_evals

    path = run_file(tmp_path, {"launcher": ["./wrap.sh", "{command}"]})
    config = load_config(path)
    program = str(tmp_path / "wrap.sh")
    assert config.evals.launcher == (program, "{command}")
    with pytest.raises(BadInput, match=r"evals\.launcher: there is no program '.*wrap\.sh' here"):
        check_evals(path, config)
    Path(program).write_text("#!/bin/sh\n")
    Path(program).chmod(0o700)
    check_evals(path, config)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert launcher_problem("ray") == "launcher: ray needs Ray: pip install 'mixloop[ray]'"


# scores at once, and writes samples until it may go on
WRITING = """
import json, pathlib, sys, time
card = pathlib.Path(sys.argv[1])
sys.stdin.readline()
for line in sys.stdin:
    out = json.loads(line)["out"]
    pathlib.Path(out).write_text(card.read_text())
    print(json.dumps({"event": "scored", "out": out}), flush=True)
    print(json.dumps({"event": "progress", "benchmark": "samples", "state": "running"}), flush=True)
    while not pathlib.Path(out + ".go").exists():
        time.sleep(0.01)
    print(json.dumps({"event": "done", "out": out}), flush=True)
"""


def test_a_checkpoint_counts_as_scored_while_its_samples_are_written(tmp_path: Path) -> None:
    made = tmp_path / "made.json"
    made.write_text(
        Scorecard(checkpoint="c", benchmarks={}, seconds=1.0, settings_digest="d").to_json()
    )
    launcher = [sys.executable, "-c", WRITING, str(made), "{command}"]
    evaluator = Evaluator(settings(launcher=launcher), tmp_path / "worker.log")
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    try:
        evaluator.start(tmp_path, first)
        assert isinstance(wait(evaluator), Scorecard)
        assert (evaluator.busy, evaluator.writing) == (False, True)
        evaluator.start(tmp_path, second)  # the worker comes to it when it has written
        time.sleep(0.05)
        assert evaluator.poll() is None
        assert evaluator.progress == "starting"
        first.with_name("first.json.go").touch()
        assert isinstance(wait(evaluator), Scorecard)
        assert second.exists()
        second.with_name("second.json.go").touch()
        deadline = time.monotonic() + 100
        while evaluator.writing and time.monotonic() < deadline:
            assert evaluator.poll() is None
            time.sleep(0.01)
        assert not evaluator.writing
        assert evaluator.pid is not None
        evaluator.start(tmp_path, tmp_path / "third.json")
        assert isinstance(wait(evaluator), Scorecard)
        os.kill(evaluator.pid, signal.SIGKILL)
        while evaluator.writing and time.monotonic() < deadline:
            assert evaluator.poll() is None, "the scorecard was told already"
        assert evaluator.pid is None
    finally:
        evaluator.stop()


# --- one worker under a template, through everything


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluator]:
    """The one worker of this module, started by a command of its own."""
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    evaluator = Evaluator(settings(launcher=TEMPLATE), log)
    yield evaluator
    evaluator.stop()


def wait(evaluator: Evaluator, seconds: float = 100) -> Scorecard | Failure:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = evaluator.poll()
        if result is not None:
            return result
        time.sleep(0.01)
    raise AssertionError(f"no answer; the worker last said {evaluator.progress!r}")


def wait_until_running(evaluator: Evaluator) -> None:
    deadline = time.monotonic() + 100
    while "running" not in evaluator.progress:
        assert evaluator.poll() is None, "scored before anybody could look"
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.fixture(scope="module")
def card(
    evaluator: Evaluator, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Scorecard:
    evaluator.start(checkpoint, tmp_path_factory.mktemp("card") / "scorecard.json")
    result = wait(evaluator)
    assert isinstance(result, Scorecard), result
    return result


def test_a_worker_under_a_template_scores(evaluator: Evaluator, card: Scorecard) -> None:
    assert {name: benchmark.status for name, benchmark in card.benchmarks.items()} == {
        **dict.fromkeys(("mmlu", "gsm8k", "math"), "ok")
    }
    assert evaluator.pid is not None
    assert psutil.Process(evaluator.pid).environ()["FROM_THE_WRAPPER"] == "1"


def test_what_it_cost_is_in_the_file(card: Scorecard) -> None:
    said = json.loads(card.to_json())["cost"]["gsm8k"]
    assert said["items"] == 8
    assert said["items_per_second"] == pytest.approx(8 / said["seconds"], rel=0.01)
    assert 0 < said["tokens"] < said["asked_tokens"]
    assert Scorecard.model_validate_json(card.to_json()) == card


def test_a_full_disk_is_told_and_the_next_try_recovers(
    evaluator: Evaluator, card: Scorecard, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "scorecard.json"
    with no_file_above(100, evaluator.pid):
        evaluator.start(checkpoint, out)
        result = wait(evaluator)
    assert isinstance(result, Failure)
    assert str(out) in result.reason
    assert "File too large" in result.reason
    assert list(tmp_path.iterdir()) == []
    evaluator.start(checkpoint, out)
    again = wait(evaluator)
    assert isinstance(again, Scorecard)
    assert again.measured() == card.measured()


@contextlib.contextmanager
def no_file_above(size: int, pid: int | None) -> Iterator[None]:
    """The kernel lets the process write no more, as on a full disk."""
    assert pid is not None
    soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_deleted_while_it_is_scored_is_scored_all_the_same(
    evaluator: Evaluator, card: Scorecard, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "step-40"
    shutil.copytree(checkpoint, folder)
    evaluator.start(folder, tmp_path / "scorecard.json")
    wait_until_running(evaluator)
    shutil.rmtree(folder)
    result = wait(evaluator)
    assert isinstance(result, Scorecard)
    assert result.benchmarks == card.benchmarks
    assert (result.step, result.tokens) == (40, 4000)


def test_a_worker_killed_while_it_scores_is_a_failure(
    evaluator: Evaluator, card: Scorecard, checkpoint: Path, tmp_path: Path
) -> None:
    evaluator.start(checkpoint, tmp_path / "scorecard.json")
    wait_until_running(evaluator)
    assert evaluator.pid is not None
    os.kill(evaluator.pid, signal.SIGKILL)
    result = wait(evaluator)
    assert isinstance(result, Failure)
    assert "worker died (signal SIGKILL)" in result.reason
    assert list(tmp_path.iterdir()) == []


def test_a_worker_that_nobody_is_left_to_hear_ends(checkpoint: Path, tmp_path: Path) -> None:
    """Under a template no process above it is ours, so the end of its input is all there is."""
    script = (
        "import os, sys\nfrom pathlib import Path\n"
        "from mixloop.evals.settings import EvalSettings\n"
        "from mixloop.evals.workers.client import Evaluator\n"
        "settings = EvalSettings.model_validate_json(sys.argv[1])\n"
        "e = Evaluator(settings, Path(sys.argv[3]) / 'worker.log')\n"
        "e.start(Path(sys.argv[2]), Path(sys.argv[3]) / 'card.json')\n"
        "print(e.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    settings_json = settings(launcher=TEMPLATE).model_dump_json()
    run = subprocess.run(
        [sys.executable, "-c", script, settings_json, str(checkpoint), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    pid = int(run.stdout)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


# --- Ray


def test_a_unit_that_is_lost_three_times_costs_its_benchmark_only() -> None:
    from mixloop.evals.workers.ray_scorer import UnitQueue

    units = [WorkUnit(benchmark=name, part=part, parts=2) for name in "ab" for part in range(2)]
    queue = UnitQueue(deque(units))
    for _ in range(3):
        unit = queue.take()
        assert unit == units[0]
        assert queue.scores == []
        queue.lost(unit, "its worker was silent for 9 s")
    assert [score.unit for score in queue.scores] == units[:2]
    why = "a: its worker was silent for 9 s, 3 times"
    assert assemble_score("a", queue.scores).reason == why
    assert list(queue.waiting) == units[2:]
    queue.give_up("no Ray worker can be started")
    assert {score.failed for score in queue.scores[2:]} == {"b: no Ray worker can be started"}
    assert queue.take() is None


FEW = {
    "mmlu": {"items": 3, "shots": 0, "data": "packages"},
    "gsm8k": {**OWN, "items": 4, "max_new_tokens": 8},
    "math": {**OWN, "max_new_tokens": 8},
}


def few(**changes: Any) -> EvalSettings:
    """Eleven units that are quickly scored: starting Ray and its workers is long enough."""
    return settings(benchmarks=FEW, unit_items=1, **changes)


@pytest.fixture(scope="module")
def ray_scorer() -> Iterator[Any]:
    """The one Ray of this module; its actors are kept from test to test."""
    pytest.importorskip("ray")
    from mixloop.evals.workers.ray_scorer import RayScorer

    scorer = RayScorer(few(launcher="ray", workers=3))
    yield scorer
    scorer.close()


@pytest.fixture(scope="module")
def alone(checkpoint: Path) -> str:
    """What is measured here, on one thread."""
    from mixloop.evals.scoring import Scorer

    local = Scorer(few())
    card = local.score(checkpoint)
    assert len(local.units()) == 11
    local.close()
    return card.measured()


def start_all(scorer: Any, workers: int, checkpoint: Path) -> None:
    """Scores until that many actors have started: none waits for the slowest."""
    scorer.workers = workers
    deadline = time.monotonic() + 200
    while len(scorer.ready) != workers:
        assert time.monotonic() < deadline
        scorer.score(checkpoint)


@pytest.mark.soak
def test_ray_gives_the_same_scorecard_on_two_workers_and_one(
    ray_scorer: Any, alone: str, checkpoint: Path
) -> None:
    start_all(ray_scorer, 2, checkpoint)
    for workers in (2, 1):
        ray_scorer.workers = workers
        card = ray_scorer.score(checkpoint)
        assert len(ray_scorer.ready) == workers
        assert card.measured() == alone
        assert sum(cost.items for cost in card.cost.values()) == 11


@pytest.mark.soak
def test_ray_gives_the_same_scorecard_on_three_workers(
    ray_scorer: Any, alone: str, checkpoint: Path
) -> None:
    start_all(ray_scorer, 3, checkpoint)
    assert ray_scorer.score(checkpoint).measured() == alone


def pid_of(actor: Any) -> int:
    import ray

    return int(ray.get(actor.ready.remote()))


@pytest.mark.soak
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_ray_worker_that_dies_or_hangs_costs_nothing(
    how: signal.Signals,
    ray_scorer: Any,
    alone: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start_all(ray_scorer, 2, checkpoint)
    impatient = ray_scorer.settings.model_copy(update={"unit_timeout": 10.0})
    monkeypatch.setattr(ray_scorer, "settings", impatient)
    caplog.clear()
    os.kill(pid_of(ray_scorer.ready[-1]), how)
    assert ray_scorer.score(checkpoint).measured() == alone
    why = "its worker failed" if how == signal.SIGKILL else "its worker was silent for 10 s"
    assert sum(why in record.getMessage() for record in caplog.records) == 1


@pytest.mark.soak
def test_nothing_of_ray_is_left_when_its_worker_is_stopped(
    alone: str, checkpoint: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray")
    evaluator = Evaluator(few(launcher="ray", samples=True), tmp_path / "worker.log")
    try:
        evaluator.start(checkpoint, tmp_path / "scorecard.json")
        result = wait(evaluator, 200)
        assert isinstance(result, Scorecard)
        assert result.measured() == alone
        while evaluator.writing:
            assert evaluator.poll() is None
            time.sleep(0.01)
        assert Samples.read(tmp_path / "scorecard.samples.json").step == 40
        below = psutil.Process(evaluator.pid).children(recursive=True)
        assert any("raylet" in process.name() for process in below)
    finally:
        evaluator.stop()
    _, left = psutil.wait_procs(below, timeout=30)
    assert left == []


# --- memory


@pytest.mark.soak
def test_memory_does_not_grow_over_fifty_checkpoints(checkpoint: Path, tmp_path: Path) -> None:
    evaluator = Evaluator(settings(samples=True), tmp_path / "worker.log")
    held: list[int] = []
    try:
        for number in range(50):
            folder = tmp_path / f"step-{number}"
            shutil.copytree(checkpoint, folder)
            evaluator.start(folder, tmp_path / f"{number}.json")
            assert isinstance(wait(evaluator), Scorecard)
            assert evaluator.pid is not None
            held.append(psutil.Process(evaluator.pid).memory_info().rss)
            shutil.rmtree(folder)
    finally:
        evaluator.stop()
    assert held[-1] - held[9] < 4 * 2**20, held


def _score_with_doom(
    checkpoint: Path, place: Path, nth: int, fate: str
) -> tuple[list[str], Scorecard]:
    """Score it as the controller does, once more after each failure; the failures, the card."""
    place.mkdir()
    script = str(Path(__file__).parents[2] / "support" / "doomed_worker.py")
    own = {"mmlu": {"items": 4, "shots": 0, "data": "packages"}, "humaneval": OWN | {"items": 2}}
    doomed = settings(
        launcher=[sys.executable, script, str(nth), fate, str(place), "{command}"],
        benchmarks=own,
        timeout=12.0 if fate == "stop" else 200.0,
    )
    evaluator = Evaluator(doomed, place / "log")
    failures: list[str] = []
    try:
        while len(failures) < 3:
            evaluator.start(checkpoint, place / "card.json")
            while (result := evaluator.poll()) is None:
                time.sleep(0.02)
            if isinstance(result, Scorecard):
                while evaluator.writing:
                    evaluator.poll()
                    time.sleep(0.02)
                return failures, result
            failures.append(result.reason)
    finally:
        evaluator.stop()
    raise AssertionError(f"{nth}, {fate}: not scored: {failures}")


@pytest.mark.soak
def test_a_worker_killed_or_stopped_at_every_step_costs_one_attempt(
    checkpoint: Path, tmp_path: Path
) -> None:
    failures, calm = _score_with_doom(checkpoint, tmp_path / "calm", 0, "kill")
    assert failures == []
    steps = int((tmp_path / "calm" / "steps").read_text())
    assert steps > 20
    for nth in range(1, steps + 1):
        fate = "stop" if nth % 8 == 0 else "kill"
        place = tmp_path / f"{nth}"
        failures, card = _score_with_doom(checkpoint, place, nth, fate)
        said = "no scorecard within" if fate == "stop" else "died (signal SIGKILL)"
        assert len(failures) <= 1, f"{nth}: {failures}"  # none: while samples were written
        assert all(said in failure for failure in failures), f"{nth}: {failures}"
        assert card.benchmarks == calm.benchmarks, f"{nth}"
        assert Scorecard.read(place / "card.json").benchmarks == calm.benchmarks
        assert not list(place.glob("*.tmp")), f"{nth}"
        shutil.rmtree(place)
