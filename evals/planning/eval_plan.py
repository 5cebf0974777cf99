"""The plan of a run's evaluations: how many items of each benchmark, and what that was based on.

Made once, from a few small pilot evaluations of the run's first checkpoint, and kept for the whole
run: two checkpoints compare item by item only when both were asked the same items. A machine that
is faster or slower later changes nothing; a share of training time that no longer holds is the
price of that.

A plan lies in the run folder as ``evals-plan.json``. Light: pydantic only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from pydantic import Field

from mixloop.common.files import LARGEST_JSON, read_whole
from mixloop.evals import BenchmarkSettings, EvalSettings, FrozenModel

from .allocation import Counts

SCHEMA: Final = "mixloop/evals-plan/1"
FILE_NAME: Final = "evals-plan.json"

FALLBACK = Counts(50, 20)
"""What is asked when no pilot ended: enough to tell two checkpoints apart in bits per byte."""


class PlannedBenchmark(FrozenModel):
    """One benchmark's part: ``items`` of ``available``, ``generate_items`` of them generated.

    ``data_kind`` is where the pilot's items came from, and where the run's therefore come from.
    ``generate_items`` is None where nothing is generated. ``seconds`` is the prediction, ``share``
    the same as a part of training time, ``stderr`` the standard error to expect of bits per byte
    (bits) at a level like the pilot's. All three are None where the pilot didn't tell.
    """

    items: int
    generate_items: int | None = None
    available: int | None = None
    data_kind: str = ""
    seconds: float | None = None
    share: float | None = None
    stderr: float | None = None


class EvalPlan(FrozenModel):
    """How a run evaluates from its first checkpoint to its last.

    ``training_seconds`` lie between two evaluations at ``tokens_per_second``; ``budget`` is the
    share of them that was asked for and ``seconds`` what the plan is predicted to take, of which
    ``overhead`` go to starting the worker and loading the checkpoint. ``notes`` are for a person.
    """

    schema_: Literal["mixloop/evals-plan/1"] = Field(default=SCHEMA, alias="schema")
    budget: float
    training_seconds: float | None = None
    tokens_per_second: float | None = None
    overhead: float | None = None
    seconds: float | None = None
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

        Raises:
            ValueError: it holds no plan; one line naming the file.
        """
        try:
            return cls.model_validate_json(read_whole(path, LARGEST_JSON))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{path}: no evaluation plan ({reason})") from None

    def pin(self, settings: EvalSettings) -> EvalSettings:
        """The settings with this plan's numbers of items; a benchmark it lacks gets FALLBACK's."""
        benchmarks = {}
        for name in settings.asked:
            asked = settings.of(name)
            planned = self.benchmarks.get(name) or _fallback(name, asked)
            counts = {"items": planned.items, "generate_items": planned.generate_items}
            benchmarks[name] = asked.model_copy(update=counts)
        kinds = {name: planned.data_kind for name, planned in self.benchmarks.items()}
        return settings.asking(benchmarks).pinned(kinds)


def fallback_plan(settings: EvalSettings, checkpoint: str, reason: str) -> EvalPlan:
    """The plan of a run whose costs could not be found: the same few items of each benchmark."""
    assert settings.budget is not None
    note = (
        f"nothing could be measured ({reason}): {FALLBACK.items} items of each benchmark, "
        f"{FALLBACK.generate} of them generated, whatever share of training time that is"
    )
    return EvalPlan(
        schema=SCHEMA,
        budget=settings.budget,
        device=settings.device,
        checkpoint=checkpoint,
        benchmarks={name: _fallback(name, settings.of(name)) for name in settings.asked},
        notes=(note,),
    )


def _fallback(name: str, settings: BenchmarkSettings) -> PlannedBenchmark:
    """FALLBACK's items of a benchmark; choices are asked of every item."""
    generate = settings.generate_items
    if name != "mmlu":
        generate = at_most(FALLBACK.generate, settings.generate_items)
    return PlannedBenchmark(items=at_most(FALLBACK.items, settings.items), generate_items=generate)


def at_most(count: int, bound: int | None) -> int:
    """A number of items, at most what run.yaml allows (None: any)."""
    return count if bound is None else min(bound, count)
