"""The kernels run in Triton's interpreter where there is no card, on small tensors."""

import importlib.util
import os
import warnings

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
    warnings.warn("Triton is not installed: the kernels are not tested", stacklevel=1)
elif not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
