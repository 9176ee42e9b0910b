"""What captions tell about a set before it is trained: words they all share, repetitions, lengths."""

import re
from collections import Counter
from collections.abc import Sequence

SHARED_BY = 0.8
"""Words in more than this share of the captions are part of the style to whoever trains on them."""
FEWEST_CAPTIONS = 5
"""Among fewer, what is shared says nothing."""
LONGEST_PHRASE = 4
READ_CHARACTERS = 10_000
"""Of one caption; more is a file that somebody mistook for one."""

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
# Words that any caption may have without saying anything of style.
_COMMON = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be behind below by for from has have he her his in inside into is it its near next of off "
        "on onto or out over she that the their them there they this to under up was were which while who with",
    )
)


def words_of(caption: str) -> list[str]:
    """Its words in lower case; of scripts without spaces, runs of characters between punctuation."""
    return _WORD.findall(caption.lower())


def shared_phrases(captions: Sequence[str]) -> dict[str, float]:
    """Words and phrases of up to LONGEST_PHRASE words in more than SHARED_BY of the captions -> their share.

    Of phrases that lie within each other only the longest is named, and none of common words alone.
    """
    if len(captions) < FEWEST_CAPTIONS:
        return {}
    counts = Counter(phrase for caption in captions for phrase in _phrases(caption))
    shared = {phrase: n / len(captions) for phrase, n in counts.items() if n > SHARED_BY * len(captions)}
    longest_first = sorted(shared, key=lambda phrase: (-len(phrase), phrase))
    named: list[tuple[str, ...]] = []
    for phrase in longest_first:
        if not any(_within(phrase, longer) for longer in named):
            named.append(phrase)
    return {" ".join(phrase): shared[phrase] for phrase in sorted(named, key=lambda phrase: -shared[phrase])}


def _phrases(caption: str) -> set[tuple[str, ...]]:
    """Each phrase once, that neither starts nor ends with a common word."""
    words = words_of(caption[:READ_CHARACTERS])
    spans = ((i, i + n) for n in range(1, LONGEST_PHRASE + 1) for i in range(len(words) - n + 1))
    return {
        tuple(words[start:end]) for start, end in spans if words[start] not in _COMMON and words[end - 1] not in _COMMON
    }


def _within(phrase: tuple[str, ...], longer: tuple[str, ...]) -> bool:
    n = len(phrase)
    return any(longer[i : i + n] == phrase for i in range(len(longer) - n + 1))
