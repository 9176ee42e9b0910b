"""The words for what a scene holds, shared by those who write captions and those who read them."""

COUNTS = {1: ("a", "one"), 2: ("two",), 3: ("three",)}
SIZES = {"small": ("small", "little"), "large": ("large", "big")}
NOUNS = {
    "house": ("house", "cottage"),
    "tree": ("tree",),
    "flower": ("flower",),
    "boat": ("boat", "sailboat"),
    "balloon": ("balloon", "hot air balloon"),
    "bird": ("bird",),
    "circle": ("circle",),
    "square": ("square",),
    "triangle": ("triangle",),
    "heart": ("heart",),
}
"""Kind -> its names. All form their plural with an s."""
AT = {
    "left": ("on the left", "at the left", "on the left side"),
    "middle": ("in the middle", "in the center", "at the center"),
    "right": ("on the right", "at the right", "on the right side"),
}
SKIES = {
    "day": ("blue sky", "bright blue sky", "daytime sky"),
    "sunset": ("sunset sky", "glowing sunset sky", "evening sky"),
    "dawn": ("dawn sky", "pale morning sky", "soft dawn sky"),
    "night": ("night sky", "dark night sky", "starry night sky"),
    "overcast": ("overcast sky", "grey overcast sky", "grey sky"),
}
TIMES = {
    "day": ("in the daytime", "on a bright day"),
    "sunset": ("at sunset", "in the evening"),
    "dawn": ("at dawn", "in the early morning"),
    "night": ("at night", "on a starry night"),
    "overcast": ("on an overcast day", "on a grey day"),
}
LIGHTS = {"sun": ("the sun", "a sun", "a bright sun"), "moon": ("the moon", "a moon", "a crescent moon")}
LANDS = {
    "hills": ("hills", "rolling hills", "soft hills"),
    "mountains": ("mountains", "tall mountains", "high mountains"),
}
GROUNDS = {
    "grass": ("grass", "green grass", "a grassy meadow", "a meadow"),
    "sand": ("sand", "yellow sand", "sandy ground", "a sandy plain"),
    "snow": ("snow", "white snow", "snowy ground", "a snowy field"),
}
WATERS = {
    "lake": ("a lake", "a calm lake", "a round lake"),
    "sea": ("the sea", "the calm sea", "the wide sea"),
    "river": ("a river", "a winding river", "a small river"),
}


def plural(noun: str, count: int) -> str:
    return noun if count == 1 else noun + "s"


def with_article(phrase: str) -> str:
    """ "old house" -> "an old house"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase
