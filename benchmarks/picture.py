"""Seconds from prompt to pixels at full size: 8 steps at cfg 1 with a LoRA of the 8-step kind, a new prompt each time.

The model is written to --model if there is none (35 GB, random weights), and opened once within --budget; its files are
in the page cache. The LoRA has rank 128 on the layers' products, beside the weights and then folded into them.
"""

import json
import statistics
import time

import torch
from on_disk import have_model, model_options
from work import machine, parser

from u1_core.lora.adapter import Adapter
from u1_core.lora.plan import plan_lora
from u1_core.plan.budget import GIB, Budget, enforce
from u1_core.sample.guidance import Guidance
from u1_core.sample.settings import SampleSettings
from u1_core.sample.text_to_image import text_to_image
from u1_core.session import Session

STEPS = 8


def main() -> None:
    options = parser(__doc__)
    model_options(options, "32")
    options.set_defaults(repeats=5)
    args = options.parse_args()
    device, budget = torch.device(args.device), Budget.parse(args.budget)
    have_model(args)
    enforce(budget, device)
    session = Session.open(args.model, args.device, budget=budget)
    adapter = Adapter.create(plan_lora(session.config, "official_r128"), seed=0, device="cpu")
    settings = SampleSettings(args.width, args.height, STEPS, seed=1, guidance=Guidance(1.0))
    found = {"machine": machine(device), "budget": args.budget}
    session.use([adapter])
    found["beside"] = measure_pictures(session, settings, args.repeats)
    session.use([])
    started = now(device)
    session.fold([adapter])
    found["folding_s"] = now(device) - started
    found["folded"] = measure_pictures(session, settings, args.repeats)
    print(json.dumps(found, indent=1))
    if args.json:
        args.json.write_text(json.dumps(found, indent=1), encoding="utf-8")


def measure_pictures(session: Session, settings: SampleSettings, repeats: int) -> dict[str, float]:
    """Median seconds of a picture, and of what comes before its steps, after one that is not counted."""
    torch.cuda.reset_peak_memory_stats(session.device)
    readings = [one_picture(session, settings, number) for number in range(1 + repeats)][1:]
    return {
        "seconds": statistics.median(whole for whole, _ in readings),
        "before_steps_s": statistics.median(before for _, before in readings),
        "reserved_gib": torch.cuda.max_memory_reserved(session.device) / GIB,
    }


def one_picture(session: Session, settings: SampleSettings, number: int) -> tuple[float, float]:
    """Seconds of all, and of what came before the steps: the first step is taken to last as long as the others."""
    done = [now(session.device)]
    text_to_image(session, f"prompt {number}", settings, on_step=lambda step: done.append(now(session.device)))
    steps_s = (done[-1] - done[1]) / (settings.steps - 1) * settings.steps
    return now(session.device) - done[0], done[-1] - done[0] - steps_s


def now(device: torch.device) -> float:
    """The time when all that was asked of the card is done."""
    torch.cuda.synchronize(device)
    return time.perf_counter()


if __name__ == "__main__":
    main()
