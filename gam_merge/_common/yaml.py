"""YAML with places: every value can be traced to the line that it stands on. Safe: plain data, no aliases, no tags."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from gam_merge._common.errors import GamMergeError

_MAX_CHARACTERS = 1_000_000
_MAX_DIGITS = 64  # of a number: those of YAML may be to base 60, and take quadratic time


@dataclass(frozen=True)
class Document:
    """One document of a YAML text: its plain data, and where each part of it stands."""

    data: Any
    root: yaml.Node

    def line(self, place: Sequence[str | int]) -> int:
        """The line, from 1, of the value at ``place``, a path of keys and positions; of the nearest above if there is
        none there."""
        node, line = self.root, self.root.start_mark.line
        for step in place:
            found = _child(node, step)
            if found is None:
                break
            line, node = found
        return line + 1


def parse(text: str, where: str) -> list[Document]:
    """The documents of a text. Raises GamMergeError with the line of what is wrong; ``where`` names the text."""
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
    except (
        RecursionError,
        ValueError,
        OverflowError,
    ) as error:  # nested too deeply; a date or number out of range
        raise GamMergeError(f"{where}: cannot be read as YAML: {error}") from None


def dump(documents: Sequence[Mapping[str, Any]]) -> str:
    """The text of some documents, keys in their order. ``parse`` gives the same data back, floats bit by bit."""
    several = len(documents) > 1
    return yaml.dump_all(
        documents,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=120,
        explicit_start=several,
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
    """PyYAML's safe loader, which also refuses what would be read in silence as something else."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> Any:
        event: Any = self.peek_event()
        what = None
        if isinstance(
            event, yaml.AliasEvent
        ):  # a few lines of aliases unfold to more than fits into memory
            what = "aliases (*name)"
        elif event.tag not in (None, "!"):
            what = "tags (!name)"
        if what is not None:
            raise yaml.composer.ComposerError(
                None, None, f"{what} are not allowed here", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        if node.tag in _NUMBERS and len(node.value) > _MAX_DIGITS:
            problem = f"a number of {len(node.value)} characters is too long"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = (
                    f"key {key.value!r} is there twice"
                    if isinstance(key, yaml.ScalarNode)
                    else "a key is no word"
                )
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what the loader would not read as text."""


# YAML 1.1 takes 1e-5 for a word; YAML 1.2, JSON and people take it for a number.
for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == step:
                return key.start_mark.line, value
    elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step].start_mark.line, node.value[step]
    return None
