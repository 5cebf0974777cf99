"""The reference training loop: ``python -m mixloop.trainer.train JOB.json [--rewind]``.

A Llama trained with AdamW on a warm-up/stable/decay or cosine schedule, whose data mixture changes
under it when an order comes (:mod:`.reference` has the step and the run's files). Under
`torchrun` it is the same loop on every rank. Exit codes: 0 done, 1 failed (also: without its last
checkpoint), 2 bad input, 130 interrupted (after a checkpoint).
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from mixloop.common.files import DISK_TROUBLES
from mixloop.common.log import say
from mixloop.common.process import end_with_parent, stop_signals
from mixloop.contract import RunPaths, ScheduleTaken, ScheduleWriter, read_status, write_status
from mixloop.trainer.batches import BatchLayout, RankBatches, document_end
from mixloop.trainer.config import Job, JobError, load_job
from mixloop.trainer.reference import (
    DivergenceError,
    RankLostError,
    RankWatch,
    Session,
    Trainer,
    run_ranks,
)
from mixloop.trainer.run import (
    Collectives,
    GlooCollectives,
    Incarnation,
    ResumePlan,
    SampleTrace,
    SingleProcess,
    begin,
    check_job,
    checkpoint_store,
    on_first,
    plan_resume,
)
from mixloop.trainer.sources import Store, inspect_tokenizer, open_stores, tokenizer_folder

_ECHO = 2.0
"""Seconds within which another SIGINT is the same wish, not a person who insists."""


class Stop:
    """Set by a signal that asks to stop; a later SIGINT insists and ends the block at once.

    SIGTERM and SIGHUP never do: SLURM, systemd and shells send them to every process and so does
    `mixloop run` to its own, so that one wish to stop arrives several times. A Ctrl-C may be
    doubled likewise.
    """

    def __init__(self) -> None:
        self.asked = False
        self._interrupted = math.inf
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in stop_signals():
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *problem: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if now - self._interrupted > _ECHO:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)
        self._interrupted = min(self._interrupted, now)


def loop(session: Session, stop: Stop, trace: SampleTrace | None) -> bool:
    """Train until the budget is spent; False when a signal ended it early."""
    settings, position = session.job.settings, session.position
    session.report()
    if settings.checkpoint_initial and position.step == 0:
        session.save()
    while not session.live.spent:
        if position.step % settings.poll_every == 0:
            session.poll()
        before = position.sample
        batch = session.advance()
        if trace is not None:
            trace.write(position.step - 1, batch)
        if position.step % settings.status_every == 0:
            session.report()
            session.check()
        if session.due(before) and not session.save():
            session.report()  # at once: who watches is to know of it
        if session.peers.any(stop.asked):
            return False
    return True


def connect(job: Job) -> tuple[Collectives, RankWatch | None]:
    """Join the other ranks, if there are any.

    Raises:
        RankLostError: not all of them came in time.
    """
    if "RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return SingleProcess(), None
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    device, seconds = job.settings.device, job.settings.rank_timeout
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=seconds)
    try:
        store, rank, world = next(rendezvous("env://", timeout=timeout))
    except RuntimeError as error:
        world = int(os.environ["WORLD_SIZE"])
        if int(os.environ["RANK"]) == 0:  # whose store it is: others did not come to it
            raise RankLostError(range(1, world), world, some=True) from error
        raise RankLostError([0], world) from error
    watch = RankWatch(store, rank, world, seconds, say)
    try:
        with naming_the_missing(watch):
            backend, place = "nccl" if cuda else "gloo", {"rank": rank, "world_size": world}
            dist.init_process_group(backend, timeout=timeout, store=store, **place)
            return GlooCollectives(seconds), watch
    except BaseException:
        watch.close()
        raise


@contextmanager
def naming_the_missing(watch: RankWatch | None) -> Iterator[None]:
    """Where a collective fails because ranks are missing, say so instead.

    Raises:
        RankLostError: in place of torch's error.
    """
    try:
        yield
    except JobError:
        raise
    except RuntimeError as error:
        lost = watch.lost() if watch is not None else None
        if lost is None:
            raise
        raise lost from error


def disconnect(peers: Collectives, watch: RankWatch | None) -> None:
    """Leave the other ranks."""
    if watch is not None:
        watch.close()
    if peers.world > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


def set_up(job: Job, peers: Collectives, rewind: bool) -> Session | None:
    """Build everything and begin the incarnation; None when the budget is spent already."""
    stores = open_stores(job)
    tokenizer = tokenizer_folder(job, stores)
    plan: ResumePlan = on_first(peers, lambda: plan_resume(job, stores, peers.world, rewind, say))
    if plan.finished:
        if peers.rank == 0:
            mark_finished(RunPaths(job.dir).status)
        return None
    eos_id = document_end(job, stores)
    trainer = Trainer(job, inspect_tokenizer(tokenizer), len(stores), peers, eos_id)
    kept = trainer.load(plan.parent) if plan.parent else None
    announced = frozenset((s, g) for s, g in kept["switches"]) if kept else None
    writers: list[ScheduleWriter] = []

    def start_here() -> Incarnation:
        checkpoint_store.sweep(RunPaths(job.dir).checkpoints)
        try:
            writer, begun = begin(plan, announced)
        except ScheduleTaken as error:
            raise JobError(str(error)) from error
        writers.append(writer)
        return begun

    start: Incarnation = on_first(peers, start_here)
    batches = open_batches(job, stores, start, peers, plan.sample)
    session = Session(
        plan, start, trainer, batches, lambda: tokenizer_folder(job, stores), kept
    )  # fmt: skip
    if writers:
        session.live.take_lead(plan, start, writers[0])
        if plan.parent is not None:
            say(f"resumed from {plan.parent.name}")
    return session


def mark_finished(path: Path) -> None:
    """Say so in the status, if the end came between the last checkpoint and the last status."""
    status = read_status(path).value
    if status is not None and not status.finished:
        write_status(path, replace(status, finished=True, heartbeat=status.heartbeat + 1))


def open_batches(
    job: Job, stores: Mapping[str, Store], start: Incarnation, peers: Collectives, sample: int
) -> RankBatches:
    """This rank's batches, from `sample` on."""
    settings = job.settings
    layout = BatchLayout(
        rows=settings.micro_batch,
        rank=peers.rank,
        world=peers.world,
        sequence_length=job.sequence_length,
    )
    order = start.order(job.seed)
    return RankBatches(stores, order, layout, start.batch_schedule, settings.prefetch, sample)


