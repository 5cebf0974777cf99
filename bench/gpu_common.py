"""What the parts of `bench/gpu.py` share: text, token stores, the command, and the tables."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mixloop.trainer.prepare import prepare
from mixloop.trainer.sources import train_tokenizer

COMMAND = (sys.executable, "-m", "mixloop.cli.app")


def own_environment() -> dict[str, str]:
    """For commands as a user starts them: with this bench's thread limits gone."""
    return {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}


def mixloop(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The `mixloop` command, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], env=own_environment(), capture_output=True, text=True,
        check=False, **options,
    )  # fmt: skip


def unless(**checks: bool) -> list[str]:
    """The names of the checks that did not hold."""
    return [name.replace("_", " ") for name, held in checks.items() if not held]


def audit(run: Path) -> dict[str, Any]:
    """What `mixloop audit` says.

    Raises:
        RuntimeError: it could not be carried out.
    """
    done = mixloop("audit", str(run), "--json")
    if done.returncode not in (0, 1):
        raise RuntimeError(f"mixloop audit: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    return {
        "consistent": found["ok"] and done.returncode == 0,
        "steps": found["step"],
        "ledgers": len(found["ledgers"]),
        "segments": len(found["segments"]),
        "findings": found["findings"][:3],
    }


def _documents(quick: bool) -> Iterator[tuple[str, str]]:
    """(source, text): the standard library's code and docstrings, and sums."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    files = [one for one in files if "site-packages" not in one.parts and "test" not in one.parts]
    for file in files[: 80 if quick else 700]:
        source = file.read_text("utf-8", errors="ignore")
        yield "code", source
        try:
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, ValueError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        yield "prose", "\n\n".join(doc for doc in docs if doc and len(doc) > 80)
    draw = random.Random(0)
    for _ in range(200 if quick else 8000):
        lines = []
        for _ in range(16):
            a, b = draw.randrange(1000), draw.randrange(1000)
            lines.append(f"{a} plus {b} is {a + b}, and {a} times {b} is {a * b}.")
        yield "sums", "\n".join(lines)


def make_corpus(folder: Path, quick: bool) -> dict[str, Path]:
    """Token stores of three sources, with a tokenizer beside them; made once."""
    names = ("code", "prose", "sums")
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        texts: dict[str, list[str]] = {name: [] for name in names}
        for name, text in _documents(quick):
            if text.strip():
                texts[name].append(text)
        every = [text for own in texts.values() for text in own[::3]]
        tokenizer = train_tokenizer(every, folder / "tokenizer", 1024 if quick else 16_384)
        for name, own in texts.items():
            file = folder / f"{name}.jsonl"
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in own))
            prepare([str(file)], folder / name, str(tokenizer))
        (folder / "done").touch()
    return {name: folder / name for name in names}


# --- tables ----------------------------------------------------------------------------------


def _row(cells: Sequence[Any]) -> None:
    shown = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("| " + " | ".join(shown) + " |")


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    print()
    _row(columns)
    print("|" + "---|" * len(columns))
    for row in rows:
        _row(row)


def report(result: dict[str, Any]) -> None:
    """The figures in Markdown."""
    print("\n" + ", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    parts = result["parts"]
    if (variants := parts.get("feed", {}).get("variants")) is not None:
        columns = ("fed by", "ms a step", "lost", "ms, waiting each step", "lost", "ms to draw")
        keys = ("name", "ms", "lost", "ms_waiting", "lost_waiting", "draw_ms")
        _table(columns, [[one[key] for key in keys] for one in variants])
    for dtype in ("bfloat16", "float32"):
        if (rows := parts.get("evals", {}).get(dtype, {}).get("rows")) is not None:
            columns = ("benchmark", "items", "hf s", "ours s", "ratio", "tokens: hf", "ours",
                       "ours a pass", "log-likelihoods apart", "differing outcomes")  # fmt: skip
            keys = ("benchmark", "items", "stock_s", "ours_s", "ratio", "stock_tokens",
                    "ours_tokens", "tokens_a_pass", "difference", "outcomes_different")  # fmt: skip
            print(f"\n{dtype}:")
            _table(columns, [[row[key] for key in keys] for row in rows])
    for name, part in parts.items():
        hidden = ("variants", "bfloat16", "float32", "failed", "seconds")
        said = {key: value for key, value in part.items() if key not in hidden}
        outcome = f"FAILED: {part['failed']}" if "failed" in part else "as it should be"
        print(f"\n{name}: {outcome}, {part['seconds']} s")
        for key, value in said.items():
            print(f"  {key}: {json.dumps(value)}")
