"""Draws docs/architecture.svg from the code: rooms, packages, imports, the run directory's files.

    python scripts/draw_architecture.py            write it
    python scripts/draw_architecture.py --check    fail if it is not what the code says

Rooms are the layers of `[tool.importlinter]` in pyproject.toml, top to bottom, and packages inside
a room stand in the order of its layers. A line between two rooms is as wide as the number of names
that the upper takes from the lower. The files of the run directory are those of
`contract.paths.RunPaths`; who writes and who reads each is told by which room calls the contract's
functions for it.
"""

from __future__ import annotations

import argparse
import ast
import sys
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import house

TARGET = house.ROOT / "docs" / "architecture.svg"
WIDTH, MARGIN, GAP = 1210, 20, 34
ROW, HEAD, CHIP = 22, 30, 7.0  # heights of a row of packages and of a room's name; a letter's width
HOUSE = 800  # width of the rooms; the run directory stands right of them
WRITES, READS, PASSES = "#bf360c", "#1565c0", "#37474f"
QUIET = ' fill="#546e7a"'
COLOURS = {
    "cli": "#e8eaf6",
    "tools": "#e3f2fd",
    "controller": "#fff3e0",
    "trainer": "#e8f5e9",
    "evals": "#f3e5f5",
    "policies": "#fce4ec",
    "contract": "#fffde7",
    "common": "#eceff1",
}
# the contract's functions that write or read each file; the journal is the controller's alone
FILES = {
    "mixture.json": (("write_order",), ("read_order",)),
    "schedule.jsonl": (("ScheduleWriter",), ("read_schedule", "schedule_of")),
    "status.json": (("write_status",), ("read_status",)),
    "checkpoints/*/manifest.json": (("write_manifest",), ("read_manifest",)),
    "holds.json": (("write_holds",), ("read_holds",)),
    "requests/": (("requests.submit",), ("requests.waiting", "requests.read")),
    "journal.db": (("Journal",), ("Journal",)),
}


def layers() -> list[list[str]]:
    """The rooms, top to bottom."""
    for contract in _contracts():
        if contract["name"] == "Rooms":
            return [
                [room.strip().removeprefix("mixloop.") for room in layer.split("|")]
                for layer in contract["layers"]
            ]
    raise SystemExit("pyproject.toml: no contract named Rooms in [tool.importlinter]")


