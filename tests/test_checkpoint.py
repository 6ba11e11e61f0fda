"""Whole models on disk: what is found in them, and what is refused."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

import gam_merge as gm
from gam_merge._models.checkpoint import common_prefix, open_checkpoint, rename
from gam_merge._read.container import TensorSpec
from gam_merge._read.safetensors import SafetensorsWriter


def write_checkpoint(path: Path, shards: Sequence[Mapping[str, tuple[int, ...]]]) -> Path:
    """A checkpoint of zeros in float32, which take no room on the disk, by key and shape."""
    path.mkdir(parents=True)
    places = {}
    for i, shapes in enumerate(shards):
        name = (
            f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
            if len(shards) > 1
            else "model.safetensors"
        )
        specs = [TensorSpec(key, shape, torch.float32) for key, shape in shapes.items()]
        SafetensorsWriter(path / name, specs, {}).close()
        places.update(dict.fromkeys(shapes, name))
    if len(shards) > 1:
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (path / "config.json").write_text("{}")
    return path


KEYS = [
    "model.layers.0.q.weight",
    "model.layers.1.q.weight",
    "vision.layers.0.q.weight",
    "h.0.c.weight",
    "head.weight",
]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        (["model.layers.0.q.weight", "model.layers.1.q.weight"], (0, "")),
        (["transformer.h.0.c.weight"], (1, "")),
        (["layers.1.q.weight"], (0, "model.")),
        (["language.layers.0.q.weight", "language.layers.1.q.weight"], (1, "model.")),
        (["head.weight"], (0, "")),
        (["vision.layers.0.q.weight"], (0, "")),
    ],
)
def test_prefix(parameters, expected, tmp_path):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "model", [dict.fromkeys(KEYS, (2, 2))])
    )
    assert common_prefix(checkpoint, [[name] for name in parameters]) == expected
    assert all(rename(name, *expected) in checkpoint.tensors for name in parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            ["layers.0.q.weight"],
            r"layers\.0\.q\.weight may be any of model\.layers\.0.*, vision\.layers\.0",
        ),
        (
            ["model.layers.0.q.weight", "model.layers.2.q.weight"],
            r"has no tensor model\.layers\.2\.q\.weight",
        ),
        (["model.layers.0.k.weight"], r"has no tensor model\.layers\.0\.k\.weight"),
        (["weight"], r"has no tensor weight"),
    ],
)
def test_no_prefix(parameters, message, tmp_path):
    checkpoint = open_checkpoint(
        write_checkpoint(tmp_path / "model", [dict.fromkeys(KEYS, (2, 2))])
    )
    with pytest.raises(gm.GamMergeError, match=message):
        common_prefix(checkpoint, [[name] for name in parameters])


# Names that no shard has: a file of that name in a copy would be somewhere else, or be overwritten by a companion.
OTHERS = [
    *(
        "..",
        ".",
        "",
        "/x.safetensors",
        "../x.safetensors",
        "./x.safetensors",
        "x/",
        "config.json",
        "tokenizer.json",
    ),
    *("fuse_report.json", "MODEL-00001-OF-00002.SAFETENSORS"),
    *("x\0.safetensors", "\ud800.safetensors", "x\n.safetensors"),
    *(None, 1, ["x.safetensors"]),
]


def test_shards_need_their_index(tmp_path):
    path = write_checkpoint(tmp_path / "model", [{"a.weight": (2, 2)}, {"b.weight": (2, 2)}])
    assert open_checkpoint(path).tensors.keys() == {"a.weight", "b.weight"}
    index = path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    for wrong, message in (
        (
            {"weight_map": {**places, "c.weight": places["a.weight"]}},
            r"00001-.*: lacks tensor c\.weight",
        ),
        (
            {"weight_map": {**places, "c.weight": "missing.safetensors"}},
            r"missing\.safetensors: cannot be read",
        ),
        (
            {"weight_map": {**places, "c.weight": "../up.safetensors"}},
            r"index\.json: does not say which tensor",
        ),
        ({"weight_map": [1]}, r"index\.json: does not say which tensor"),
        ([], r"index\.json: is not a JSON object"),
        *(
            (
                {"weight_map": {**places, "c.weight": name}},
                r"index\.json: does not say which tensor",
            )
            for name in OTHERS
        ),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(gm.GamMergeError, match=message):
            open_checkpoint(path)
    index.unlink()
    with pytest.raises(
        gm.GamMergeError,
        match=r"must hold one safetensors file, or several and one index, got: model",
    ):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"architectures": 5}, "architectures must be a list"),
        ({"model_type": ["llama"]}, "model_type must be a string"),
    ],
)
def test_a_config_that_says_anything(config, words, tmp_path):
    path = write_checkpoint(tmp_path / "model", [{"a.weight": (2, 2)}])
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(gm.GamMergeError, match=words):
        open_checkpoint(path)


def test_weights_that_never_end(tmp_path):
    path = write_checkpoint(tmp_path / "model", [{"a.weight": (2, 2)}])
    (path / "model.safetensors").unlink()
    os.mkfifo(path / "model.safetensors")
    with pytest.raises(gm.GamMergeError, match=r"model\.safetensors: is not a regular file"):
        open_checkpoint(path)
