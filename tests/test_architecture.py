"""docs/architecture.md describes the house as it is, and what it promises to authors holds."""

import ast
import re
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from helpers import random_factors, relative
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_merge._common.tensors import LazyTensor
from gam_merge._read import formats, peft, peft_config
from gam_merge._read.adapter import ExtraKind
from gam_merge._read.format import Contents, Format

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gam_merge"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")


def rooms() -> list[str]:
    """The folders of gam_merge and the files at its root, which are verbs."""
    names: list[str] = []
    for path in sorted(PACKAGE.iterdir()):
        is_module = path.suffix == ".py" and not path.name.startswith("__")
        if is_module or (path / "__init__.py").exists():
            names.append(path.stem)
    return names


@pytest.mark.parametrize("room", rooms())
def test_every_room_is_on_the_page(room: str) -> None:
    table = PAGE.partition("## Rooms")[2].partition("\n## ")[0]
    first_cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("|")]
    assert any(f"`{room}`" in cell for cell in first_cells), f"describe {room} on the page"


def test_every_file_on_the_page_exists() -> None:
    files = re.findall(r"`([\w/.]+(?:\.(?:py|toml)|/))`", PAGE)
    files += re.findall(r"`python ([\w/.]+\.py)`", PAGE)
    assert len(files) > 10
    for file in files:
        assert (ROOT / file).exists(), file


# Names that stand in PEFT's files: fields of the config, parts of keys, names of files.
PLAIN_WORDS = {"r", "bias", "revision"}  # they mean other things elsewhere
FIELDS = {*peft_config.HONOURED, *peft_config.IGNORED, *peft_config.REFUSED} - PLAIN_WORDS
PARTS = {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"}
FILES = {peft.CONFIG_NAME, peft.WEIGHTS_NAME, peft.PICKLE_NAME}
KINDS = set(get_args(ExtraKind))  # our words for the kinds of extras, some of which are PEFT's
PEFT_NAMES = (FIELDS | PARTS | FILES | {peft.PREFIX}) - KINDS

# Where they stand outside of gam_merge/_read/peft*.py, and why they may.
EXCEPTIONS = {
    ("_inspect.py", "lora_A"): "a report names the factor that is zero as users know it",
    ("_inspect.py", "lora_B"): "as above",
    ("_run/reader.py", "lora_A"): "an error names the factor that is not finite",
    ("_run/reader.py", "lora_B"): "as above",
    ("_lineup/extras.py", "lora_B"): "extras of the kind lora_bias are named after it",
    ("_models/placement.py", "lora_B"): "as above",
    ("_lineup/extras.py", "trainable_token_indices"): "an error names the field to correct",
    ("_models/placement.py", "trainable_token_indices"): "as above",
    ("_lineup/serving.py", "rank_pattern"): "a note on what readers of PEFT's format do with it",
    ("_lineup/serving.py", "fan_in_fan_out"): "an error names what the server does not support",
    ("_read/diffusers.py", "lora_A"): "diffusers took over how PEFT's keys end",
    ("_read/diffusers.py", "lora_B"): "as above",
    ("_read/diffusers.py", "lora_magnitude_vector"): "as above",
    ("_read/mlx.py", peft.CONFIG_NAME): "MLX-LM's config has the same name",
    ("_read/whole_model.py", peft.CONFIG_NAME): "an error names what torchtune also writes",
    ("_read/whole_model.py", peft.WEIGHTS_NAME): "as above",
    ("integrations/peft.py", "fan_in_fan_out"): "an attribute of PEFT's layers",
}


def strings(file: Path) -> Iterator[str]:
    """The string constants of a file but for docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    docstrings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_string and node not in docstrings:
            yield node.value


def names_of_peft(file: Path) -> set[str]:
    """Those that a file holds as whole words of its strings."""
    found: set[str] = set()
    for text in strings(file):
        for name in PEFT_NAMES:
            if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text):
                found.add(name)
    return found


def test_only_the_format_knows_the_names_of_peft() -> None:
    found: set[tuple[str, str]] = set()
    for file in sorted(PACKAGE.rglob("*.py")):
        if not file.match("_read/peft*.py"):
            name = file.relative_to(PACKAGE).as_posix()
            found |= {(name, word) for word in names_of_peft(file)}
    assert found == set(EXCEPTIONS)


def test_the_names_of_peft_are_found_where_they_are() -> None:
    found = names_of_peft(PACKAGE / "_read" / "peft.py")
    found |= names_of_peft(PACKAGE / "_read" / "peft_names.py")
    assert found >= {"target_modules", "use_dora", peft.PREFIX, peft.CONFIG_NAME}


class Toy(Format):
    """A format of another ecosystem: keys ``x.down`` and ``x.up``, no config."""

    name = "toy"
    weights_names = ("toy.safetensors",)

    def recognizes(self, contents: Contents) -> bool:
        return any(key.endswith(".down") for key in contents.tensors)

    def parse(self, contents: Contents, problems: list[str] | None = None) -> gm.Adapter:
        modules: dict[str, gm.LoraModule] = {}
        for key in sorted(contents.tensors):
            name, _, part = key.rpartition(".")
            if part == "down":
                down, up = contents.tensors[key], contents.tensors[f"{name}.up"]
                modules[name] = gm.LoraModule(name, down, up, 1.0)
        return gm.Adapter(contents.source, modules, contents.base_model, format=self.name)

    def describe(self, adapter: gm.Adapter, sources: Collection[gm.Adapter] = ()) -> gm.Adapter:
        return replace(adapter, format=self.name)

    def module_tensors(self, module: gm.LoraModule) -> dict[str, LazyTensor]:
        return {f"{module.name}.down": module.a, f"{module.name}.up": module.b}


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two adapters of the toy format, which is registered and no more."""
    form: Format = Toy()
    monkeypatch.setattr(formats, "FORMATS", [form, *formats.FORMATS])
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.mkdir()
        up, down = random_factors(generator, 12, 10, 3, torch.float32)
        save_file({"x.down": down, "x.up": up}, path / "toy.safetensors")
    return paths


def dense(file: Path) -> torch.Tensor:
    """The delta of the toy format, from its definition."""
    tensors = load_file(file)
    return tensors["x.up"].double() @ tensors["x.down"].double()


def test_another_format_is_one_class_and_its_registration(toys: list[Path], tmp_path: Path) -> None:
    deltas = [dense(path / "toy.safetensors") for path in toys]
    for path, expected in zip(toys, deltas, strict=True):
        assert relative(gm.load(path).modules["x"].delta(), expected) < 1e-12
        inspected = gm.inspect(path)
        assert inspected.problems == ()
        assert inspected.total.norm == pytest.approx(float(expected.norm()))

    mean = (deltas[0] + deltas[1]) / 2
    in_memory = gm.merge(toys, method="mean", rank=6).adapter
    assert set(gm.state_dict(in_memory)) == {"x.down", "x.up"}
    assert relative(in_memory.modules["x"].delta(), mean) < 1e-6

    out = tmp_path / "out"
    gm.merge(toys, method="mean", rank=6, out=out)
    assert set(load_file(out / "toy.safetensors")) == {"x.down", "x.up"}
    assert not (out / peft.CONFIG_NAME).exists()
    assert relative(dense(out / "toy.safetensors"), mean) < 1e-6
    again = gm.load(out)
    assert again.format == "toy"
    assert relative(again.modules["x"].delta(), mean) < 1e-6
    assert gm.verify(out, rerun=True).holds
