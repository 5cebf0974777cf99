"""YAML read strictly: a key given twice is an error, and so is what would unfold without end."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import BadInput, shown
from .files import LARGEST, NotRegularError, read_regular, read_whole

LARGEST_RUN_FILE = 8 * LARGEST
"""Bytes: 10,000 sources with their paths and options take two or three million."""
_UNFOLDED = 100_000  # values that anchors may add to those that are written
_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # no path, and no UTF-8, can hold them
_LARGEST_NUMBER = 2**64


class _Strict(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML would keep the last in silence.

    So it does anchors that stand within themselves, or that unfold to more than could be read.
    """

    def construct_document(self, node: yaml.Node) -> Any:
        _Unfolding().measure(node)
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, typing.Hashable):
                if key in keys:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key}' is given twice (line {line})"
                    )
                keys.add(key)
        return super().construct_mapping(node, deep=deep)


class _Unfolding:
    """How many values there are with every alias in full, which may be 10^10 of a few lines."""

    def __init__(self) -> None:
        self._sizes: dict[yaml.Node, int] = {}
        self._within: set[yaml.Node] = set()

    def measure(self, node: yaml.Node) -> int:
        if node in self._sizes:  # an alias
            return self._sizes[node]
        if node in self._within:
            raise yaml.composer.ComposerError(
                None, None, "an anchor stands within itself", node.start_mark
            )
        self._within.add(node)
        size = 1 + sum(self.measure(part) for part in _parts(node))
        self._within.remove(node)
        self._sizes[node] = size
        if size - len(self._sizes) > _UNFOLDED:
            raise yaml.composer.ComposerError(
                None, None, f"anchors unfold to more than {_UNFOLDED:,} values", node.start_mark
            )
        return size


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for pair in node.value:
            yield from pair
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def parse_yaml(text: str) -> Any:
    """A document of YAML.

    Raises:
        ValueError: it is none, a key is given twice, an anchor stands within itself, or anchors
            unfold to more than 100,000 values; one line with the place.
    """
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(_problem(error)) from None
    except OverflowError as error:
        raise ValueError(str(error)) from None


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of a run file, not yet validated.

    Raises:
        BadInput: one line naming the file and the place: it can't be read, is no YAML or no
            mapping, or is larger than any run file (YAML takes seconds a megabyte).
    """
    try:
        data = read_regular(path, LARGEST_RUN_FILE, follow=True).data
        if len(data) > LARGEST_RUN_FILE:
            raise ValueError(f"larger than {LARGEST_RUN_FILE:,} bytes; is this a run file?")
        sections = parse_yaml(data.decode("utf-8"))
    except NotRegularError as error:
        raise BadInput(f"{path}: is {error.strerror}, not a file") from error
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}); `mixloop init` writes a template"
        ) from error
    except ValueError as error:
        raise BadInput(f"{path}: not valid YAML: {_problem(error)}") from error
    if not isinstance(sections, dict):
        raise BadInput(f"{path}: must be a mapping of sections (run, budget, sources, …)")
    for key, problem in _unusable(sections):
        raise BadInput(f"{path}: {key}: {problem}")
    return sections


def _unusable(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The values that no setting takes, with their keys."""
    if isinstance(value, dict):
        for name, entry in value.items():
            place = f"{key}.{shown(name).strip(chr(39))}" if key else shown(name).strip(chr(39))
            yield from ((place, why) for _, why in _unusable(name))
            yield from _unusable(entry, place)
    elif isinstance(value, list | tuple | set):
        for number, entry in enumerate(value):
            yield from _unusable(entry, f"{key}.{number}")
    elif isinstance(value, str) and _NO_TEXT.search(value):
        yield key, f"{shown(value)} holds a NUL or half of a character: leave it out"
    elif isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
        yield key, f"{shown(value)} is a larger number than any setting takes (2^64 - 1)"


def _problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error).splitlines() or [""])[0]
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{where}{problem}"


def parse_value(text: str, option: str) -> Any:
    """A command-line option's value, read as YAML.

    Raises:
        BadInput: it isn't any, naming the option.
    """
    try:
        return parse_yaml(text)
    except ValueError as error:
        raise BadInput(f"{option}: {shown(text)} is no YAML value: {error}") from None


def parse_mapping(text: str | None, option: str) -> dict[str, Any] | None:
    """A command-line option that is a YAML or JSON mapping, or a file that holds one.

    Raises:
        BadInput: it is neither, naming the option.
    """
    if text is None:
        return None
    path = Path(text)
    if path.suffix in {".yaml", ".yml", ".json"}:
        try:
            text = read_whole(path, LARGEST, follow=True).decode()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "not UTF-8"
            raise BadInput(f"{option}: {path}: can't be read: {why}") from None
    try:
        value = parse_yaml(text)
    except ValueError:
        value = text
    if not isinstance(value, dict):
        raise BadInput(
            f"{option}: {shown(value)} is no mapping; write '{{option: value}}' or a file"
        )
    return value
