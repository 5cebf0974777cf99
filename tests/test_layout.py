"""The house: small folders, no circles, nobody past a package's face, names that mean one thing."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "contract", "policies", "evals", "trainer", "controller", "tools", "cli")
FULLEST = 12
# their modules are the face: small things, imported one by one
OPEN = {"mixloop.common"}
# a policy's parts are called alike in every policy's package; so are these
SHARED = {
    "policy": 3,  # bayes, law, rules
    "options": 2,  # bayes, rules
}


@dataclass(frozen=True)
class Import:
    """One name that a module imports, from inside mixloop."""

    module: str  # who imports
    source: str  # the module named after `from`
    name: str
    line: int


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name; a package's is that of its `__init__`."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = ("mixloop", *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def package_of(module: str) -> str:
    return module if modules()[module].name == "__init__.py" else module.rpartition(".")[0]


@cache
def face(package: str) -> dict[str, str]:
    """What a package offers, each name with the module that has it."""
    stub = modules()[package].with_suffix(".pyi")
    if not stub.exists():
        return {}
    offered = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom), f"{stub}: only imports"
        for alias in node.names:
            offered[alias.name] = f"{package}.{node.module or alias.name}"
    return offered


def offered_modules(package: str) -> set[str]:
    """Modules of verbs that a face offers as they are: `records.scored(...)`."""
    path = modules()[package].with_suffix(".pyi")
    stub = ast.parse(path.read_text(encoding="utf-8") if path.exists() else "")
    whole = (node for node in stub.body if isinstance(node, ast.ImportFrom) and not node.module)
    return {alias.name for node in whole for alias in node.names}


@cache
def imports() -> list[Import]:
    """All imports of the source, typing-only and deferred ones too."""
    return [found for module in modules() for found in _imports_of(module)]


def _imports_of(module: str) -> Iterator[Import]:
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
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


def home(found: Import) -> str:
    """The module that an import comes down to."""
    submodule = f"{found.source}.{found.name}"
    if modules().get(found.source, Path()).name == "__init__.py":
        offered = face(found.source)
        if found.name in offered:
            return offered[found.name]
        if submodule in modules():
            return submodule
    return found.source


def test_no_folder_holds_more_than_twelve_modules() -> None:
    counts = Counter(path.parent for path in modules().values() if path.name != "__init__.py")
    crowded = {str(folder.relative_to(ROOT)): n for folder, n in counts.items() if n > FULLEST}
    assert not crowded


def test_imports_run_in_no_circle() -> None:
    edges: dict[str, set[str]] = defaultdict(set)
    for found in imports():
        if home(found) != found.module:
            edges[found.module].add(home(found))
    assert not list(circles(edges))


def circles(edges: dict[str, set[str]]) -> Iterator[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(node: str) -> Iterator[list[str]]:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(edges.get(node, ())):
            if other not in index:
                yield from visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                yield sorted(group)

    for node in sorted(edges):
        if node not in index:
            yield from visit(node)


def test_nobody_imports_past_a_face() -> None:
    """From outside a package only what its face offers; inside, siblings are named with a dot."""
    past = []
    for found in imports():
        where = f"{found.module}:{found.line} {found.source}.{found.name}"
        target = home(found)
        if target not in modules():
            past.append(f"{where}: no such module")
            continue
        package = package_of(target)
        if package == package_of(found.module) or package in OPEN:
            continue
        through = found.source == package and found.name in face(package)
        namespace = target == package and f"{found.source}.{found.name}" == package
        if not (through or namespace):
            past.append(where)
    assert not past


def test_faces_offer_what_others_use_and_nothing_else() -> None:
    """A name that nobody outside imports leaves the face; what people import is listed here."""
    used: dict[str, set[str]] = defaultdict(set)
    for found in imports():
        if package_of(found.module) != found.source and found.source in modules():
            used[found.source].add(found.name)
    for package in modules():
        if package_of(package) != package or package in PUBLIC:
            continue
        unused = set(face(package)) - used[package]
        namespaced = package in {f"{i.source}.{i.name}" for i in imports()}
        assert namespaced or not unused, f"{package}: {sorted(unused)}"


# what users import by the README and the docs
PUBLIC = {
    "mixloop.policies",
    "mixloop.policies.guards",
    "mixloop.policies.testing",
    "mixloop.policies.worlds",
    "mixloop.trainer",
}


def test_every_package_says_what_it_is_for() -> None:
    for module, path in modules().items():
        if path.name == "__init__.py":
            text = path.read_text(encoding="utf-8")
            assert ast.get_docstring(ast.parse(text)), module
            assert len(text.splitlines()) <= 20, module


def test_a_module_name_means_one_thing() -> None:
    counts = Counter(path.stem for path in modules().values() if path.name != "__init__.py")
    assert {name: n for name, n in counts.items() if n > 1} == SHARED


def test_no_sibling_is_asked_for_by_a_name_that_means_two_things() -> None:
    """`from . import decide` is the module or the function, by who asked first."""
    both = []
    for found in imports():
        package = package_of(found.module)
        if found.source == package and found.name not in offered_modules(package):
            both += [f"{found.module}:{found.line}"] if found.name in face(package) else []
    assert not both
