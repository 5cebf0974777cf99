"""Run files read strictly: a key given twice is an error, not the last one's."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import yaml

from .errors import BadInput
from .files import LARGEST


class _UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, typing.Hashable):
                if key in keys:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key}' is given twice (line {line})"
                    )
                keys.add(key)
        return super().construct_mapping(node, deep=deep)


def read_sections(path: Path) -> dict[str, Any]:
    """The sections of a run file, not yet validated.

    Raises:
        BadInput: one line naming the file and the place: it can't be read, is no YAML or no
            mapping, or is larger than any run file (YAML takes seconds a megabyte).
    """
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"larger than {LARGEST:,} bytes; is this a run file?")
        sections = yaml.load(data.decode("utf-8"), _UniqueKeys)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be read ({error.strerror or error}); `mixloop init` writes a template"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        raise BadInput(f"{path}: not valid YAML: {_problem(error)}") from error
    if not isinstance(sections, dict):
        raise BadInput(f"{path}: must be a mapping of sections (run, budget, sources, …)")
    return sections


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
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
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise BadInput(f"{option}: {text!r} is no YAML value") from None


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
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise BadInput(f"{option}: {path}: can't be read: {error.strerror}") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if not isinstance(value, dict):
        raise BadInput(f"{option}: {value!r} is no mapping; write '{{option: value}}' or a file")
    return value
