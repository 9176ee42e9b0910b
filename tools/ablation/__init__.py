"""Which settings make a good style LoRA: many small runs on U1-nano, measured; docs/ablation.md tells the outcome."""
