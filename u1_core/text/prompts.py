"""The prompts of each task: the query text of every guidance branch.

The system messages and the template are protocol data of the released checkpoints (U1_FACTS, "Sequences"). `<image>`
marks where a picture goes; `u1_core.text.sequence` puts it there.
"""

from collections.abc import Sequence

from u1_core.errors import U1Error, nearest

SYSTEM_GENERATE = """\
You are an image generation and editing assistant that accurately understands and executes user intent.

You support two modes:

1. Think Mode:
If the task requires reasoning, you MUST start with a <think></think> block. Put all reasoning inside the block using \
plain text. DO NOT include any image tags. Keep it reasonable and directly useful for producing the final image.

2. Non-Think Mode:
If no reasoning is needed, directly produce the final image.

Task Types:

A. Text-to-Image Generation:
- Generate a high-quality image based on the user's description.
- Ensure visual clarity, semantic consistency, and completeness.
- DO NOT introduce elements that contradict or override the user's intent.

B. Image Editing:
- Use the provided image(s) as input or reference for modification or transformation.
- The result can be an edited image or a new image based on the reference(s).
- Preserve all unspecified attributes unless explicitly changed.

General Rules:
- For any visible text in the image, follow the language specified for the rendered text in the user's description, \
not the language of the prompt. If no language is specified, use the user's input language."""

SYSTEM_INTERLEAVE = """\
You are a multimodal assistant capable of reasoning with both text and images. You support two modes:

Think Mode: When reasoning is needed, you MUST start with a <think></think> block and place all reasoning inside it. \
You MUST interleave text with generated images using tags like <image1>, <image2>. Images can ONLY be generated \
between <think> and </think>, and may be referenced in the final answer.

Non-Think Mode: When no reasoning is needed, directly provide the answer without reasoning. Do not use tags like \
<image1>, <image2>; present any images naturally alongside the text.

After the think block, always provide a concise, user-facing final answer. The answer may include text, images, or \
both. Match the user's language in both reasoning and the final answer."""

IMAGE = "<image>"
"""Marks where a picture stands in a prompt."""
DRAW = "<img>"
"""Ends a prompt whose next tokens are the picture being made."""
NO_THINKING = "<think>\n\n</think>\n\n"
THINKING = "<think>\n"
TEMPLATES = ("official", "plain")
"""How a training caption becomes a prompt: as text to image does, or the caption alone."""


def text_to_image(prompt: str, think: bool = False) -> str:
    """The conditional branch; with `think` it ends where the reasoning starts."""
    return _chat(prompt, system=SYSTEM_GENERATE) + (THINKING if think else NO_THINKING + DRAW)


def unconditional() -> str:
    """The unconditional branch of text to image, edit and interleave."""
    return _chat("") + DRAW


def edit(prompt: str, pictures: int, think: bool = False) -> str:
    """The conditional branch of an edit of that many pictures. Raises U1Error if `prompt` marks more than there are."""
    if pictures > 1 and IMAGE not in prompt:
        marks = "".join(f"Image-{number}:{IMAGE}\n" for number in range(1, pictures + 1))
        return text_to_image(marks + prompt, think)
    return text_to_image(_with_marks(prompt, pictures), think)


def edit_text_free(pictures: int) -> str:
    """The image-conditional branch of an edit: the pictures without the words."""
    return _chat(IMAGE * pictures) + DRAW


def interleave(prompt: str, pictures: int = 0, system: str = SYSTEM_INTERLEAVE, think: bool = False) -> str:
    """The conditional branch, which goes on with text. Raises U1Error if `prompt` marks too many pictures."""
    return _chat(_with_marks(prompt, pictures), system=system) + ("" if think else NO_THINKING)


def interleave_text_free(pictures: int) -> str:
    """The branch without words; it is told of every picture drawn, as the conditional one is."""
    return _chat(IMAGE * pictures)


def ask(question: str, pictures: int = 0, history: Sequence[tuple[str, str]] = ()) -> str:
    """A question about pictures, or plain chat, after the (question, answer) pairs of `history`.

    Pictures that no question marks stand before this one. Raises U1Error if more are marked than there are.
    """
    earlier = [text for pair in history for text in pair]
    marked = sum(text.count(IMAGE) for text in earlier)
    if marked > pictures:
        raise U1Error(f"the questions so far mark {marked} pictures with {IMAGE}, but {pictures} are given")
    return _chat(*earlier, _with_marks(question, pictures - marked))


def training_caption(caption: str, trigger: str = "", template: str = "official", think_text: str | None = None) -> str:
    """A caption as the prompt that its picture is trained with.

    `trigger` goes before it as "trigger, caption". The official template is text to image's, with `think_text`, if
    any, as the reasoning; the plain one is the caption and nothing else.
    """
    _check_template(template)
    prompt = f"{trigger}, {caption}" if trigger else caption
    if template == "plain":
        return prompt
    if think_text:
        return text_to_image(prompt, think=True) + f"{think_text}\n</think>\n\n{DRAW}"
    return text_to_image(prompt)


def training_unconditional(template: str = "official") -> str:
    """The prompt that takes the caption's place when it is dropped."""
    _check_template(template)
    return " " if template == "plain" else unconditional()


def _chat(*messages: str, system: str = "") -> str:
    """The template around messages of user and assistant in turn, up to where the assistant speaks next."""
    query = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for number, message in enumerate(messages):
        role = "assistant" if number % 2 else "user"
        query += f"<|im_start|>{role}\n{message}<|im_end|>\n"
    return query + "<|im_start|>assistant\n"


def _with_marks(prompt: str, pictures: int) -> str:
    """`prompt` with a mark for each of its pictures: those that it has not got stand first, a line each."""
    missing = pictures - prompt.count(IMAGE)
    if missing < 0:
        raise U1Error(f"the prompt marks {prompt.count(IMAGE)} pictures with {IMAGE}, but {pictures} are given")
    return f"{IMAGE}\n" * missing + prompt


def _check_template(template: str) -> None:
    if template not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise U1Error(f"template is {template!r}, but it must be one of {known}{nearest(template, TEMPLATES)}")
