"""The report's page: words, tables and pictures out of what :mod:`controller.report` gathered.

Self-contained under ``default-src 'none'``: no script, no font, no request. Everything from data is
escaped and stripped of control characters. Tables and pictures scroll inside themselves on a phone;
in print every decision is open.
"""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixloop.common.types import Json
from mixloop.common.units import format_tokens
from mixloop.controller.core import trainer_in_words, wording

from .html import document, escaped

CSS = """
:root { color-scheme: light; --line: #d5dbe1; --quiet: #55606b; --mark: #0b6aa2; }
body { font: 16px/1.55 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem;
  color: #1b2229; background: #fff; }
h1 { font-size: 1.7rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem;
  margin: 1rem 0; }
.facts div { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .75rem; }
.facts b { display: block; font-size: 1.15rem; }
.facts span, .quiet { color: var(--quiet); font-size: .87rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; min-width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; }
th:first-child, td:first-child, td.text, th.text { text-align: left; }
td.text { white-space: normal; min-width: 12rem; }
td.over { color: #a1260d; font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; } img { max-width: 100%; height: auto; display: block; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: 0 .75rem; }
summary { cursor: pointer; padding: .5rem 0; }
summary b { color: var(--mark); }
.intervene { border-left: 5px solid var(--mark); }
dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr; gap: .2rem .8rem;
  margin: 0 0 .75rem; font-size: .92rem; }
dt { color: var(--quiet); } dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: .2rem 0; padding-left: 1.2rem; }
@media screen and (max-width: 40rem) { figure img { max-width: none; width: 44rem; }
  dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; } }
@media print { body { max-width: none; font-size: 11px; } details { break-inside: avoid; }
  details::details-content { content-visibility: visible; height: auto; } }
"""


def page(found: Json) -> str:
    """The page of a gathered run."""
    title = f"Run {found['run']}"
    parts = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{escaped(story(found))}</p>",
        _facts(found),
        "<h2>Benchmarks and mixture</h2>",
        _picture(found),
        "<h2>Ledger</h2>",
        _ledger(found),
        "<h2>Decisions</h2>",
        *_decisions(found["decisions"]),
        *_unscored(found["unscored"]),
        *_alarms(found["alarms"]),
    ]
    return document(title, CSS, parts)


def story(found: Json) -> str:
    """The run in a few sentences."""
    trainer, decisions = found["status"]["trainer"], found["decisions"]
    changed = [one for one in decisions if one["applied_step"] is not None]
    by_people = sum(one["asked_by"] == "operator" for one in changed)
    state = "has ended after" if trainer["finished"] else "is at"
    first = (
        f"Training {state} {format_tokens(trainer['tokens'])} of {format_tokens(found['budget'])} "
        f"tokens under the policy {found['policy']}; {len(found['evaluations'])} checkpoints were "
        f"scored and {_count(len(decisions), 'decision')} taken, of which "
        f"{len(changed)} came into force as a new mixture"
    )
    first += f" ({by_people} asked for by people)." if by_people else "."
    helped = [_strongest(one) for one in changed]
    shown = [text for text in helped if text]
    return f"{first} {' '.join(shown[:3])}".strip()


