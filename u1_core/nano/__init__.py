"""U1-nano: a real U1 of 10 million parameters, trained by us from nothing, that ships with the package.

It draws 192 x 192 scenes from captions, edits them, and answers questions about them, in seconds on a CPU. It has an
8-step LoRA of its own. `tools/nano` holds its world, its training and its measures.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Its snapshot folder."""
EIGHT_STEP = Path(__file__).parent / "8step.safetensors"
"""Its 8-step LoRA: 8 steps, guidance scale 1, timestep shift 3."""
