"""Scores one checkpoint on every benchmark asked for; keeps what checkpoints share."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.evals import (
    BenchmarkScore,
    BenchmarkSettings,
    Cost,
    EvalSettings,
    Scorecard,
    training_state,
)
from mixloop.evals.benchmarks import (
    Benchmark,
    BenchmarkPlan,
    Outcomes,
    Question,
    fit_shots,
    load_items,
    make_benchmark,
)
from mixloop.evals.items import ItemsError, choose
from mixloop.evals.lm_eval_tasks import task_folder
from mixloop.evals.sandbox import Sandbox

from .work_units import UnitScore, WorkUnit, assemble_score, missing_score, parts, total_cost

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lm_eval.api.instance import Instance

    from mixloop.evals.engine import CheckpointLM


Progress = Callable[[str, str], None]


def silent(name: str, state: str) -> None:
    """Progress that nobody follows."""


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
        # by benchmark, with the tokenizer it was made for: a run has one
        self._plans: dict[str, tuple[str, BenchmarkPlan]] = {}
        self._tokenizer: tuple[str, Any] | None = None
        self._loaded: tuple[Path, CheckpointLM | str] | None = None

    def close(self) -> None:
        """Ends the sandbox and removes the generated task files."""
        self._sandbox.close()
        self._folder.cleanup()

    def score(self, checkpoint: Path, progress: Progress = silent) -> Scorecard:
        """The scorecard of one checkpoint; a benchmark that fails is missing with the reason.

        The model stays loaded until :meth:`release`, for :meth:`samples`.
        """
        began = time.monotonic()
        progress("checkpoint", "loading")
        state = training_state(checkpoint)
        lm = self.load(checkpoint)
        scores: list[UnitScore] = []
        for unit in self.units():
            progress(unit.benchmark, f"running{unit.which()}")
            scores.append(self.run(unit, lm))
        return self.card(checkpoint, state, scores, time.monotonic() - began)

    def samples(self, card: Scorecard, path: Path) -> None:
        """Writes what a scored checkpoint says to fixed prompts beside the scorecard's file.

        Raises OSError.
        """
        from .samples import write_samples

        checkpoint = Path(card.checkpoint)
        lm = self.load(checkpoint)
        if not isinstance(lm, str):
            write_samples(lm, path, checkpoint, self.settings, card.step, card.tokens)

    def release(self) -> None:
        """Lets go of the loaded model."""
        self._loaded = None
        # its modules know one another: the weights would wait for a chance collection
        gc.collect()

    def load(self, checkpoint: Path) -> CheckpointLM | str:
        """The checkpoint's model, or why there is none; loaded once until :meth:`release`."""
        if self._loaded is None or self._loaded[0] != checkpoint:
            # the old one goes first: two at a time may be too many
            self.release()
            self._loaded = (checkpoint, self._load(checkpoint))
        return self._loaded[1]

    def _load(self, checkpoint: Path) -> CheckpointLM | str:
        from mixloop.evals.engine import CheckpointError, load_checkpoint

        settings = self.settings
        try:
            lm = load_checkpoint(
                checkpoint,
                device=settings.device,
                dtype=settings.dtype,
                max_length=settings.max_length,
                batch_tokens=settings.batch_tokens,
                seed=settings.seed,
            )
        except CheckpointError as error:
            return str(error)
        lm.tokenizer = self._kept_tokenizer(lm.tokenizer, checkpoint)
        return lm

    def _kept_tokenizer(self, tokenizer: Any, checkpoint: Path) -> Any:
        """The first of equal tokenizers: `tokenizers` 0.23 never frees the words each has read."""
        from mixloop.evals.engine import tokenizer_identity

        identity = tokenizer_identity(tokenizer, checkpoint)
        if self._tokenizer is None or self._tokenizer[0] != identity:
            self._tokenizer = identity, tokenizer
        return self._tokenizer[1]

    def units(self) -> list[WorkUnit]:
        """All work on one checkpoint, in order; a benchmark without items is one unit."""
        found: list[WorkUnit] = []
        for name, own in self.settings.asked.items():
            try:
                count = len(self._parts(name, self._prepare(name, own)))
            # said where it is run
            except Exception:
                count = 1
            found += [WorkUnit(benchmark=name, part=part, parts=count) for part in range(count)]
        return found

    def run(self, unit: WorkUnit, lm: CheckpointLM | str) -> UnitScore:
        """Scores one unit; whatever goes wrong is in the score."""
        if isinstance(lm, str):
            return UnitScore(unit=unit, failed=lm)
        name = unit.benchmark
        try:
            own = self.settings.asked[name]
            prepared = self._prepare(name, own)
            plan = self._plan(name, own, prepared, lm)
            return _score(unit, self._parts(name, prepared)[unit.part], prepared, plan, lm)
        except ItemsError as error:
            return UnitScore(unit=unit, failed=str(error))
        # one benchmark's fault, whatever it is, must not cost the others their scores
        except Exception as error:
            _log_failure(name)
            reason = f"{name}: {type(error).__name__}: {error}".splitlines()[0]
            return UnitScore(unit=unit, failed=reason)

    def data_kinds(self) -> dict[str, str]:
        """Where the items of each benchmark that has any come from."""
        return {name: one.kind for name, one in self._prepared.items()}

    def card(
        self,
        checkpoint: Path,
        state: tuple[int | None, int | None],
        scores: Sequence[UnitScore],
        seconds: float,
    ) -> Scorecard:
        """The scorecard of all units' scores, in whatever order they came.

        `state` is the checkpoint's step and tokens, read while it was surely there.
        """
        step, tokens = state
        own = {name: _units_of(name, scores) for name in self.settings.asked}
        return Scorecard(
            schema="mixloop/scorecard/1",
            checkpoint=str(checkpoint),
            step=step,
            tokens=tokens,
            benchmarks={name: _assembled(name, found) for name, found in own.items()},
            seconds=round(seconds, 3),
            cost={name: total_cost(found) for name, found in own.items()},
            settings_digest=self.settings.digest(),
            engine=_engine(self._sandbox),
        )

    def _parts(self, name: str, prepared: _Prepared) -> list[tuple[str, ...]]:
        return parts(name, prepared.ids, self.settings.unit_items)

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
    ) -> BenchmarkPlan:
        from mixloop.evals.engine import tokenizer_fingerprint

        fingerprint = tokenizer_fingerprint(lm)
        known = self._plans.get(name)
        if known is None or known[0] != fingerprint:
            known = fingerprint, fit_shots(prepared.benchmark, prepared.ids, own, lm)
            self._plans[name] = known
        return known[1]