def _strongest(entry: Json) -> str:
    """The clearest effect of an intervention, in a sentence; empty before there is one."""
    effects = [
        (name, one)
        for step in entry["followed"][-1:]
        for name, one in step["benchmarks"].items()
        if one["stderr"]
    ]
    if not effects:
        return ""
    name, one = max(effects, key=lambda pair: abs(pair[1]["gain"] / pair[1]["stderr"]))
    word = "better" if one["gain"] > 0 else "worse"
    moved = wording.moves(entry["weights_before"], entry["weights_after"])
    return (
        f"After {entry['id']} ({moved}) "
        f"{name} was {abs(one['gain']):.3g} ± {one['stderr']:.2g} {word} ({one['metric']})."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _facts(found: Json) -> str:
    trainer, tracking = found["status"]["trainer"], found["status"]["tracking"]
    state = ", ".join(filter(None, (trainer_in_words(trainer), wording.origin(trainer))))
    loss = "-" if trainer["loss"] is None else f"{trainer['loss']:.4f}"
    waiting = f"{tracking['waiting']} entries wait" if tracking["waiting"] else "all told"
    facts = [
        ("trainer", state),
        ("step", f"{trainer['step']:,}"),
        ("tokens", format_tokens(trainer["tokens"])),
        ("learning-rate phase", trainer["phase"] or "-"),
        ("training loss", loss),
        ("MLflow", waiting),
    ]
    boxes = (
        f"<div><span>{escaped(name)}</span><b>{escaped(value)}</b></div>" for name, value in facts
    )
    return f'<div class="facts">{"".join(boxes)}</div>'


def _picture(found: Json) -> str:
    from .figures import draw_epochs

    parts = []
    with tempfile.TemporaryDirectory() as folder:
        if found["segments"]:
            file = draw_run(found, Path(folder) / "run.svg")
            parts.append(_figure(file, "benchmarks in bits per byte, and the mixture, by tokens"))
        if len(found["drawn"]) > 1:
            file = draw_epochs(
                found["drawn"], Path(folder) / "epochs.svg", found["budget"], found["max_epochs"]
            )
            parts.append(_figure(file, "epochs of every source by tokens, and the cap"))
    return "\n".join(parts) or '<p class="quiet">nothing trained yet</p>'


def draw_run(found: Json, out: Path) -> Path:
    """The run's picture, PNG or SVG by ``out``'s suffix; it needs a segment to draw."""
    from .figures import draw

    return draw(
        found["decisions"],
        found["evaluations"],
        found["segments"],
        out,
        title=found["run"],
        budget=found["budget"],
    )


def _figure(file: Path, what: str) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return f'<figure><img alt="{what}" src="data:image/svg+xml;base64,{data}"></figure>'


def _ledger(found: Json) -> str:
    limit = found["max_epochs"]
    heads = ("source", "weight", "unique", "drawn", "epochs", "at the end", "reaches the cap")
    rows = []
    for one in found["ledger"]:
        over = limit is not None and one["at_the_end"] > limit + 1e-9
        cap = "-" if one["cap_at"] is None else f"at {format_tokens(one['cap_at'])}"
        rows.append(
            [
                _cell(one["source"]),
                _cell(f"{one['weight']:.4f}"),
                _cell(format_tokens(one["unique_tokens"])),
                _cell(format_tokens(one["tokens"])),
                _cell(f"{one['epochs']:.3f}"),
                _cell(f"{one['at_the_end']:.3f}", "over" if over else ""),
                _cell(cap),
            ]
        )
    cap = "no cap on epochs" if limit is None else f"cap {limit:g} epochs"
    note = f"{cap}; “at the end” holds the mixture in force to the end of the budget."
    return _table(heads, rows) + f'<p class="quiet">{escaped(note)}</p>'


def _decisions(entries: Sequence[Json]) -> list[str]:
    if not entries:
        return ['<p class="quiet">none yet</p>']
    return [_decision(entry) for entry in entries]


def _decision(entry: Json) -> str:
    changed = entry["generation"] is not None
    moved = wording.moves(entry["weights_before"], entry["weights_after"])
    verdict = wording.verdict(entry)
    at = format_tokens(entry["tokens"])
    head = f"<b>{escaped(entry['id'])}</b> {escaped(verdict)} at {at} tokens" + (
        f": {escaped(moved)}" if changed else ""
    )
    rows = [
        ("why", escaped(entry["reason"])),
        ("asked by", escaped(f"{entry['asked_by']} ({entry['policy']})")),
        ("evidence", _lines(_evidence(entry["evidence"]))),
        ("before", escaped(wording.mixture(entry["weights_before"]))),
        ("after", escaped(wording.mixture(entry["weights_after"]))),
        ("guards", _lines(f"{n['guard']} {n['action']}: {n['detail']}" for n in entry["guards"])),
        ("applied", escaped(wording.applied(entry))),
        ("what followed", _lines(_followed(entry["followed"]))),
    ]
    if entry.get("assessments"):
        said = (wording.assessment(one) for one in entry["assessments"])
        rows.insert(2, ("assessed", _lines(said)))
    if entry.get("approval"):
        rows.insert(2, ("approval", escaped(wording.approval(entry["approval"]))))
    body = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    kind = "intervene" if changed else ""
    opened = " open" if changed else ""
    return f'<details class="{kind}"{opened}><summary>{head}</summary><dl>{body}</dl></details>'


def _evidence(evidence: Json) -> Iterable[str]:
    for line in wording.evidence_lines(evidence):
        text = line.removeprefix("Evidence").strip()
        if text != "-":
            yield text


def _followed(steps: Sequence[Json]) -> Iterable[str]:
    for step in steps:
        for name, one in step["benchmarks"].items():
            sure = abs(one["gain"]) > 2 * one["stderr"] if one["stderr"] else False
            said = "" if sure else " (not distinguishable from noise)"
            yield (
                f"step {step['step']}: {name} {one['metric']} gain {one['gain']:+.4f} "
                f"± {one['stderr']:.4f}, {one['n']} items in common{said}"
            )


def _unscored(rows: Sequence[Json]) -> list[str]:
    if not rows:
        return []
    cells = [
        [
            _cell(f"step {one['step']}"),
            _cell(format_tokens(one["tokens"])),
            _cell(one["what"], "text"),
            _cell(one["why"], "text"),
        ]
        for one in rows
    ]
    return ["<h2>Not scored</h2>", _table(("checkpoint", "tokens", "what", "why"), cells)]


def _alarms(rows: Sequence[Json]) -> list[str]:
    if not rows:
        return []
    cells = [
        [
            _cell(one["kind"]),
            _cell(str(one["n"])),
            _cell(one["what"], "text"),
            _cell(one["at"]),
        ]
        for one in rows
    ]
    return ["<h2>Trouble</h2>", _table(("kind", "times", "what", "last"), cells)]


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escaped(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value: object, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f"<td{mark}>{escaped(value)}</td>"


def _lines(lines: Iterable[str]) -> str:
    items = [f"<li>{escaped(line)}</li>" for line in lines]
    return f"<ul>{''.join(items)}</ul>" if items else ""
