"""YAML whose values can be traced to their lines, and which is safe.

Only plain data is read: no aliases and no tags.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gam_merge._common.errors import GamMergeError

_MAX_CHARACTERS = 1_000_000
_MAX_DIGITS = 64  # of a number; YAML has numbers to base 60, which take quadratic time


@dataclass(frozen=True)
class Document:
    """One document of a YAML text: its plain data, and the position of each part."""

    data: Any
    root: yaml.Node

    def line(self, place: Sequence[str | int]) -> int:
        """Return the line, from 1, of the value at ``place``, a path of keys and positions.

        If there is no such value, it is the line of the innermost one that contains the place.
        """
        node, line = self.root, self.root.start_mark.line
        for step in place:
            child = _child(node, step)
            if child is None:
                break
            line, node = child
        return line + 1


def parse(text: str, where: str) -> list[Document]:
    """Return the documents of a text, which errors call ``where``.

    Raises GamMergeError with the line of the fault.
    """
    if len(text) > _MAX_CHARACTERS:
        raise GamMergeError(
            f"{where}: has {len(text)} characters; a recipe has at most {_MAX_CHARACTERS}"
        )
    try:
        return list(_documents(text))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise GamMergeError(f"{where}:{line} {error.problem or error.context}") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise GamMergeError(f"{where}: is not YAML: {str(error).splitlines()[0]}") from None
    # nested too deeply; a date or number out of range
    except (RecursionError, ValueError, OverflowError) as error:
        raise GamMergeError(f"{where}: cannot be read as YAML: {error}") from None


def dump(documents: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of documents, keys in their order.

    ``parse`` gives the same data back, floats bit for bit.
    """
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
        explicit_start=len(documents) > 1,
    )


def _documents(text: str) -> Iterator[Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            root = loader.get_node()
            assert root is not None
            yield Document(loader.construct_document(root), root)
    finally:
        loader.dispose()


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which also refuses what would silently be read as something else."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        event: Any = self.peek_event()
        problem = None
        if isinstance(event, yaml.AliasEvent):  # a few lines of them unfold to more than memory
            problem = "aliases (*name) are not allowed here"
        elif event.tag not in (None, "!"):
            problem = "tags (!name) are not allowed here"
        if problem is not None:
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            problem = f"a number of {len(node.value)} characters is too long"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            problem = None
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a single word"
            elif key.value in seen:
                problem = f"duplicate key {key.value!r}"
            if problem is not None:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes whatever the loader would not read as text."""


# YAML 1.1 reads 1e-5 as a word; YAML 1.2, JSON and people read it as a number.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and node of an entry of a mapping or a sequence, if it exists."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line, node.value[step]
    return None
