"""Where this user's caches of ours are: things that can be made again."""

import os
import sys
from pathlib import Path

CACHE_VARIABLE = "U1_CACHE"
"""Environment variable naming the folder in place of the system's own for caches."""


def cache_folder() -> Path:
    """What U1_CACHE names, or a folder of ours in this system's folder for what can be made again."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return Path(chosen).expanduser()
    home = Path.home()
    known = {"win32": os.environ.get("LOCALAPPDATA", home / "AppData/Local"), "darwin": home / "Library/Caches"}
    return Path(known.get(sys.platform, os.environ.get("XDG_CACHE_HOME") or home / ".cache")) / "u1"
