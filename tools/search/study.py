"""The search's trials: an Optuna study in an SQLite file, its only store.

A mixture is searched as one uniform number u per source: shares are proportional to -ln u, which
makes uniform numbers uniform on the simplex (normalised exponentials, as Optuna's FAQ has it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mixloop.common.errors import BadInput
from mixloop.controller.config import SearchPlan
from mixloop.policies.mixture import confine
from mixloop.policies.surrogates import ProxyRun, Score

if TYPE_CHECKING:
    import optuna

MIN_DRAWN = 1e-6  # of u: at 0 the share would be infinite


class Trials:
    """The study, in the words of a search."""

    def __init__(self, plan: SearchPlan) -> None:
        """Open the study, or begin it.

        Raises:
            BadInput: it was begun with other settings, or its file is no study.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        plan.folder.mkdir(parents=True, exist_ok=True)
        startup = len(plan.most) + 1
        try:
            self.study = optuna.create_study(
                storage=f"sqlite:///{plan.folder / 'study.db'}",
                study_name="search",
                load_if_exists=True,
                pruner=optuna.pruners.SuccessiveHalvingPruner(1, plan.reduction, 0),
            )
        except Exception as error:
            line = str(error).splitlines()[0]
            raise BadInput(
                f"{plan.folder / 'study.db'}: no study of a search: {line}; search in another --out"
            ) from None
        trials = len(self.study.trials)
        # after a restart a sampler must not repeat its first draws
        self._seed, self._startup = plan.seed + trials, startup
        self.study.sampler = optuna.samplers.RandomSampler(seed=self._seed)
        self._identify()
        if not trials:
            self.study.enqueue_trial(params_of(plan.start, list(plan.most)))

    def _identify(self) -> None:
        """Refuse to go on with settings under which trials would not compare."""
        begun, now = self.study.user_attrs.get("identity"), self._plan.identity()
        if begun is None:
            self.study.set_user_attr("identity", now)
            return
        for key, value in now.items():
            if begun.get(key) != value:
                raise BadInput(
                    f"{self._plan.folder}: this search was begun with {key} {begun.get(key)!r}, "
                    f"not {value!r}; restore that, or search in another folder (--out)"
                )

    def unfinished(self) -> list[optuna.Trial]:
        """Trials that an interrupted search left, oldest first."""
        import optuna

        running = (trial for trial in self.study.trials if trial.state.name == "RUNNING")
        return [optuna.Trial(self.study, trial._trial_id) for trial in running]

    def ask(self) -> optuna.Trial:
        """The next trial, its mixture in its attributes."""
        self._learn()
        trial = self.study.ask()
        names = list(self._plan.most)
        drawn = [trial.suggest_float(name, MIN_DRAWN, 1.0) for name in names]
        weights = mixture_of(drawn, [self._plan.most[name] for name in names])
        trial.set_user_attr("weights", dict(zip(names, weights, strict=True)))
        return trial

    def _learn(self) -> None:
        """From random mixtures to the Gaussian process, which costs torch, when it can tell."""
        import optuna

        enough = len(self.study.trials) >= self._startup
        if enough and not isinstance(self.study.sampler, optuna.samplers.GPSampler):
            self.study.sampler = optuna.samplers.GPSampler(
                seed=self._seed,
                n_startup_trials=self._startup,
                deterministic_objective=False,
            )

    def scored(self, trial: optuna.Trial, rung: int, scores: Mapping[str, Score]) -> str:
        """Take in a rung's scores; ``complete``, ``pruned`` (halving stops it) or ``running``."""
        import optuna

        value = self.value(scores)
        by_rung = dict(trial.user_attrs.get("scores", {}))
        by_rung[str(rung)] = {name: [score.value, score.stderr] for name, score in scores.items()}
        trial.set_user_attr("scores", by_rung)
        if rung == len(self._plan.rungs) - 1:
            self.study.tell(trial.number, value, skip_if_finished=True)
            return "complete"
        trial.report(value, self._plan.reduction**rung)
        if not trial.should_prune():
            return "running"
        pruned = optuna.trial.TrialState.PRUNED
        self.study.tell(trial.number, state=pruned, skip_if_finished=True)
        return "pruned"

    def failed(self, trial: optuna.Trial, reason: str) -> None:
        """Give a trial up; it counts for nothing."""
        import optuna

        trial.set_user_attr("reason", reason)
        self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def value(self, scores: Mapping[str, Score]) -> float:
        """The objective: the weighted mean of the benchmarks' bits per byte."""
        importance = self._plan.importance
        total = math.fsum(importance.values())
        return math.fsum(w * scores[name].value for name, w in importance.items()) / total

    def finished(self) -> int:
        """Trials that went to the end or were stopped by halving."""
        return sum(t.state.name in ("COMPLETE", "PRUNED") for t in self.study.trials)

    def runs(self) -> list[ProxyRun]:
        """Every trial with a score, as the surrogate wants them."""
        return [
            ProxyRun(t.user_attrs["weights"], scores_of(t.user_attrs), t.number)
            for t in self.study.trials
            if t.state.name in ("COMPLETE", "PRUNED") and t.user_attrs.get("scores")
        ]

    def close(self) -> None:
        """Let go of the file."""
        storage: Any = self.study._storage
        backend = getattr(storage, "_backend", storage)
        backend.engine.dispose()


def scores_of(attributes: Mapping[str, Any]) -> dict[int, dict[str, Score]]:
    """A trial's scores by rung."""
    by_rung: Mapping[str, Mapping[str, Any]] = attributes.get("scores", {})
    return {
        int(rung): {name: Score(*pair) for name, pair in scores.items()}
        for rung, scores in by_rung.items()
    }


def mixture_of(drawn: list[float], most: list[float]) -> list[float]:
    """The mixture of uniform numbers (k,), brought within the greatest shares (k,)."""
    exponentials = np.maximum(-np.log(np.maximum(drawn, MIN_DRAWN)), 1e-9)
    return [float(w) for w in confine(exponentials / exponentials.sum(), np.array(most))]


def params_of(weights: Mapping[str, float], names: list[str]) -> dict[str, float]:
    """Numbers that ``mixture_of`` turns into these weights."""
    return {name: max(MIN_DRAWN, math.exp(-len(names) * weights.get(name, 0.0))) for name in names}
