"""What every test runs under: no network, one thread per numerical library."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # started in the background of a shell without job control: what is started from here would
    # not hear of a Ctrl-C either
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def played_run() -> ModuleType:
    """``tests/support/played_run.py``: a controller and a trainer of files in one process."""
    path = Path(__file__).parent / "support" / "played_run.py"
    spec = importlib.util.spec_from_file_location("played_run", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sound_journal(tmp_path_factory: pytest.TempPathFactory, played_run: ModuleType) -> Path:
    """The journal of a played run with decisions, orders and a request; to be copied."""
    folder = tmp_path_factory.mktemp("sound")
    from mixloop.controller.loop import scoring

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
        run = played_run.Run(played_run.make_run(folder))
        run.train(10)
        run.tell("set", "code=0.2")
        assert run.history()
        run.controller.close()
    path: Path = run.paths.journal
    return path


def write_windows(folder: Path, base: int, samples: int, length: int, history: Any = ()) -> Path:
    """A token store whose windows begin with ``base + index``; `history`: what it was before."""
    import numpy as np

    from mixloop.trainer.sources import StoreInfo

    folder.mkdir(parents=True, exist_ok=True)
    tokens = np.zeros((samples, length), "<u2")
    tokens[:, 0] = base + np.arange(samples)
    tokens.tofile(folder / "tokens.bin")
    fingerprint = f"sha256:{folder.name}-{samples}"
    info = StoreInfo(tokens.size, 1, "uint16", 2**16, "t", fingerprint, 0, history)
    (folder / "store.json").write_text(json.dumps(info.to_json()))
    return folder


@pytest.fixture(scope="session")
def windows() -> Any:
    """:func:`write_windows`."""
    return write_windows


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played_run: ModuleType) -> Iterator[Any]:
    """Starts a played run; keywords are sections of its run.yaml."""
    from mixloop.controller.loop import scoring

    monkeypatch.setattr(scoring, "Evaluator", played_run.QuickEvaluator)
    with contextlib.ExitStack() as stack:

        def start(**changed: Any) -> Any:
            run = played_run.Run(played_run.make_run(tmp_path, **changed))

            def close() -> None:
                run.controller.close()  # whichever it has by then

            stack.callback(close)
            return run

        yield start
