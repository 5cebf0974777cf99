"""The house: small folders, no circles, nobody past a package's face, names that mean one thing."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent

if TYPE_CHECKING:
    from scripts import house
else:
    spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    house = importlib.util.module_from_spec(spec)
    sys.modules["house"] = house  # its dataclasses look themselves up
    spec.loader.exec_module(house)

FULLEST = 12
# their modules are the face: small things, imported one by one
OPEN = {"mixloop.common"}
# a policy's parts are called alike in every policy's package; so are these
SHARED = {
    "policy": 4,  # bayes, experiment, law, rules
    "options": 3,  # bayes, experiment, rules
}


def test_no_folder_holds_more_than_twelve_modules() -> None:
    counts = Counter(path.parent for path in house.modules().values() if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > FULLEST}
    assert not crowded


def test_imports_run_in_no_circle() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for entry in house.imports():
        if house.home(entry) != entry.module:
            edges[entry.module].add(house.home(entry))
    TopologicalSorter(edges).prepare()  # raises CycleError, which names the circle


def test_nobody_imports_past_a_face() -> None:
    """From outside a package only what its face offers; inside, siblings are named with a dot."""
    past = []
    for entry in house.imports():
        where = f"{entry.module}:{entry.line} {entry.source}.{entry.name}"
        target = house.home(entry)
        if target not in house.modules():
            past.append(f"{where}: no such module")
            continue
        package = house.package_of(target)
        if package == house.package_of(entry.module) or package in OPEN:
            continue
        through = entry.source == package and entry.name in house.face(package)
        namespace = target == package and f"{entry.source}.{entry.name}" == package
        if not (through or namespace):
            past.append(where)
    assert not past


def test_faces_offer_what_others_use_and_nothing_else() -> None:
    """A name that no other package imports, and no document, leaves the face."""
    used: dict[str, set[str]] = defaultdict(set)
    for entry in house.imports():
        if house.package_of(entry.module) != entry.source:
            used[entry.source].add(entry.name)
    for package, names in documented():
        used[package] |= names
    namespaces = {f"{entry.source}.{entry.name}" for entry in house.imports()}
    for package in filter(house.is_package, house.modules()):
        if package not in PUBLIC and package not in namespaces:
            assert set(house.face(package)) <= used[package], package


# faces that people import, whole, by the README and the docs
PUBLIC = {
    "mixloop.policies",
    "mixloop.policies.guards",
    "mixloop.policies.testing",
    "mixloop.policies.worlds",
    "mixloop.trainer",
    "mixloop.trainer.loader",
}


def documented() -> Iterator[tuple[str, set[str]]]:
    """What README and docs import: packages with the names taken from them."""
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        text = path.read_text(encoding="utf-8")
        for package, names in re.findall(r"from (mixloop[\w.]*) import ([\w, ]+)", text):
            yield package, set(re.split(r", *", names))


def test_every_package_says_what_it_is_for() -> None:
    for module, path in house.modules().items():
        if path.name == "__init__.py":
            text = path.read_text(encoding="utf-8")
            assert ast.get_docstring(ast.parse(text)), module
            assert len(text.splitlines()) <= 20, module


def test_a_module_name_means_one_thing() -> None:
    counts = Counter(
        path.stem
        for module, path in house.modules().items()
        if path.name != "__init__.py" and module not in house.FORMER
    )
    assert {name: n for name, n in counts.items() if n > 1} == SHARED


def test_no_sibling_is_asked_for_by_a_name_that_means_two_things() -> None:
    """`from . import decide` is the module or the function, by who asked first."""
    both = []
    for entry in house.imports():
        package = house.package_of(entry.module)
        if entry.source == package and entry.name not in house.offered_modules(package):
            both += [f"{entry.module}:{entry.line}"] if entry.name in house.face(package) else []
    assert not both
