"""The evaluation engine against lm-eval's stock `hf` model: CPU time, tokens, and agreement.

    .venv/bin/python bench/evals.py CHECKPOINT [--data mmlu=DIR ...] [--repeats 3] [--only mmlu]

Both run the same requests of lm-eval's own tasks in one process on one thread, turn by turn; stock
at the batch size that was fastest on a part of them. The floor is what the tokens that have to be
computed cost at the rate of a large matrix product here: 2 x parameters x unique tokens.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

for _key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_key] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TQDM_DISABLE"] = "1"

import torch
from lm_eval.api.instance import Instance

from mixloop.evals import BenchmarkSettings
from mixloop.evals.benchmarks import Benchmark, Question, fit_shots, load_items, make_benchmark
from mixloop.evals.engine import CheckpointLM, load_checkpoint
from mixloop.evals.items import ItemSet, Row, choose
from mixloop.evals.sandbox import Sandbox

# batch sizes that stock is tried at (0: all items at once), MMLU's on so many questions; texts are
# tried on all of them, and the better try is the first repeat
BATCHES = {"mmlu": (1, 4, 16), "gsm8k": (8, 0), "math": (8, 0), "humaneval": (8, 0)}
TRIAL = 16
BOUNDS = {"mmlu": 5.5, "gsm8k": 4.0, "math": 3.0, "humaneval": 2.0, "together": 4.0}
CONTEXT = 2048


@dataclass
class Side:
    """What one model did with one benchmark: CPU seconds per repeat, tokens, and answers."""

    seconds: list[float] = field(default_factory=list)
    tokens: int = 0
    answers: list[Any] = field(default_factory=list)
    outcomes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def stock_model(folder: Path, dtype: str) -> Any:
    """lm-eval's `hf` model on this checkpoint."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype=dtype, batch_size=1, max_length=CONTEXT)


