import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from u1_core.errors import U1Error
from u1_core.text.tokenizer import SPECIAL_TOKENS, TextStream, Tokenizer

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
TRANSFORMERS_4 = Path(os.environ.get("U1_TRANSFORMERS_4") or Path(sys.prefix) / "transformers-4.57.1")
AWKWARD = [
    "",
    " ",
    "\n",
    " \n \n\n  a",
    "tab\tand\r\nreturn\n\n\n",
    "don't WE'LL it's",
    "123456 7 ½ ²",
    "e\u0301 is not é; \ufb01 ligature",
    "🐈\u200d⬛👩‍👩‍👧‍👦",
    "<|im_start|>user\n<|im_end|>\n",
    " <think>\n\n</think>\n\n<img>",
    "a<img><IMG_CONTEXT> <IMG_CONTEXT></img>b",
    "< img > <|im_end|",
    "<tool_call>{}</tool_call> <|endoftext|>",
    "अनुच्छेद 日本語、テキスト。 한국어 نص",
    "\u00a0\u3000\u2028x",
]


@pytest.fixture(scope="module")
def released(shared) -> Tokenizer:
    return Tokenizer.from_folder(shared / "u1/tokenizer")


@pytest.fixture(scope="module")
def cases(shared) -> dict[str, dict]:
    return json.loads((shared / "u1/tokenizer_cases.json").read_text(encoding="utf-8"))


@pytest.fixture
def tiny(oracle) -> Tokenizer:
    return Tokenizer.from_folder(oracle("dense") / "model")


def test_ids_of_the_released_tokenizer(released, cases):
    assert len(cases) == 10
    for name, case in cases.items():
        assert released.encode(case["text"]) == case["ids"], name
        assert released.decode(case["ids"]) == case["text"], name


def test_special_ids_come_from_the_tokenizer(released, oracle):
    assert {name: getattr(released, name) for name in SPECIAL_TOKENS} == {
        "pad": 151643,
        "im_start": 151644,
        "im_end": 151645,
        "think_start": 151667,
        "think_end": 151668,
        "img_context": 151669,
        "img_start": 151670,
        "img_end": 151671,
    }
    folder = oracle("dense") / "model"
    tiny = Tokenizer.from_folder(folder)
    listed = json.loads((folder / "special_tokens.json").read_text(encoding="utf-8"))
    assert {token: getattr(tiny, name) for name, token in SPECIAL_TOKENS.items()} == listed


def test_special_tokens_are_left_out_of_the_text_when_asked(released):
    ids = released.encode("<think>\nhm</think>\n\nfine<|im_end|>")  # `<think>` is not marked as special there
    assert (
        released.decode(ids, skip_special=True) == "<think>\nhm</think>\n\nfine"
    )  # `<think>` is no special token there


