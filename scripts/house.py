"""What the code says of its own structure: modules, faces, imports. Read as text, nothing is run.

`tests/test_layout.py` checks rules by it and `scripts/draw_architecture.py` draws the picture in
`docs/architecture.md`, so that neither can say what the code doesn't.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "contract", "policies", "evals", "trainer", "controller", "tools", "cli")

# hand names on under their former path, for one release
FORMER = {
    "mixloop.trainer.contract",
    "mixloop.trainer.windows",
    "mixloop.evals.loading",
    "mixloop.policies.worlds.testing",
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports from inside mixloop."""

    module: str  # who imports
    source: str  # the module named after `from`
    name: str
    line: int


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package's is that of its `__init__`."""
    paths = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = ("mixloop", *path.relative_to(ROOT).with_suffix("").parts)
            paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return paths


def is_package(module: str) -> bool:
    """Whether a module is a package's `__init__`."""
    return modules()[module].name == "__init__.py"


def package_of(module: str) -> str:
    """The package a module lies in; a package is its own."""
    return module if is_package(module) else module.rpartition(".")[0]


def room_of(module: str) -> str:
    """`controller` of `mixloop.controller.loop.daemon`."""
    return module.split(".")[1]


def _stub(package: str) -> list[ast.ImportFrom]:
    path = modules()[package].with_suffix(".pyi")
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.exists() else []
    strays = [node for node in body if not isinstance(node, ast.ImportFrom)]
    assert not strays, f"{path}: a face holds imports and nothing else"
    return [node for node in body if isinstance(node, ast.ImportFrom)]


@cache
def face(package: str) -> dict[str, str]:
    """What a package offers, each name with the module that has it."""
    return {
        alias.name: f"{package}.{node.module or alias.name}"
        for node in _stub(package)
        for alias in node.names
    }


def offered_modules(package: str) -> set[str]:
    """Modules of verbs that a face offers as they are: `records.scored(...)`."""
    return {alias.name for node in _stub(package) if not node.module for alias in node.names}


@cache
def imports() -> list[Import]:
    """All imports of the source, typing-only and deferred ones too."""
    return [entry for module in modules() for entry in _imports_of(module)]


def _imports_of(module: str) -> Iterator[Import]:
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                base = package_of(module).split(".")
                base = base[: len(base) - node.level + 1]
                source = ".".join([*base, source] if source else base)
            if source.split(".")[0] == "mixloop":
                for alias in node.names:
                    yield Import(module, source, alias.name, node.lineno)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                assert alias.name.split(".")[0] != "mixloop", f"{module}:{node.lineno}"


def home(entry: Import) -> str:
    """The module that an import comes down to."""
    submodule = f"{entry.source}.{entry.name}"
    if entry.source in modules() and is_package(entry.source):
        if entry.name in face(entry.source):
            return face(entry.source)[entry.name]
        if submodule in modules():
            return submodule
    return entry.source
