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

BARS = " ▁▂▃▄▅▆▇█"
PLAIN_BARS = " .:-=+*%#"

STATES = {"alive": "green", "finished": "green", "stalled": "red", "stopped": "red"}
VERDICTS = {"intervene": "cyan", "refused": "red", "awaiting-approval": "yellow"}
TREND = {"better": "green", "worse": "red", "same": "dim", "": "dim"}

WIDE, TALL = 110, 36  # cells and lines from which on there is room to spare


@dataclass(frozen=True)
class Signs:
    """What is drawn with: Unicode, or ASCII where the terminal has nothing else."""

    bars: str = BARS
    dot: str = "●"
    up: str = "▲"
    down: str = "▼"
    flat: str = "="
    gap: str = "·"
    full: str = "━"
    empty: str = "─"
    more: str = "…"
    error: str = "±"


ASCII = Signs(PLAIN_BARS, "*", "^", "v", "=", "?", "#", "-", "...", "+-")


def screen(view: View, width: int, height: int, signs: Signs | None = None) -> list[Text]:
    """At most ``height`` lines of at most ``width`` cells."""
    signs = signs or Signs()
    size = _name_width(view, width)
    head = _head(view, width, signs)
    tail = [_tracker(view)]
    pending = [*map(_warning, view.warnings), *map(_pending, view.pending)]
    decisions = _decisions(view.decisions, width, height)
    sections = [
        (
            _source_title(view, size, width),
            [_source(one, size, width, signs) for one in view.sources],
        ),
        (_benchmark_title(size), [_benchmark(one, size, width, signs) for one in view.benchmarks]),
        ("PENDING", pending),
        ("DECISIONS", decisions),
    ]
    empty = ("no heartbeat yet", "no checkpoint has been scored yet", "nothing", "none yet")
    sections = [
        (title, rows or [_faint(nothing)])
        for (title, rows), nothing in zip(sections, empty, strict=True)
    ]
    room = height - len(head) - len(tail) - len(sections)
    given = share(room, [len(rows) for _, rows in sections], (3, 3, 2, 2))
    spare = room - sum(given)
    lines = head
    for (title, rows), count in zip(sections, given, strict=True):
        lines += [Text()] if spare > len(sections) else []
        shown = rows[:count] if title == "DECISIONS" else _some(rows, count, signs)
        lines += [Text(title, "bold cyan"), *shown]
    lines = lines[: max(0, height - len(tail))]
    lines += [Text()] if len(lines) + len(tail) < height else []
    return [_cut(line, width, signs) for line in [*lines, *tail]][:height]


def plain(view: View) -> list[str]:
    """The same as one block of lines without any control code, whatever the width."""
    signs = Signs()
    rows = [row.plain for row in _head(view, WIDE, signs)]
    for source in view.sources:
        asked = "-" if source.asked is None else f"{source.asked:.3f}"
        cap = "" if source.cap is None else f" of {source.cap:g}"
        rows.append(
            f"source {_said(source.name)}: asked {asked}, applied {source.applied:.3f}, "
            f"{source.epochs:.2f}{cap} epochs, {tokens(source.tokens)} tokens, "
            f"{_cap(source).plain.strip()}"
        )
    for one in view.benchmarks:
        line = _benchmark(one, len(_said(one.name)) + 2, WIDE, signs).plain
        rows.append("benchmark " + re.sub(r"  +", "  ", line))
    rows += [row.plain.strip() for row in map(_warning, view.warnings)]
    rows += ["pending: " + row.plain.strip() for row in map(_pending, view.pending)]
    for made in view.decisions[:1]:
        moved = f"  {_said(made.moved)}" if made.moved else ""
        rows.append(f"decision{_verdict(made).plain[1:]}{moved}: {_said(made.reason)}")
    rows.append(_tracker(view).plain)
    return [row.rstrip() for row in rows]


def share(room: int, wants: Sequence[int], least: Sequence[int]) -> list[int]:
    """Lines for each section: its least first, then in turn what they still want."""
    given = [min(want, floor) for want, floor in zip(wants, least, strict=True)]
    while sum(given) > max(0, room):
        given[given.index(max(given))] -= 1
    while sum(given) < room and given != list(wants):
        for at, want in enumerate(wants):
            if given[at] < want and sum(given) < room:
                given[at] += 1
    return given


