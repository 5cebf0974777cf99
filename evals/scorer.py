"""Scores one checkpoint on every benchmark asked for; keeps what checkpoints share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .benchmarks import Benchmark, Outcomes, Question, make_benchmark
from .items import ItemsError, choose, load_items
from .metrics import cluster_of, mean_metrics, ratio_metric
from .sandbox import Sandbox
from .scorecard import BenchmarkScore, Metric, Scorecard, training_state
from .settings import BenchmarkSettings, EvalSettings
from .tasks import task_folder

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from .model import CheckpointLM

# share of the items that has to fit for a number of shots to be kept
FIT = 0.9
_CHUNK = 16

Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class Plan:
    """What a whole run asks of one benchmark: fixed by settings, items, tokenizer and context.

    `asked` and `generated` are item ids before exclusions; `questions` those whose gold answer
    fits, `answered` those whose choices or generation fit.
    """

    shots: int
    room: int
    asked: tuple[str, ...]
    generated: tuple[str, ...]
    questions: Mapping[str, Question]
    answered: Mapping[str, Question]


@dataclass
class _Prepared:
    benchmark: Benchmark
    ids: tuple[str, ...]
    data: str
    kind: str


class Scorer:
    """Holds items, tasks, plans and the sandbox between the checkpoints of a run."""

    def __init__(self, settings: EvalSettings) -> None:
        self.settings = settings
        self._sandbox = Sandbox(settings.sandbox, settings.program_timeout)
        self._folder = task_folder()
        self._prepared: dict[str, _Prepared] = {}
        self._plans: dict[tuple[str, str], Plan] = {}

    def close(self) -> None:
        """Ends the sandbox and removes the generated task files."""
        self._sandbox.close()
        self._folder.cleanup()

    def score(self, checkpoint: Path, progress: Progress = lambda name, state: None) -> Scorecard:
        """The scorecard of one checkpoint; a benchmark that fails is missing with the reason."""
        began = time.monotonic()
        scores = self._all(checkpoint, progress)
        step, tokens = training_state(checkpoint)
        return Scorecard(
            schema="mixloop/scorecard/1",
            checkpoint=str(checkpoint),
            step=step,
            tokens=tokens,
            benchmarks=scores,
            seconds=round(time.monotonic() - began, 3),
            settings_digest=self.settings.digest(),
            engine=_engine(self._sandbox),
        )

    def _all(self, checkpoint: Path, progress: Progress) -> dict[str, BenchmarkScore]:
        from .engine import load_checkpoint
        from .model import CheckpointError

        settings = self.settings
        progress("checkpoint", "loading")
        try:
            lm = load_checkpoint(
                checkpoint,
                device=settings.device,
                dtype=settings.dtype,
                max_length=settings.max_length,
                batch_tokens=settings.batch_tokens,
            )
        except CheckpointError as error:
            return {name: _missing(str(error)) for name in settings.asked}
        scores: dict[str, BenchmarkScore] = {}
        for name, own in settings.asked.items():
            progress(name, "running")
            scores[name] = self._one(name, own, lm)
            progress(name, scores[name].status)
        return scores

    def _one(self, name: str, own: BenchmarkSettings, lm: CheckpointLM) -> BenchmarkScore:
        try:
            prepared = self._prepare(name, own)
            plan = self._plan(name, own, prepared, lm)
            return _score(name, prepared, plan, lm)
        except ItemsError as error:
            return _missing(str(error))
        # one benchmark's fault, whatever it is, must not cost the others their scores
        except Exception as error:
            _log_failure(name)
            return _missing(f"{name}: {type(error).__name__}: {error}".splitlines()[0])

    def _prepare(self, name: str, own: BenchmarkSettings) -> _Prepared:
        if name not in self._prepared:
            items = load_items(name, own.data)
            subset = choose(items.rows, own.items, self.settings.seed)
            folder = Path(self._folder.name) / name
            folder.mkdir(exist_ok=True)
            self._prepared[name] = _Prepared(
                make_benchmark(name, items, subset, folder, self._sandbox),
                tuple(row["id"] for row in subset),
                items.describe(len(subset)),
                items.kind,
            )
        return self._prepared[name]

    def _plan(
        self, name: str, own: BenchmarkSettings, prepared: _Prepared, lm: CheckpointLM
    ) -> Plan:
        from .model import tokenizer_fingerprint

        key = (name, tokenizer_fingerprint(lm))
        if key not in self._plans:
            self._plans[key] = make_plan(prepared.benchmark, prepared.ids, own, lm)
        return self._plans[key]


def make_plan(
    benchmark: Benchmark, ids: tuple[str, ...], own: BenchmarkSettings, lm: CheckpointLM
) -> Plan:
    """Shots, room for generation and exclusions of a run.

    The room is what was asked (or lm-eval's own), at most half the context. Shots are the most
    (at most lm-eval's own, or `own.shots`) at which 90% of all items fit whole; none if none do.
    """
    room = 0
    if benchmark.generates:
        room = min(own.max_new_tokens or benchmark.stock_room, lm.max_length // 2)
    generated = ids if own.generate_items is None else ids[: own.generate_items]
    most = benchmark.stock_shots if own.shots is None else min(own.shots, benchmark.most_shots)
    for shots in range(most, -1, -1):
        found = _ask(benchmark, ids, frozenset(generated), shots, room, lm)
        if found is not None:
            break
    assert found is not None
    gold, fitting = found
    answered = [one for one in generated if one in fitting]
    # asked last, so that the task's own filters see exactly these requests
    final = benchmark.questions(answered, shots, room) if answered else {}
    return Plan(shots, room, ids, generated, gold, final)


def _ask(
    benchmark: Benchmark,
    ids: Sequence[str],
    generated: frozenset[str],
    shots: int,
    room: int,
    lm: CheckpointLM,
) -> tuple[dict[str, Question], set[str]] | None:
    """Questions whose gold answer fits, and the items whose choices or generation fit.

    None as soon as more than a tenth of the items can't fit at this number of shots (rendering
    prompts is what planning costs); at no shots there is nothing left to drop.
    """
    gold: dict[str, Question] = {}
    fitting: set[str] = set()
    misfits = 0
    for begin in range(0, len(ids), _CHUNK):
        chunk = ids[begin : begin + _CHUNK]
        for one, question in benchmark.questions(chunk, shots, room).items():
            read = question.gold is None or lm.holds(*question.gold)
            answers = one not in generated or _answer_fits(question, lm, room)
            misfits += not (read and answers)
            if read and question.gold is not None:
                gold[one] = question
            if answers:
                fitting.add(one)
        if shots > 0 and misfits > (1 - FIT) * len(ids):
            return None
    return gold, fitting


def _answer_fits(question: Question, lm: CheckpointLM, room: int) -> bool:
    if question.prompt is not None:
        return lm.has_room(question.prompt.args[0], room)
    return all(lm.holds(*choice.args) for choice in question.choices)


def _score(name: str, prepared: _Prepared, plan: Plan, lm: CheckpointLM) -> BenchmarkScore:
    benchmark = prepared.benchmark
    cluster = partial(cluster_of, name)
    items: Outcomes = {}
    metrics: dict[str, Metric] = {}
    reasons: list[str] = []
    if plan.questions:
        gold = _bits_per_byte(plan.questions, lm)
        items.update(gold)
        metrics["bits_per_byte"] = ratio_metric(gold, len(plan.asked), cluster)
    reason = benchmark.unusable()
    if reason is None and plan.answered:
        answers, trouble = _try_answers(benchmark, plan, lm)
        for one, outcome in answers.items():
            items[one] = {**items.get(one, {}), **outcome}
        if trouble is None:
            metrics |= mean_metrics(answers, len(plan.generated), cluster)
        else:
            reasons.append(f"{benchmark.scored}: {trouble}")
    elif plan.generated:
        reasons.append(f"{benchmark.scored}: {reason or 'no item fits the context'}")
    if not plan.questions:
        reasons.append("bits_per_byte: no item fits the context")
    return BenchmarkScore(
        status="ok" if metrics else "missing",
        reason="; ".join(reasons) or None,
        metrics=metrics,
        items={one: items[one] for one in plan.asked if one in items},
        shots=plan.shots,
        max_new_tokens=plan.room or None,
        asked=len(plan.asked),
        excluded=len(plan.asked) - len(items.keys() | plan.answered.keys()),
        data=prepared.data,
        data_kind=prepared.kind,
    )


def _bits_per_byte(questions: Mapping[str, Question], lm: CheckpointLM) -> Outcomes:
    """{item: {bits_per_byte, bytes}} of the gold answers."""
    from lm_eval.api.instance import Instance

    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=question.gold, idx=0)
        for question in questions.values()
    ]
    answers = lm.loglikelihood(requests, disable_tqdm=True)
    outcomes: Outcomes = {}
    for (one, question), (total, _greedy) in zip(questions.items(), answers, strict=True):
        bits = -_finite(total) / math.log(2)
        outcomes[one] = {
            "bits_per_byte": bits / question.gold_bytes,
            "bytes": float(question.gold_bytes),
        }
    return outcomes


def _answers(benchmark: Benchmark, questions: Mapping[str, Question], lm: CheckpointLM) -> Outcomes:
    prompts: list[Instance] = [q.prompt for q in questions.values() if q.prompt is not None]
    choices: list[Instance] = [choice for q in questions.values() for choice in q.choices]
    for request in (*prompts, *choices):
        # the requests are kept for the run; the answers are this checkpoint's
        request.resps, request.filtered_resps = [], {}
    if choices:
        for request, answer in zip(
            choices, lm.loglikelihood(choices, disable_tqdm=True), strict=True
        ):
            _finite(answer[0])
            request.resps.append(answer)
    if prompts:
        for request, text in zip(prompts, lm.generate_until(prompts), strict=True):
            request.resps.append(text)
    return benchmark.outcomes(questions)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the checkpoint's log-likelihoods are not finite")
    return value


def _missing(reason: str) -> BenchmarkScore:
    return BenchmarkScore(status="missing", reason=reason)


def _try_answers(benchmark: Benchmark, plan: Plan, lm: CheckpointLM) -> tuple[Outcomes, str | None]:
    """The answers' outcomes, or why there are none.

    A sandbox that dies or a scorer that trips over one answer must not take the bits per byte,
    which steer, with it.
    """
    try:
        return _answers(benchmark, plan.answered, lm), None
    except Exception as error:
        _log_failure(benchmark.scored)
        return {}, f"{type(error).__name__}: {error}".splitlines()[0]


def _log_failure(name: str) -> None:
    import logging

    logging.getLogger(__name__).exception("%s failed", name)


def _engine(sandbox: Sandbox) -> dict[str, str]:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    return {**versions, "sandbox": sandbox.kind}