def count_tokens(model: Any) -> Callable[[], int]:
    """Counts the tokens, padding included, that a model's forward passes compute."""
    count = [0]

    def hook(module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        inputs = kwargs.get("input_ids", args[0] if args else None)
        count[0] += inputs.numel()

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return lambda: count[0]


def ask(lm: Any, requests: Sequence[Instance]) -> list[Any]:
    """Answers of one kind of request."""
    if requests[0].request_type == "loglikelihood":
        return list(lm.loglikelihood(list(requests), disable_tqdm=True))
    return list(lm.generate_until(list(requests), disable_tqdm=True))


def requests_of(questions: Mapping[str, Question]) -> list[Instance]:
    """What the benchmark's headline metric asks: letters, or one generation an item."""
    requests: list[Instance] = []
    for question in questions.values():
        letters = [
            choice for choice in question.choices if "continuation" not in str(choice.task_name)
        ]
        requests += [question.prompt] if question.prompt is not None else letters
    return requests


def mmlu_shape(items: ItemSet, subjects: int, each: int) -> tuple[list[Row], int]:
    """`each` questions of `subjects` subjects; a subject that has fewer borrows others' questions.

    A borrowed question is asked behind the shots of the subject that borrowed it, so lengths and
    shared prefixes are those of a subject with enough questions. Returns how many were borrowed.
    """
    by_subject: dict[str, list[Row]] = defaultdict(list)
    for row in choose(items.rows, None, 0):
        by_subject[row["subject"]].append(row)
    names = sorted(by_subject, key=lambda name: (-len(by_subject[name]), name))
    chosen, spare = names[:subjects], [row for name in names[subjects:] for row in by_subject[name]]
    rows: list[Row] = []
    borrowed = 0
    for name in chosen:
        questions = by_subject[name][:each]
        lent = spare[: each - len(questions)]
        spare = spare[len(lent) :]
        borrowed += len(lent)
        rows += questions + [{**row, "subject": name, "id": f"{name}/{row['id']}"} for row in lent]
    return rows, borrowed


def best_batch(side: Side, lm: Any, name: str, requests: Sequence[Instance], count: Any) -> int:
    """The batch size at which stock is fastest; a try on everything is also its first repeat."""
    each = 4 if name == "mmlu" else 1
    part = requests[: TRIAL * each] if name == "mmlu" else requests
    tries: dict[int, Side] = {}
    for size in BATCHES[name]:
        lm.batch_size_per_gpu = size or len(requests)
        tries[lm.batch_size_per_gpu] = Side()
        run_side(tries[lm.batch_size_per_gpu], lm, part, count)
    best = min(tries, key=lambda size: tries[size].seconds[0])
    if len(part) == len(requests):
        side.seconds, side.tokens, side.answers = (
            tries[best].seconds,
            tries[best].tokens,
            tries[best].answers,
        )
    return best


def run_side(side: Side, lm: Any, requests: Sequence[Instance], count: Callable[[], int]) -> None:
    """One timed repeat."""
    before = count()
    began = time.process_time()
    side.answers = ask(lm, requests)
    side.seconds.append(time.process_time() - began)
    side.tokens = count() - before
    print(f"  {side.seconds[-1]:.1f} s, {side.tokens} tokens", file=sys.stderr)


def outcomes(
    benchmark: Benchmark,
    questions: Mapping[str, Question],
    requests: Sequence[Instance],
    answers: Sequence[Any],
) -> dict[str, Any]:
    """What these answers come to: the letter chosen, or lm-eval's own scoring of a text."""
    if isinstance(answers[0], tuple):
        each = len(requests) // len(questions)
        logs = [answer[0] for answer in answers]
        by_item = [logs[i : i + each] for i in range(0, len(logs), each)]
        return {
            item: max(range(each), key=by_item[i].__getitem__) for i, item in enumerate(questions)
        }
    for request, answer in zip(requests, answers, strict=True):
        request.resps, request.filtered_resps = [answer], {}
    return dict(benchmark.outcomes(questions))


def largest_difference(one: Sequence[Any], other: Sequence[Any]) -> float | None:
    """Of log-likelihoods; None for texts."""
    if not isinstance(one[0], tuple):
        return None
    return max(abs(a[0] - b[0]) for a, b in zip(one, other, strict=True))


def matmul_rate() -> float:
    """Floating point operations per second of a large fp32 matrix product on one thread."""
    a, b = torch.randn(512, 1536), torch.randn(1536, 1536)
    best = 0.0
    for _ in range(10):
        began = time.process_time()
        for _ in range(20):
            torch.mm(a, b)
        best = max(best, 20 * 2 * 512 * 1536 * 1536 / (time.process_time() - began))
    return best


def bench_one(
    name: str,
    options: argparse.Namespace,
    ours: CheckpointLM,
    stock: Any,
    counts: tuple[Callable[[], int], Callable[[], int]],
) -> dict[str, Any]:
    """Times one benchmark both ways."""
    data = options.data.get(name)
    items = load_items(name, (data,) if data else "auto")
    borrowed = 0
    if name == "mmlu":
        subset, borrowed = mmlu_shape(items, options.subjects, options.per_subject)
        items = replace(items, rows=tuple(subset))
    else:
        subset = choose(items.rows, options.items, 0)
    benchmark = make_benchmark(name, items, subset, Sandbox())
    room = options.room if name == "humaneval" else None
    settings = BenchmarkSettings(shots=options.shots, max_new_tokens=room)
    plan = fit_shots(benchmark, tuple(row["id"] for row in subset), settings, ours)
    questions = plan.answered
    requests = requests_of(questions)
    print(f"{name}: {len(questions)} items, {plan.shots} shots", file=sys.stderr)
    theirs, mine = Side(), Side()
    batch = 0
    if not options.skip_stock:
        batch = best_batch(theirs, stock, name, requests, counts[1])
        stock.batch_size_per_gpu = batch
    for repeat in range(options.repeats):
        if not options.skip_stock and repeat >= len(theirs.seconds):
            run_side(theirs, stock, requests, counts[1])
        run_side(mine, ours, requests, counts[0])
    figures: dict[str, Any] = {
        "benchmark": name,
        "items": len(questions),
        "shots": plan.shots,
        "borrowed": borrowed,
        "ours_s": mine.seconds,
        "ours_tokens": mine.tokens,
    }
    if options.skip_stock:
        return figures
    different = sum(a != b for a, b in zip(theirs.answers, mine.answers, strict=True))
    scored = [outcomes(benchmark, questions, requests, side.answers) for side in (theirs, mine)]
    return figures | {
        "batch": batch,
        "stock_s": theirs.seconds,
        "stock_tokens": theirs.tokens,
        "ratio": theirs.median / mine.median,
        "loglikelihood_difference": largest_difference(theirs.answers, mine.answers),
        "texts_different": None if name == "mmlu" else different,
        "outcomes_different": sum(scored[0][item] != scored[1][item] for item in scored[0]),
    }


def half_precision(options: argparse.Namespace, exact: Any) -> str:
    """How far bfloat16 is from stock float32 on some MMLU questions: stock's, and ours."""
    data = options.data.get("mmlu")
    items = load_items("mmlu", (data,) if data else "auto")
    subset, _ = mmlu_shape(items, 2, options.half // 2)
    benchmark = make_benchmark("mmlu", replace(items, rows=tuple(subset)), subset, Sandbox())
    ours = load_checkpoint(options.checkpoint, dtype="bfloat16", max_length=CONTEXT)
    plan = fit_shots(
        benchmark, tuple(row["id"] for row in subset), BenchmarkSettings(shots=options.shots), ours
    )
    requests = requests_of(plan.answered)
    exact.batch_size_per_gpu = 1
    stock = stock_model(options.checkpoint, "bfloat16")
    answers = {
        name: (began := time.process_time(), ask(lm, requests), time.process_time() - began)[1:]
        for name, lm in (("float32", exact), ("stock", stock), ("ours", ours))
    }
    wanted = outcomes(benchmark, plan.answered, requests, answers["float32"][0])
    said = []
    for name in ("stock", "ours"):
        logs, seconds = answers[name]
        pairs = zip(logs, answers["float32"][0], strict=True)
        away = statistics.fmean(abs(a[0] - b[0]) for a, b in pairs)
        letters = outcomes(benchmark, plan.answered, requests, logs)
        changed = sum(letters[item] != wanted[item] for item in wanted)
        said.append(f"{name} {away:.4f} ({changed} of {len(wanted)} letters, {seconds:.1f} CPU s)")
    return "bfloat16, mean distance of a log-likelihood from stock float32: " + ", ".join(said)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", action="append", choices=list(BATCHES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--subjects", type=int, default=10)
    parser.add_argument("--per-subject", type=int, default=20)
    parser.add_argument("--items", type=int, default=16, help="of the other three")
    parser.add_argument("--shots", type=int)
    parser.add_argument("--room", type=int, help="new tokens for HumanEval; lm-eval's own is 1024")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--half", type=int, default=0, help="MMLU questions asked in bfloat16 too")
    parser.add_argument("--skip-stock", action="store_true", help="only our side, for tuning")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    options.data = {
        n: Path(p) for n, _, p in (argument.partition("=") for argument in options.data)
    }
    return options


def report(rows: Sequence[dict[str, Any]], parameters: int, rate: float) -> None:
    """The table, in Markdown."""
    print(f"{parameters / 1e6:.1f}M parameters, {rate / 1e9:.0f} GFLOP/s in a matrix product\n")
    print(
        "| benchmark | items | stock (batch) CPU s | ours CPU s | ratio | wanted | tokens: stock | "
        "ours | floor s | over floor | largest log-likelihood difference | differing outcomes |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        ours = statistics.median(row["ours_s"])
        floor = 2 * parameters * row["ours_tokens"] / rate
        spread = f"{min(row['ours_s']):.1f} to {max(row['ours_s']):.1f}"
        if "ratio" not in row:
            print(
                f"| {row['benchmark']} | {row['items']} | | {ours:.1f} ({spread}) | | | | "
                f"{row['ours_tokens']} | {floor:.1f} | {ours / floor:.2f} | | |"
            )
            continue
        stock = statistics.median(row["stock_s"])
        away = row["loglikelihood_difference"]
        print(
            f"| {row['benchmark']} | {row['items']} | {stock:.1f} ({row['batch']}) | "
            f"{ours:.1f} ({spread}) | **{row['ratio']:.2f}** | {BOUNDS[row['benchmark']]} | "
            f"{row['stock_tokens']} | {row['ours_tokens']} | {floor:.1f} | {ours / floor:.2f} | "
            f"{'-' if away is None else f'{away:.1e}'} | {row['outcomes_different']} |"
        )
    if all("ratio" in row for row in rows) and len(rows) > 1:
        theirs = sum(statistics.median(row["stock_s"]) for row in rows)
        mine = sum(statistics.median(row["ours_s"]) for row in rows)
        print(
            f"\nTogether: {theirs:.1f} s against {mine:.1f} s, **{theirs / mine:.2f}x** "
            f"(wanted {BOUNDS['together']}x)"
        )


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    ours = load_checkpoint(options.checkpoint, dtype=options.dtype, max_length=CONTEXT)
    stock = None if options.skip_stock else stock_model(options.checkpoint, options.dtype)
    counts = (lambda: ours.tokens, count_tokens(stock.model) if stock else lambda: 0)
    rows = []
    for name in options.only or list(BATCHES):
        rows.append(bench_one(name, options, ours, stock, counts))
        if options.out is not None:
            options.out.write_text(json.dumps(rows, indent=1))
    half = half_precision(options, stock) if options.half else ""
    report(rows, sum(p.numel() for p in ours.model.parameters()), matmul_rate())
    if half:
        print(f"\n{half}")


if __name__ == "__main__":
    main()