def _contracts() -> list[dict[str, object]]:
    text = (house.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["tool"]["importlinter"]["contracts"]


def packages(room: str) -> list[list[str]]:
    """A room's packages and lone modules, by its layers, upper first."""
    inside = {
        name.split(".")[2]
        for name in house.modules()
        if name.startswith(f"mixloop.{room}.") and name.count(".") == 2 and name not in house.FORMER
    }
    for contract in _contracts():
        if contract.get("containers") == [f"mixloop.{room}"]:
            rows = [
                [part.strip() for part in str(layer).split("|")] for layer in contract["layers"]
            ]
            named = {part for row in rows for part in row}
            return [*rows, *([sorted(inside - named)] if inside - named else [])]
    return [sorted(inside)]


def crossings() -> Counter[tuple[str, str]]:
    """Names that one room takes from another."""
    return Counter(
        (house.room_of(entry.module), house.room_of(house.home(entry)))
        for entry in house.imports()
        if house.room_of(entry.module) != house.room_of(house.home(entry))
    )


def takers(names: tuple[str, ...], package: str = "mixloop.contract") -> set[str]:
    """Rooms that take one of these names from a package, by itself or off a module of verbs."""
    rooms = set()
    for entry in house.imports():
        if entry.module in house.FORMER or not house.home(entry).startswith(package):
            continue
        verbs = any(name.startswith(f"{entry.name}.") for name in names)
        if entry.name in names or (verbs and _calls(entry.module, names)):
            rooms.add(house.room_of(entry.module))
    return rooms - {package.split(".")[1]}


def _calls(module: str, names: tuple[str, ...]) -> bool:
    text = house.modules()[module].read_text(encoding="utf-8")
    return any(f"{name}(" in text for name in names)


class Drawing:
    """The picture, grown box by box."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.right: dict[str, tuple[float, float]] = {}  # where a room's right edge is
        self.y = float(MARGIN)

    def text(self, x: float, y: float, words: str, size: int = 13, more: str = "") -> None:
        place = f'x="{x:g}" y="{y:g}" font-size="{size}"'
        self.parts.append(f"<text {place}{more}>{escape(words)}</text>")

    def box(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" '
            f'fill="{fill}" stroke="#607d8b" stroke-width="0.8"/>'
        )

    def arrow(self, points: str, colour: str, start: str = "", end: str = "") -> None:
        ends = (f' marker-start="url(#{start})" stroke-dasharray="4 3"' if start else "") + (
            f' marker-end="url(#{end})"' if end else ""
        )
        self.parts.append(f'<path d="{points}" fill="none" stroke="{colour}"{ends}/>')

    def room(self, room: str, x: float, width: float, rows: list[list[str]], height: float) -> None:
        self.box(x, self.y, width, height, COLOURS[room])
        self.text(x + 10, self.y + 20, f"{room}/", 15, ' font-weight="bold"')
        takes = sorted(
            ((count, lower) for (upper, lower), count in crossings().items() if upper == room),
            reverse=True,
        )
        said = ", ".join(f"{lower} {count}" for count, lower in takes)
        if said:
            self.text(x + 12 + 9.5 * (len(room) + 1), self.y + 20, f"takes {said}", 11, QUIET)
        at = self.y + HEAD
        for row in rows:
            left = x + 10
            for name in row:
                wide = CHIP * len(name) + 14
                self.box(left, at, wide, ROW - 4, "#ffffff")
                self.text(left + 7, at + 13, name, 12)
                left += wide + 6
            summary = purpose(room, row[0]) if len(row) == 1 else ""
            if summary and left + 5.6 * len(summary) < x + width:
                self.text(left + 4, at + 13, summary, 11, QUIET)
            at += ROW
        self.right[room] = (x + width, self.y + height / 2)

    def layer(self, rooms: list[str]) -> None:
        ordered = sorted(rooms, key=lambda room: room == "trainer")  # beside the run directory
        width = (HOUSE - 12 * (len(rooms) - 1)) / len(rooms)
        rows = {room: wrapped(packages(room), width) for room in rooms}
        height = HEAD + ROW * max(map(len, rows.values())) + 6
        for number, room in enumerate(ordered):
            self.room(room, MARGIN + number * (width + 12), width, rows[room], height)
        self.y += height + GAP


def purpose(room: str, package: str) -> str:
    """The first line of a package's docstring."""
    name = f"mixloop.{room}.{package}"
    if name not in house.modules() or not house.is_package(name):
        return ""
    text = house.modules()[name].read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def wrapped(rows: list[list[str]], width: float) -> list[list[str]]:
    """Rows of names that fit into a box."""
    fitting: list[list[str]] = []
    for row in rows:
        fitting.append([])
        left = width - 20
        for name in row:
            left -= CHIP * len(name) + 20
            if left < 0 and fitting[-1]:
                fitting.append([])
                left = width - 20 - CHIP * len(name) - 20
            fitting[-1].append(name)
    return fitting


def flows(drawing: Drawing) -> None:
    """The run directory: each file with a lane to those who write it and those who read it."""
    left, top = HOUSE + 190, float(MARGIN)
    space = (drawing.y - GAP - MARGIN - 24) / len(FILES)
    drawing.text(left, top + 12, "run directory", 15, ' font-weight="bold"')
    for number, (file, (writing, reading)) in enumerate(FILES.items()):
        package = "mixloop.controller.journal" if file == "journal.db" else "mixloop.contract"
        writers, readers = takers(writing, package), takers(reading, package)
        if file == "journal.db":
            writers = {"controller"}
        y = top + 24 + space * number + space / 2
        lane = HOUSE + MARGIN + 24 + 18 * number
        drawing.box(left, y - 15, 190, 30, "#ffffff")
        drawing.text(left + 8, y + 5, file, 11, ' font-family="monospace"')
        for room in sorted(writers | readers, key=list(COLOURS).index):
            if room in ("evals", "policies"):
                raise SystemExit(f"{file}: {room} must not know the run directory")
            x, middle = drawing.right[room]
            middle += (number - len(FILES) / 2) * 6
            turns = f"M{x:g},{middle:g} H{lane:g} V{y + (-5 if room in writers else 5):g} H{left:g}"
            if room in writers:
                drawing.arrow(turns, WRITES, end="in")
            else:
                drawing.arrow(turns, READS, start="out")


def between(drawing: Drawing, tops: dict[str, float]) -> None:
    """What passes between the controller and the rooms that know no run directory."""
    width = (HOUSE - 24) / 3
    for number, (room, down, up) in enumerate(
        [("evals", "checkpoint", "Scorecard"), ("policies", "Observation", "Proposal")]
    ):
        offered = {"checkpoint", *house.face(f"mixloop.{room}")}
        assert {down, up} <= offered, f"mixloop.{room} offers no {down} or {up}"
        x, y = MARGIN + number * (width + 12) + 40, tops[room]
        drawing.arrow(f"M{x:g},{y - GAP + 2:g} V{y - 4:g}", PASSES, end="on")
        drawing.text(x + 8, y - 11, down, 11)
        drawing.arrow(f"M{x + 110:g},{y - 2:g} V{y - GAP + 6:g}", PASSES, end="on")
        drawing.text(x + 118, y - 11, up, 11)


def marker(name: str, colour: str, orient: str) -> str:
    """An arrow head."""
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="9" markerHeight="9" '
        f'orient="{orient}"><path d="M0,0 L8,4 L0,8 z" fill="{colour}"/></marker>'
    )


def legend(drawing: Drawing) -> float:
    """What the lines mean; returns where the picture ends."""
    y = drawing.y - 8
    drawing.arrow(f"M{MARGIN},{y:g} h40", WRITES, end="in")
    drawing.text(MARGIN + 48, y + 4, "writes", 12)
    drawing.arrow(f"M{MARGIN + 110},{y:g} h40", READS, start="out")
    drawing.text(MARGIN + 158, y + 4, "reads", 12)
    rule = "a room takes names only from rooms below it; how many, stands beside its own name"
    drawing.text(MARGIN + 230, y + 4, rule, 12)
    return y + 20


def draw() -> str:
    """The whole picture."""
    drawing = Drawing()
    tops = {}
    for rooms in layers():
        tops |= dict.fromkeys(rooms, drawing.y)
        drawing.layer(rooms)
    flows(drawing)
    between(drawing, tops)
    height = legend(drawing)
    heads = "".join(
        [
            marker("in", WRITES, "auto"),
            marker("out", READS, "auto-start-reverse"),
            marker("on", PASSES, "auto"),
        ]
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'font-family="sans-serif" role="img" aria-label="mixloop: rooms, packages and files">'
        f'<rect width="100%" height="100%" fill="#ffffff"/><defs>{heads}</defs>\n'
        + "\n".join(drawing.parts)
        + "\n</svg>\n"
    )


def main() -> None:
    """Write the picture, or compare it with the code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail if the picture is out of date")
    drawn = draw()
    if not parser.parse_args().check:
        TARGET.write_text(drawn, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != drawn:
        raise SystemExit(f"{TARGET}: out of date; run python scripts/draw_architecture.py")


if __name__ == "__main__":
    main()
