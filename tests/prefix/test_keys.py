import torch

from u1_core.lora.adapter import Adapter, LoraModule
from u1_core.prefix.keys import key, salt

CPU = torch.device("cpu")
UNDERSTOOD, GENERATED = (f"language_model.model.layers.0.self_attn.q_proj{tower}" for tower in ("", "_mot_gen"))


def lora(path: str, value: float = 1.0, **others) -> Adapter:
    return Adapter({path: LoraModule(torch.full((1, 4), value), torch.ones(4, 1), 2.0)}, **others)


def test_everything_that_changes_the_numbers_changes_the_salt():
    salts = [
        salt("model", torch.bfloat16, CPU, []),
        salt("other", torch.bfloat16, CPU, []),
        salt("model", torch.float32, CPU, []),
        salt("model", torch.bfloat16, CPU, [lora(UNDERSTOOD)]),
        salt("model", torch.bfloat16, CPU, [lora(UNDERSTOOD, 2.0)]),
        salt("model", torch.bfloat16, CPU, [lora(UNDERSTOOD, strength=0.5)]),
        salt("model", torch.bfloat16, CPU, [lora(UNDERSTOOD), lora(UNDERSTOOD)]),
        salt("model", torch.bfloat16, CPU, [Adapter({}, {"language_model.model.norm.weight": torch.ones(4)})]),
    ]
    assert len(set(salts)) == len(salts)


def test_what_is_only_in_the_generation_tower_does_not():
    plain = salt("model", torch.bfloat16, CPU, [])
    others = [
        lora(GENERATED),
        lora(UNDERSTOOD, strength=0.0),
        Adapter({}, {"fm_modules.fm_head.0.bias": torch.ones(4)}),
    ]
    assert all(salt("model", torch.bfloat16, CPU, [adapter]) == plain for adapter in others)


def test_prompts_and_their_head_change_the_key(sequence, tiny):
    config = tiny("u1").config
    one, other = sequence(config, [1, 2, 3]), sequence(config, [1, 2, 4])
    keys = [
        key("s", [1], [one, other]),
        key("t", [1], [one, other]),
        key("s", [1, 2], [one, other]),
        key("s", [1], [other, one]),
        key("s", [1], [one]),
        key("s", [1]),
        key("s", [1, 2]),
    ]
    assert len(set(keys)) == len(keys)
    assert key("s", (1,), iter([one, other])) == keys[0]


def test_on_a_cpu_the_number_of_threads_counts_as_it_changes_the_last_bits():
    before = torch.get_num_threads()
    found = set()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.add(salt("model", torch.float32, CPU, []))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 2
