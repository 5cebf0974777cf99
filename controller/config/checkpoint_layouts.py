"""Where checkpoints lie and how whole ones are told: our trainer's, and those of others.

Others keep the mixture a checkpoint was trained on in `mixloop.json`, written last
(`MixtureLoader.mark_checkpoint`). Weights are read from safetensors alone, never from a pickle.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mixloop.common.files import LARGEST_JSON, read_json
from mixloop.common.json_records import Problem, ReadResult
from mixloop.contract import MANIFEST_FILE, Manifest, read_manifest
from mixloop.trainer.loader import SAVED_FILE, read_saved_manifest

LayoutName = Literal["mixloop", "hf-trainer", "torchtitan"]

_NAMES = {
    "mixloop": re.compile(r"step-(\d{8,})"),
    "hf-trainer": re.compile(r"checkpoint-(\d+)"),
    "torchtitan": re.compile(r"step-(\d+)"),
}


@dataclass(frozen=True)
class Layout:
    """One run's checkpoints: ``folder`` holds one folder per checkpoint."""

    name: LayoutName
    folder: Path

    def step(self, name: str) -> int | None:
        """The step that a folder's name says, or None for a folder of something else."""
        match = _NAMES[self.name].fullmatch(name)
        return int(match[1]) if match else None

    def manifest(self, name: str) -> Manifest | None:
        """What a checkpoint says of itself; None while it is not whole."""
        return self.find(name).value

    def find(self, name: str) -> ReadResult[Manifest]:
        """What a checkpoint says of itself, nothing while it is not whole, or what is wrong."""
        path = self.folder / name
        if self.name == "mixloop":
            return read_manifest(path)
        result = read_saved_manifest(path)
        manifest = result.value
        if manifest is None:
            return result
        if manifest.step != self.step(name):
            wrong = f"step is {manifest.step}: must be {self.step(name)}, as its folder says"
            return ReadResult(problem=Problem("step", wrong))
        return ReadResult() if _lack(path) else result

    def lack(self, name: str) -> str:
        """What keeps a folder from being a whole checkpoint; empty for one that is."""
        result = self.find(name)
        if result.value is not None:
            return ""
        file = self.file(name)
        if result.problem is not None:
            return f"{file.name}: {result.problem.text}"
        model = "" if self.name == "mixloop" else _lack(file.parent)
        return model or f"no {file.name}"

    def file(self, name: str) -> Path:
        """The file that says it."""
        return self.folder / name / (MANIFEST_FILE if self.name == "mixloop" else SAVED_FILE)


def _lack(path: Path) -> str:
    """What a model can't be loaded from there without: its configuration or safetensors."""
    try:
        if not (path / "config.json").is_file():
            return "no config.json"
        index = path / "model.safetensors.index.json"
        if not index.is_file():
            return "" if any(path.glob("*.safetensors")) else "no weights in safetensors"
        shards = set(read_json(index, LARGEST_JSON, follow=True)["weight_map"].values())
        whole = (Path(shard).name == shard and (path / shard).is_file() for shard in shards)
        return "" if shards and all(whole) else "weights that their index names are missing"
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "an unreadable index of weights"


def layout_of(config: Any, checkpoints: Path) -> Layout:
    """The layout of a run; ``checkpoints`` is the run's own folder of them."""
    section = config.checkpoints
    return Layout(section.layout, section.dir or checkpoints)
