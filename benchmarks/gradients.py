"""Gradients at real layer size: every rung of the ladder, streamed and resident, against plain autograd.

Some layers of the full width at the full number of tokens, in bf16. The noise floor is what two runs of plain autograd
over resident layers differ by (the attention's backward adds up in no fixed order). Streamed runs are made harder than
life: slots are filled with NaN before each copy, copies are slow in one run and the arithmetic in another. Each line
gives the relative L2 difference of all low-rank gradients together, and the worst of a single tensor.
"""

import json
from dataclasses import replace

import torch
from torch import Tensor
from work import Training, machine, model_config, parser

from u1_core.model.config import GENERATION
from u1_core.model.stack import Keep
from u1_core.model.views import Generation
from u1_core.plan.gradient_test import TOLERANCE, Hostile, Late, difference
from u1_core.train.recipe import Recipe
from u1_core.weights.arena import Arena
from u1_core.weights.copies import CudaCopies
from u1_core.weights.layout import layer_views
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.ring import StreamedLayers
from u1_core.weights.store import load_generation


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--slots", type=int, nargs="*", default=[1, 2, 3])
    args = options.parse_args()
    device = torch.device(args.device)
    config = replace(model_config(args), layers=args.layers)
    source = RandomWeights(config, device=device)
    ends = load_generation(source, device, torch.bfloat16, resident=False)
    arena, pageable = (Arena(config, GENERATION, range(config.layers), torch.bfloat16) for _ in range(2))
    arena.fill(source, pin=True)
    pageable.fill(source)
    resident = [layer_views(config, GENERATION, i, arena.layer(i).to(device)) for i in range(config.layers)]
    plain = replace(ends, layers=resident)
    training = Training.create(config, ends, replace(Recipe(), unfreeze=()))
    for module in training.adapter.modules.values():
        torch.nn.init.normal_(module.up.data, std=0.01)  # at zero, half of the gradients would be
    turns = training.passes(2, args.width, args.height, device)

    def ring(slots: int, kind: type[CudaCopies], memory: Arena = arena) -> Generation:
        return replace(ends, layers=StreamedLayers(memory, {}, slots, device, lambda made: kind(device, made)))

    def run(weights: Generation, keep: Keep, pictures: int = 1) -> list[Tensor]:
        training.add_gradients(weights, turns[:pictures], [keep] * config.layers)
        found = [parameter.grad for parameter in training.adapter.parameters()]
        for parameter in training.adapter.parameters():
            parameter.grad = None
        return found

    expected = {pictures: run(plain, Keep.ALL, pictures) for pictures in (1, 2)}
    rows = {"noise floor": max((difference(run(plain, Keep.ALL), expected[1]) for _ in range(4)), key=sum)}
    for keep in Keep:
        rows[f"resident, keeping {keep.value}"] = difference(run(plain, keep), expected[1])
        for slots in args.slots:
            for kind in (Hostile, Late):
                weights = ring(slots, kind)
                worst = [difference(run(weights, keep), expected[1]) for _ in range(2)]
                rows[f"{slots} slots, {kind.__name__.lower()}, keeping {keep.value}"] = max(worst, key=sum)
        rows[f"pageable, keeping {keep.value}"] = difference(run(ring(3, Hostile, pageable), keep), expected[1])
        rows[f"two pictures, keeping {keep.value}"] = difference(run(ring(3, Late), keep, 2), expected[2])
    floor = rows["noise floor"]
    print(f"{machine(device)}, {config.layers} layers, {args.width}x{args.height}; page-locked: {len(arena.pinned)}")
    print(f"allocator {torch.cuda.get_allocator_backend()}")
    for name, (together, worst) in rows.items():
        fits = together <= TOLERANCE * floor[0] and worst <= TOLERANCE * floor[1]
        print(f"{name:<44}{together:>12.3e}{worst:>12.3e}  {'' if fits else 'ABOVE THE FLOOR'}")
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