def _units_of(name: str, scores: Sequence[UnitScore]) -> list[UnitScore]:
    return [score for score in scores if score.unit.benchmark == name]


def _assembled(name: str, scores: Sequence[UnitScore]) -> BenchmarkScore:
    if not scores or len(scores) < scores[0].unit.parts:
        return missing_score(f"{name}: some of its items were not scored")
    return assemble_score(scores)


def _score(
    unit: WorkUnit, ids: Sequence[str], prepared: _Prepared, plan: BenchmarkPlan, lm: CheckpointLM
) -> UnitScore:
    benchmark = prepared.benchmark
    questions = {one: plan.questions[one] for one in ids if one in plan.questions}
    answered = {one: plan.answered[one] for one in ids if one in plan.answered}
    cost: list[Cost] = []
    reason = benchmark.unusable()
    with _metered(cost, len(ids), lm):
        gold = _read(questions, answered if reason is None else {}, lm)
        if reason is None:
            answers, reason = _try_answers(benchmark, answered, lm)
        else:
            answers = {}
        lm.forget()
    return UnitScore(
        unit=unit,
        trouble=reason,
        gold=gold,
        answers=answers,
        fitting=tuple(answered),
        asked=plan.asked,
        generated=len(plan.generated),
        shots=plan.shots,
        room=plan.room,
        scored=benchmark.scored,
        has_gold=plan.has_gold,
        lower_is_better=tuple(
            sorted(name for name, higher in benchmark.higher_is_better.items() if not higher)
        ),
        data=prepared.data,
        data_kind=prepared.kind,
        cost=cost[0],
    )


@contextmanager
def _metered(into: list[Cost], items: int, lm: CheckpointLM) -> Iterator[None]:
    began, spent = time.monotonic(), time.process_time()
    tokens, asked = lm.tokens, lm.asked_tokens
    yield
    into.append(
        Cost(
            seconds=round(time.monotonic() - began, 3),
            cpu_seconds=round(time.process_time() - spent, 3),
            items=items,
            tokens=lm.tokens - tokens,
            asked_tokens=lm.asked_tokens - asked,
        )
    )


def _read(
    questions: Mapping[str, Question], answered: Mapping[str, Question], lm: CheckpointLM
) -> Outcomes:
    """{item: {bits_per_byte, bytes}} of the gold answers; choices are answered in the same pass."""
    from lm_eval.api.instance import Instance

    gold = {one: question for one, question in questions.items() if question.gold is not None}
    asked = [
        Instance(request_type="loglikelihood", doc={}, arguments=question.gold, idx=0)
        for question in gold.values()
    ]
    choices: list[Instance] = [choice for q in answered.values() for choice in q.choices]
    found = lm.loglikelihood([*asked, *choices], disable_tqdm=True) if asked or choices else []
    for choice, answer in zip(choices, found[len(asked) :], strict=True):
        # the requests are kept for the run; the answers are this checkpoint's
        choice.resps, choice.filtered_resps = [answer], {}
    outcomes: Outcomes = {}
    for (one, question), (total, _greedy) in zip(gold.items(), found, strict=False):
        bits = -_finite(total) / math.log(2)
        outcomes[one] = {
            "bits_per_byte": bits / question.gold_bytes,
            "bytes": float(question.gold_bytes),
        }
    return outcomes


def _try_answers(
    benchmark: Benchmark, answered: Mapping[str, Question], lm: CheckpointLM
) -> tuple[Outcomes, str | None]:
    """The answers' outcomes, or why there are none.

    A sandbox that dies or a scorer that trips over one answer must not take the bits per byte,
    which steer, with it.
    """
    if not answered:
        return {}, None
    try:
        return _answers(benchmark, answered, lm), None
    except Exception as error:
        _log_failure(benchmark.scored)
        return {}, f"{type(error).__name__}: {error}".splitlines()[0]


def _answers(benchmark: Benchmark, questions: Mapping[str, Question], lm: CheckpointLM) -> Outcomes:
    prompts: list[Instance] = [q.prompt for q in questions.values() if q.prompt is not None]
    for question in questions.values():
        for choice in question.choices:
            _finite(choice.resps[0][0])
    if prompts:
        for request, text in zip(prompts, lm.generate_until(prompts), strict=True):
            request.resps, request.filtered_resps = [text], {}
    return benchmark.outcomes(questions)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("the checkpoint's log-likelihoods are not finite")
    return value


def _log_failure(name: str) -> None:
    import logging

    logging.getLogger(__name__).exception("%s failed", name)


def _engine(sandbox: Sandbox) -> dict[str, str]:
    from importlib.metadata import version

    versions = {name: version(name) for name in ("lm_eval", "torch", "transformers")}
    # asked here, so that the scorecard says the same whoever ran the programs
    sandbox.unusable()
    return {**versions, "sandbox": sandbox.kind}
