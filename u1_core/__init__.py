"""U1 Style Studio's engine: SenseNova-U1 and U1.5, sampled and trained on one card."""

__version__ = "0.1.0"
