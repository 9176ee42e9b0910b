"""Makes `tools` importable however the tests are started; appended, so that it stands in nobody's way."""

import sys
from pathlib import Path

ROOT = str(Path(__file__).resolve().parents[2])
if ROOT not in sys.path:
    sys.path.append(ROOT)
