"""Seconds and peak memory of U1 at full size, all resident: a sampling step at cfg 4 and a training step.

The weights are random and made on the GPU. Figures are medians over the counted repeats after a warm-up, printed as a
table and, with --json FILE, written for later comparison. Training is the default recipe's, every layer recomputed.
"""

import json

import torch
from work import PREFIX_TOKENS, Training, machine, measure, model_config, parser, sampling_step, table

from u1_core.model.stack import ladder
from u1_core.train.recipe import Recipe
from u1_core.weights.random_model import RandomWeights
from u1_core.weights.store import load_generation


def main() -> None:
    args = parser(__doc__).parse_args()
    device, config = torch.device(args.device), model_config(args)
    weights = load_generation(RandomWeights(config, device=device), device, torch.bfloat16)
    rows = {"sampling, cfg 4": measure(sampling_step(config, weights, args.width, args.height), args, device)}
    training = Training.create(config, weights, Recipe())
    turns, kept = training.passes(1, args.width, args.height, device), ladder(config.layers, recompute=True)
    rows["training, batch 1"] = measure(lambda: training.step(weights, turns, kept), args, device)
    print(f"{machine(device)}, {args.width}x{args.height}, prefix of {PREFIX_TOKENS} tokens; {training.about}")
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"machine": machine(device), "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