def sparkline(values: Sequence[float | None], width: int, signs: Signs | None = None) -> str:
    """The newest values as bars between their least and their greatest; a gap where one misses."""
    signs = signs or Signs()
    shown = list(values)[-width:] if width > 0 else []
    known = [value for value in shown if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    top = len(signs.bars) - 1

    def bar(value: float | None) -> str:
        if value is None:
            return signs.gap
        level = (value - low) / (high - low) if high > low else 0.5
        return signs.bars[1 + round(level * (top - 1))]

    return "".join(map(bar, shown))


def _said(text: object) -> str:
    """Text from data that can't drive the terminal, in one line."""
    return clean(text).replace("\t", " ")


# -- the parts -----------------------------------------------------------------------------------


def _head(view: View, width: int, signs: Signs) -> list[Text]:
    colour = STATES.get(view.word, "yellow")
    first = Text.assemble(
        ("mixloop ", "dim"), (_said(view.run), "bold"), "  ",
        (f"{signs.dot} {_said(view.state)}", f"bold {colour}"),
    )  # fmt: skip
    if view.origin:
        first.append(f"  {_said(view.origin)}", "yellow")
    well = "dim" if view.controller_well else "bold red"
    if view.step is None:
        return [first, Text.assemble(("controller ", "dim"), (_said(view.controller), well))]
    parts = [f"step {view.step:,}", f"{tokens(view.tokens)} of {tokens(view.budget)} tokens"]
    if view.seconds_left is not None and view.word == "alive":
        parts.append(f"{duration(view.seconds_left)} left")
    if view.tokens_per_second is not None:
        parts.append(f"{tokens(int(view.tokens_per_second))}/s")
    second = Text("  ".join(parts))
    facts = [f"loss {view.loss:.4g}"] if view.loss is not None else []
    facts += [view.phase] if view.phase else []
    facts += [f"generation {_generation(view)}"]
    third = Text.assemble(
        ("  ".join(facts), ""), ("  controller ", "dim"), (_said(view.controller), well)
    )
    if view.health:
        third.append(f"  {_said(view.health)}", "yellow")
    done = view.tokens / view.budget if view.tokens is not None and view.budget else 0.0
    size = max(10, min(40, width - second.cell_len - 8))
    full = min(size, round(done * size))
    second.append("  " + signs.full * full, "cyan")
    second.append(signs.empty * (size - full), "dim")
    second.append(f" {done:.0%}")
    return [first, second, third]


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
    names = [_said(one.name) for one in view.sources]
    names += [_said(one.name) for one in view.benchmarks]
    longest = max((Text(name).cell_len for name in names), default=0)
    return min(max(10, longest + 1), 16 if width < WIDE else 28)


def _source(one: SourceRow, size: int, width: int, signs: Signs) -> Text:
    line = Text(_fit(_said(one.name), size, signs))
    moved = one.asked is not None and abs(one.asked - one.applied) >= 5e-4
    line.append("      -" if one.asked is None else f"{one.asked:7.3f}", "yellow" if moved else "")
    line.append(f"{one.applied:9.3f}  ")
    if one.cap is None:
        line.append(f"{one.epochs:<19.2f}")
    else:
        share = min(1.0, one.epochs / one.cap) if one.cap else 1.0
        full = round(10 * share)
        colour = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
        line.append(f"{one.epochs:6.2f} ")
        line.append(signs.full * full, colour)
        line.append(signs.empty * (10 - full), "dim")
        line.append("  ")
    line.append(f"{tokens(one.tokens):>7}  ")
    line.append(_cap(one))
    if width >= WIDE and one.loss is not None:
        line.append(" " * max(1, size + 71 - line.cell_len) + f"{one.loss:.3f}")
    return line


def _cap(one: SourceRow) -> Text:
    """When it is at its cap on the mixture applied, else where it ends."""
    if one.cap is not None and one.epochs >= one.cap:
        return Text("cap reached", "red")
    if one.cap_tokens is not None:
        when = f"{tokens(one.cap_tokens)} tokens"
        if one.cap_seconds is not None:
            when = f"{duration(one.cap_seconds)} ({tokens(one.cap_tokens)})"
        return Text(f"cap in {when}", "yellow")
    return Text("" if one.at_the_end is None else f"{one.at_the_end:.2f} at the end", "dim")


def _benchmark_title(size: int) -> str:
    return f"{'BENCHMARK':<{size}}{'METRIC':<15}{'VALUE':>17}  {'GAIN, PAIRED':<19}  {'PAST'}"


def _benchmark(one: BenchmarkRow, size: int, width: int, signs: Signs) -> Text:
    line = Text(_fit(_said(one.name), size, signs))
    if one.missing is not None:
        return line.append(f"missing at step {one.step}: {_said(one.missing)}", "red")
    line.append(_fit(_said(one.metric), 14, signs) + " ")
    value = "-" if one.value is None else f"{one.value:.4f}"
    error = "" if one.stderr is None else f" {signs.error} {one.stderr:.4f}"
    line.append(f"{value + error:>17}  ")
    verdict = one.verdict
    sign = {"better": signs.up, "worse": signs.down, "same": signs.flat}.get(verdict, " ")
    change = ""
    if one.change is not None and one.change_stderr is not None:
        change = f"{sign} {one.change:+.4f} {signs.error} {one.change_stderr:.4f}"
    line.append(f"{change:<19}  ", TREND[verdict])
    room = max(6, min(48, width - line.cell_len))
    return line.append(sparkline(one.past, room, signs), "cyan")


def _pending(one: Pending) -> Text:
    line = Text.assemble("  ", (_said(one.what), "yellow" if one.person else ""))
    if one.seconds is not None:
        word = "expires in" if one.person else "in"
        line.append(f"  {word} {duration(one.seconds)}", "bold")
    return line


def _warning(text: str) -> Text:
    return Text(f"  ! {_said(text)}", "yellow")


def _verdict(one: DecisionRow) -> Text:
    colour = VERDICTS.get(one.verdict.split(":")[0], "dim" if one.verdict == "hold" else "")
    times = f", {one.times} times running" if one.times > 1 else ""
    word = (_said(one.verdict) + times, colour)
    return Text.assemble(f"  {_said(one.id)}  step {one.step:,}  ", word)


def _decisions(rows: Sequence[DecisionRow], width: int, height: int) -> list[Text]:
    """Two lines a decision, the reason wrapped to three where there is room for it."""
    lines: list[Text] = []
    for one in rows:
        lines.append(Text.assemble(_verdict(one), "  ", (_said(one.moved), "bold")))
        why = textwrap.wrap(_said(one.reason), max(20, width - 4)) or [""]
        room = 3 if height >= TALL else 1
        if len(why) > room:
            why = [*why[: room - 1], " ".join(why[room - 1 :])]  # cut to the width later
        lines += [Text(f"    {line}", "dim") for line in why]
    return lines


def _tracker(view: View) -> Text:
    return Text.assemble(
        ("MLflow ", "bold cyan"), (_said(view.tracker), "dim" if view.tracker_well else "bold red")
    )


def _some(rows: Sequence[Text], room: int, signs: Signs) -> list[Text]:
    if len(rows) <= room:
        return list(rows)
    if room <= 0:
        return []
    return [*rows[: room - 1], _faint(f"{signs.more} {len(rows) - room + 1} more")]


def _fit(text: str, width: int, signs: Signs) -> str:
    """Text in exactly so many cells, one of them a blank."""
    made = Text(text)
    _shorten(made, width - 1, signs)
    return made.plain + " " * (width - made.cell_len)


def _cut(line: Text, width: int, signs: Signs) -> Text:
    made = line.copy()
    _shorten(made, width, signs)
    return made


def _shorten(text: Text, width: int, signs: Signs) -> None:
    if text.cell_len <= width:
        return
    text.truncate(max(0, width - len(signs.more)), overflow="crop")
    text.append(signs.more)
