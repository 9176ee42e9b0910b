"""From the start of `u1 train` to its first step at full size, against plain reading of the bytes that it needs.

The model is written to --model if there is none (35 GB, random weights). A first run has the planner measure the card,
which it does once for a machine. Then the page cache forgets the model (on Linux), and the two towers' bytes are read
with nothing done to them. Runs with nothing kept from earlier ones are watched, when their first step begins and the
memory of their process meanwhile: with the files in the page cache; --repeats times with the model to be read from the
disk; once with everything, PyTorch too, to be read from it (as root). Validation and previews, which by default look at
the base model before the first step, are off.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from on_disk import forget_all_files, forget_files, have_model, model_options, write_pictures
from work import machine, parser

from u1_core.plan.budget import GIB
from u1_core.weights.reading import READERS
from u1_core.weights.snapshot import Snapshot

POLL_S = 0.02


def main() -> None:
    options = parser(__doc__)
    model_options(options, "12GiB")
    options.add_argument("--captions", type=int, default=56)
    options.set_defaults(repeats=3)
    args = options.parse_args()
    device = torch.device(args.device)
    have_model(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", args.captions, 1024)
        found: dict[str, Any] = {"machine": machine(device), "budget": args.budget}
        found["first_ever"] = watch(args, folder, "warm", steps=1)
        print(f"first run on this machine: first step after {found['first_ever']['first_step_s']:.1f} s", flush=True)
        found["files_in_page_cache"] = watch(args, folder, "cached", steps=3)
        found["model_forgotten"] = forget_files(args.model)
        found["plain_reading"] = read_plainly(args.model)
        found["runs"] = []
        for number in range(args.repeats):
            forget_files(args.model)
            found["runs"].append(watch(args, folder, f"cold{number}", steps=3))
        found["everything_forgotten"] = forget_all_files()
        found["run_with_everything_forgotten"] = watch(args, folder, "bare", steps=3)
    first_step_s = statistics.median(run["first_step_s"] for run in found["runs"])
    found["ratio"] = first_step_s / found["plain_reading"]["seconds"]
    print(json.dumps(found))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def read_plainly(model: Path) -> dict[str, float]:
    """Seconds to read both towers' bytes, as quickly as several threads can, into memory that is there already."""
    snapshot, local = Snapshot.open(model), threading.local()
    entries = [
        entry for name, entry in snapshot.tensors.items() if "embed_tokens" not in name and "lm_head" not in name
    ]
    entries.sort(key=lambda entry: (entry.file, entry.start))
    headers = {file: 8 + int.from_bytes(file.open("rb").read(8), "little") for file in {each.file for each in entries}}
    largest = max(entry.n_bytes for entry in entries)

    def read(entry: Any) -> int:
        if not hasattr(local, "place"):
            local.place = memoryview(bytearray(largest))
        with entry.file.open("rb", buffering=0) as file:
            file.seek(headers[entry.file] + entry.start)
            done = 0
            while done < entry.n_bytes:
                done += file.readinto(local.place[done : entry.n_bytes])
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(READERS) as readers:
        n_bytes = sum(readers.map(read, entries))
    seconds = time.perf_counter() - started
    return {"bytes": n_bytes, "seconds": seconds, "gb_per_s": n_bytes / seconds / 1e9}


def watch(args: Any, folder: Path, name: str, steps: int) -> dict[str, Any]:
    """Run `u1 train` for a few steps; when the first began, and the process's memory over time."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(recipe_text(args, folder, name, steps), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        "from u1_core.cli.main import main; raise SystemExit(main())",
        "train",
        str(recipe),
    ]
    environment = {**os.environ, "U1_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    log, lines, memory = folder / "runs" / name / "log.jsonl", [], []
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    listener = threading.Thread(target=lambda: lines.extend((passed(), line.rstrip()) for line in process.stderr))

    def passed() -> float:
        return round(time.perf_counter() - started, 2)

    listener.start()
    first = None
    while process.poll() is None:
        if first is None and (record := first_record(log)):
            first = time.perf_counter() - started - record["seconds"]
        memory.append((passed(), *resident_gib(process.pid)))
        time.sleep(POLL_S)
    listener.join()
    if process.returncode or first is None:
        raise SystemExit("\n".join(line for _, line in lines))
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    shutil.rmtree(folder / "runs" / name)
    return {
        "first_step_s": first,
        "step_s": [record["seconds"] for record in records if "seconds" in record],
        "losses": [record["loss"] for record in records if "loss" in record],
        "peak_resident_gib": max(total for _, total, _ in memory),
        "resident_gib_while_training": memory[-1 - min(len(memory) - 1, 25)][1],
        "lines": lines,
        "memory": memory[:: max(1, len(memory) // 100)],
    }


def recipe_text(args: Any, folder: Path, name: str, steps: int) -> str:
    return json.dumps(  # which is YAML
        {
            "run_name": name,
            "model": str(args.model),
            "data": {"data_dir": str(folder / "pictures"), "cap_max_pixels": args.width * args.height},
            "train": {"steps": steps, "checkpoint_every": 0, "cond_dropout_text": 0.1},
            "runtime": {
                "out_dir": str(folder / "runs"),
                "budget": args.budget,
                "prefix_dir": str(folder / f"prefixes-{name}"),
                "device": args.device,
            },
            "validation": {"every": 0},
            "previews": {"every": 0},
        }
    )


def first_record(log: Path) -> dict[str, Any] | None:
    """The first step's line of a run's log, if it is there."""
    if not log.is_file():
        return None
    records = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return next((record for record in records if record.get("step") == 1 and "loss" in record), None)


def resident_gib(pid: int) -> tuple[float, float]:
    """GiB of the process in memory: all, and of that what is no file's."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0, 0.0
    values = {key: rest.split() for key, _, rest in (line.partition(":") for line in lines)}
    total, own = (int(values[key][0]) * 1024 / GIB if key in values else 0.0 for key in ("VmRSS", "RssAnon"))
    return total, own


if __name__ == "__main__":
    main()
