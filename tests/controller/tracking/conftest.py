"""The one MLflow server of the session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def lab() -> ModuleType:
    """``tests/support/mlflow_lab.py``."""
    path = Path(__file__).parents[2] / "support" / "mlflow_lab.py"
    spec = importlib.util.spec_from_file_location("mlflow_lab", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mlflow_lab"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, lab: Any) -> Iterator[Any]:
    """A real server."""
    server = lab.Server(tmp_path_factory.mktemp("mlflow"))
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="session")
def server(mlflow_server: Any) -> str:
    """Its address."""
    return str(mlflow_server.address)
