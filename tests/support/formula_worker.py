"""An evaluation worker that scores by a formula of the step, in the worker's own protocol.

Given as ``evals.launcher: [python, formula_worker.py, "{command}"]``: the daemon is then the
product's own, unchanged, and an evaluation costs a tenth of a second instead of half a minute.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mixloop.evals import EvalSettings

SECONDS = 0.1


def _scored(settings: EvalSettings, checkpoint: Path, out: Path) -> None:
    path = Path(__file__).with_name("kill_controller.py")
    spec = importlib.util.spec_from_file_location("kill_controller", path)
    assert spec is not None
    assert spec.loader is not None
    played: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(played)
    evaluator = played.QuickEvaluator(settings, Path(os.devnull))
    evaluator.start(checkpoint, out)
    while (card := evaluator.poll()) is None:
        time.sleep(SECONDS)
    card.model_copy(update={"settings_digest": settings.digest()}).write(out)


def main() -> None:
    settings = EvalSettings.model_validate_json(sys.stdin.readline())
    print(json.dumps({"event": "ready"}), flush=True)  # noqa: T201
    for line in sys.stdin:
        request = json.loads(line)
        _scored(settings, Path(request["checkpoint"]), Path(request["out"]))
        print(json.dumps({"event": "done", "out": request["out"]}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
