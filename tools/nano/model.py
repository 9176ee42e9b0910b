"""U1-nano's dimensions, its tokenizer, and its weights as trainable parameters in the engine's own views."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from u1_core.model.config import EMBED_TOKENS, GENERATION, LM_HEAD, UNDERSTANDING, U1Config, module_name
from u1_core.model.views import Generation, LayerWeights, MlpWeights, Understanding
from u1_core.text.tokenizer import SPECIAL_TOKENS
from u1_core.weights.tiny import tiny_config
from u1_core.weights.write import SafetensorsWriter

SIZE = 192
"""Side of its pictures in pixels: 144 tokens of 16 x 16."""
HEAD_WIDTH = 512
VOCABULARY = 1024
SHARD_BYTES = 12_000_000


def nano_config() -> dict[str, Any]:
    """The config.json, in the released form: two towers of six layers, width 256."""
    config = tiny_config("u1")
    end = VOCABULARY - len(SPECIAL_TOKENS) + list(SPECIAL_TOKENS).index("im_end")
    pad = VOCABULARY - len(SPECIAL_TOKENS) + list(SPECIAL_TOKENS).index("pad")
    config["llm_config"] |= {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 640,
        "vocab_size": VOCABULARY,
        "eos_token_id": end,
    }
    config["vision_config"] |= {"hidden_size": 192, "patch_size": 8, "llm_hidden_size": 256}
    return config | {"patch_size": 8, "max_image_seq_len": 144, "eos_token_id": end, "pad_token_id": pad}


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of `VOCABULARY` tokens over `texts`, U1's special tokens last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Words are few: fill up, so that the special tokens' ids are those of the config.
    missing = VOCABULARY - len(SPECIAL_TOKENS) - tokenizer.get_vocab_size()
    tokenizer.add_tokens([f"<|unused_{i}|>" for i in range(missing)])
    special = [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS.values()]
    tokenizer.add_special_tokens(special)
    return tokenizer


def write_snapshot(
    folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer, tensors: Mapping[str, Tensor]
) -> None:
    """A snapshot folder in bf16, in shards small enough for any repository."""
    specs = {name: (torch.bfloat16, tuple(tensor.shape)) for name, tensor in tensors.items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS["im_end"],
        "pad_token": SPECIAL_TOKENS["pad"],
        "model_max_length": 262144,
    }
    with SafetensorsWriter(folder, specs, {"format": "pt"}, SHARD_BYTES) as writer:
        (writer.folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        tokenizer.save(str(writer.folder / "tokenizer.json"))
        (writer.folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
        for name, tensor in tensors.items():
            writer.write(name, tensor.detach().to("cpu", torch.bfloat16))


def towers(config: U1Config, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> tuple[Understanding, Generation]:
    """Both towers as views made of checkpoint tensors, cast to `dtype`; gradients flow back to them."""
    cast = {name: tensor.to(dtype) for name, tensor in tensors.items()}

    def layers(tower: str) -> list[LayerWeights]:
        return [_layer(cast, tower, index) for index in range(config.layers)]

    vision = {name: tensor for name, tensor in cast.items() if name.startswith("vision_model.")}
    modules = {name: tensor for name, tensor in cast.items() if name.startswith("fm_modules.")}
    norms = (cast["language_model.model.norm.weight"], cast["language_model.model.norm_mot_gen.weight"])
    understanding = Understanding(layers(UNDERSTANDING), norms[0], cast[EMBED_TOKENS], cast[LM_HEAD], vision)
    return understanding, Generation(layers(GENERATION), norms[1], modules)


def _layer(tensors: Mapping[str, Tensor], tower: str, index: int) -> LayerWeights:
    def get(local: str) -> Tensor:
        return tensors[f"{module_name(tower, index, local)}.weight"]

    return LayerWeights(
        input_norm=get("input_layernorm"),
        qkv=torch.cat([get(f"self_attn.{part}_proj") for part in "qkv"]),
        q_norm=torch.stack([get("self_attn.q_norm"), get("self_attn.q_norm_hw")]),
        k_norm=torch.stack([get("self_attn.k_norm"), get("self_attn.k_norm_hw")]),
        o=get("self_attn.o_proj"),
        post_norm=get("post_attention_layernorm"),
        mlp=MlpWeights(torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]), get("mlp.down_proj")),
    )
