"""A view as lines: a screen of a terminal's size, or plain text. Pure.

Lines are cut to the width, never wrapped; sections share the height, what matters now first.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from mixloop.common.text import clean, duration, tokens

from .pending import Pending
from .view import BenchmarkRow, DecisionRow, SourceRow, View

STATES = {"alive": "green", "finished": "green", "stalled": "red", "stopped": "red"}
VERDICTS = {
    "intervene": "cyan",
    "experiment": "cyan",
    "refused": "red",
    "awaiting-approval": "yellow",
}
TREND = {"better": "green", "worse": "red", "same": "dim", "": "dim"}

WIDE, TALL = 110, 36  # cells and lines from which on there is room to spare


@dataclass(frozen=True)
class Signs:
    """What is drawn with: Unicode, or ASCII where the terminal has nothing else."""

    bars: str = " ▁▂▃▄▅▆▇█"
    dot: str = "●"
    up: str = "▲"
    down: str = "▼"
    flat: str = "="
    gap: str = "·"
    full: str = "━"
    empty: str = "─"
    more: str = "…"
    error: str = "±"


ASCII = Signs(" .:-=+*%#", "*", "^", "v", "=", "?", "#", "-", "...", "+-")


def screen(view: View, width: int, height: int, signs: Signs | None = None) -> list[Text]:
    """At most ``height`` lines of at most ``width`` cells."""
    signs = signs or Signs()
    size = _name_width(view, width)
    sources = [_source(row, size, width, signs) for row in view.sources]
    benchmarks = [_benchmark(row, size, width, signs) for row in view.benchmarks]
    pending = [*map(_warning, view.warnings), *map(_pending, view.pending)]
    sections = {
        _source_title(view, size, width): sources or [_faint("no heartbeat yet")],
        _benchmark_title(size): benchmarks or [_faint("no checkpoint has been scored yet")],
        "PENDING": pending or [_faint("nothing")],
        "DECISIONS": _decisions(view.decisions, width, height) or [_faint("none yet")],
    }
    lines, tracker = _head(view, width, signs), _tracker(view)
    room = height - len(lines) - 1 - len(sections)
    counts = share(room, [len(rows) for rows in sections.values()], (3, 3, 2, 2))
    blank = [Text()] if room - sum(counts) > len(sections) else []
    for (title, rows), count in zip(sections.items(), counts, strict=True):
        # decisions are cut short in silence: the oldest are in the history
        shown = rows[:count] if title == "DECISIONS" else _some(rows, count, signs)
        lines += [*blank, Text(title, "bold cyan"), *shown]
    lines = lines[: max(0, height - 1)]
    lines += [Text()] if len(lines) + 1 < height else []
    return [_cut(line, width, signs) for line in [*lines, tracker]][:height]


def plain(view: View) -> list[str]:
    """The same as one block of lines without any control code, whatever the width."""
    signs = Signs()
    lines = [line.plain for line in _head(view, WIDE, signs)]
    for source in view.sources:
        asked = "-" if source.asked is None else f"{source.asked:.3f}"
        cap = "" if source.cap is None else f" of {source.cap:g}"
        lines.append(
            f"source {_safe(source.name)}: asked {asked}, applied {source.applied:.3f}, "
            f"{source.epochs:.2f}{cap} epochs, {tokens(source.tokens)} tokens, "
            f"{_cap(source).plain.strip()}"
        )
    for benchmark in view.benchmarks:
        line = _benchmark(benchmark, len(_safe(benchmark.name)) + 2, WIDE, signs).plain
        lines.append("benchmark " + re.sub(r"  +", "  ", line))
    lines += [line.plain.strip() for line in map(_warning, view.warnings)]
    lines += ["pending: " + line.plain.strip() for line in map(_pending, view.pending)]
    for decision in view.decisions[:1]:
        moved = f"  {_safe(decision.moved)}" if decision.moved else ""
        lines.append(f"decision{_verdict(decision).plain[1:]}{moved}: {_safe(decision.reason)}")
    lines.append(_tracker(view).plain)
    return [line.rstrip() for line in lines]


def share(room: int, wants: Sequence[int], least: Sequence[int]) -> list[int]:
    """Lines for each section: its least first, then in turn what they still want."""
    counts = [min(want, floor) for want, floor in zip(wants, least, strict=True)]
    while sum(counts) > max(0, room):
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < room and counts != list(wants):
        for number, want in enumerate(wants):
            if counts[number] < want and sum(counts) < room:
                counts[number] += 1
    return counts


def sparkline(values: Sequence[float | None], width: int, signs: Signs | None = None) -> str:
    """The newest values as bars between their least and their greatest; a gap where one misses."""
    signs = signs or Signs()
    shown = list(values)[-width:] if width > 0 else []
    numbers = [value for value in shown if value is not None]
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    top = len(signs.bars) - 1

    def bar(value: float | None) -> str:
        if value is None:
            return signs.gap
        level = (value - low) / (high - low) if high > low else 0.5
        return signs.bars[1 + round(level * (top - 1))]

    return "".join(map(bar, shown))


def _safe(text: object) -> str:
    """Text from data that can't drive the terminal, in one line."""
    return clean(text).replace("\t", " ")


