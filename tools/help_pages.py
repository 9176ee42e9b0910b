"""The nodes' help pages in other languages, made of their names and tooltips in locales/.

python tools/help_pages.py
"""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADS = {"zh": ("输入", "含义"), "ja": ("入力", "意味")}


def main() -> None:
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def pages() -> dict[Path, str]:
    """Where each page belongs, and what it says."""
    made = {}
    for language in HEADS:
        names = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for node, words in names.items():
            made[ROOT / "js" / "docs" / node / f"{language}.md"] = _page(node, words, *HEADS[language])
    return made


def _page(node: str, words: dict[str, Any], name_head: str, meaning_head: str) -> str:
    rows = [f"| {one['name']} (`{name}`) | {one['tooltip']} |" for name, one in words["inputs"].items()]
    table = "\n".join([f"| {name_head} | {meaning_head} |", "|---|---|", *rows])
    return f"# {words['display_name']}\n\n{words['description']}\n\n![{words['display_name']}]({node}.jpg)\n\n{table}\n"


if __name__ == "__main__":
    ArgumentParser(description=__doc__).parse_args()
    main()
