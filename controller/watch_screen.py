"""A view as lines: a screen of a terminal's size, or plain text. Pure.

Lines are cut to the width, never wrapped; sections share the height, what matters now first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

from mixloop.controller.pulse import duration
from mixloop.controller.show import clean, tokens
from mixloop.controller.watch_view import BenchmarkRow, DecisionRow, Pending, SourceRow, View

BARS = " ▁▂▃▄▅▆▇█"
PLAIN_BARS = " .:-=+*%#"

STATES = {"alive": "green", "finished": "green", "stalled": "red", "stopped": "red"}
VERDICTS = {"intervene": "cyan", "refused": "red", "awaiting-approval": "yellow"}
TREND = {"better": "green", "worse": "red", "same": "dim", "": "dim"}

NARROW, WIDE = 80, 110


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
    head = _head(view, width, signs)
    warnings = [_warning(line) for line in view.warnings]
    tail = [_tracker(view)]
    room = height - len(head) - len(tail) - 4  # four headings
    wants = [len(view.sources), len(view.benchmarks), len(warnings) + len(view.pending)]
    wants.append(len(view.decisions) * (2 if width < WIDE or height >= 36 else 1))
    sources, benchmarks, pending, decisions = share(room, wants, (3, 3, 2, 2))
    lines = head
    lines += [_heading(_source_title(view, width), width)]
    lines += _some([_source(one, width, signs) for one in view.sources], sources, signs)
    lines += [_heading(_benchmark_title(width), width)]
    rows = [_benchmark(one, width, signs) for one in view.benchmarks]
    lines += _some(rows, benchmarks, signs) or [_faint("no checkpoint has been scored yet")]
    lines += [_heading("PENDING", width)]
    lines += _some([*warnings, *map(_pending, view.pending)], pending, signs)
    lines += [_heading("DECISIONS", width)]
    lines += _decisions(view.decisions, decisions, width, height)
    body = lines[: max(0, height - len(tail))]
    spare = height - len(body) - len(tail)
    return [_cut(line, width, signs) for line in [*body, *[Text()] * min(spare, 1), *tail]][:height]


def plain(view: View) -> list[str]:
    """The same as one block of lines without any control code, whatever the width."""
    signs = Signs()
    rows = [
        *_head(view, WIDE, signs)[:2],
        *[_source(one, 10**4, signs) for one in view.sources],
        *[_benchmark(one, 10**4, signs) for one in view.benchmarks],
        *[_warning(line) for line in view.warnings],
        *[_pending(one) for one in view.pending],
        *[Text.assemble(_verdict(one), " ", _why(one)) for one in view.decisions[:1]],
        _tracker(view),
    ]
    return [row.plain.rstrip() for row in rows]


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


# -- the parts -----------------------------------------------------------------------------------


def _head(view: View, width: int, signs: Signs) -> list[Text]:
    colour = STATES.get(view.word, "yellow")
    first = Text.assemble(
        ("mixloop ", "dim"), (clean(view.run), "bold"), "  ",
        (f"{signs.dot} {view.state}", f"bold {colour}"),
    )  # fmt: skip
    if view.origin:
        first.append(f"  {view.origin}", "yellow")
    well = "dim" if view.controller_well else "bold red"
    if view.step is None:
        return [first, Text.assemble(("controller ", "dim"), (clean(view.controller), well))]
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
        ("  ".join(facts), ""), ("  controller ", "dim"), (clean(view.controller), well)
    )
    if view.health:
        third.append(f"  {view.health}", "yellow")
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


def _heading(text: str, width: int) -> Text:
    return Text(f"{text:<{width}}"[:width], "bold cyan")


def _faint(text: str) -> Text:
    return Text(f"  {text}", "dim")


def _source_title(view: View, width: int) -> str:
    cap = view.sources[0].cap if view.sources else None
    of = "EPOCHS" if cap is None else f"EPOCHS OF {cap:g}"
    title = f"{'SOURCE':<{_name(width)}}{'ASKED':>7}{'APPLIED':>9}  {of:<19}{'TOKENS':>7}  "
    return title + f"{'AT ITS CAP IN':<20}" + ("LOSS" if width >= WIDE else "")


def _name(width: int) -> int:
    return 18 if width < WIDE else 26


def _source(one: SourceRow, width: int, signs: Signs) -> Text:
    size = _name(width)
    line = Text(_fit(clean(one.name), size, signs))
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
        line.append(f" {one.loss:.3f}")
    return line


def _cap(one: SourceRow) -> Text:
    if one.cap is None:
        return Text(f"{'no cap':<19}", "dim")
    if one.epochs >= one.cap:
        return Text(f"{'reached':<19}", "red")
    if one.cap_tokens is None:
        end = "never" if one.at_the_end is None else f"not: ends at {one.at_the_end:.2f}"
        return Text(f"{end:<19}", "dim")
    when = f"{tokens(one.cap_tokens)} tokens"
    if one.cap_seconds is not None:
        when = f"{duration(one.cap_seconds)} ({tokens(one.cap_tokens)})"
    return Text(f"{when:<19}", "yellow")


def _benchmark_title(width: int) -> str:
    return (
        f"{'BENCHMARK':<{_name(width)}}{'METRIC':<15}{'VALUE':>17}  "
        f"{'SINCE THE LAST':<19}  {'PAST'}"
    )


def _benchmark(one: BenchmarkRow, width: int, signs: Signs) -> Text:
    line = Text(_fit(clean(one.name), _name(width), signs))
    if one.missing is not None:
        return line.append(f"missing at step {one.step}: {clean(one.missing)}", "red")
    line.append(_fit(clean(one.metric), 14, signs) + " ")
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
    line = Text.assemble("  ", (clean(one.what), "yellow" if one.person else ""))
    if one.seconds is not None:
        word = "expires in" if one.person else "in"
        line.append(f"  {word} {duration(one.seconds)}", "bold")
    return line


def _warning(text: str) -> Text:
    return Text(f"  ! {clean(text)}", "yellow")


def _verdict(one: DecisionRow) -> Text:
    colour = VERDICTS.get(one.verdict.split(":")[0], "dim" if one.verdict == "hold" else "")
    return Text.assemble(f"  {clean(one.id)}  step {one.step:,}  ", (clean(one.verdict), colour))


def _why(one: DecisionRow) -> Text:
    return Text.assemble((clean(one.moved), "bold"), "  " if one.moved else "", clean(one.reason))


def _decisions(rows: Sequence[DecisionRow], room: int, width: int, height: int) -> list[Text]:
    if not rows:
        return [_faint("none yet")]
    apart = width < WIDE or height >= 36
    lines: list[Text] = []
    for one in rows:
        if not apart:
            lines.append(Text.assemble(_verdict(one), "  ", _why(one)))
            continue
        lines.append(Text.assemble(_verdict(one), "  ", (clean(one.moved), "bold")))
        lines.append(Text(f"            {clean(one.reason)}", "dim"))
    return lines[: room if room % 2 == 0 or not apart else room - 1] if room > 1 else lines[:room]


def _tracker(view: View) -> Text:
    return Text.assemble(
        ("MLflow ", "bold cyan"), (clean(view.tracker), "dim" if view.tracker_well else "bold red")
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
