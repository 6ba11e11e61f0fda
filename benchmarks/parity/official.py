"""Functions of official code, taken out of checkouts that the user has made.

Nothing of them is kept here: a file is read from the commit that is compared with, and the
functions that a comparison needs are compiled on their own, without the imports of that file.
"""

import ast
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch


@dataclass(frozen=True)
class Source:
    """A file of a repository, at a commit."""

    repository: str  # owner/name
    commit: str
    path: str

    @property
    def link(self) -> str:
        return f"[{self.repository}](https://github.com/{self.repository}) {self.commit[:7]}"

    def text(self, checkouts: Path) -> str | None:
        """Return the file, None if there is no checkout of its repository, named owner+name."""
        checkout = checkouts / self.repository.replace("/", "+")
        if not checkout.exists():
            return None
        command = ["git", "-C", str(checkout), "show", f"{self.commit}:{self.path}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Torch:
    """torch, with some of its functions replaced, for code that draws random numbers."""

    def __init__(self, **replaced: Any) -> None:
        self._replaced = replaced

    def __getattr__(self, name: str) -> Any:
        return self._replaced.get(name) or getattr(torch, name)


def functions(text: str, names: Sequence[str], **given: Any) -> Any:
    """Compile the named functions and methods of a file. given: what they find around them."""
    wanted = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name in names:
            node.decorator_list = []
            wanted[node.name] = _without_types(node)
    module = ast.Module([wanted[name] for name in names], type_ignores=[])
    space: dict[str, Any] = {"torch": torch, "print": lambda *texts: None, **given}
    exec(compile(module, "official code", "exec"), space)
    return SimpleNamespace(**{name: space[name] for name in names}, space=space)


def _without_types(function: ast.FunctionDef) -> ast.FunctionDef:
    """Drop annotations, whose names are imported from elsewhere."""
    for node in ast.walk(function):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    return function


def loop(text: str, over: str, **given: Any) -> dict[str, Any]:
    """Run the loop over an expression, wherever it is in a file, and return all names after it.

    given: the names that it finds.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.For) and ast.unparse(node.iter) == over:
            space = {"torch": torch, **given}
            exec(compile(ast.Module([node], type_ignores=[]), "official code", "exec"), space)
            return space
    raise ValueError(f"no loop over {over}")
