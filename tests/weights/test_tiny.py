import pytest
from tokenizers import Tokenizer

from u1_core.errors import U1Error
from u1_core.model.config import U1Config
from u1_core.weights.tiny import KINDS, SPECIAL_TOKENS, TINY_VOCABULARY, tiny_config, write_tiny_tokenizer

TEXT = "<|im_start|>user\nthe images and Ünïcode 漢字 🙂\t  in\n<|im_end|>\n<img><IMG_CONTEXT></img><think>\n\n</think>"


@pytest.mark.parametrize("kind", KINDS)
def test_configs_are_of_their_kind_and_fit_the_tokenizer(kind):
    config = U1Config.from_dict(tiny_config(kind))
    assert config.kind == kind
    assert config.vocab_size == TINY_VOCABULARY
    assert config.token_pixels == (32 if kind == "u1.5" else 8)


def test_an_unknown_kind_is_answered_with_the_known_ones():
    with pytest.raises(U1Error, match=r"no kind of model 'u15'; did you mean 'u1.5'\?; there are u1, u1.5, a3b"):
        tiny_config("u15")


def test_tokenizer_is_byte_exact_and_knows_the_special_tokens(tmp_path):
    write_tiny_tokenizer(tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode(TEXT).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == TEXT
    assert tokenizer.get_vocab_size() == TINY_VOCABULARY
    specials = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    assert specials == {token: TINY_VOCABULARY - 8 + i for i, token in enumerate(SPECIAL_TOKENS)}
    assert tokenizer.encode(" the image").tokens == ["Ġthe", "Ġimage"]
    assert tiny_config()["eos_token_id"] == specials["<|im_end|>"]
    assert tiny_config()["pad_token_id"] == specials["<|endoftext|>"]


def test_transformers_reads_the_tokenizer(tmp_path):
    from transformers import AutoTokenizer

    write_tiny_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXT).input_ids == Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode(TEXT).ids
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