def train(job: Job, *, rewind: bool = False, trace: Path | None = None) -> int:
    """Carry out a job on this rank; returns the exit code.

    Raises:
        JobError: the job can't start as asked.
        RankLostError: other ranks are missing.
    """
    if job.settings.threads is not None:
        import torch

        torch.set_num_threads(job.settings.threads)
    peers, watch = connect(job)
    try:
        with Stop() as stop, naming_the_missing(watch):
            end_with_parent(signal.SIGTERM)  # with a checkpoint, should the launcher die
            session = set_up(job, peers, rewind)
            if session is None:
                say(f"the budget of {job.budget:,} tokens is spent already; nothing to do")
                return 0
            tracing = SampleTrace(trace, peers.rank, peers.world) if trace else None
            return carry_out(session, stop, tracing)
    finally:
        disconnect(peers, watch)


def carry_out(session: Session, stop: Stop, trace: SampleTrace | None) -> int:
    """Train, save, report, close; returns the exit code."""
    try:
        done = loop(session, stop, trace)
        saved = session.save_last(lambda: stop.asked)
        failure = session.failure
        # without its last checkpoint a run is not finished: resuming it trains those steps again
        session.report(finished=done and failure is None)
        session.check()
        if failure is not None and session.live.lead is not None:
            say(f"ended without its last checkpoint: {failure.in_words}; mend that, and resume")
    finally:
        session.close()
        if trace is not None:
            trace.close()
    if not done and failure is None:
        return 130
    return 0 if saved else 1


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser("python -m mixloop.trainer.train", description="Train.")
    parser.add_argument("job", type=Path, help="job.json")
    parser.add_argument("--rewind", action="store_true", help="cut what is recorded further on")
    parser.add_argument("--trace", type=Path, help="append every step's samples to this file")
    arguments = parser.parse_args(argv)
    # of a rank that is gone torch's store prints pages, from each that is left
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        job = load_job(arguments.job)
        if "RANK" not in os.environ:
            check_job(job, arguments.rewind)
            if job.settings.processes > 1:
                return run_ranks(job.settings.processes, sys.argv[1:] if argv is None else argv)
        return train(job, rewind=arguments.rewind, trace=arguments.trace)
    except (JobError, DivergenceError, RankLostError) as error:
        rank = int(os.environ.get("RANK", "0"))
        if error.told_by(rank) if isinstance(error, RankLostError) else rank == 0:
            say(str(error))
        return 2 if isinstance(error, JobError) else 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        if error.errno not in DISK_TROUBLES:
            traceback.print_exc()
        else:
            place = error.filename or arguments.job.parent
            say(f"{place}: {error.strerror}; start it again when that is mended")
        return 1
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    sys.exit(main())
