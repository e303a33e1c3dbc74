"""Every link and anchor of a folder of HTML pages, followed without a browser."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}
"""Tags that make a browser fetch a file."""


def broken_links(folder: Path, within: Path | None = None) -> list[str]:
    """``page: link`` of each local link whose file or anchor is not there, or that leads out of ``within``."""
    within = (within or folder).resolve()
    trees = {
        path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for path in folder.resolve().rglob("*.html")
    }
    assert trees, f"no page in {folder}"
    found = []
    for page, tree in trees.items():
        links = [tag.get(name) for name in ("href", "src") for tag in tree.find_all(attrs={name: True})]
        for link in links:
            parts = urlsplit(link)
            if parts.scheme in ("http", "https", "data", "mailto"):
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            there = target.is_file() and target.is_relative_to(within)
            if there and parts.fragment and target in trees:
                there = trees[target].find(id=[parts.fragment, unquote(parts.fragment)]) is not None  # as browsers do
            if not there:
                found.append(f"{page.relative_to(folder.resolve())}: {link}")
    return found


def fetched_from_a_network(folder: Path) -> list[str]:
    """``file: address`` of everything that a page or style sheet would load from another site."""
    found = []
    for path in folder.rglob("*.html"):
        tree = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        addresses = [tag.get(name) or "" for kind, name in FETCHED.items() for tag in tree.find_all(kind)]
        styles = [tag.get_text() for tag in tree.find_all(["style", "script"])]
        addresses += [address for style in styles for address in _addresses(style)]
        found += [f"{path.name}: {a}" for a in addresses if urlsplit(a).scheme in ("http", "https") or a[:2] == "//"]
    for path in folder.rglob("*.css"):
        found += [f"{path.name}: {address}" for address in _addresses(path.read_text(encoding="utf-8"))]
    return found


def _addresses(style: str) -> list[str]:
    return re.findall(r"(?:url\(|@import\b|src\s*=|from\b|import\s*\()\s*['\"]?((?:https?:)?//[^'\")\s]+)", style)
