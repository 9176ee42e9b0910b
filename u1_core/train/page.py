"""The page of a report: one HTML file with its style inside, light or dark as the reader's system is."""

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

THUMBNAIL = 320
"""Longest side of an embedded picture, in pixels."""

STYLE = """
:root{color-scheme:light dark;--page:#f7f7f5;--card:#fff;--ink:#1d1f23;--soft:#5f646d;--line:#e2e2de;--grid:#ececea;
--warn:#fff4e0;--warn-ink:#7a4a00;--c0:#2563c9;--c1:#c2570c;--c2:#1f8a5b;--c3:#8446c7;--c4:#b3266b;--c5:#6b7280}
@media(prefers-color-scheme:dark){:root{--page:#15171a;--card:#1d2024;--ink:#e9eaec;--soft:#a2a8b2;--line:#30343a;
--grid:#292d32;--warn:#3a2d14;--warn-ink:#ffd894;--c0:#74a9ff;--c1:#ff9e5e;--c2:#5fd09b;--c3:#c39bff;--c4:#ff8dbb;
--c5:#a5adb8}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:2.5rem 0 .9rem}
h3{font-size:1rem;margin:0 0 .5rem}
p{margin:.4rem 0}
.soft,figcaption,.legend{color:var(--soft)}
.grid{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,28rem),1fr))}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.1rem;min-width:0}
.grid+.card{margin-top:1rem}
.card>.soft{font-size:.9rem}
.tiles{display:grid;gap:.75rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,11rem),1fr));margin:1.25rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.75rem 1rem}
.tile b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:.9rem}
.warnings{background:var(--warn);color:var(--warn-ink);border-radius:.6rem;padding:.8rem 1.1rem;margin:1rem 0}
.warnings ul{margin:.3rem 0 0;padding-left:1.2rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.3rem .5rem;border-bottom:1px solid var(--line)}
th:first-child,td:first-child{text-align:left;overflow-wrap:break-word;min-width:7rem}
th,td:not(:first-child){white-space:nowrap}
.table+h3{margin-top:1.2rem}
th{color:var(--soft);font-weight:500}
.scroll{overflow-x:auto}
.strip{display:flex;gap:.75rem;overflow-x:auto;padding-bottom:.5rem}
figure{margin:0;flex:0 0 auto;width:min(11rem,70vw)}
figure img{display:block;width:100%;height:auto;border-radius:.4rem;border:1px solid var(--line)}
figure.base img{border:2px dashed var(--soft)}
figcaption{font-size:.88rem;margin-top:.25rem}
details{margin:.6rem 0}
summary{cursor:pointer}
pre{overflow-x:auto;font:.85rem/1.45 ui-monospace,monospace;background:var(--card);border:1px solid var(--line);
border-radius:.6rem;padding:1rem;margin:.6rem 0;columns:26rem}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
@media(max-width:36rem){svg text{font-size:16px}}
svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--soft)}
svg .level{stroke:var(--soft);stroke-dasharray:5 4}
svg .line{fill:none;stroke-width:2;stroke-linejoin:round}
svg .line.d1{stroke-dasharray:7 4}svg .line.d2{stroke-dasharray:2 4}
svg .faint{fill:none;stroke-width:1;opacity:.28}
svg .band{stroke:none;opacity:.16}
svg .dot{stroke:var(--card);stroke-width:1}
svg .bar{opacity:.55}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.9rem;margin:.5rem 0 0}
.legend i{display:inline-block;width:.95rem;height:.28rem;border-radius:.2rem;margin-right:.4rem;vertical-align:middle}
.legend .d1{mask:repeating-linear-gradient(90deg,#000 0 5px,#0000 5px 8px)}
.legend .d2{mask:repeating-linear-gradient(90deg,#000 0 2px,#0000 2px 5px)}
""" + "".join(
    f"svg .line.s{n},svg .faint.s{n}{{stroke:var(--c{n})}}"
    f"svg .band.s{n},svg .bar.s{n},svg .dot.s{n}{{fill:var(--c{n})}}"
    f".legend .s{n}{{background:var(--c{n})}}"
    for n in range(6)
)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole HTML document. `parts` are HTML already."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading and what stands under it; nothing where that is empty."""
    body = "".join(parts)
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def cards(*found: str) -> str:
    """Cards side by side as far as there is room; empty ones are left out."""
    kept = "".join(one for one in found if one)
    return f'<div class="grid">{kept}</div>' if kept else ""


def card(title: str, body: str, note: str = "") -> str:
    """A titled box with a note under it; nothing where the body is empty."""
    if not body:
        return ""
    under = f'<p class="soft">{escape(note)}</p>' if note else ""
    return f'<section class="card"><h3>{escape(title)}</h3>{body}{under}</section>'


def tiles(facts: Mapping[str, str]) -> str:
    """Large figures with what they are, in small."""
    shown = "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in facts.items())
    return f'<div class="tiles">{shown}</div>'


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table whose first column is words and the others are numbers."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(path: Path, caption: str, link: str = "", base: bool = False) -> str:
    """A picture embedded small; `link` leads to the whole one beside the page."""
    image = f'<img src="{thumbnail(path)}" alt="{escape(caption)}">'
    image = f'<a href="{quote(link)}">{image}</a>' if link else image
    return f"<figure{' class=base' if base else ''}>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def thumbnail(path: Path, side: int = THUMBNAIL, quality: int = 84) -> str:
    """A picture as a small JPEG inside a data: address. Raises OSError for what is no picture."""
    with Image.open(path) as image:
        image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    image.save(held, "JPEG", quality=quality, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode('ascii')}"
