"""A whole U1 small enough for two CPU cores: configs of each kind, and a byte-level tokenizer to go with them.

Its weights are random: it is for tests and for trying out the chain, not for pictures.
"""

import json
from pathlib import Path
from typing import Any

import torch

from u1_core.errors import U1Error, nearest
from u1_core.weights.random_model import write_random_snapshot

KINDS = ("u1", "u1.5", "a3b")

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<IMG_CONTEXT>",
    "<img>",
    "</img>",
)
_PIECES = ("Ġ t", "Ġt h", "Ġth e", "i n", "Ġ a", "Ġa n", "Ġan d", "Ġ i", "Ġi m", "a g", "ag e", "Ġim age", "e r", "o f")
"""Merges of the byte-level pair encoding, in order; Ġ stands for a space."""

TINY_VOCABULARY = 256 + len(_PIECES) + len(SPECIAL_TOKENS)
TINY_HEAD_WIDTH = 128


def tiny_config(kind: str = "u1") -> dict[str, Any]:
    """A config.json of three layers of width 64 and the tiny tokenizer's vocabulary; kind "u1", "u1.5" or "a3b"."""
    if kind not in KINDS:
        raise U1Error(f"there is no kind of model {kind!r}{nearest(kind, KINDS)}; there are {', '.join(KINDS)}")
    pixel_head = kind == "u1.5"
    patch_size = 16 if pixel_head else 4
    end, pad = TINY_VOCABULARY - len(SPECIAL_TOKENS) + 2, TINY_VOCABULARY - len(SPECIAL_TOKENS)
    llm = {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5e6,
        "rope_theta_hw": 1e4,
        "vocab_size": TINY_VOCABULARY,
        "eos_token_id": end,
    }
    if kind == "a3b":
        llm |= {
            "model_type": "qwen3_moe",
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "gen_num_experts": 5,
            "gen_num_experts_per_tok": 3,
            "gen_moe_intermediate_size": 40,
            "norm_topk_prob": True,
        }
    return {
        "architectures": ["NEOChatModel"],
        "model_type": "neo_chat",
        "tie_word_embeddings": False,
        "downsample_ratio": 0.5,
        "patch_size": patch_size,
        "eos_token_id": end,
        "pad_token_id": pad,
        "add_noise_scale_embedding": True,
        "noise_scale": 1.0,
        "noise_scale_mode": "resolution",
        "noise_scale_base_image_seq_len": 64,
        "noise_scale_max_value": 16.0 if pixel_head else 8.0,
        "t_eps": 0.05,
        "use_pixel_head": pixel_head,
        "llm_config": llm,
        "vision_config": {
            "model_type": "neo_vision",
            "hidden_size": 32,
            "llm_hidden_size": 64,
            "num_channels": 3,
            "patch_size": patch_size,
            "rope_theta_vision": 1e4,
        },
    }


def write_tiny_tokenizer(folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level tokenizer with U1's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(piece.split()) for piece in _PIECES]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 262144,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def write_tiny_model(folder: Path, kind: str = "u1", seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
    """A complete tiny snapshot folder: config, random weights, tokenizer. Raises U1Error if it is not empty."""
    write_random_snapshot(folder, tiny_config(kind), seed, dtype, head_width=TINY_HEAD_WIDTH)
    write_tiny_tokenizer(folder)
