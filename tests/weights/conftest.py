"""Tiny random checkpoints of every kind, written once."""

import warnings
from pathlib import Path

import pytest

from u1_core.weights.tiny import KINDS, write_tiny_model


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A tiny snapshot folder of each kind, in fp32. Read only: copy one to change it."""
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        write_tiny_model(root / kind, kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def shared() -> Path:
    """The folder of facts beside the checkout: configs and shapes of the released models, oracle models."""
    folder = Path(__file__).resolve().parents[3] / "shared"
    if not folder.is_dir():
        warnings.warn(f"{folder} is missing: checks against the released models' facts are SKIPPED", stacklevel=1)
        pytest.skip(f"{folder} is missing")
    return folder
