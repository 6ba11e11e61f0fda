"""Decisions read off bytes, and what hostile files are made of.

Any bytes at all are a case. So a seeded generator, hypothesis (which shrinks bytes) and a fuzzer that is guided by
coverage (which breeds them) draw from the same cases.
"""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeVar

T = TypeVar("T")

# Values that stand for themselves. Numbers at the edges of types, names that are paths, markup or commands.
JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2,
        3,
        2.5,
        1e308,
        1e-320,
        -0.0,
        float("nan"),
        float("inf"),
        float("-inf"),
    ),
    *(10**9, 2**31, 2**53 + 1, 2**60, 2**63, 2**64, -(2**63), 10**400, -(10**400), 10**4299),
    *(
        "",
        " ",
        "x",
        "base",
        "none",
        "all",
        "default",
        "lora_only",
        "all-linear",
        "true",
        "pissa",
        "LORA",
        "LOHA",
    ),
    *(
        "\0",
        "a\nb",
        "\x1b[2J\x1b]0;owned\x07",
        "\u202e",
        "\ud800",
        "[bold red]x[/]",
        ":boom:",
        "$x^2$",
        "%s{}%n",
    ),
    *(
        "../../x",
        "/etc/passwd",
        "a/../..",
        "CON",
        "nul.txt",
        "~root/x",
        "file:///etc/passwd",
        "-rf",
        "|touch owned",
    ),
    *(
        "<script>x</script>",
        "'\"><b>",
        "---\nlicense: mit\n---",
        "${x}",
        "{{ 7 * 7 }}",
        "`` ` ```",
        "org/name@x:y",
    ),
    *(
        "(",
        "[",
        "*",
        "\\",
        "(a+)+$",
        "(?:(?:.|..)+)+(?<=!)",
        "q_proj",
        "layers.0.*",
        "a" * 3000,
        "9" * 5000,
    ),
    *(
        [],
        {},
        [1],
        [None],
        ["q_proj"],
        [["q"]],
        {"q": 1},
        {"(": 2},
        {"": {}},
        {"q_proj": -1},
        list(range(300)),
    ),
]
# Text that no writer makes, put where a value stands as a string of this name.
RAW_JSON = {
    "@deep": "[" * 5000 + "]" * 5000,
    "@open": '{"a":' * 5000,
    "@digits": "9" * 5000,
    "@exponent": "1e999999999",
    "@many": "[" + "1," * 30_000 + "1]",
    "@twos": "[" + "2," * 3000 + "2]",
    "@table": "{" + ",".join(f'"k{i}":{i}' for i in range(2000)) + "}",
    "@twice": '{"a":1,"a":2}',
    "@surrogate": '"\\ud800"',
    "@bom": "\ufeff1",
}
RAW_YAML = {
    **RAW_JSON,
    "@alias": "[&a [x, x], &b [*a, *a], &c [*b, *b], *c]",
    "@anchor": "&x y",
    "@itself": "&x [*x]",
    "@apply": "!!python/object/apply:os.system ['touch owned']",
    "@name": "!!python/name:os.system",
    "@binary": "!!binary AAAA",
    "@set": "!!set {x, y}",
    "@pairs": "!!pairs [a: 1, a: 2]",
    "@omap": "!!omap [a: 1]",
    "@merge": "{<<: {weight: 2}, <<: [1]}",
    "@sixty": ":".join(["1"] * 4000),
    "@sixty_float": ":".join(["1"] * 4000) + ".5",
    "@hex": "0x" + "f" * 6000,
    "@octal": "0" + "7" * 6000,
    "@bits": "0b" + "1" * 20_000,
    "@underscores": "1_0_" * 1000,
    "@date": "2020-99-99",
    "@time": "2020-01-01 25:61:61",
    "@day": "2020-01-01",
    "@key": "{[a]: 1}",
    "@complex": "{? {a: 1} : 2}",
    "@percent": "%TAG ! x",
    "@tab": "\t- x",
    "@nan": ".nan",
    "@int": "!!int x",
    "@float": "!!float ''",
}
BYTES = [
    *(
        b"\0",
        b"\xff",
        b"\xed\xa0\x80",
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b",",
        b":",
        b"\n",
        b"\\u0000",
        b"\x1b[31m",
    ),
    *(b"&a", b"*a", b"---\n"),
]


class Draw:
    """Decisions, one after another; once the bytes have run out, always the first choice."""

    def __init__(self, data: bytes) -> None:
        self._data, self._place = data, 0

    def below(self, n: int) -> int:
        """A number from 0 to n - 1."""
        width = 1 if n <= 256 else 4
        part = self._data[self._place : self._place + width]
        self._place += width
        return int.from_bytes(part, "little") % n

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def once_in(self, n: int) -> bool:
        return self.below(n) == n - 1


def junk(draw: Draw, raw: Mapping[str, str]) -> Any:
    """A hostile value; some are names of ``raw``. A copy: what is put into it is gone with its case."""
    return deepcopy(draw.pick([*JUNK, *raw]))


def mutate(draw: Draw, value: Any, raw: Mapping[str, str]) -> Any:
    """A table or list with some of its parts, at any depth, changed, added, doubled, renamed or left out."""
    for _ in range(draw.below(4)):
        parent = value
        while True:
            keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
            if not keys:
                break
            key = draw.pick(keys)
            below = parent[key]
            if not (isinstance(below, dict | list) and below and draw.below(3)):
                _change(draw, parent, key, raw)
                break
            parent = below
    return value


def _change(draw: Draw, parent: Any, key: Any, raw: Mapping[str, str]) -> None:
    what = draw.below(6)
    if what == 0:
        parent[key] = junk(draw, raw)
    elif what == 1:
        del parent[key]
    elif isinstance(parent, dict):
        name = (
            key if what == 2 else str(draw.pick([text for text in JUNK if isinstance(text, str)]))
        )
        parent[name] = parent.pop(key) if what == 3 else junk(draw, raw)
    else:
        parent.insert(key, parent[key] if what == 2 else junk(draw, raw))


def as_json(value: Any, raw: Mapping[str, str]) -> bytes:
    """The text of a value, in which names of ``raw`` became what they stand for."""
    text = json.dumps(value)
    for name, instead in raw.items():
        text = text.replace(f'"{name}"', instead)
    return text.encode()


def scramble(draw: Draw, content: bytes) -> bytes:
    """Most often as it is; else with bytes flipped, cut out, doubled or put in."""
    if not draw.once_in(4):
        return content
    for _ in range(1 + draw.below(3)):
        at = draw.below(len(content) + 1)
        length = draw.below(40)
        piece = content[at : at + length]
        content = draw.pick(
            [
                content[:at] + draw.pick(BYTES) + content[at:],
                content[:at] + content[at + length :],
                content[:at] + piece + piece + content[at + length :],
                content[:at]
                + bytes(byte ^ 1 << draw.below(8) for byte in piece[:1])
                + content[at + 1 :],
                content[:at],
            ]
        )
    return content
