import os
import platform
import sys

import pytest

from u1_core.weights import host_memory
from u1_core.weights.host_memory import host_memory_bytes, pin_limit_bytes

GIB = 2**30


@pytest.fixture
def container(monkeypatch, tmp_path):
    """Text or None -> a container that tells its limit so."""

    def make(text: str | None) -> None:
        path = tmp_path / "memory.max"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text, encoding="ascii")
        monkeypatch.setattr(host_memory, "_CGROUP_LIMITS", (str(path),))

    return make


@pytest.fixture
def machine(monkeypatch, container):
    """A machine of 32 GiB, in no container."""
    container(None)
    monkeypatch.setattr(host_memory, "_physical_bytes", lambda: 32 * GIB)


@pytest.mark.skipif(sys.platform == "win32", reason="asks Linux for the same")
def test_the_machines_own_memory(container):
    container("max\n")
    assert host_memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") > GIB // 2


@pytest.mark.parametrize(
    ("text", "expected"), [(None, 32), ("max\n", 32), (f"{8 * GIB}\n", 8), (f"{2**63 - 4096}\n", 32)]
)
def test_a_container_may_have_less(machine, container, text, expected):
    container(text)
    assert host_memory_bytes() == expected * GIB
    assert pin_limit_bytes() == expected * GIB


@pytest.mark.parametrize(("system", "release"), [("win32", "11"), ("linux", "5.15.90.1-microsoft-standard-WSL2")])
def test_windows_locks_half(machine, monkeypatch, system, release):
    monkeypatch.setattr(host_memory.sys, "platform", system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert pin_limit_bytes() == 16 * GIB
