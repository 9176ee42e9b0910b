"""The folder for what can be made again, on every system."""

import pytest

from u1_core.weights import user_cache
from u1_core.weights.user_cache import cache_folder


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {}, "home/.cache/u1"),
        ("linux", {"XDG_CACHE_HOME": "xdg"}, "xdg/u1"),
        ("darwin", {"XDG_CACHE_HOME": "xdg"}, "home/Library/Caches/u1"),
        ("win32", {"LOCALAPPDATA": "local"}, "local/u1"),
        ("win32", {"LOCALAPPDATA": "local", "U1_CACHE": "mine"}, "mine"),
    ],
)
def test_where_caches_are(tmp_path, monkeypatch, system, variables, expected):
    monkeypatch.setattr(user_cache.sys, "platform", system)
    monkeypatch.setattr(user_cache.Path, "home", lambda: tmp_path / "home")
    for name in ("U1_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, folder in variables.items():
        monkeypatch.setenv(name, str(tmp_path / folder))
    assert cache_folder() == tmp_path / expected
