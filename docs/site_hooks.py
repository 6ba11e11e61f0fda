"""A hook of mkdocs: it adds the files of repository.py to the site, and points links to them."""

import json
import re
from pathlib import Path
from posixpath import dirname, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from repository import LINK, ROOT, address, exists, linked_file, own_pages, repository_files, source

_NAMED_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>[^\s)#]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of docs/ and of the root that the menu lacks, at its end."""
    assert config.nav is not None
    listed = json.dumps(config.nav)
    for page in own_pages():
        if f'"{address(page)}"' not in listed:
            config.nav[-1]["Project"].append(address(page))
    return config


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    for path in repository_files():
        if files.get_file_from_path(address(path)) is None:
            files.append(_file(path, config))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the places that their targets have on the site.

    Of a link to a place of the repository that the site does not have, the text remains.
    """
    here = page.file.src_uri
    path = source(here)
    if path is None:
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = linked_file(path, link["target"])
        if target is None:
            return link[0]
        return link["before"] + relpath(address(target), dirname(here) or ".")

    def unlinked(link: re.Match[str]) -> str:
        target = link["target"]
        off_site = exists(path, target) and linked_file(path, target) is None
        return link["text"] if off_site else link[0]

    return LINK.sub(moved, _NAMED_LINK.sub(unlinked, markdown))


def _file(path: str, config: MkDocsConfig) -> File:
    place = address(path)
    if place == path or path == "README.md":
        return File.generated(config, place, abs_src_path=str(ROOT / path))
    name, language = Path(path).name, Path(path).suffix[1:]
    text = f"# {name}\n\n```{language}\n{(ROOT / path).read_text('utf-8')}```\n"
    return File.generated(config, place, content=text)