def encode_with_transformers(folder: Path, texts: list[str], packages: Path | None = None) -> dict:
    """What transformers in an interpreter of its own makes of `texts`, and what we make of them there."""
    path = [str(packages)] * bool(packages) + [str(ROOT)]
    done = subprocess.run(
        [sys.executable, str(HERE / "encode_with_transformers.py"), str(folder)],
        input=json.dumps(texts),
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def assert_same(answer: dict, texts: list[str], known: dict[str, list[int]]) -> None:
    for text, theirs, ours in zip(texts, answer["their_ids"], answer["our_ids"], strict=True):
        assert ours == theirs, text
        assert ours == known.get(text, ours), text
    assert answer["our_texts"] == answer["their_texts"]
    assert answer["vocabulary_equal"]
    assert answer["shown_equal"]


def test_equal_to_the_newest_transformers(shared, cases):
    known = {case["text"]: case["ids"] for case in cases.values()}
    texts = [*known, *AWKWARD]
    answer = encode_with_transformers(shared / "u1/tokenizer", texts)
    assert int(answer["versions"][0].split(".")[0]) >= 5
    assert_same(answer, texts, known)


def test_equal_to_transformers_4(shared, cases):
    if not (TRANSFORMERS_4 / "transformers").is_dir():
        how = f"pip install --no-deps --target {TRANSFORMERS_4} -r tests/text/transformers-4.57.1.txt"
        warnings.warn(f"transformers 4.57.1 is NOT CHECKED: {how}", stacklevel=1)
        pytest.skip(f"transformers 4.57.1 is not in {TRANSFORMERS_4}; {how}")
    known = {case["text"]: case["ids"] for case in cases.values()}
    texts = [*known, *AWKWARD]
    answer = encode_with_transformers(shared / "u1/tokenizer", texts, TRANSFORMERS_4)
    assert answer["versions"] == ["4.57.1", "0.22.2"]
    assert_same(answer, texts, known)


def test_a_whole_tokenizer_json_is_read_as_transformers_reads_it(oracle):
    texts = ["a red circle", " <think>\n\n</think>\n\n<img>", "é 🐈"]
    assert_same(encode_with_transformers(oracle("dense") / "model", texts), texts, {})


def test_truncation_and_padding_saved_in_the_file_are_off(oracle, tmp_path):
    raw = json.loads((oracle("dense") / "model/tokenizer.json").read_text(encoding="utf-8"))
    raw["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 480,
        "pad_type_id": 0,
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode("a longer text")) == "a longer text"


def stream(tokenizer: Tokenizer, ids: list[int], skip_special: bool = False) -> list[str]:
    text = TextStream(tokenizer, skip_special)
    return [*(text.feed(token) for token in ids), text.flush()]


@pytest.mark.parametrize("text", AWKWARD)
def test_a_stream_gives_whole_characters_and_all_of_them(tiny, text):
    ids = tiny.encode(text)
    pieces = stream(tiny, ids)
    assert "".join(pieces) == text == tiny.decode(ids)
    assert "\ufffd" not in "".join(pieces)


def test_a_stream_holds_a_character_back_until_its_last_byte(tiny):
    ids = tiny.encode("é")
    assert len(ids) == 2
    assert stream(tiny, [*tiny.encode("a"), *ids, *tiny.encode("b")]) == ["a", "", "é", "b", ""]


def test_a_stream_of_broken_bytes_still_gives_what_decode_gives(tiny):
    first, second = tiny.encode("é")
    cat = tiny.encode("🐈")
    garbage = [first, first, *cat[:3], tiny.im_end, second, *tiny.encode("x"), *cat[1:], first]
    for skip_special in (False, True):
        pieces = stream(tiny, garbage, skip_special)
        assert "".join(pieces) == tiny.decode(garbage, skip_special)
    assert pieces[-1] == "\ufffd" * 4  # a character never finished, and one never begun


def test_a_folder_without_tokenizer_files(tmp_path):
    with pytest.raises(U1Error, match=r"there is no tokenizer\.json, nor vocab\.json with merges\.txt"):
        Tokenizer.from_folder(tmp_path)


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"', encoding="utf-8")
    with pytest.raises(U1Error, match=r"tokenizer\.json: cannot be read as a tokenizer's file"):
        Tokenizer.from_folder(tmp_path)


def test_missing_special_tokens_are_named(oracle, tmp_path):
    raw = json.loads((oracle("dense") / "model/tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] not in ("</think>", "<img>")]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(U1Error, match=r"the tokenizer has no </think>, <img>: it is not SenseNova-U1's"):
        Tokenizer.from_folder(tmp_path)


def test_an_added_token_that_would_get_another_id(oracle, tmp_path):
    shutil.copy(oracle("dense") / "model/tokenizer.json", tmp_path)
    settings = json.loads((oracle("dense") / "model/tokenizer_config.json").read_text(encoding="utf-8"))
    settings["added_tokens_decoder"]["600"] = settings["added_tokens_decoder"]["486"] | {"content": "<more>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(U1Error, match=r"<more> should be token 600, but the vocabulary makes it 488"):
        Tokenizer.from_folder(tmp_path)
