"""`mixloop audit`: what a rank saw, a run's files against its schedule, and every way to lie."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixloop.cli.app import app
from mixloop.cli.audit import AuditArgs, audit_step, examine
from mixloop.common.errors import BadInput
from mixloop.contract import (
    SCALE,
    AcceptedOrder,
    Line,
    OpenLine,
    Order,
    OrderInForce,
    PendingOrder,
    RunPaths,
    SegmentLine,
    SourceEntry,
    SourceStatus,
    Status,
    VoidLine,
    encode_line,
    read_schedule,
    read_status,
    write_order,
    write_status,
)
from mixloop.trainer.audit import Evidence, Report, ScheduleReplay, audit, replay_of
from mixloop.trainer.audit.ledger_check import check_segments, segment_facts
from mixloop.trainer.audit.schedule_check import check_lines
from mixloop.trainer.loader import MixtureLoader
from mixloop.trainer.mixing import MixtureOrder
from mixloop.trainer.mixing.permutation import Permutations
from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import train_tokenizer

LENGTH = 16
NAMES = ("web", "code", "maths")
START = {"web": 0.6, "code": 0.3, "maths": 0.1}
ORDERS = [{"web": 0.2, "code": 0.2, "maths": 0.6}, {"web": 0.0, "code": 0.9, "maths": 0.1}]


@dataclass
class Ran:
    """A real run of three incarnations, the second on another layout, the third rewound."""

    folder: Path
    lines: list[dict[str, Any]]

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def given(self) -> list[str]:
        return [f"{name}={self.folder / name}" for name in NAMES]

    def examine(self) -> Report:
        return examine(self.run, [self.folder / "trace"], self.given)


def loader_of(folder: Path, micro_batch: int, accumulation: int, **options: Any) -> MixtureLoader:
    return MixtureLoader(
        folder / "run",
        run="tiny",
        sources={name: str(folder / name) for name in NAMES},
        weights=START,
        budget="1B",
        seed=5,
        sequence_length=LENGTH,
        micro_batch=micro_batch,
        accumulation=accumulation,
        poll_every=2,
        status_every=1,
        **options,
    )


def take(loader: MixtureLoader, until: Callable[[], bool], lines: list[dict[str, Any]]) -> None:
    """Consume steps until it says so, and write down what was handed out."""
    micros: list[Any] = []
    for batch in loader:
        micros.append((batch["source"].clone(), batch["input_ids"].clone()))
        if len(micros) < loader.job.settings.accumulation:
            continue
        ids = np.stack([ids.numpy() for _, ids in micros])
        lines.append(
            {
                "step": loader.step - 1,
                "sample": loader.sample - loader.step_samples,
                "rank": 0,
                "world": 1,
                "source": [source.tolist() for source, _ in micros],
                "sha256": hashlib.sha256(ids.astype("<u4").tobytes()).hexdigest(),
                "incarnation": loader.state_dict()["incarnation"],
                "ids": ids,
            }
        )
        micros = []
        time.sleep(0.0005)
        if until():
            return


def save(loader: MixtureLoader) -> None:
    folder = loader.job.dir / "checkpoints" / f"step-{loader.step:08d}"
    folder.mkdir(parents=True)
    assert loader.mark_checkpoint(folder)


def in_force(loader: MixtureLoader, generation: int) -> Callable[[], bool]:
    """Whether an order's first sample was consumed three steps ago."""
    path = RunPaths(loader.job.dir)

    def reached() -> bool:
        segments = [s for s in read_schedule(path.schedule).segments if s.generation == generation]
        return bool(segments) and segments[0].sample + 3 * loader.step_samples <= loader.sample

    return reached


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("audit")
    random = np.random.default_rng(0)
    words = ["the", "loop", "\x1b[31mred", "mixes", "data", "while", "it", "learns", "bell\x07"]
    train_tokenizer([" ".join(words)] * 3, folder / "tokenizer", 280)
    for size, name in enumerate(NAMES, start=1):
        texts = [" ".join(random.choice(words, 30)) for _ in range(12 * size)]
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
        prepare([str(folder / f"{name}.jsonl")], folder / name, str(folder / "tokenizer"))
    ran = Ran(folder, [])
    mixture = RunPaths(ran.run).mixture
    ran.run.mkdir()

    loader = loader_of(folder, 4, 2)
    take(loader, lambda: loader.step == 6, ran.lines)
    write_order(mixture, Order("tiny", 1, 1, ORDERS[0]))
    take(loader, in_force(loader, 1), ran.lines)
    save(loader)
    state = loader.state_dict()
    write_order(mixture, Order("tiny", 2, 2, ORDERS[1]))
    take(loader, in_force(loader, 2), ran.lines)
    loader.close()

    loader = loader_of(folder, 8, 1)  # from before the second order: it is applied again
    loader.load_state_dict(state)
    take(loader, in_force(loader, 2), ran.lines)
    loader.close()

    mixture.unlink()  # or the second order, cut by the rewind, would be accepted again
    loader = loader_of(folder, 8, 2, rewind=True)  # another quantum
    loader.load_state_dict(state)
    end = loader.step + 30
    take(loader, lambda: loader.step == end, ran.lines)
    save(loader)
    loader.close()

    # the index of a sample is not handed out: it is found by its tokens, all windows differ
    windows = {}
    for number, name in enumerate(NAMES):
        ids = np.fromfile(folder / name / "tokens.bin", "<u2")
        rows = ids[: ids.size // LENGTH * LENGTH].reshape(-1, LENGTH)
        windows |= {(number, row.tobytes()): index for index, row in enumerate(rows)}
    for line in ran.lines:
        ids = line.pop("ids").astype("<u2")
        line["index"] = [
            [windows[source, row.tobytes()] for source, row in zip(sources, rows, strict=True)]
            for sources, rows in zip(line["source"], ids, strict=True)
        ]
    (folder / "trace").write_text("".join(json.dumps(line) + "\n" for line in ran.lines))
    return ran


@pytest.fixture
def ran(base: Ran, tmp_path: Path) -> Ran:
    """A copy to spoil."""
    shutil.copytree(base.folder, tmp_path / "copy")
    return Ran(tmp_path / "copy", base.lines)


def test_a_run_of_three_incarnations_is_consistent(base: Ran) -> None:
    report = base.examine()
    assert report.ok, report.findings
    assert [facts.left for facts in report.incarnations] == [False, True, False]
    assert report.incarnations[0].until == report.incarnations[2].sample
    assert [facts.quantum for facts in report.incarnations] == [8, 8, 16]
    assert [facts.generation for facts in report.segments[:2]] == [0, 1]
    assert report.segments[-1].quantum == 16
    assert all(facts.exact for facts in report.segments)
    assert sum(facts.samples for facts in report.segments) == report.sample
    assert sum(facts.tokens for facts in report.sources.values()) == report.tokens
    assert {facts.where for facts in report.ledgers} >= {"status.json"}
    assert len(report.ledgers) == 3
    trace = report.trace
    assert trace is not None
    assert trace.lines == trace.hashed == len(base.lines)
    assert trace.left > 0  # by the rewind
    assert (trace.steps, trace.gaps) == (report.step, 0)
    done = CliRunner().invoke(app, ["audit", str(base.run)])
    assert done.exit_code == 0
    assert "consistent" in done.stdout
    assert "not given" in done.stdout


def test_a_step_is_what_the_loader_handed_out(base: Ran) -> None:
    final = read_schedule(RunPaths(base.run).schedule)
    sources = final.latest_open.sources if final.latest_open else ()
    sizes = {entry.name: entry.samples for entry in sources}
    order = MixtureOrder(sizes, 5, final.mixture)
    handed = {(line["step"], line["incarnation"]): line for line in base.lines}
    newest = sorted(step for step, by in handed if by == final.incarnation)[-3:]
    for step in [0, 5, 20, *newest]:
        shown = audit_step(base.run, AuditArgs(step, hashes=True), base.given)
        [rank] = shown["ranks"]
        # a step may have been handed out again on a course that was left: how many are depends
        # on the disk
        line = handed[step, shown["incarnation"]]
        assert rank["sha256"] == line["sha256"]
        assert [NAMES.index(row["source"]) for row in rank["rows"]] == np.ravel(
            line["source"]
        ).tolist()
        assert [row["index"] for row in rank["rows"]] == np.ravel(line["index"]).tolist()
        for row in rank["rows"]:
            drawn = order.drawn(row["sample"])[row["source"]]
            assert row["epoch"] == row["draw"] // sizes[row["source"]]
            assert row["token"] == row["index"] * LENGTH
            assert abs(row["draw"] - drawn) <= 16


def test_a_step_dealt_to_another_world_is_the_same_step(base: Ran) -> None:
    whole = audit_step(base.run, AuditArgs(3))["ranks"][0]["rows"]
    for world in (1, 2):
        dealt = audit_step(base.run, AuditArgs(3, world=world))["ranks"]
        assert [rank["rank"] for rank in dealt] == list(range(world))
        rows = sorted((row for rank in dealt for row in rank["rows"]), key=lambda r: r["sample"])
        drop = ("micro", "row")
        assert [{k: v for k, v in row.items() if k not in drop} for row in rows] == [
            {k: v for k, v in row.items() if k not in drop} for row in whole
        ]
    with pytest.raises(BadInput, match="world 3: a step of 8 samples can't be dealt"):
        audit_step(base.run, AuditArgs(3, world=3))


def test_a_course_that_was_left_can_still_be_looked_at(base: Ran) -> None:
    old = [line for line in base.lines if line["incarnation"] == 2][-1]
    step = old["step"]
    shown = audit_step(base.run, AuditArgs(step, incarnation=2, hashes=True), base.given)
    assert shown["ranks"][0]["sha256"] == old["sha256"]
    assert shown["generation"] == 2
    now = audit_step(base.run, AuditArgs(step, hashes=True), base.given)
    assert (now["incarnation"], now["generation"]) == (3, 1)


def test_text_is_decoded_without_control_characters(base: Ran) -> None:
    arguments = ["audit", str(base.run), "--step", "2", "--text", "--hash"]
    for source in base.given:
        arguments += ["--source", source]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "[31mred" in done.stdout
    assert not {"\x1b", "\x07"} & set(done.stdout)
    assert "sha256 of its token ids" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no run here"),
        (["RUN/checkpoints"], "no schedule.jsonl here"),
        (["RUN", "--rank", "1"], "need --step"),
        (["RUN", "--step", "3", "--rank", "1"], "rank 1: step 3 was made by ranks 0 to 0"),
        (["RUN", "--step", "3", "--incarnation", "7"], "incarnation 7: the run has 1, 2, 3"),
        (["RUN", "--step", "3", "--hash"], "need the stores of"),
        (["RUN", "--source", "novel=x"], "'novel' is no source of this run"),
        (["RUN", "--source", "web"], "'web' is not NAME=PATH"),
        (["RUN", "--trace", "RUN/none"], "none: No such file"),
        (["RUN", "--checkpoint", "RUN/none"], "no mixloop.json there"),
    ],
)
def test_bad_input_is_named(base: Ran, arguments: list[str], message: str) -> None:
    command = [argument.replace("RUN", str(base.run)) for argument in arguments]
    result = CliRunner().invoke(app, ["audit", *command])
    assert isinstance(result.exception, BadInput)
    assert message in str(result.exception)


