"""Files that claim, nest or repeat more than any adapter does are refused, quickly and in little memory."""

from pathlib import Path

import pytest
from helpers import random_factors, write_adapter
from torch import Generator

import gam_merge as gm

RECIPE = "sources: [{{path: good}}]\nparams: {{density: {}}}\nmethod: ties\n"
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
    "no_table_of_filters": ("{filter: x}", "put filters into a list"),
    "beyond_floats": ("[1e308, " + "9" * 60 + "]", "density"),
    "long_word": ("a" * 900_000, "density"),
    "too_long": ("a" * 1_000_001, "at most 1000000"),
}


@pytest.mark.parametrize("name", YAML)
def test_recipes(name: str, tmp_path: Path) -> None:
    text, words = YAML[name]
    write_adapter(tmp_path / "good", {"w": random_factors(Generator().manual_seed(0), 5, 4, 2)})
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(text))
    with pytest.raises(gm.GamMergeError, match=words) as error:
        gm.merge_recipe(file, out=tmp_path / "out")
    assert len(str(error.value)) < 4000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good", "recipe.yaml"]
