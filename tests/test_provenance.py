"""What a merge says of itself and of its sources: digests in the recipe, the card and the metadata of the weights."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import digest, random_factors, write_adapter
from safetensors import safe_open

import gam_merge as gm

WEIGHTS, CONFIG, RECIPE = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "gam_merge_recipe.yaml",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Adapters a and b, in the working directory."""
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        factors = {
            f"layers.{i}.q": random_factors(generator, 10, 8, 2, torch.float32) for i in range(3)
        }
        write_adapter(tmp_path / name, factors)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def metadata(directory: str | Path) -> Any:
    with safe_open(Path(directory) / WEIGHTS, "pt") as file:
        return file.metadata()


def recipes(directory: str | Path) -> list[Any]:
    return list(yaml.safe_load_all((Path(directory) / RECIPE).read_text()))


def origin(directory: str) -> dict[str, str]:
    """What the metadata say of a source that is a directory."""
    return {"sha256": digest(directory), "config_sha256": digest(directory, CONFIG)}


def test_recipe_and_card_know_what_was_written(folder):
    gm.merge(["a", "b"], out="out")
    digests = {name: digest("out", name) for name in (WEIGHTS, CONFIG)}
    assert recipes("out")[-1]["output"]["sha256"] == digests
    card = Path("out", "README.md").read_text()
    assert all(found in card for found in digests.values())


def test_the_weights_know_their_sources(folder):
    first = gm.merge(["a", "b"], weights=[1, 3])
    gm.merge([first.adapter, "b"], method="mean", out="out")
    of = [origin("a"), origin("b"), origin("b")]
    assert metadata("out")["gam_merge.method"] == "mean"
    assert json.loads(metadata("out")["gam_merge.sources"]) == of
    assert "sha256" not in recipes("out")[0]["output"]  # the first merge was never written


def test_what_is_in_memory_has_no_digest(folder):
    gm.merge([gm.Adapter("live", gm.load("a").modules, "base"), "b"], out="out")
    assert json.loads(metadata("out")["gam_merge.sources"]) == [origin("b")]


def _rewrite(file: Path) -> None:
    """The same size, other numbers, under the same path."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def _rewrite_and_put_the_time_back(file: Path) -> None:
    times = file.stat()
    _rewrite(file)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _replace(file: Path) -> None:
    """As a download does: another file takes the name. Its time is that of the first."""
    times, other = file.stat(), file.with_suffix(".new")
    shutil.copy(file, other)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(other, file)


@pytest.mark.parametrize("change", [_rewrite, _rewrite_and_put_the_time_back, _replace])
@pytest.mark.parametrize("out", ["out", None], ids=["disk", "memory"])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_source_that_changes_during_the_merge_is_an_error(folder, change, out, name):
    def late(done: int, total: int) -> None:
        if done == total:
            change(folder / "b" / name)

    with pytest.raises(gm.GamMergeError, match=f"/b/{name}: changed since it was opened"):
        gm.merge(["a", "b"], out=out, progress=late)
    assert sorted(os.listdir()) == ["a", "b"]


def test_a_result_is_not_saved_as_made_of_other_sources(folder):
    result = gm.merge(["a", "b"])
    _rewrite(folder / "b" / WEIGHTS)
    with pytest.raises(gm.GamMergeError, match="changed since it was opened"):
        result.save("out")
    assert not Path("out").exists()
