"""YAML read strictly: a key given twice is an error, not the last one's."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import yaml

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