# -- the parts -----------------------------------------------------------------------------------


def _head(view: View, width: int, signs: Signs) -> list[Text]:
    first = Text.assemble(
        ("mixloop ", "dim"), (_safe(view.run), "bold"), "  ",
        (f"{signs.dot} {_safe(view.state)}", f"bold {STATES.get(view.word, 'yellow')}"),
    )  # fmt: skip
    if view.origin:
        first.append(f"  {_safe(view.origin)}", "yellow")
    colour = "dim" if view.controller_well else "bold red"
    controller = Text.assemble(("controller ", "dim"), (_safe(view.controller), colour))
    if view.step is None:
        return [first, controller]
    parts = [f"step {view.step:,}", f"{tokens(view.tokens)} of {tokens(view.budget)} tokens"]
    if view.seconds_left is not None and view.word == "alive":
        parts.append(f"{duration(view.seconds_left)} left")
    if view.tokens_per_second is not None:
        parts.append(f"{tokens(int(view.tokens_per_second))}/s")
    second = Text("  ".join(parts))
    done = view.tokens / view.budget if view.tokens is not None and view.budget else 0.0
    size = max(10, min(40, width - second.cell_len - 8))
    second.append("  ").append_text(_bar(done, size, "cyan", signs)).append(f" {done:.0%}")
    facts = [f"loss {view.loss:.4g}"] if view.loss is not None else []
    facts += [view.phase] if view.phase else []
    facts.append(f"generation {_generation(view)}")
    third = Text("  ".join([*facts, ""])).append_text(controller)
    if view.health:
        third.append(f"  {_safe(view.health)}", "yellow")
    return [first, second, third]


def _bar(done: float, size: int, colour: str, signs: Signs) -> Text:
    full = min(size, round(done * size))
    return Text.assemble((signs.full * full, colour), (signs.empty * (size - full), "dim"))


def _generation(view: View) -> str:
    asked, applied = view.generation_asked, view.generation_applied
    if asked is None or asked == applied:
        return f"{applied}"
    return f"{applied} applied, {asked} asked"


def _faint(text: str) -> Text:
    return Text(f"  {text}", "dim")


def _source_title(view: View, size: int, width: int) -> str:
    cap = view.sources[0].cap if view.sources else None
    of = "EPOCHS" if cap is None else f"EPOCHS OF {cap:g}"
    title = f"{'SOURCE':<{size}}{'ASKED':>7}{'APPLIED':>9}  {of:<19}{'TOKENS':>7}  "
    return title + (f"{'AHEAD':<24} LOSS" if width >= WIDE else "AHEAD")


def _name_width(view: View, width: int) -> int:
    """Cells for names, one of them a blank."""
    names = [_safe(source.name) for source in view.sources]
    names += [_safe(benchmark.name) for benchmark in view.benchmarks]
    longest = max((Text(name).cell_len for name in names), default=0)
    return min(max(10, longest + 1), 16 if width < WIDE else 28)


def _source(source: SourceRow, size: int, width: int, signs: Signs) -> Text:
    line = Text(_fit(_safe(source.name), size, signs))
    asked, applied = source.asked, source.applied
    moved = asked is not None and abs(asked - applied) >= 5e-4
    line.append("      -" if asked is None else f"{asked:7.3f}", "yellow" if moved else "")
    line.append(f"{applied:9.3f}  ")
    if source.cap is None:
        line.append(f"{source.epochs:<19.2f}")
    else:
        spent = min(1.0, source.epochs / source.cap) if source.cap else 1.0
        colour = "red" if spent > 0.9 else "yellow" if spent > 0.7 else "green"
        line.append(f"{source.epochs:6.2f} ")
        line.append_text(_bar(spent, 10, colour, signs)).append("  ")
    line.append(f"{tokens(source.tokens):>7}  ").append_text(_cap(source))
    if width >= WIDE and source.loss is not None:
        line.append(" " * max(1, size + 71 - line.cell_len) + f"{source.loss:.3f}")
    return line


