"""What no run can do, and what is doubtful, by its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mixloop.common.text import tokens
from mixloop.controller.config import RunConfig
from mixloop.controller.core import guard_settings, step_tokens, switching_lead

KINDS = ("http", "https", "databricks", "sqlite", "postgresql", "mysql", "mssql", "file")
STORE = "write http://HOST:PORT, sqlite:///FILE, or leave it out for a file in the run folder"
SLACK = 1e-9  # shares that are as good as equal
LATE = 0.5  # of the interval between two evaluations


def impossible(
    config: RunConfig,
    infos: Mapping[str, Any],
    weights: Mapping[str, float],
    needs: Mapping[str, int],
) -> Iterator[str]:
    """What can't work, each in a line with key, value and mend.

    Args:
        config: The run.
        infos: What each source is (:class:`mixloop.trainer.sources.StoreInfo`).
        weights: The first mixture.
        needs: Evaluations before each thing that the policy may do (:func:`check_policy`).
    """
    yield from _bounds(config, weights)
    yield from _same_stores(config, infos)
    yield from _tracking(config)
    yield from _evaluations(config, needs)
    yield from _experiments(config)


def _bounds(config: RunConfig, weights: Mapping[str, float]) -> Iterator[str]:
    guards, limits, both = config.guards, config.trainer.limits, guard_settings(config)
    floor_key = "guards.floor" if guards.floor >= limits.floor else "trainer.limits.floor"
    cap_key = "guards.cap" if guards.cap <= limits.cap else "trainer.limits.cap"
    live = sum(weight > 0 for weight in weights.values())
    if both.floor > both.cap:
        yield f"{floor_key}: {both.floor:g} is above {cap_key} {both.cap:g}; lower the floor"
    elif both.floor * live > 1 + SLACK:
        yield (
            f"{floor_key}: {both.floor:g} for each of {live} sources is {both.floor * live:g} in "
            f"all, more than the whole; at most {1 / live:.4g}"
        )
    if both.cap * live < 1 - SLACK:
        yield (
            f"{cap_key}: {both.cap:g} for each of {live} sources is {both.cap * live:g} in all, "
            f"less than the whole; at least {1 / live:.4g}"
        )


def _same_stores(config: RunConfig, infos: Mapping[str, Any]) -> Iterator[str]:
    places: dict[tuple[Path, str | None], str] = {}
    contents: dict[tuple[str, int], str] = {}
    for name, source in config.sources.items():
        info, place = infos[name], (source.path.resolve(), source.column)
        other = places.setdefault(place, name)
        known = info.fingerprint.startswith("sha256:")  # else it is nobody's digest
        alike = contents.setdefault((info.fingerprint, info.tokens), name) if known else name
        if other != name or alike != name:
            first = other if other != name else alike
            what = "lies at the same place as" if other != name else "holds the same tokens as"
            yield (
                f"sources.{name}.path: {source.path} {what} sources.{first}: its epochs would be "
                "counted apart; drop one of the two, the other gets both weights"
            )


def _tracking(config: RunConfig) -> Iterator[str]:
    uri = config.tracking.uri
    if not config.tracking.enabled or uri in (None, "databricks"):
        return
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port  # which may be none
        kind = parts.scheme.partition("+")[0]  # of postgresql+psycopg, say
    except ValueError as error:
        yield f"tracking.uri: {uri!r} is no URI ({error}); {STORE}"
        return
    plugins = {entry.name for entry in entry_points(group="mlflow.tracking_store")}
    if kind not in KINDS and kind not in plugins:
        what = f"MLflow has no store of the kind {kind!r}" if kind else "it names no kind of store"
        yield f"tracking.uri: {uri!r}: {what}; {STORE}"
    elif kind not in ("file", *plugins) and not uri.startswith(f"{parts.scheme}://"):
        yield f"tracking.uri: {uri!r}: two slashes are missing behind {parts.scheme}:; {STORE}"
    elif kind in ("http", "https") and (not host or " " in host):
        yield f"tracking.uri: {uri!r} names no host; {STORE}"
    elif kind == "sqlite" and (parts.netloc or Path(parts.path[1:]).is_dir()):
        yield f"tracking.uri: {uri!r} names no file; {STORE}"


def _experiments(config: RunConfig) -> Iterator[str]:
    left, least = config.experiment_tokens, 2 * step_tokens(config, 0)
    if config.experiments.budget and left < least:
        yield (
            f"experiments.budget: {config.experiments.budget:g} is {left:,} tokens, and a branch "
            f"and its control of one step take {least:,}; a share of the run is written 2% or "
            "0.02, and 0 is none"
        )


def _evaluations(config: RunConfig, needs: Mapping[str, int]) -> Iterator[str]:
    interval = evaluation_interval(config)
    if needs and min(needs.values()) and not config.evals.benchmarks:
        yield (
            f"evals.benchmarks: none is asked that steers, and {config.policy.use} goes by scores; "
            "name one"
        )
    if interval is None or not needs:
        return
    key = "evals.every" if interval == config.evals.every else "trainer.checkpoint_every"
    count, least = usable_evaluations(config, interval), min(needs.values())
    lead = switching_lead(config, interval)
    if least and not count:
        yield (
            f"{key}: the first evaluation, at {tokens(interval)} of {tokens(config.budget)} "
            f"tokens, comes too late: an order takes up to {tokens(lead)} more to come into force, "
            "so that nothing could be changed; evaluate more often, or lower trainer.poll_every"
        )
    elif least > count:
        most = max(1, (config.budget - lead) // (least + 1))
        yield (
            f"{key}: {tokens(interval)} of {tokens(config.budget)} tokens leaves {count} "
            f"evaluation{'s' * (count != 1)} to decide after, and {config.policy.use} needs "
            f"{least} before it can say anything; at most {tokens(most)}"
        )


def evaluation_interval(config: RunConfig) -> int | None:
    """Tokens between two scored checkpoints; None where only the loop knows."""
    every, saved = config.evals.every, config.trainer.checkpoint_every
    if every is None and saved is None and (config.trainer.model or config.trainer.init_from):
        return config.budget  # the reference trainer's one checkpoint, at the end
    return max(every or 0, saved or 0) or None


def usable_evaluations(config: RunConfig, interval: int) -> int:
    """Evaluations after which an order can still come into force before the end."""
    last = config.budget - switching_lead(config, config.budget) - 1
    return max(0, last // interval)


def doubts(config: RunConfig, weights: Mapping[str, float], needs: Mapping[str, int]) -> list[str]:
    """What is legal, and hardly what was meant."""
    return [
        *_doubtful_bounds(config, weights),
        *_slow(config, needs),
        *_repeated(config),
        *_folder_of_files(config),
    ]


def _doubtful_bounds(config: RunConfig, weights: Mapping[str, float]) -> Iterator[str]:
    both = guard_settings(config)
    for name, weight in weights.items():
        if weight > both.cap + SLACK:
            yield f"{name}: starts at {weight:g}, above the cap {both.cap:g}; it will be lowered"
        elif 0 < weight < both.floor - SLACK:
            yield f"{name}: starts at {weight:g}, below the floor {both.floor:g}; it will be raised"
    live = sum(weight > 0 for weight in weights.values())
    if live > 1 and min(abs(both.floor * live - 1), abs(both.cap * live - 1)) <= SLACK:
        yield f"floor and cap leave one mixture of the {live} sources: nothing can be changed"


def _slow(config: RunConfig, needs: Mapping[str, int]) -> Iterator[str]:
    interval = evaluation_interval(config)
    if interval is None or not any(needs.values()):
        return
    lead = switching_lead(config, interval)
    if lead > LATE * interval:
        yield (
            f"an order takes up to {tokens(lead)} tokens to come into force (by "
            f"trainer.poll_every and trainer.prefetch), {lead / interval:.0%} of the "
            f"{tokens(interval)} between two evaluations, before any time for scoring: "
            "what a decision did is seen late; lower "
            "trainer.poll_every, or evaluate less often"
        )
    if config.guards.dwell + lead >= config.budget - interval:
        yield (
            f"guards.dwell {tokens(config.guards.dwell)} leaves room for one change in the budget "
            f"{tokens(config.budget)}"
        )
    count = usable_evaluations(config, interval)
    late = {name: number for name, number in needs.items() if number > count}
    for name, number in late.items():
        yield f"{name} needs {number} evaluations, the run has {count}: it will never be made"
    if config.guards.decay != "allow" and not late and (decay := config.decay):
        stable = max(0, (config.budget - decay) // interval)
        if stable < min(needs.values()):
            yield (
                f"only {stable} evaluations lie before the learning rate decays, where gains "
                f"count (guards.decay {config.guards.decay}); {config.policy.use} needs "
                f"{min(needs.values())}"
            )


def _repeated(config: RunConfig) -> Iterator[str]:
    """An option of `law` that says what `trainer` says."""
    stated, decay = config.policy.options.get("decay"), config.decay
    if config.policy.use != "law" or decay is None or not isinstance(stated, int | float):
        return
    if abs(stated * config.budget - decay) > 0.01 * config.budget:
        yield (
            f"policy.with.decay: {stated:g} of the budget is {tokens(int(stated * config.budget))} "
            f"tokens, but the learning rate decays in the last {tokens(decay)} (trainer); leave it "
            "out and it follows trainer.decay"
        )


def _folder_of_files(config: RunConfig) -> Iterator[str]:
    uri = config.tracking.uri or ""
    if config.tracking.enabled and uri.startswith("file:"):
        yield f"tracking.uri: {uri!r}: MLflow from 3.17 on refuses a folder of files; {STORE}"
