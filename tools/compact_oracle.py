"""Pack the oracle folders so small that the repository can carry them: tests/oracle/{dense,moe,u15}.tar.xz.

    python tools/compact_oracle.py ../shared/oracle tests/oracle

What is kept of each folder is `CASES`: every kind of case, and of the like ones the hardest. Tensors stay as they are,
but those that repeat others (`LEFT_OUT`) go. `tests/conftest.py` unpacks, `u1 parity` runs on the outcome.
"""

import argparse
import io
import json
import lzma
import re
import tarfile
from pathlib import Path

from safetensors.torch import load_file, save

BASE = ("prefix_cond", "prefix_uncond", "vision_understanding", "understand", "interleave_dual_cfg", "train_step")
CASES = {
    "dense": (
        *BASE,
        "gen_step",
        "t2i_cfg4",
        "t2i_channel",
        "t2i_cfg_zero_star",
        "t2i_think",
        "edit_dual_cfg",
        "edit_two_images",
    ),
    "moe": (*BASE, "t2i_cfg4", "edit_dual_cfg"),
    "u15": BASE,
}
LEFT_OUT = {
    "prefix_cond": r"hidden|[kv]\.[01]",  # the last layer's K and V stand on the others'
    "gen_step": r"z_patches",  # the noisy image again
    "edit_.*|t2i_(?!cfg4).*": r"initial_noise",  # t2i_cfg4 has it
}
COMPRESSION = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 2, "lp": 2, "pb": 2}
"""lp and pb: a number's bytes are coded each by what stands at its place in a group of four. Saves 7%."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="folder of the whole oracle folders")
    parser.add_argument("target", type=Path, help="folder for the archives")
    args = parser.parse_args()
    args.target.mkdir(parents=True, exist_ok=True)
    for kind, cases in CASES.items():
        path = args.target / f"{kind}.tar.xz"
        with lzma.open(path, "wb", filters=[COMPRESSION]) as packed:
            pack(args.source / kind, cases, packed)
        print(f"{path}: {path.stat().st_size:,} bytes")


def pack(folder: Path, cases: tuple[str, ...], packed: lzma.LZMAFile) -> None:
    """Write a tar of the folder, cut down to these cases. The same folder gives the same bytes."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    manifest["cases"] = {name: manifest["cases"][name] for name in cases}
    files = {"manifest.json": json.dumps(manifest, indent=1, ensure_ascii=False).encode()}
    for name, case in manifest["cases"].items():
        files[f"{name}.safetensors"] = reduced(folder / f"{name}.safetensors")
        beside = [
            *(case["images"] if isinstance(case.get("images"), list) else ()),
            case.get("image"),
            case.get("lora"),
        ]
        files |= {other: (folder / other).read_bytes() for other in beside if other}
    files |= {f"model/{path.name}": path.read_bytes() for path in (folder / "model").iterdir()}
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(f"{folder.name}/{name}")
            entry.size = len(files[name])
            archive.addfile(entry, io.BytesIO(files[name]))


def reduced(path: Path) -> bytes:
    """A case's safetensors file without what `LEFT_OUT` names."""
    tensors = load_file(path)
    for case, names in LEFT_OUT.items():
        if re.fullmatch(case, path.stem):
            tensors = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(names, name)}
    return save(tensors)


if __name__ == "__main__":
    main()
