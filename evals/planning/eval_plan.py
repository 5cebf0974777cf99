"""The plan of a run's evaluations: how many items of each benchmark, and what that was based on.

Made once, from a few small trial evaluations of the run's first checkpoint, and kept for the whole
run: two checkpoints compare item by item only when both were asked the same items. A machine that
is faster or slower later changes nothing; a share of training time that no longer holds is the
price of that.

A plan lies in the run folder as ``evals-plan.json``. Light: pydantic only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from mixloop.evals import BenchmarkSettings, EvalSettings

from .allocation import Counts

SCHEMA: Final = "mixloop/evals-plan/1"
FILE_NAME: Final = "evals-plan.json"

# What is asked when no trial came to an end: enough to tell two checkpoints apart in bits per byte
FALLBACK = Counts(50, 20)


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PlannedBenchmark(_Frozen):
    """One benchmark's part: ``items`` of ``available``, ``generate_items`` of them generated.

    ``data_kind`` is where the trial's items came from, and where the run's therefore come from.
    ``generate_items`` is None where nothing is generated. ``seconds`` is the prediction, ``share``
    the same as a part of training time, ``stderr`` the standard error to expect of bits per byte
    (bits) at a level like the trial's. All three are None where the trial didn't tell.
    """

    items: int
    generate_items: int | None = None
    available: int | None = None
    data_kind: str = ""
    seconds: float | None = None
    share: float | None = None
    stderr: float | None = None


class EvalPlan(_Frozen):
    """How a run evaluates from its first checkpoint to its last.

    ``training_seconds`` lie between two evaluations at ``tokens_per_second``; ``budget`` is the
    share of them that was asked for and ``seconds`` what the plan is predicted to take, of which
    ``overhead`` go to starting the worker and loading the checkpoint. ``notes`` are for a person.
    """

    schema_: Literal["mixloop/evals-plan/1"] = Field(default=SCHEMA, alias="schema")
    budget: float
    training_seconds: float | None
    tokens_per_second: float | None
    overhead: float | None
    seconds: float | None
    device: str
    checkpoint: str
    benchmarks: dict[str, PlannedBenchmark]
    notes: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The plan as the text of its file."""
        return self.model_dump_json(by_alias=True, indent=1)

    @property
    def share(self) -> float | None:
        """Predicted share of training time, None where it could not be predicted."""
        if self.seconds is None or not self.training_seconds:
            return None
        return self.seconds / self.training_seconds

    @classmethod
    def read(cls, path: Path) -> EvalPlan | None:
        """The plan in a file, None when there is none.

        Raises ValueError, one line naming the file, when it holds no plan.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: no evaluation plan ({reason})") from None

    def pin(self, settings: EvalSettings) -> EvalSettings:
        """The settings with this plan's numbers of items; a benchmark it lacks gets FALLBACK's."""
        counts = {name: self._counts(name, settings.of(name)) for name in settings.asked}
        kinds = {name: one.data_kind for name, one in self.benchmarks.items()}
        benchmarks = {
            name: settings.of(name).model_copy(update={"items": items, "generate_items": made})
            for name, (items, made) in counts.items()
        }
        return settings.asking(benchmarks).pinned(kinds)

    def _counts(self, name: str, own: BenchmarkSettings) -> tuple[int, int | None]:
        planned = self.benchmarks.get(name)
        if planned is not None:
            return planned.items, planned.generate_items
        return bounded(own, FALLBACK.items), _few(name, own)


def fallback_plan(settings: EvalSettings, checkpoint: str, reason: str) -> EvalPlan:
    """The plan of a run whose costs could not be found: the same few items of each benchmark."""
    assert settings.budget is not None
    benchmarks = {
        name: PlannedBenchmark(
            items=bounded(own, FALLBACK.items),
            generate_items=_few(name, own),
        )
        for name, own in ((name, settings.of(name)) for name in settings.asked)
    }
    note = (
        f"nothing could be measured ({reason}): {FALLBACK.items} items of each benchmark, "
        f"{FALLBACK.generate} of them generated, whatever share of training time that is"
    )
    return EvalPlan(
        schema=SCHEMA,
        budget=settings.budget,
        training_seconds=None,
        tokens_per_second=None,
        overhead=None,
        seconds=None,
        device=settings.device,
        checkpoint=checkpoint,
        benchmarks=benchmarks,
        notes=(note,),
    )


def bounded(own: BenchmarkSettings, count: int) -> int:
    """A number of items, at most what run.yaml allows."""
    return count if own.items is None else min(own.items, count)


def bounded_generation(own: BenchmarkSettings, count: int) -> int:
    """A number of items to generate, at most what run.yaml allows."""
    return count if own.generate_items is None else min(own.generate_items, count)


def _few(name: str, own: BenchmarkSettings) -> int | None:
    """Items to generate when costs are unknown; choices are asked of every item."""
    return own.generate_items if name == "mmlu" else bounded_generation(own, FALLBACK.generate)
