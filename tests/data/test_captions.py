from u1_core.data.captions import shared_phrases, words_of


def test_words():
    assert words_of("A cat's-eye, an Apple (red)") == ["a", "cat's-eye", "an", "apple", "red"]
    assert words_of("水墨画，一只猫") == ["水墨画", "一只猫"]


def test_phrases_that_most_captions_have():
    captions = [f"a watercolor painting of thing {i}, soft light" for i in range(9)] + ["a thing in soft light"]
    assert shared_phrases(captions) == {"soft light": 1.0, "watercolor painting of thing": 0.9}


def test_the_share_is_of_captions_not_of_mentions():
    captions = ["dog dog dog dog dog", *("a cat sat" for _ in range(5))]
    assert shared_phrases(captions) == {"cat sat": 5 / 6}
    assert "dog" not in shared_phrases(["dog dog dog dog dog", "one", "two", "three", "four"])


def test_words_that_anything_has_are_not_style():
    pairs = zip("bcdefg", "uvwxyz", strict=True)
    assert shared_phrases([f"the {name} is in the {place}" for name, place in pairs]) == {}


def test_eight_in_ten_are_not_yet_most():
    captions = [f"neon {i}" for i in range(8)] + ["one", "two"]
    assert shared_phrases(captions) == {}
    assert shared_phrases([*captions, "neon 9", "neon 10"]) == {"neon": 10 / 12}


def test_few_captions_say_nothing():
    assert shared_phrases(["neon"] * 4) == {}
    assert shared_phrases(["neon"] * 5) == {"neon": 1.0}


def test_scripts_without_spaces_share_what_stands_between_commas():
    assert shared_phrases([f"水墨画，{animal}" for animal in "猫狗马牛羊"]) == {"水墨画": 1.0}
