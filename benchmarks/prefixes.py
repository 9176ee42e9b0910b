"""Seconds and bytes of captions' prefix K/V at full size, the understanding tower streamed from its files.

The model is written to --model if there is none (35 GB, random weights). Its files are in the page cache for the
counted repeats: the first, uncounted, puts them there. Also measured is what keeping the K/V on disk costs, and reading
it back in the next session.
"""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from on_disk import have_model, model_options, write_pictures
from work import machine, parser

from u1_core.data.folder import Sample
from u1_core.plan.budget import GIB, Budget, enforce
from u1_core.session import Session
from u1_core.train.prefixes import CaptionPrefixes, CaptionSequences, build_caption_prefixes
from u1_core.train.recipe import Recipe, Runtime


def main() -> None:
    options = parser(__doc__)
    model_options(options, "6")
    options.add_argument("--captions", type=int, default=56)
    options.set_defaults(repeats=3)
    args = options.parse_args()
    device, budget = torch.device(args.device), Budget.parse(args.budget)
    have_model(args)
    enforce(budget, device)
    session = Session.open(args.model, args.device, budget=budget)
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder) / "pictures", args.captions, 64)
        texts = [file.read_text(encoding="utf-8") for file in sorted((Path(folder) / "pictures").glob("*.txt"))]
        sequences = CaptionSequences(
            session.tokenizer, Recipe(), [Sample(f"{number}", None, text) for number, text in enumerate(texts)]
        )
        first, *seconds = (build(session, sequences, Runtime(prefix_disk_mb=0))[0] for _ in range(1 + args.repeats))
        torch.cuda.reset_peak_memory_stats(device)
        last, built = build(session, sequences, Runtime(prefix_disk_mb=0))
        peak = torch.cuda.max_memory_reserved(device)
        kept = Runtime(prefix_dir=f"{folder}/kept")
        writing, reading = (build(session, sequences, kept)[0] for _ in range(2))
    tokens = [prefix.tokens for prefix in built.captions]
    found = {
        "machine": machine(device),
        "captions": len(tokens),
        "tokens": statistics.mean(tokens),
        "shared_tokens": len(sequences.head()),
        "first_s": first,
        "seconds": statistics.median([*seconds, last]),
        "kept_bytes": built.n_bytes,
        "peak_reserved_gib": peak / GIB,
        "built_and_written_s": writing,
        "read_back_s": reading,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def build(session: Session, sequences: CaptionSequences, runtime: Runtime) -> tuple[float, CaptionPrefixes]:
    """Seconds until all K/V is at hand, and it."""
    started = time.perf_counter()
    built = build_caption_prefixes(session, Recipe(runtime=runtime), sequences)
    torch.cuda.synchronize(session.device)
    return time.perf_counter() - started, built


if __name__ == "__main__":
    main()
