"""The site of docs/ builds without a warning or a network, and its pages need no network."""

import re
import socket
from urllib.parse import urlsplit

import pytest
from documents import ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config

import jukesep

# What a browser fetches by itself, unlike a link that a reader follows.
FETCHED = re.compile(r"<(?:script|img|iframe|source)\b[^>]*?\bsrc=\"([^\"]+)\"")
STYLES = re.compile(r"<link\b[^>]*?\bhref=\"([^\"]+)\"")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder."""

    def refuse(*_args, **_kwargs):
        raise OSError("the site must build without a network")

    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", refuse)
        patch.setattr(socket.socket, "connect", refuse)
        # A warning, such as a link that leads nowhere or a page that the navigation lacks, aborts.
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_every_page_is_built(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert pages <= {path.parent.name for path in site.glob("*/index.html")}
    assert not list(site.rglob("*.py"))


def test_pages_load_what_the_site_has(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for address in (*FETCHED.findall(text), *STYLES.findall(text)):
            parts = urlsplit(address)
            assert not parts.scheme or parts.scheme == "data", (page, address)
            assert not parts.netloc, (page, address)
            below = site if parts.path.startswith("/") else page.parent
            assert (below / parts.path.lstrip("/")).resolve().exists(), (page, address)


def test_tables_are_rendered_whole(site):
    """A row that is cut off from its table is a paragraph that begins with a bar."""
    for page in site.rglob("index.html"):
        assert not re.search(r"<p>\s*\|", page.read_text(encoding="utf-8")), page


def test_styles_load_nothing_from_a_network(site):
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(?:url\(|@import\s*)[\"']?(?:https?:)?//", text), style


def test_links_to_the_rest_of_the_repository(site):
    results = (site / "results/index.html").read_text(encoding="utf-8")
    assert 'src="../plots/figure2.png"' in results
    performance = (site / "performance/index.html").read_text(encoding="utf-8")
    assert "../benchmarks/" not in performance
    assert "<code>benchmarks/textbook.py</code>" in performance


def test_the_reference_has_every_public_name(site):
    text = (site / "api/index.html").read_text(encoding="utf-8")
    assert set(jukesep.__all__) <= set(re.findall(r"jukesep\.(?:\w+\.)*(\w+)", text))
