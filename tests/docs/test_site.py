"""The documentation site: built strictly, complete, and asking nothing of another host."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scalekd.recipes import names, transfer_names

ROOT = Path(__file__).parents[2]
# What a browser fetches by itself; links that a reader may follow are no part of it.
_FETCHED = re.compile(
    r"<(?!a\b|link rel=\"canonical\")[^>]*\s(?:src|href)=[\"']?(?:https?:)?//|url\([\"']?(?:https?:)?//|@import"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_page_of_docs_is_in_the_navigation(site: Path) -> None:
    start = (site / "index.html").read_text()
    listed = set(re.findall(r'class="md-nav__link[^>]*href="([^"#]+)"|href="([^"#]+)" class="md-nav__link', start))
    listed_pages = {first or second for first, second in listed}
    pages = {f"{page.relative_to(ROOT / 'docs').with_suffix('.html')}" for page in (ROOT / "docs").rglob("*.md")}
    assert pages <= listed_pages


def test_every_recipe_of_the_paper_is_on_the_page_of_its_figures() -> None:
    page = (ROOT / "docs" / "reproduce.md").read_text()
    pairs = [name.removeprefix("imagenet/") for name in names() if "/" in name]
    transfers = [name for name in transfer_names() if not name.endswith(("-tiny", "/camvid"))]
    assert [name for name in (*pairs, *transfers) if f"| `{name}` |" not in page] == []


def test_keys_and_commands_come_from_the_code(site: Path) -> None:
    keys = (site / "keys.html").read_text()
    assert 'id="softmax_scale"' in keys
    assert "Factor on CAP&#39;s attention logits." in keys or "Factor on CAP's attention logits." in keys
    assert 'id="proposals"' in (site / "keys-detection.html").read_text()
    assert 'id="photometric"' in (site / "keys-segmentation.html").read_text()
    commands = (site / "commands.html").read_text()
    for name in ("scalekd distill", "scalekd data check", "scalekd transfer detection", "--softmax-scale"):
        assert name in commands


def test_links_out_of_docs_lead_to_files_of_the_site(site: Path) -> None:
    assert 'href="CONTRIBUTING.html"' in (site / "index.html").read_text()
    assert 'src="benchmarks/results/growth-quick-cpu.svg"' in (site / "performance.html").read_text()
    assert (site / "benchmarks/results/growth-quick-cpu.svg").is_file()


def test_formulas_are_mathml(site: Path) -> None:
    method = (site / "method.html").read_text()
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in method
    assert "$$" not in method


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    for file in (*site.rglob("*.html"), *site.rglob("*.css")):
        assert not _FETCHED.search(file.read_text()), file.relative_to(site)