# --- lies ----------------------------------------------------------------------------------


def rewrite(ran: Ran, change: Callable[[list[Line]], list[Line]]) -> None:
    """Replace the schedule's lines by others, with sound CRCs."""
    path = RunPaths(ran.run).schedule
    lines = change(list(read_schedule(path).lines))
    path.write_bytes(b"".join(encode_line(line) for line in lines))


def status_of(ran: Ran) -> Status:
    status = read_status(RunPaths(ran.run).status).value
    assert status is not None
    return status


def lie_in_status(ran: Ran, **changes: Any) -> None:
    write_status(RunPaths(ran.run).status, replace(status_of(ran), **changes))


def last_segment(lines: list[Line]) -> SegmentLine:
    return [line for line in lines if isinstance(line, SegmentLine)][-1]


def damaged_byte(ran: Ran) -> None:
    path = RunPaths(ran.run).schedule
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"fence":1', b'"fence":7')
    path.write_bytes(b"".join(lines))


def lost_segment(ran: Ran) -> None:
    rewrite(ran, lambda lines: [line for line in lines if getattr(line, "generation", 0) != 1])


def other_weights(ran: Ran) -> None:
    def change(lines: list[Line]) -> list[Line]:
        return [
            replace(line, weights={"web": SCALE // 2, "code": SCALE // 4, "maths": SCALE // 4})
            if isinstance(line, SegmentLine) and line.generation == 1
            else line
            for line in lines
        ]

    rewrite(ran, change)


def other_seed(ran: Ran) -> None:
    rewrite(
        ran,
        lambda lines: [replace(x, seed=6) if isinstance(x, OpenLine) else x for x in lines],
    )


def void_of_what_was_in_force(ran: Ran) -> None:
    def change(lines: list[Line]) -> list[Line]:
        segment = next(x for x in lines if isinstance(x, SegmentLine) and x.generation == 1)
        return [*lines, VoidLine(3, segment.sample, segment.fence, segment.generation, "")]

    rewrite(ran, change)


def void_of_nothing(ran: Ran) -> None:
    rewrite(ran, lambda lines: [*lines, VoidLine(3, 4096, 5, 5, "")])


def ahead(ran: Ran, **changes: Any) -> None:
    """A segment well ahead, on a step of the last incarnation, and something wrong with it."""

    def change(lines: list[Line]) -> list[Line]:
        opened = [line for line in lines if isinstance(line, OpenLine)][-1]
        good = SegmentLine(
            3, opened.sample + 16 * 900, opened.step + 900, last_segment(lines).weights, 2, 4
        )
        return [*lines, replace(good, **changes)]

    rewrite(ran, change)


def lie_in_checkpoint(ran: Ran) -> None:
    [*_, path] = sorted(ran.run.glob("checkpoints/*/mixloop.json"))
    value = json.loads(path.read_text())
    value["sources"]["web"]["tokens"] += LENGTH
    path.write_text(json.dumps(value))


def torn_checkpoint(ran: Ran) -> None:
    [*_, path] = sorted(ran.run.glob("checkpoints/*/mixloop.json"))
    path.write_text(path.read_text()[:100])


def other_store(ran: Ran) -> None:
    path = ran.folder / "maths" / "store.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "sha256:0"}))


def lie_in_trace(ran: Ran, change: Callable[[dict[str, Any]], None]) -> None:
    lines = [json.loads(line) for line in (ran.folder / "trace").read_text().splitlines()]
    change(lines[4])
    (ran.folder / "trace").write_text("".join(json.dumps(line) + "\n" for line in lines))


def told(ran: Ran, **changes: Any) -> OrderInForce:
    return replace(status_of(ran).in_force, **changes)


def more_tokens(ran: Ran) -> dict[str, SourceStatus]:
    sources = dict(status_of(ran).sources)
    return sources | {"code": replace(sources["code"], tokens=sources["code"].tokens + 1)}


def more_epochs(ran: Ran) -> dict[str, SourceStatus]:
    sources = dict(status_of(ran).sources)
    return sources | {"code": replace(sources["code"], epochs=sources["code"].epochs + 0.01)}


LIES: list[tuple[str, Callable[[Ran], None], str, str]] = [
    ("damaged", damaged_byte, "schedule", "CRC does not match"),
    ("lost", lost_segment, "ledger", "durable and in force there: generation 0"),
    ("weights", other_weights, "ledger", "where the schedule gives"),
    ("seed", other_seed, "trace", "where the schedule gives"),
    ("void", void_of_what_was_in_force, "ledger", "tells generation 1"),
    ("void of nothing", void_of_nothing, "schedule", "which does not hold"),
    ("old hand", lambda r: ahead(r, incarnation=2), "schedule", "written after 3 began"),
    ("fence", lambda r: ahead(r, fence=0), "schedule", "has fence 0, after 1"),
    ("generation", lambda r: ahead(r, generation=0), "schedule", "has generation 0, after 1"),
    ("step", lambda r: ahead(r, step=7), "schedule", "has step 7, where step"),
    ("behind", lambda r: ahead(r, sample=8, step=1), "schedule", "held already"),
    ("status sample", lambda r: lie_in_status(r, sample=24), "ledger", "before its incarnation"),
    ("status tokens", lambda r: lie_in_status(r, tokens=7), "ledger", "has 7 tokens, where"),
    ("source tokens", lambda r: lie_in_status(r, sources=more_tokens(r)), "ledger", "code has"),
    ("epochs", lambda r: lie_in_status(r, sources=more_epochs(r)), "ledger", "epochs, where"),
    (
        "never durable",
        lambda r: lie_in_status(r, in_force=told(r, generation=9, sample=96)),
        "ledger",
        "tells generation 9",
    ),
    (
        "never pending",
        lambda r: lie_in_status(r, pending=PendingOrder(9, 9, 9600)),
        "ledger",
        "generation 9 pending for sample 9600, never recorded",
    ),
    (
        "accepted",
        lambda r: lie_in_status(r, accepted=AcceptedOrder(0, 0)),
        "ledger",
        "accepted generation 0, but 1 came into force",
    ),
    ("incarnation", lambda r: lie_in_status(r, incarnation=9), "ledger", "never opened"),
    ("another run", lambda r: lie_in_status(r, run="huge"), "ledger", "is of run 'huge'"),
    ("checkpoint", lie_in_checkpoint, "ledger", "web has"),
    ("torn checkpoint", torn_checkpoint, "checkpoint", "no readable mixloop.json"),
    ("store", other_store, "source", "maths has"),
    (
        "index",
        lambda r: lie_in_trace(r, lambda line: line["index"][0].__setitem__(1, 4000)),
        "trace",
        "index 4000 where the schedule gives",
    ),
    (
        "hash",
        lambda r: lie_in_trace(r, lambda line: line.update(sha256="0" * 64)),
        "trace",
        "derived again",
    ),
    (
        "rank",
        lambda r: lie_in_trace(r, lambda line: line.update(rank=1)),
        "trace",
        "rank 1: step 4",
    ),
    ("garbled", lambda r: lie_in_trace(r, lambda line: line.pop("step")), "trace", "unreadable"),
]


@pytest.mark.parametrize(("lie", "kind", "message"), [finding[1:] for finding in LIES],
                         ids=[finding[0] for finding in LIES])  # fmt: skip
def test_every_lie_is_found(ran: Ran, lie: Callable[[Ran], None], kind: str, message: str) -> None:
    lie(ran)
    arguments = ["audit", str(ran.run), "--json", "--trace", str(ran.folder / "trace")]
    arguments += [item for source in ran.given for item in ("--source", source)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    report = json.loads(done.stdout)
    assert report["ok"] is False
    findings = [f for f in report["findings"] if f["kind"] == kind and message in f["detail"]]
    assert findings, report["findings"]
    if kind in ("trace", "schedule"):
        assert findings[0]["line"] is not None
    if lie.__name__ == "<lambda>" and kind == "trace":
        assert findings[0]["line"] == 5


def test_what_is_no_fault_is_said_and_forgiven(ran: Ran) -> None:
    shutil.rmtree(ran.folder / "web")
    RunPaths(ran.run).status.unlink()
    with RunPaths(ran.run).schedule.open("ab") as file:
        file.write(b'{"schema":"mixloop/schedule/1","line":"segm')
    with (ran.folder / "trace").open("a") as file:
        file.write('{"step": 3, "sam')
    report = ran.examine()
    assert report.ok, report.findings
    assert report.sources["web"].store.startswith("missing")
    assert any("torn" in note for note in report.notes)
    assert any("status.json" in note for note in report.notes)
    assert report.trace is not None
    assert report.trace.hashed < report.trace.lines


def test_a_ledger_told_inside_a_step_agrees(ran: Ran) -> None:
    loader = loader_of(ran.folder, 4, 4)
    loader.restore(sorted(ran.run.glob("checkpoints/step-*"))[-1])
    for _ in range(10):
        next(loader)
    folder = ran.folder / "elsewhere" / "checkpoint-7"
    folder.mkdir(parents=True)
    assert loader.mark_checkpoint(folder)
    state = loader.state_dict()
    loader.close()
    again = loader_of(ran.folder, 4, 4)
    again.load_state_dict(state)
    next(again)
    again.close()
    report = examine(ran.run, checkpoints=[ran.folder / "elsewhere"])
    assert report.ok, report.findings
    assert "checkpoint-7" in {ledger.where for ledger in report.ledgers}
    assert report.incarnations[-1].incarnation == 5


# --- schedules, written by hand ----------------------------------------------------------------


def opens(
    number: int, sample: int, step: int, world: int, rows: int, accumulation: int, **more: Any
) -> OpenLine:
    sources = tuple(SourceEntry(f"s{i}", 40 + 7 * i, f"f{i}") for i in range(5))
    values: dict[str, Any] = {
        "parent": f"step-{step:08d}" if step else None,
        "seed": 9,
        "sources": sources,
        "sequence_length": 4,
        "quantum": world * rows * accumulation,
    } | more
    return OpenLine(
        number, sample=sample, step=step, world_size=world, micro_batch=rows,
        accumulation=accumulation, **values,
    )  # fmt: skip


def mix(*units: int) -> dict[str, int]:
    rest = SCALE - sum(units)
    return {f"s{i}": weight for i, weight in enumerate((*units, rest))}


A, B, C = mix(10**6, 2 * 10**6, 3 * 10**6, 0), mix(0, 0, 9 * 10**6, 5), mix(1, 2, 3, 4)


def test_ranks_of_all_incarnations_share_out_the_order_without_loss() -> None:
    lines: list[Line] = [
        opens(1, 0, 0, 4, 2, 1),
        SegmentLine(1, 0, 0, A, 0, 0),
        SegmentLine(1, 80, 10, B, 1, 1),
        opens(2, 160, 20, 2, 2, 2),  # another world, the same quantum
        SegmentLine(2, 400, 50, C, 2, 2),
        VoidLine(2, 400, 2, 2, "durable too late"),
        SegmentLine(2, 480, 60, C, 2, 2),
        opens(3, 640, 80, 1, 4, 3, rewind=True),  # another quantum
        SegmentLine(3, 1000, 110, A, 2, 3),
    ]
    assert list(check_lines(list(enumerate(lines, 1)))) == []
    replay = ScheduleReplay(lines)
    sizes = [entry.samples for entry in replay.final.opened.sources]
    permute = Permutations({f"s{i}": size for i, size in enumerate(sizes)}, 9)
    place = 0
    draws: list[set[int]] = [set() for _ in sizes]
    for step in range(120):
        world = replay.final.samples_of(step)[0].world_size
        assert world == (4 if step < 20 else 2 if step < 80 else 1)
        batches = [replay.final.rank_batch(step, rank) for rank in range(world)]
        places = np.sort(np.concatenate([one.position.ravel() for one in batches]))
        assert places.tolist() == list(range(place, place + places.size))
        assert {one.sample for one in batches} == {place}
        place += places.size
        for one in batches:
            assert np.array_equal(permute(one.source.ravel(), one.draw.ravel()), one.index.ravel())
            for source, draw in zip(one.source.ravel(), one.draw.ravel(), strict=True):
                draws[source].add(int(draw))
    assert place == 640 + 40 * 12
    drawn = replay.final.order.drawn(place)
    assert [sorted(one) for one in draws] == [list(range(count)) for count in drawn.values()]


def test_a_killed_trainers_late_segment_is_no_fault_unless_it_was_kept() -> None:
    start: list[Line] = [
        opens(1, 0, 0, 1, 8, 1),
        SegmentLine(1, 0, 0, A, 0, 0),
        SegmentLine(1, 80, 10, B, 1, 1),  # durable too late; killed before it could be voided
    ]
    without = ScheduleReplay(start[:2])
    drawn = without.final.order.drawn(160)
    sizes = {entry.name: entry.samples for entry in without.final.opened.sources}
    status = Status(
        run="r", incarnation=1, pid=1, host="h", step=20, sample=160, tokens=640, budget=10**6,
        lr=None, phase=None, loss=None, grad_norm=None, tokens_per_second=None,
        sources={n: SourceStatus(c * 4, c / sizes[n], 160) for n, c in drawn.items()},
        accepted=AcceptedOrder(1, 1),
        in_force=OrderInForce(0, 0, 0, 0, {n: w / SCALE for n, w in A.items()}),
        pending=PendingOrder(1, 1, 80),
    )  # fmt: skip

    def verdict(*more: Line) -> bool:
        lines = tuple(enumerate([*start, *more], 1))
        return audit(Evidence(lines, (), status, {}, {}, {})).ok

    assert verdict()
    assert verdict(opens(2, 64, 8, 1, 8, 1))  # went back before it: in force this time
    assert verdict(opens(2, 160, 20, 1, 8, 1), VoidLine(2, 80, 1, 1, "never came into force"))
    assert not verdict(opens(2, 160, 20, 1, 8, 1))  # went on from beyond it, and kept it


def test_long_runs_take_no_longer() -> None:
    sources = tuple(SourceEntry(f"s{i}", 10**7 + i, "") for i in range(46))
    units = np.full(46, SCALE // 46)
    units[0] += SCALE - units.sum()
    weights = [
        {f"s{i}": int(w) for i, w in enumerate(np.roll(units + shift, shift))}
        for shift in (0, *range(1, 8))
    ]
    for weight in weights:
        weight["s0"] += SCALE - sum(weight.values())
    lines: list[Line] = [
        OpenLine(1, None, 0, 0, 1, sources, 2048, 1024, 8, 16, 8),
        SegmentLine(1, 0, 0, weights[0], 0, 0),
        *(SegmentLine(1, k * 10**10 // 1024 * 1024, k * 10**10 // 1024, weights[k % 8], 1, k)
          for k in range(1, 101)),
    ]  # fmt: skip
    begun = time.monotonic()
    evidence = Evidence(tuple(enumerate(lines, 1)), (), None, {}, {}, {})
    assert audit(evidence).ok
    facts = segment_facts(replay_of(evidence), 10**12 + 10**10)
    assert list(check_segments(facts)) == []
    assert len(facts) == 101
    assert all(weight.exact for weight in facts)
    replay = replay_of(evidence)
    batch = replay.final.rank_batch(10**12 // 1024 + 5, 3)
    assert batch.epoch.max() > 2000
    assert time.monotonic() - begun < 5


def test_sources_of_other_formats_are_audited_and_read_with_the_runs_tokenizer(
    tmp_path: Path,
) -> None:
    """A datatrove folder: no tokenizer of its own, ids as they are."""
    ids = np.random.default_rng(3).integers(0, 250, 4000).astype("<u2")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "a.ds").write_bytes(ids.tobytes())
    texts = [f"the quick brown fox number {n}" for n in range(200)]
    train_tokenizer(texts, tmp_path / "tokenizer", 300)
    source = {"path": str(tmp_path / "tokens"), "dtype": "uint16", "weight": 1.0}
    file = tmp_path / "run.yaml"
    run = {"run": {"id": "d", "dir": "run"}, "budget": 640, "sources": {"only": source}}
    run["trainer"] = {"sequence_length": 16, "micro_batch": 4, "tokenizer": "tokenizer"}
    file.write_text(json.dumps(run))
    with MixtureLoader.from_config(file) as loader:
        handed = [batch["input_ids"].numpy().copy() for batch in loader]
    report = examine(file)
    assert report.ok, report.findings
    shown = audit_step(file, AuditArgs(3, text=True, hashes=True))
    (rank,) = shown["ranks"]
    for row, expected in zip(rank["rows"], handed[3], strict=True):
        np.testing.assert_array_equal(ids[row["token"] :][:16], expected)
        assert row["text"]
