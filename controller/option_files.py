"""Policy options that lie in a file: ``prior: {from: search/prior.json}``.

Policies do no I/O, so the controller reads the file when it reads run.yaml, and the policy gets
what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixloop.controller.errors import BadInput


def resolve(options: Mapping[str, Any], base: Path, where: str = "policy.with") -> dict[str, Any]:
    """The options with every ``{from: FILE.json}`` replaced by that file's content.

    Only a mapping of that single key, whose value ends in ``.json``, is such a reference.

    Raises:
        BadInput: a file that can't be read or is no JSON.
    """
    return {key: _resolved(value, base, f"{where}.{key}") for key, value in options.items()}


def _resolved(value: Any, base: Path, where: str) -> Any:
    if isinstance(value, list):
        return [_resolved(one, base, f"{where}.{i}") for i, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    file = value.get("from")
    if len(value) == 1 and isinstance(file, str) and file.endswith(".json"):
        return _read(base / Path(file).expanduser(), where)
    return resolve(value, base, where)


def _read(path: Path, where: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(
            f"{where}.from: {path}: cannot be read ({error.strerror}); give a JSON file, such as "
            "the prior.json of a `mixloop search`"
        ) from None
    except ValueError as error:
        raise BadInput(f"{where}.from: {path}: not JSON: {error}") from None