def _cap(source: SourceRow) -> Text:
    """When it is at its cap on the mixture applied, else where it ends."""
    if source.cap is not None and source.epochs >= source.cap:
        return Text("cap reached", "red")
    if source.cap_tokens is not None:
        when = f"{tokens(source.cap_tokens)} tokens"
        if source.cap_seconds is not None:
            when = f"{duration(source.cap_seconds)} ({tokens(source.cap_tokens)})"
        return Text(f"cap in {when}", "yellow")
    return Text("" if source.at_the_end is None else f"{source.at_the_end:.2f} at the end", "dim")


def _benchmark_title(size: int) -> str:
    return f"{'BENCHMARK':<{size}}{'METRIC':<15}{'VALUE':>17}  {'GAIN, PAIRED':<19}  {'PAST'}"


def _benchmark(row: BenchmarkRow, size: int, width: int, signs: Signs) -> Text:
    line = Text(_fit(_safe(row.name), size, signs))
    if row.missing is not None:
        return line.append(f"missing at step {row.step}: {_safe(row.missing)}", "red")
    line.append(_fit(_safe(row.metric), 14, signs) + " ")
    value = "-" if row.value is None else f"{row.value:.4f}"
    error = "" if row.stderr is None else f" {signs.error} {row.stderr:.4f}"
    line.append(f"{value + error:>17}  ")
    change = ""
    if row.change is not None and row.change_stderr is not None:
        trends = {"better": signs.up, "worse": signs.down, "same": signs.flat}
        change = f"{trends[row.verdict]} {row.change:+.4f} {signs.error} {row.change_stderr:.4f}"
    line.append(f"{change:<19}  ", TREND[row.verdict])
    room = max(6, min(48, width - line.cell_len))
    return line.append(sparkline(row.past, room, signs), "cyan")


def _pending(item: Pending) -> Text:
    line = Text.assemble("  ", (_safe(item.what), "yellow" if item.person else ""))
    if item.seconds is not None:
        word = "expires in" if item.person else "in"
        line.append(f"  {word} {duration(item.seconds)}", "bold")
    return line


def _warning(text: str) -> Text:
    return Text(f"  ! {_safe(text)}", "yellow")


def _verdict(decision: DecisionRow) -> Text:
    verdict = _safe(decision.verdict)
    colour = VERDICTS.get(verdict.split(":")[0], "dim" if verdict == "hold" else "")
    times = f", {decision.times} times running" if decision.times > 1 else ""
    place = f"  {_safe(decision.id)}  step {decision.step:,}  "
    return Text.assemble(place, (verdict + times, colour))


def _decisions(decisions: Sequence[DecisionRow], width: int, height: int) -> list[Text]:
    """Two lines a decision, the reason wrapped to three where there is room for it."""
    lines: list[Text] = []
    room = 3 if height >= TALL else 1
    for decision in decisions:
        lines.append(Text.assemble(_verdict(decision), "  ", (_safe(decision.moved), "bold")))
        why = textwrap.wrap(_safe(decision.reason), max(20, width - 4)) or [""]
        if len(why) > room:
            why = [*why[: room - 1], " ".join(why[room - 1 :])]  # cut to the width later
        lines += [Text(f"    {line}", "dim") for line in why]
    return lines


def _tracker(view: View) -> Text:
    colour = "dim" if view.tracker_well else "bold red"
    return Text.assemble(("MLflow ", "bold cyan"), (_safe(view.tracker), colour))


def _some(rows: Sequence[Text], room: int, signs: Signs) -> list[Text]:
    if len(rows) <= room:
        return list(rows)
    if room <= 0:
        return []
    return [*rows[: room - 1], _faint(f"{signs.more} {len(rows) - room + 1} more")]


def _fit(text: str, width: int, signs: Signs) -> str:
    """Text in exactly so many cells, one of them a blank."""
    line = _cut(Text(text), width - 1, signs)
    return line.plain + " " * (width - line.cell_len)


def _cut(line: Text, width: int, signs: Signs) -> Text:
    """A line of at most so many cells."""
    if line.cell_len <= width:
        return line
    line = line.copy()
    line.truncate(max(0, width - len(signs.more)), overflow="crop")
    return line.append(signs.more)
