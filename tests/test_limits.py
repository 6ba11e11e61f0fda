"""Files that claim, nest or repeat more than any adapter does are refused, in little time and memory."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_child, limit
from helpers import random_factors, write_adapter

import gam_merge as gm

MEMORY, SECONDS, WALL = 1 << 30, 10.0, 120.0
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def refused(words: str, action: Callable[[], object]) -> None:
    """Runs in a child, whose exit code tells."""
    limit(memory=MEMORY, seconds=SECONDS, wall=WALL)
    with pytest.raises(gm.GamMergeError, match=words) as error:
        action()
    assert len(str(error.value)) < 4000


def merge(folder: Path, words: str, settings: dict[str, Any]) -> None:
    refused(words, lambda: gm.merge([folder / "evil"], out=folder / "out", **settings))


def merge_recipe(folder: Path, words: str) -> None:
    refused(words, lambda: gm.merge_recipe(folder / "recipe.yaml", out=folder / "out"))


def merge_with_card(folder: Path) -> None:
    limit(memory=MEMORY // 4, seconds=SECONDS, wall=WALL)
    gm.merge([folder / "evil"], out=folder / "out")


def adapter(folder: Path) -> Path:
    factors = random_factors(torch.Generator().manual_seed(0), 5, 4, 2, torch.float32)
    return write_adapter(folder, {"layers.0.q": factors})


# --- weights -----------------------------------------------------------------------------------------------------

LONGEST = 1 << 26  # bytes of a header
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def whole(header: bytes, claims: int | None = None) -> bytes:
    return (len(header) if claims is None else claims).to_bytes(8, "little") + header + bytes(4)


def entry(shape: str) -> bytes:
    return b'{"x":{"dtype":"F32","shape":[' + shape.encode() + b'],"data_offsets":[0,4]}}'


def texts(count: int) -> bytes:
    """Of the longest kind in memory: four bytes a character as long as they are together, and two each alone."""
    entries = ",".join(f'"\u0101{i:x}":"\u0101\u0102"' for i in range(count))
    return ('{"\U0001f600":1,' + entries + "}").encode().ljust(LONGEST)


HEADERS: dict[str, tuple[Callable[[], bytes], str]] = {
    "claims_2_to_the_60": (lambda: whole(b"{}", 1 << 60), "its header claims"),
    "longer_than_any": (lambda: whole(b" " * (LONGEST + 1)), f"longer than {LONGEST} bytes"),
    "tables": (
        lambda: whole(b'{"x":[' + b"{}," * (LONGEST // 3 - 5) + b"{}]}"),
        "longer than 416666 tensors take",
    ),
    "texts": (
        lambda: whole(b'{"x":[' + b'"ab",' * (LONGEST // 5 - 5) + b"1]}"),
        "longer than 416666 tensors take",
    ),
    "texts_that_are_read": (lambda: whole(texts(2_499_990)), "malformed"),
    "deep": (lambda: whole(b"[" * 1_000_000), "is not JSON"),
    "digits": (lambda: whole(entry("9" * 10_000_000)), "is not JSON"),
    "sides": (lambda: whole(entry("2," * 4_000_000 + "2")), "malformed"),
    "long_sides": (lambda: whole(entry(",".join(["9" * 4000] * 3000))), "malformed"),
    "empty_and_huge": (lambda: whole(entry(f"0,{1 << 70}")), "malformed"),
    "empty_and_huge_together": (lambda: whole(entry(f"0,{1 << 40},{1 << 40}")), "malformed"),
    "long_name": (
        lambda: whole(json.dumps({"a" + ".original_module.x" * 60_000 + "\n": ONE}).encode()),
        "the name of a tensor has 1080002 characters",
    ),
    "long_layer": (
        lambda: whole(json.dumps({f"layers.{'9' * 5000}.lora_A.weight": ONE}).encode()),
        "5021 characters",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, tmp_path: Path) -> None:
    content, words = HEADERS[name]
    (adapter(tmp_path / "evil") / WEIGHTS).write_bytes(content())
    assert in_child(merge, tmp_path, words, {}) == 0
    assert os.listdir(tmp_path) == ["evil"]


def compressed(folder: Path) -> None:
    with zipfile.ZipFile(folder / "adapter_model.bin", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(1 << 28))


def expanded(folder: Path) -> None:
    torch.save({"x": torch.ones(1).expand(1 << 20, 1 << 20)}, folder / "adapter_model.bin")


def no_archive(folder: Path) -> None:
    compressed(folder)
    content = (folder / "adapter_model.bin").read_bytes()
    (folder / "adapter_model.bin").write_bytes(content[:40] + content[-60:])


def opcodes(content: bytes) -> Callable[[Path], None]:
    """An archive of torch.save with another pickle in it."""

    def make(folder: Path) -> None:
        saved = io.BytesIO()
        torch.save({"x": torch.ones(1)}, saved)
        with (
            zipfile.ZipFile(saved) as source,
            zipfile.ZipFile(folder / "adapter_model.bin", "w", zipfile.ZIP_STORED) as file,
        ):
            for entry in source.infolist():
                is_pickle = entry.filename.endswith("data.pkl")
                file.writestr(entry.filename, content if is_pickle else source.read(entry))

    return make


def repeated(pieces: bytes, count: int, first: bytes = b"") -> Callable[[Path], None]:
    return opcodes(b"\x80\x02]" + first + count * pieces + b".")


def shared(folder: Path) -> None:
    """A thousand tensors that are all of one storage."""
    x = torch.ones(1_000_000)
    torch.save({f"x{i}": x.view(1000, 1000) for i in range(1000)}, folder / "adapter_model.bin")


def entries(folder: Path) -> None:
    """An archive of nothing but empty files, each of which takes a hundred times as much in memory."""
    with zipfile.ZipFile(folder / "adapter_model.bin", "w", zipfile.ZIP_STORED) as file:
        for i in range(150_000):
            file.writestr(f"{i}", b"")


_STORAGE = b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x01"
BOMBS = {
    "bytearray": repeated(b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x40\x00\x85Ra", 4),
    "bytearray_of_protocol_5": opcodes(b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"."),
    "text": opcodes(b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b"."),
    "long": opcodes(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "memo": opcodes(b"\x80\x02]r\xff\xff\xff\x7f."),
    "lists": repeated(b"]", 20_000_000),
    "copies": repeated(
        b"ccollections\nOrderedDict\nh\x01R0", 20_000, b"(" + 20_000 * b"N" + b"tq\x01"
    ),
    # a tuple of two equal tuples of two equal tuples ...: 2^60 of them to hash
    "hash": opcodes(b"\x80\x02}N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b"Ns."),
    "repr": opcodes(b"\x80\x02N" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60)) + b")R."),
    "storages": repeated(
        b"h\x01Q0", 300_000, b"(" + _STORAGE + 100_000 * b"N" + b"tq\x01"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_grow(name: str, tmp_path: Path) -> None:
    """What torch, or Python, would build of a small file takes any memory or time."""
    (adapter(tmp_path / "evil") / WEIGHTS).unlink()
    BOMBS[name](tmp_path / "evil")
    size = (tmp_path / "evil" / "adapter_model.bin").stat().st_size
    assert in_child(load_within, tmp_path, max(1 << 26, 4 * size) + (1 << 26)) == 0


def load_within(folder: Path, memory: int) -> None:
    limit(memory=memory, seconds=SECONDS, wall=WALL)
    with pytest.raises(
        gm.GamMergeError, match=r"is not a (pickle|dict) of tensors|many times the file|was cut off"
    ):
        gm.load(folder / "evil")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (shared, "its tensors share numbers"),
        (entries, "its archive would take"),
        (compressed, "is compressed"),
        (expanded, "larger than its storage"),
        (no_archive, "is not a pickle of tensors"),
    ],
)
def test_pickles(make: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    (adapter(tmp_path / "evil") / WEIGHTS).unlink()
    make(tmp_path / "evil")
    assert in_child(merge, tmp_path, words, {}) == 0


# --- cards -------------------------------------------------------------------------------------------------------


def unfolding() -> str:
    """Ten aliases to ten aliases and so on: what PyYAML allows takes minutes and gigabytes with it."""
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 10)}]}}")
    return "\n".join([*lines, "license: mit"])


def flat_unfolding() -> str:
    """One mapping of thousands of keys, merged into thousands of others."""
    keys = ",".join(f"k{i}" for i in range(4000))
    return f"b: &b {{{keys}}}\nx: [{','.join(['{<<: *b}'] * 4000)}]\nlicense: mit"


CARDS = {
    "unfolding": unfolding,
    "flat_unfolding": flat_unfolding,
    "nested": lambda: "[" * 60_000,
    "nested_mappings": lambda: "{a: " * 15_000,
    "nested_lines": lambda: "- " * 30_000,
    "long": lambda: "a: b\n" * 6_000_000,
    "base_60": lambda: "license: 1" + ":1" * 30_000,
    "digits": lambda: "license: " + "9" * 60_000,
    "keys": lambda: "\n".join(f"k{i}: [{{a: b}}, ? c]" for i in range(3000)),
}


@pytest.mark.parametrize("name", CARDS)
def test_cards(name: str, tmp_path: Path) -> None:
    """A card that a stranger wrote costs little, and decides nothing but the licence."""
    evil = adapter(tmp_path / "evil")
    (evil / "README.md").write_text(f"---\n{CARDS[name]()}\n---\n")
    assert in_child(merge_with_card, tmp_path) == 0
    assert "license" not in (tmp_path / "out" / "README.md").read_text().split("---")[1]


# --- figures -----------------------------------------------------------------------------------------------------


def draw(folder: Path) -> None:
    gm.inspect(adapter(folder / "warm")).save_html(folder / "warm.html")
    limit(memory=MEMORY, seconds=6 * SECONDS, wall=10 * WALL)
    inspection = gm.inspect(folder / "evil")
    inspection.save_html(folder / "out.html")
    inspection.save_plot(folder / "out.png")


def test_a_grid_of_thousands_by_thousands_is_drawn_as_fits_a_screen(tmp_path: Path) -> None:
    """A module in each of 4,000 layers, each of a type of its own: 16 million cells, of which 4,000 hold a number."""
    generator = torch.Generator().manual_seed(0)
    factors = {f"layers.{i}.q{i}": random_factors(generator, 1, 1, 1) for i in range(4000)}
    write_adapter(tmp_path / "evil", factors)
    assert in_child(draw, tmp_path) == 0
    page = (tmp_path / "out.html").read_text()
    assert len(page) < 10_000_000
    assert "the mean of 16 neighbours each" in page


# --- configs -----------------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"r": 10**9}, "1000000000 by its config"),
    "rank_of_a_pattern": ({"rank_pattern": {"q": 10**9}}, "1000000000 by its config"),
    "pattern_of_many_words": (
        {"alpha_pattern": {"|".join(map(str, range(200_000))): 3}},
        "characters",
    ),
    "pattern_of_parentheses": ({"alpha_pattern": {"(" * 450 + ")" * 450: 3}}, "cannot be matched"),
    "patterns_that_take_long": (
        {"alpha_pattern": {f"(?:(?:.|..)+)+(?<=!){i}": 3 for i in range(100)}},
        "cannot be matched",
    ),
    "names": ({"target_parameters": ["x.y"] * 1001}, "target_parameters has 1001 names"),
    "long_value": ({"bias": "x" * 10**7}, "bias must be"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name: str, tmp_path: Path) -> None:
    fields, words = CONFIGS[name]
    long_name = f"layers.0.{'q' * 300}"
    factors = random_factors(torch.Generator().manual_seed(0), 5, 4, 2, torch.float32)
    tensors = {long_name if "long" in name else "q": factors}
    write_adapter(tmp_path / "evil", tensors, **fields)
    assert in_child(merge, tmp_path, words, {}) == 0


@pytest.mark.parametrize("name", ["adapter_config.json", "README.md"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_files_that_never_end(name: str, kind: str, tmp_path: Path) -> None:
    """Beside the weights; a card is not needed."""
    path = adapter(tmp_path / "evil") / name
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    if name == CONFIG:
        assert in_child(merge, tmp_path, "is not a regular file", {}) == 0
    else:
        assert in_child(_merged, tmp_path) == 0


def _merged(folder: Path) -> None:
    limit(memory=MEMORY, seconds=SECONDS, wall=WALL)
    gm.merge([folder / "evil"], out=folder / "out")


def test_config_of_a_gigabyte(tmp_path: Path) -> None:
    with open(adapter(tmp_path / "evil") / CONFIG, "wb") as file:
        file.truncate(1 << 30)
    assert in_child(merge, tmp_path, "has more than 33554432 bytes", {}) == 0


def test_config_of_many_tables(tmp_path: Path) -> None:
    """32 MB of them take more than 1 GB."""
    (adapter(tmp_path / "evil") / CONFIG).write_bytes(b'{"x":[' + b'{"":{}},' * 4_000_000 + b"{}]}")
    assert in_child(merge, tmp_path, "has more than 5000000 values and names", {}) == 0


def test_many_patterns_of_many_modules_take_seconds(tmp_path: Path) -> None:
    """As we write them for ranks of their own: each is compiled once."""
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{i}.self_attn.q_proj" for i in range(600)]
    factors = {name: random_factors(generator, 2, 2, 1, torch.float32) for name in names}
    patterns = {f"^{name}": 1 for name in names}
    write_adapter(tmp_path / "evil", factors, rank_pattern=patterns, alpha_pattern=patterns)
    assert in_child(_merged, tmp_path) == 0


# --- arguments and recipes ---------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"rank": 10**9}, "got 1000000000"),
    "weights": ({"weights": [[1.0] * 10**6]}, "1000000 numbers over depth"),
    "weight_beyond_floats": ({"weights": [10**400]}, "must be a finite number"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, tmp_path: Path) -> None:
    settings, words = SETTINGS[name]
    adapter(tmp_path / "evil")
    assert in_child(merge, tmp_path, words, settings) == 0


RECIPE = "sources: [{{path: evil}}]\nparams: {{density: {}}}\nmethod: ties\n"
YAML: dict[str, tuple[str, str]] = {
    "billion_laughs": ("[&a [x, x], &b [*a, *a], *b]", "aliases"),
    "anchor_within_itself": ("&a [*a]", "aliases"),
    "deep": ("[" * 100_000, "cannot be read as YAML"),
    "deep_tables": ("{a: " * 10_000, "cannot be read as YAML"),
    "base_60": (":".join(["1"] * 200_000), "a number of 399999 characters is too long"),
    "base_60_with_a_fraction": (":".join(["1"] * 200_000) + ".5", "too long"),
    "digits": ("9" * 900_000, "too long"),
    "hexadecimal": ("0x" + "f" * 900_000, "too long"),  # Python does not print what it reads here
    "tag": ("!!python/object/apply:os.system [true]", "tags"),
    "tag_of_yaml": ("!!binary AAAA", "tags"),
    "tag_that_does_not_fit": ("!!int ''", "tags"),
    "no_table_of_filters": ("{filter: x}", "must be a list of filters"),
    "beyond_floats": ("[1e308, " + "9" * 60 + "]", "density"),
    "long_word": ("a" * 900_000, "density"),
    "many_numbers": ("[" + "1," * 40_000 + "1]", "numbers over depth"),
    "too_long": ("a" * 1_000_001, "at most 1000000"),
}


@pytest.mark.parametrize("name", YAML)
def test_recipes(name: str, tmp_path: Path) -> None:
    text, words = YAML[name]
    adapter(tmp_path / "evil")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(text))
    assert in_child(merge_recipe, tmp_path, words) == 0
    assert sorted(os.listdir(tmp_path)) == ["evil", "recipe.yaml"]
