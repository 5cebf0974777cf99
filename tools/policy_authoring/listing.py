"""What authors of policies ask: which there are, what they take, whether they conform."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixloop.common.children import kept
from mixloop.common.errors import BadInput
from mixloop.common.types import Json
from mixloop.policies.interface import (
    PolicyError,
    policy_class,
    policy_names,
    policy_options_schema,
    policy_origin,
)

if TYPE_CHECKING:
    from rich.table import Table

    from mixloop.policies.testing import SampleNames, Subject


MEMORY = 8192  # MiB that the other process may use: room for torch
TIMEOUT = 120  # seconds it may take


def listing() -> list[Json]:
    """Every built-in and installed policy: name, where it comes from, what it does in a line."""
    policies = []
    for name in policy_names():
        try:
            about = _about(policy_class(name)).partition("\n")[0]
        except PolicyError as error:
            about = f"can't be used: {error}"
        policies.append({"name": name, "origin": policy_origin(name), "about": about})
    return policies


def listing_table(policies: list[Json]) -> Table:
    """The listing for people."""
    from mixloop.controller import views

    table = views.table("Policies", ("name", "from", "what it does"))
    for policy in policies:
        table.add_row(*(views.cell(policy[key]) for key in ("name", "origin", "about")))
    return table


def description(ref: str) -> Json:
    """A policy's name, origin, docstring and the schema of its options.

    Raises:
        BadInput: when there is no such policy.
    """
    try:
        cls = policy_class(ref)
        schema = policy_options_schema(ref)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    return {"name": ref, "origin": policy_origin(ref), "about": _about(cls), "schema": schema}


def _about(cls: type[Any]) -> str:
    return inspect.cleandoc(cls.__doc__ or "(no docstring)")


# --- options ----------------------------------------------------------------------------------


def option_tables(schema: Json) -> Iterator[tuple[str, Table]]:
    """A text and a table for the options, and for every model that one of them is made of."""
    yield _described("Options", schema), _option_table(schema)
    for name, model in schema.get("$defs", {}).items():
        if "properties" in model:
            yield _described(name, model), _option_table(model)


def _described(title: str, model: Json) -> str:
    about = str(model.get("description", "")).replace("``", "`")
    return f"{title}: {' '.join(about.split())}" if about else title


def _option_table(model: Json) -> Table:
    from mixloop.controller import views

    properties, required = model.get("properties", {}), model.get("required", [])
    columns = ["option", "type", "default"]
    if any("description" in spec for spec in properties.values()):
        columns.append("description")
    table = views.table("", columns)
    for name, spec in properties.items():
        default = json.dumps(spec["default"]) if "default" in spec else ""
        shown = "required" if name in required else default
        row = (name, type_in_words(spec), shown, spec.get("description", ""))
        table.add_row(*map(views.cell, row[: len(columns)]))
    if not properties:
        table.add_row("(none)", "", "")
    return table


def type_in_words(spec: Json) -> str:
    """A JSON schema's type as people say it: ``number above 0, at most 1``.

    >>> type_in_words({"type": "array", "items": {"type": "string"}})
    'list of string'
    """
    if "$ref" in spec:
        return str(spec["$ref"]).rpartition("/")[2]
    if "enum" in spec or "const" in spec:
        return " | ".join(json.dumps(value) for value in spec.get("enum", [spec.get("const")]))
    for key in ("anyOf", "oneOf"):
        if key in spec:
            return " or ".join(map(type_in_words, spec[key]))
    kind = spec.get("type", "any")
    if kind == "array":
        return f"list of {type_in_words(spec.get('items', {}))}"
    if kind == "object" and isinstance(spec.get("additionalProperties"), dict):
        return f"mapping to {type_in_words(spec['additionalProperties'])}"
    return ", ".join([str(kind), *_bounds(spec)]).replace(", ", " ", 1)


def _bounds(spec: Json) -> list[str]:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "exclusiveMaximum": "below",
        "maximum": "at most",
    }
    return [f"{word} {spec[key]:g}" for key, word in words.items() if key in spec]


# --- conformance ------------------------------------------------------------------------------


def conformance(ref: str | None, options: Json | None, config: Path | None) -> Json:
    """The suite's report on a policy, and whether another process agrees.

    Args:
        ref: the policy; None: the configuration's.
        options: its own; None: the configuration's where it is its policy, else none.
        config: a run.yaml, for the names of sources and benchmarks.

    Raises:
        BadInput: when the policy, its options or the configuration can't be used.
    """
    from mixloop.policies.testing import report, subject

    names, configured, its_options = _from_config(config)
    use = ref or configured
    base = config.parent if config is not None and ref is None else Path()
    if options is None:
        options = its_options if use == configured else {}
    try:
        tested = subject(use, options, base=base, names=names)
        suite = report(tested)
    except PolicyError as error:
        raise BadInput(str(error)) from None
    checks = [asdict(result) for result in suite.results]
    checks.append(_another_process(use, options, base, tested))
    return {
        "policy": use,
        "passed": all(check["passed"] for check in checks),
        "checks": checks,
        "slowest": {"seconds": suite.slowest, "situation": suite.slowest_in},
        "not_for": dict(suite.not_for),
    }


def _from_config(path: Path | None) -> tuple[SampleNames, str, Json]:
    """Names of sources and benchmarks, the policy and its options."""
    from mixloop.policies.testing import ORDINARY, SampleNames

    if path is None:
        return ORDINARY, "", {}
    from mixloop.controller.config import load_config

    config = load_config(path)
    tags = {name: source.tags for name, source in config.sources.items()}
    benchmarks = [name for name in config.evals.benchmarks if name not in config.evals.watch]
    return SampleNames(tags, benchmarks), config.policy.use, dict(config.policy.options)


def _another_process(use: str, options: Json, base: Path, tested: Subject) -> Json:
    """Whether a process with another hash seed decides the same: sets and hashes are no order."""
    situation = "an ordinary run"
    request = {
        "ref": use,
        "options": options,
        "base": str(base.resolve()),
        "memory": MEMORY,
        "observation": tested.observation(situation).model_dump(mode="json"),
    }
    done = subprocess.run(
        kept([sys.executable, "-m", "mixloop.controller.decisions.policy_process"]),
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONHASHSEED": "271828"},
    )
    detail = _disagreement(done.stdout, tested.answer(situation).reply)
    title = "another process answers alike"
    return {"name": "process", "title": title, "passed": not detail, "detail": detail}


def _disagreement(output: str, reply: Any) -> str:
    try:
        answer = json.loads(output)
    except ValueError:
        return "the process gave no answer"
    payload: Mapping[str, Any] = answer["payload"]
    if answer["kind"] == "failed":
        return f"it failed there: {payload['reason']}"
    here = json.loads(reply.model_dump_json()) if hasattr(reply, "model_dump_json") else {}
    different = [key for key, value in payload.items() if here.get(key) != value]
    return f"its {', '.join(different)} differ there" if different else ""


def report_table(report: Json) -> Table:
    """The checks and what they found."""
    from mixloop.common import text
    from mixloop.controller import views

    table = views.table(f"Conformance of {text.clean(report['policy'])}", ("check", "", "found"))
    for check in report["checks"]:
        outcome = "ok" if check["passed"] else "FAILED"
        table.add_row(views.cell(check["title"]), outcome, views.cell(check["detail"]))
    return table


def report_lines(report: Json) -> Iterator[str]:
    """What stands below the table."""
    from mixloop.policies.testing import SLOW

    for situation, why in report["not_for"].items():
        yield f"not tried in {situation}: {why}"
    slowest = report["slowest"]
    late = f", above {1000 * SLOW:.0f} ms" if slowest["seconds"] > SLOW else ""
    milliseconds = 1000 * slowest["seconds"]
    yield f"slowest decision: {milliseconds:.1f} ms{late} ({slowest['situation']})"
    failed = sum(not check["passed"] for check in report["checks"])
    count = len(report["checks"])
    yield f"{failed} of {count} checks failed" if failed else f"all {count} checks passed"
