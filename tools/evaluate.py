"""``mixloop eval``: one checkpoint scored as the controller would."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from mixloop.common import text
from mixloop.common.errors import BadInput
from mixloop.controller import views
from mixloop.evals import BenchmarkSettings, Cost, Data, DataKind, EvalSettings, Scorecard
from mixloop.evals.items import ItemsError
from mixloop.evals.lm_eval_tasks import unknown_benchmarks
from mixloop.evals.workers import EvaluationError, evaluate, launcher_problem

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class EvalArgs:
    """What is to be scored, as the command line has it; None and () leave it to `config`.

    `data` are `NAME=WHERE`, `benchmarks` names, or several with commas between them.
    """

    config: Path | None = None
    data: Sequence[str] = ()
    benchmarks: Sequence[str] = ()
    items: int | None = None
    device: str | None = None

    def settings(self) -> EvalSettings:
        """The settings to score with.

        Raises:
            BadInput: a benchmark nobody knows, or data that isn't there.
        """
        settings = _from_config(self.config)
        data = _named_data(self.data)
        asked = [name for text in self.benchmarks for name in text.split(",") if name]
        if not asked and self.config is None:
            asked = list(data)
        _check_names([*asked, *data])
        configured = {**settings.watch, **settings.benchmarks}
        benchmarks, watch = dict(settings.benchmarks), settings.watch
        if asked:
            _check_among(data, asked)
            benchmarks, watch = {}, {}
        for name in (*asked, *data):
            benchmarks[name] = configured.get(name, BenchmarkSettings())
        changes: dict[str, object] = {
            "benchmarks": {n: self._changed(s, data.get(n)) for n, s in benchmarks.items()},
            "watch": {n: self._changed(s, None) for n, s in watch.items()},
            "average": 1,  # the one that is named, as it is
        }
        if self.device:
            changes["device"] = self.device
        return settings.model_copy(update=changes)

    def _changed(self, benchmark: BenchmarkSettings, data: Data | None) -> BenchmarkSettings:
        items = {} if self.items is None else {"items": self.items}
        return benchmark.model_copy(update=items if data is None else {**items, "data": data})


def score_checkpoint(checkpoint: Path, args: EvalArgs, out: Path | None) -> Scorecard:
    """Score a checkpoint and wait, saying on stderr what is being asked.

    Raises:
        BadInput: when there is no checkpoint, or what is asked of it is wrong.
        SystemExit: with code 1 when no scorecard came.
    """
    if not (checkpoint / "config.json").is_file():
        raise BadInput(
            f"{checkpoint}: no checkpoint here (config.json is missing); "
            "give a folder in Hugging Face format"
        )
    settings = args.settings()
    problem = launcher_problem(settings.launcher)
    if problem is not None:
        raise BadInput(f"{args.config}: evals.{problem}")
    try:
        return evaluate(
            checkpoint,
            settings,
            out=out,
            progress=_say,
            warn=lambda line: _say(f"warning: {line}"),
        )
    except EvaluationError as error:
        _say(f"error: {error}")
        raise SystemExit(1) from None


def _say(line: str) -> None:
    print(text.clean(line), file=sys.stderr, flush=True)  # noqa: T201 - the command's output


def must_have_scores(card: Scorecard) -> None:
    """Ends the command where nothing at all was scored, with every reason.

    Raises:
        SystemExit: with code 1.
    """
    if any(score.status == "ok" for score in card.benchmarks.values()):
        return
    named: dict[str, list[str]] = {}
    for name, score in card.benchmarks.items():
        named.setdefault(score.reason or "no reason is known", []).append(name)
    _say("error: nothing was scored")
    for reason, names in named.items():
        _say(f"  {', '.join(names)}: {reason}")
    raise SystemExit(1)


def _from_config(config: Path | None) -> EvalSettings:
    if config is None:
        return EvalSettings()
    from mixloop.controller.config import load_config
    from mixloop.controller.loop import eval_settings, read_plan

    run = load_config(config)
    settings = eval_settings(run)
    plan = read_plan(run)  # the items of the run's own checkpoints, so that scores compare
    return plan.pin(settings) if plan is not None else settings


def _named_data(texts: Sequence[str]) -> dict[str, Data]:
    """`NAME=WHERE` by name; a name given again adds to its files."""
    data: dict[str, Data] = {}
    for argument in texts:
        name, _, where = argument.partition("=")
        if not name or not where:
            raise BadInput(f"--data {argument}: give it as BENCHMARK=FILE or BENCHMARK=FOLDER")
        if where in get_args(DataKind):
            data[name] = cast(DataKind, where)
        else:
            before = data.get(name, ())
            files = before if isinstance(before, tuple) else ()
            data[name] = (*files, _existing(argument, where))
    return data


def _existing(text: str, where: str) -> Path:
    path = Path(where).expanduser()
    if path.exists():
        return path.resolve()
    beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    close = difflib.get_close_matches(path.name, beside, n=1)
    mend = f"did you mean '{path.parent / close[0]}'?" if close else "give a file or folder"
    raise BadInput(f"--data {text}: there is no {where}; {mend}")


def _check_names(names: Iterable[str]) -> None:
    try:
        unknown = unknown_benchmarks(names)
    except ItemsError as error:
        raise BadInput(str(error)) from None
    for name, mend in unknown.items():
        raise BadInput(f"{name!r} is no benchmark; {mend}")


def _check_among(data: Iterable[str], asked: Sequence[str]) -> None:
    for name in data:
        if name not in asked:
            raise BadInput(
                f"--data {name}=…: not among --benchmarks {','.join(asked)}; add it there"
            )


def scorecard_table(card: Scorecard) -> Table:
    """A scorecard for a person: every metric with its standard error and what it rests on."""
    where = f" at step {card.step}" if card.step is not None else ""
    columns = (
        *("benchmark", "metric", "value", "± s.e.", "95%"),
        *("items", "excluded", "shots", "data"),
    )
    table = views.table(f"{text.clean(card.checkpoint)}{where}", columns)
    for name, score in card.benchmarks.items():
        for label, metric in score.metrics.items():
            error = "-" if metric.stderr is None else f"{metric.stderr:.4f}"
            within = "-" if metric.interval is None else "{:.4f} … {:.4f}".format(*metric.interval)
            counts = (str(metric.n), str(metric.excluded), str(score.shots))
            value, data = f"{metric.value:.4f}", views.cell(score.data)
            table.add_row(name, label, value, error, within, *counts, data)
        if score.reason:
            table.add_row(name, "missing", *"------", views.cell(score.reason))
    return table


def cost_table(card: Scorecard) -> Table:
    """What each benchmark cost, and all together with what was spent around them.

    `asked` are the tokens that computing every request by itself would take. Benchmarks' seconds
    add up over workers; the last line's are those that passed.
    """
    columns = ("cost", "seconds", "processor seconds", "items/s", "tokens computed", "asked")
    table = views.table("", columns)
    for name, cost in card.cost.items():
        table.add_row(name, *_cost_cells(cost))
    added = ("cpu_seconds", "items", "tokens", "asked_tokens")
    sums = {name: sum(getattr(cost, name) for cost in card.cost.values()) for name in added}
    table.add_row("all", *_cost_cells(Cost(seconds=card.seconds, **sums)))
    return table


def _cost_cells(cost: Cost) -> tuple[str, ...]:
    saved = f" ({cost.asked_tokens / cost.tokens:.1f}x)" if cost.tokens else ""
    return (
        f"{cost.seconds:.1f}",
        f"{cost.cpu_seconds:.1f}",
        f"{cost.items_per_second:.2f}",
        text.tokens(cost.tokens),
        f"{text.tokens(cost.asked_tokens)}{saved}",
    )
