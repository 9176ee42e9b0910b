"""Makes `import u1_core` mean the engine that lies beside the nodes, whether or not a copy is installed.

ComfyUI loads a pack by its path and puts nothing on `sys.path`. We leave it so: a pack's folder there would also offer
`nodes`, which is a module of ComfyUI's own, and `tests` or `tools`, which other packs have too.
"""

import importlib.util
import sys
from pathlib import Path

PACK = Path(__file__).resolve().parent.parent


def provide_engine(pack: Path = PACK) -> None:
    """Import `pack`'s u1_core under its own name. Raises RuntimeError if another copy has come first."""
    init = pack / "u1_core" / "__init__.py"
    loaded = sys.modules.get("u1_core")
    if loaded is None:
        spec = importlib.util.spec_from_file_location("u1_core", init)
        module = importlib.util.module_from_spec(spec)
        sys.modules["u1_core"] = module
        spec.loader.exec_module(module)
    elif Path(loaded.__file__).resolve() != init:
        raise RuntimeError(
            f"u1_core is already loaded from {Path(loaded.__file__).parent}, so the nodes in {pack} would run "
            "another version's engine; keep one copy of U1 Style Studio in custom_nodes"
        )
