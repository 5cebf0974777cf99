"""A search: its plan, its subsamples, its study, what it concludes; and one real search."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mixloop.common.errors import BadInput
from mixloop.controller.config import SearchPlan, load_config
from mixloop.policies.interface import load_policy
from mixloop.policies.surrogates import Point, ProxyRun, Score, fit_process, points_of, recommend
from mixloop.policies.worlds.families import Exponential
from mixloop.policies.worlds.proxies import proxies
from mixloop.tools.search import SearchArgs, conclude, plan_search
from mixloop.tools.search.proxy import proxy_job
from mixloop.tools.search.study import Trials, mixture_of, params_of
from mixloop.tools.search.subsample import subsample
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import Store, train_tokenizer

FILES = {"code": ["argparse.py", "ast.py"], "prose": ["pydoc_data/topics.py"], "few": ["this.py"]}
WINDOW = 64


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    library = Path(sysconfig.get_path("stdlib"))
    for name, files in FILES.items():
        text = "\n".join((library / file).read_text("utf-8") for file in files)
        (folder / f"{name}.txt").write_text(text[:60_000])
    corpus = [(folder / f"{name}.txt").read_text()[:20_000] for name in FILES]
    tokenizer = train_tokenizer(corpus, folder / "tokenizer", 400)
    for name in FILES:
        prepare([str(folder / f"{name}.txt")], folder / name, str(tokenizer))
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = {
        "run": {"id": "s", "dir": "run", "seed": 5},
        "budget": 100_000,
        "sources": {
            "code": {"path": "code", "weight": 0.5},
            "prose": {"path": "prose", "weight": 0.5},
            "few": {"path": "few", "standby": True},
        },
        "evals": {
            "threads": 1,
            "benchmarks": {"humaneval": {"data": "packages", "items": 5, "shots": 0}},
        },
        "guards": {"max_epochs": 4},
        "search": {"tokens": 10_240, "trials": 3, "workers": 2, "threads": 1},
        "trainer": {
            "model": {**model, "num_attention_heads": 2, "max_position_embeddings": 512},
            "sequence_length": WINDOW,
            "micro_batch": 4,
            "warmup": 10_000,
            "decay": 20_000,
            "threads": 1,
        },
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def plan_of(path: Path, **wanted: Any) -> SearchPlan:
    return plan_search(path, load_config(path), SearchArgs(**wanted))


def test_a_proxy_repeats_every_source_as_often_as_the_run(run_file: Path) -> None:
    plan = plan_of(run_file)
    assert list(plan.unique) == ["code", "prose"]  # what is on standby isn't searched
    for of_target, of_proxy in plan.epochs().values():
        assert of_proxy == pytest.approx(of_target, rel=WINDOW / min(plan.unique.values()))
    assert plan.rungs == (5_120, 10_240)
    assert plan.most == {n: min(1.0, 4 * size / 100_000) for n, size in plan.sizes.items()}
    least, most = plan.cost()
    assert (least, most) == (3 * 5_120 + round(1.5 * 5_120), 3 * 10_240)


def test_what_makes_no_search_is_refused(run_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"more than the 100,000 tokens"):
        plan_of(run_file, tokens=200_000)
    with pytest.raises(BadInput, match=r"no checkpoint here"):
        plan_of(run_file, checkpoint=tmp_path)
    with pytest.raises(BadInput, match=r"before one step"):
        plan_of(run_file, tokens=128)


def test_a_subsample_is_whole_windows_of_the_store(run_file: Path, tmp_path: Path) -> None:
    source = Store.open(run_file.parent / "code")
    subsample(source.path, tmp_path / "a", 10 * WINDOW, WINDOW, 3)
    subsample(source.path, tmp_path / "b", 10 * WINDOW, WINDOW, 4)
    small, other = Store.open(tmp_path / "a"), Store.open(tmp_path / "b")
    assert small.info.tokens == 10 * WINDOW
    assert small.info.tokenizer == source.info.tokenizer
    whole = source.gather(np.arange(source.samples(WINDOW)), WINDOW)
    kept = {tuple(row) for row in small.gather(np.arange(10), WINDOW)}
    assert kept <= {tuple(row) for row in whole}
    assert len(kept) == 10
    assert small.info.fingerprint != other.info.fingerprint


def test_a_proxys_learning_rate_keeps_its_shape_and_an_anneal_only_decays(run_file: Path) -> None:
    config, plan = load_config(run_file), plan_of(run_file)
    job = proxy_job(config, plan, 7, {"code": 0.3, "prose": 0.7})
    assert (job.settings.warmup, job.settings.decay) == (1_024, 2_048)
    assert job.settings.checkpoint_every == 5_120
    checkpoint = run_file.parent
    anneal = SearchPlan(**{**vars(plan), "checkpoint": checkpoint})
    job = proxy_job(config, anneal, 7, {"code": 0.3, "prose": 0.7})
    assert (job.settings.warmup, job.settings.decay) == (0, plan.tokens)
    assert job.settings.init_from == checkpoint
    assert job.settings.model is None
    raw = yaml.safe_load(run_file.read_text())
    falling = run_file.with_name("cosine.yaml")
    trainer = {**raw["trainer"], "lr_schedule": "cosine", "decay": 0}
    falling.write_text(yaml.safe_dump({**raw, "trainer": trainer}))
    cosine = load_config(falling)
    assert proxy_job(cosine, plan, 7, {"code": 0.3, "prose": 0.7}).settings.decay == 0
    job = proxy_job(cosine, anneal, 7, {"code": 0.3, "prose": 0.7})
    assert (job.settings.lr_schedule, job.settings.decay) == ("wsd", plan.tokens)


def test_uniform_numbers_and_mixtures_go_both_ways() -> None:
    weights = {"a": 0.7, "b": 0.25, "c": 0.05}
    drawn = params_of(weights, list(weights))
    back = mixture_of(list(drawn.values()), [1.0, 1.0, 1.0])
    assert back == pytest.approx(list(weights.values()), abs=1e-6)
    capped = mixture_of(list(drawn.values()), [0.5, 1.0, 1.0])
    assert capped[0] == pytest.approx(0.5)
    assert sum(capped) == pytest.approx(1.0)


def test_a_study_goes_on_where_it_was_left(run_file: Path, tmp_path: Path) -> None:
    plan = plan_of(run_file, out=tmp_path / "study")
    trials = Trials(plan)
    first, second = trials.ask(), trials.ask()
    # the configured start is the first to be tried
    assert first.user_attrs["weights"] == pytest.approx(dict(plan.start), abs=1e-6)
    assert trials.scored(first, 0, {"humaneval": Score(2.0, 0.1)}) == "running"
    assert trials.scored(first, 1, {"humaneval": Score(1.5, 0.1)}) == "complete"
    assert trials.scored(second, 0, {"humaneval": Score(3.0, 0.1)}) == "pruned"
    left = trials.ask()
    trials.scored(left, 0, {"humaneval": Score(1.0, 0.1)})
    trials.close()

    again = Trials(plan)
    assert [trial.number for trial in again.unfinished()] == [left.number]
    assert again.finished() == 2
    runs = {run.number: run.reached for run in again.runs()}
    assert runs == {first.number: 1, second.number: 0}
    again.close()
    with pytest.raises(BadInput, match=r"begun with tokens 10240, not 8192"):
        Trials(plan_of(run_file, out=tmp_path / "study", tokens=8_192))


def test_what_halving_stopped_is_inferred_from_the_others() -> None:
    def run(number: int, *values: float) -> ProxyRun:
        scores = {rung: {"b": Score(value, 0.01)} for rung, value in enumerate(values)}
        return ProxyRun({"x": 1.0}, scores, number)

    points = points_of([run(0, 3.0, 2.0), run(1, 3.2, 2.4), run(2, 4.0)], 1)
    assert [point.measured for point in points] == [True, True, False]
    assert points[2].benchmarks["b"].value == pytest.approx(4.0 - 0.9)
    assert points[2].benchmarks["b"].stderr > 0.1
    assert len(points_of([run(0, 3.0, 2.0), run(2, 4.0)], 1)) == 1


def world_points(world: Exponential, n: int, seed: int) -> list[Point]:
    return [
        Point(p["weights"], {name: Score(**s) for name, s in p["benchmarks"].items()})
        for p in proxies(world, n, seed)
    ]


def test_the_starting_mixture_is_far_better_than_uniform_in_a_world() -> None:
    world = Exponential(k=3, m=1, seed=3, scarce=False)
    even = dict.fromkeys(world.sources, 1 / 3)
    importance = dict.fromkeys(world.benchmarks, 1.0)
    points = world_points(world, 9, 3)
    recommended = recommend(points, importance, dict.fromkeys(world.sources, 1.0), even, 0)

    def loss(mixture: dict[str, float]) -> float:
        return float(world.final(np.array([list(mixture.values())]))[0])

    assert recommended.verdict == "better"
    assert sum(recommended.weights.values()) == pytest.approx(1.0)
    gap = (loss(even) - loss(recommended.weights)) / (loss(even) - loss(world.optimum()))
    assert gap > 0.8
    assert set(recommended.uncertainty) == set(world.sources)


def test_on_noise_the_start_is_kept() -> None:
    drawing = np.random.default_rng(0)
    points = [
        Point(dict(zip("abc", w, strict=True)), {"b": Score(float(drawing.normal(1, 0.02)), 0.02)})
        for w in drawing.dirichlet(np.ones(3), 9)
    ]
    start = {"a": 0.2, "b": 0.3, "c": 0.5}
    recommended = recommend(points, {"b": 1.0}, dict.fromkeys("abc", 1.0), start, 0)
    assert recommended.verdict == "inconclusive"
    assert recommended.weights == pytest.approx(start)
    with pytest.raises(ValueError, match="at least 3"):
        recommend(points[:2], {"b": 1.0}, dict.fromkeys("abc", 1.0), start, 0)


def test_the_process_covers_what_it_has_not_seen() -> None:
    drawing = np.random.default_rng(1)
    fitted, new = drawing.dirichlet(np.ones(3), 30), drawing.dirichlet(np.ones(3), 200)

    def truth(mixtures: np.ndarray) -> np.ndarray:
        return np.asarray(2 + np.sqrt(mixtures[:, 0]) - mixtures[:, 1] * mixtures[:, 2])

    values = truth(fitted) + drawing.normal(0, 0.01, 30)
    process = fit_process(fitted, values, np.full(30, 0.01))
    mean, spread = process.predict(new)
    assert np.sqrt(np.mean((mean - truth(new)) ** 2)) < 0.1 * truth(new).std()
    assert np.mean(np.abs(mean - truth(new)) < 3 * spread) > 0.9
    draws = process.sample(new[:5], 4000, drawing)
    assert draws.mean(axis=0) == pytest.approx(mean[:5], abs=0.01)
    assert draws.std(axis=0) == pytest.approx(spread[:5], abs=0.005)


def test_a_prior_is_one_that_bayes_and_olmix_take(run_file: Path) -> None:
    plan = plan_of(run_file)
    runs = [
        ProxyRun(
            {"code": w, "prose": 1 - w},
            {rung: {"humaneval": Score(3 - w - rung, 0.01)} for rung in range(2)},
            number,
        )
        for number, w in enumerate((0.1, 0.3, 0.5, 0.7, 0.9))
    ]
    prior = json.loads(json.dumps(conclude("s", plan, runs)))
    assert prior["schema"] == "mixloop/prior/1"
    assert prior["best"]["code"] > 0.5
    assert [point["trial"] for point in prior["points"]] == list(range(5))
    load_policy("bayes", {"prior": prior})
    load_policy("olmix", {"prior": prior})


@pytest.mark.soak
def test_a_real_search_stops_goes_on_and_concludes(run_file: Path) -> None:
    command = [sys.executable, "-m", "mixloop.cli.app", "search", str(run_file), "--json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        for line in first.stderr:
            if "goes on" in line:
                first.terminate()
        assert first.wait(60) == 130
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert "begins again" in done.stderr
    prior = json.loads(done.stdout)
    assert len(prior["points"]) == 3
    assert sum(prior["weights"].values()) == pytest.approx(1.0)
    assert Path(prior["file"]).is_file()
