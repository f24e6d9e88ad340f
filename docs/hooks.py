"""Hooks of the site (mkdocs.yml): links from docs/ to the rest of the repository.

On GitHub they lead to the file. The site only has docs/, so the pictures of plots/ are added to it,
and a link to any other file becomes its path.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for picture in sorted(ROOT.glob("plots/*.png")):
        name = picture.relative_to(ROOT).as_posix()
        files.append(File.generated(config, name, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return OUTSIDE.sub(_inside, markdown)


def _inside(link: re.Match[str]) -> str:
    picture, text, path = link.groups()
    if path.startswith("plots/"):
        return f"{picture}[{text}]({path})"
    return f"{text} (`{path}`)"
