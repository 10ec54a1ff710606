"""Links that leave docs/ work on the repository's pages; here they are made to work on the site, too.

What a page links to elsewhere in the repository becomes part of the site, under its path in the repository; pages
among that are read for links of their own.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()[^)#\s]+")
_START = {"README.md": "index.md"}  # the site has a first page of its own


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to."""
    root = Path(config.config_file_path).parent
    pages = [f"docs/{file.src_uri}" for file in files.documentation_pages() if file.generated_by is None]
    while pages:
        page = pages.pop()
        for link in _LINK.findall((root / page).read_text()):
            path = _in_repository(page, link)
            if (root / path).is_file() and _on_site(path) not in files.src_uris:
                files.append(File.generated(config, _on_site(path), abs_src_path=str(root / path)))
                pages += [path] if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_others: object) -> str:
    """Turn each link to a file of the repository into one to its place on the site."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    root = Path(config.config_file_path).parent
    place = Path(source).relative_to(root).as_posix()

    def on_site(link: re.Match[str]) -> str:
        path = _in_repository(place, link[0])
        if not (root / path).is_file():
            return link[0]
        return posixpath.relpath(_on_site(path), posixpath.dirname(page.file.src_uri) or ".")

    return _LINK.sub(on_site, markdown)


def _in_repository(page: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def _on_site(path: str) -> str:
    return _START.get(path, path.removeprefix("docs/"))
