"""A page of HTML from Markdown: one file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from itertools import pairwise
from string import Template

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light dark;
  --ink: #1b1f24; --paper: #ffffff; --line: #d5d9de; --shade: #f4f6f8; --link: #0a58ca; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --paper: #15181c; --line: #3a4048; --shade: #1f242a; --link: #7db1ff; }
}
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem; font: 16px/1.55 system-ui, sans-serif;
  color: var(--ink); background: var(--paper); }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); padding-bottom: 0.3rem; }
a { color: var(--link); }
nav { background: var(--shade); border-radius: 6px; padding: 0.6rem 1rem; }
nav ul { margin: 0; padding-left: 1.2rem; }
p { max-width: 48rem; }
code { background: var(--shade); padding: 0.1em 0.3em; border-radius: 3px; font-size: 0.9em; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { background: var(--shade); text-align: left; }
tr:hover td { background: var(--shade); }
figure { margin: 1.5rem 0; }
figure svg { max-width: 100%; height: auto; }
figure svg text { fill: currentColor; }
figure svg [style*="stroke: #000000"] { stroke: currentColor !important; }
figure svg [style*="fill: #000000"] { fill: currentColor !important; }
figure svg [style*="fill: #ffffff"] { fill: transparent !important; }
figcaption { font-size: 0.88rem; max-width: 48rem; }
</style>
</head>
<body>
$body
</body>
</html>
""")


def available() -> bool:
    """Whether markdown-it-py is installed (the `report` extra)."""
    return importlib.util.find_spec("markdown_it") is not None


def html(markdown: str, pictures: Mapping[str, str]) -> str:
    """Markdown as a page.

    Args:
        markdown: begins with a heading, which is the title; the second-level headings make the contents.
        pictures: SVG text by the address under which the Markdown shows it. They become part of the page.
    """
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark").enable("table")
    tokens = parser.parse(markdown)
    title, contents = "", []
    for opening, inside in pairwise(tokens):
        if opening.type != "heading_open":
            continue
        if opening.tag == "h1":
            title = inside.content
        elif opening.tag == "h2":
            anchor = re.sub(r"\W+", "-", inside.content.lower()).strip("-")
            opening.attrSet("id", anchor)
            contents.append(f'<li><a href="#{anchor}">{inside.content}</a></li>')
    body = parser.renderer.render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    nav = f"<nav><ul>{''.join(contents)}</ul></nav>" if contents else ""
    body = body.replace("</h1>", f"</h1>\n{nav}", 1)
    return _PAGE.substitute(
        title=title, body=re.sub(r"<p><img[^>]*></p>", lambda found: _figure(found[0], pictures), body)
    )


def _figure(image: str, pictures: Mapping[str, str]) -> str:
    address, caption = (re.search(rf'{name}="([^"]*)"', image) for name in ("src", "alt"))
    svg = pictures.get(address[1], "") if address else ""
    words = caption[1] if caption else ""
    return f'<figure role="img" aria-label="{words}">{svg[svg.find("<svg") :]}<figcaption>{words}</figcaption></figure>'
