"""YAML read strictly: a key given twice is an error, not the last one's."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import yaml

from .errors import BadInput
from .files import LARGEST


class UniqueKeys(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, where plain YAML would keep the last in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, typing.Hashable):
                if key in seen:
                    line = key_node.start_mark.line + 1
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key '{key}' is given twice (line {line})"
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def read_text(path: Path) -> str:
    """A run file's text.

    Raises:
        OSError: it can't be read.
        ValueError: it is no UTF-8, or larger than any run file: YAML takes seconds a megabyte.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST:,} bytes; is this a run file?")
    return data.decode("utf-8")


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
