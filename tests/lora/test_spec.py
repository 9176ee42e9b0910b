import pytest

from u1_core.errors import U1Error
from u1_core.lora.spec import GROUPS, PRESETS, TARGETS, parse_spec


def _values(text):
    return {(entry.target, entry.rank, entry.alpha) for entry in parse_spec(text)}


@pytest.mark.parametrize(
    ("body", "rank", "alpha"),
    [
        ("r64a64", 64, 64.0),
        ("r128", 128, 128.0),
        ("r=64,a=32", 64, 32.0),
        ("r=64,alpha=32", 64, 32.0),
        ("a=4,r=8", 8, 4.0),
        ("r=8", 8, 8.0),
        ("r8a0.5", 8, 0.5),
        (" R64 a 16 ", 64, 16.0),
        ("on", 64, 64.0),
        ("off", 0, 0.0),
        ("disable", 0, 0.0),
    ],
)
def test_every_body(body, rank, alpha):
    assert _values(f"attn={body}") == {("attn", rank, alpha)}


def test_a_target_alone_gets_rank_64():
    assert _values("mlp_mot_gen.down_proj") == {("mlp_mot_gen.down_proj", 64, 64.0)}


def test_entries_are_split_at_semicolons_and_spaces_do_not_count():
    assert _values(" attn = r8a4 ;; fm_modules.fm_head.0=r=2,a=1; ") == {
        ("attn", 8, 4.0),
        ("fm_modules.fm_head.0", 2, 1),
    }


def test_groups_and_single_experts_name_their_members():
    assert [len(GROUPS[group]) for group in ("attn", "mlp", "fm_head", "all")] == [4, 3, 2, 9]
    assert GROUPS["moe_all"] == GROUPS["gen_moe_all"]
    assert len(GROUPS["moe_all"]) == 4 + 3 + 1 + 2
    assert parse_spec("gen_moe_router=r4")[0].members == ("mlp_mot_gen.gate",)
    assert parse_spec("mlp_mot_gen.experts.7.up_proj=r4")[0].members == ("mlp_mot_gen.experts.7.up_proj",)
    assert all(member in TARGETS for members in GROUPS.values() for member in members)


def test_presets_are_specs():
    ranks = {name: {entry.rank for entry in parse_spec(text)} for name, text in PRESETS.items()}
    assert ranks.pop("official_r128") == {128}
    assert ranks.pop("a3b_moe_r8") == ranks.pop("a3b_moe_router_r8") == {8}
    assert set(ranks) == {"default", "attn_only", "attn_mlp", "attn_only_no_head", "attn_mlp_no_head"}
    assert all(rank == {64} for rank in ranks.values())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("atn=r64", "there is no target 'atn'; did you mean 'attn'?"),
        ("q_proj_mot_gn=r8", "did you mean 'q_proj_mot_gen'?"),
        ("attn_mpl", "did you mean 'attn_mlp'?"),
        ("mlp_mot_gen.experts.x.up_proj=r8", "did you mean 'mlp_mot_gen.experts.*.up_proj'?"),
        ("zzz=r8", "groups are attn, mlp, fm_head, all"),
        ("attn=r0", "rank is '0', expected a whole number of 1 or more"),
        ("attn=r=-3", "rank is '-3'"),
        ("attn=r=2.5", "rank is '2.5'"),
        ("attn=r64a0", "alpha is '0', expected a number above 0"),
        ("attn=r=4,a=-1", "alpha is '-1'"),
        ("attn=r=4,a=nan", "alpha is 'nan'"),
        ("attn=r=4,a=inf", "alpha is 'inf'"),
        ("attn=64", "'64' is not a body"),
        ("attn=r64b3", "'r64b3' is not a body"),
        ("attn=a=32", "the rank is missing"),
        ("attn=r=4,r=8", "rank is given twice"),
        ("attn=r=4,q=8", "'q=8' is not 'r=RANK' or 'a=ALPHA'"),
        ("attn=", "nothing stands after '='"),
        (" ; ", "the LoRA spec is empty"),
    ],
)
def test_mistakes_are_named(text, message):
    with pytest.raises(U1Error) as caught:
        parse_spec(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
