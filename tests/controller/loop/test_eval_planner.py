"""What the controller tells its evaluations of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mixloop.common.tokenizing import TokenProbe


def test_evaluations_know_what_the_data_was_tokenised_with(played_run: Any, tmp_path: Path) -> None:
    path = played_run.make_run(tmp_path)
    probe = TokenProbe("0" * 64, (5, 3, 1))
    header = tmp_path / "code" / "store.json"
    header.write_text(json.dumps(json.loads(header.read_text()) | {"probe": probe.to_json()}))
    controller = played_run.Run(path).controller
    try:
        assert controller.scoring.planner.settings.trained_probe == probe
    finally:
        controller.close()
