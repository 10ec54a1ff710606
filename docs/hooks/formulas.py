"""Formulas become MathML when the site is built, which browsers show by themselves: no script, no other host."""

from __future__ import annotations

import re
from html import unescape

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(html: str, **_others: object) -> str:
    """Replace what `pymdownx.arithmatex` has marked."""
    return _FORMULA.sub(lambda f: convert(unescape(f[2]), display="block" if f[1] == "div" else "inline"), html)
