"""Adapters by Hub id, over real HTTP: what is fetched, from where, and how each failure reads."""

import io
import json
import pickle
import re
import time
import traceback
from pathlib import Path

import pytest
import torch
from helpers import random_factors, write_adapter
from hub_server import STRANGER, TOKEN, Fault, Hub
from huggingface_hub import constants
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

import gam_merge as gm
from gam_merge._read.hub_id import HubId, parse_hub_id

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small adapter, and one that nobody should fetch."""
    factors = {
        f"layers.{i}.q": random_factors(torch.Generator().manual_seed(i), 8, 6, 2) for i in range(2)
    }
    directory = write_adapter(tmp_path / "local", factors, lora_alpha=4)
    return {name: (directory / name).read_bytes() for name in (CONFIG, WEIGHTS)} | {
        "optimizer.bin": b"huge"
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", HubId("org/name")),
        ("org/name@v1.0", HubId("org/name", "v1.0")),
        ("org/name:sub/folder", HubId("org/name", None, "sub/folder")),
        ("org/name@refs/pr/3:sub", HubId("org/name", "refs/pr/3", "sub")),
        ("name", None),
        ("./org/name", None),
        ("/org/name", None),
        ("org/name/sub", None),
        ("org/na--me", None),
        ("org/na..me", None),
        ("org/name.git", None),
        ("org/name.git:sub", None),
        ("org/-name", None),
        ("org/name.", None),
        ("o/" + "n" * 94, HubId("o/" + "n" * 94)),
        ("o/" + "n" * 95, None),
        ("org/name@", None),
        ("org/na me", None),
    ],
)
def test_spelling(text, expected):
    assert parse_hub_id(text) == expected
    assert expected is None or str(expected) == text


@given(st.text("aZ0_-./é", max_size=9), st.text("aZ0_-.", max_size=9))
def test_names_of_repositories_are_those_of_huggingface_hub(owner, name):
    try:
        validate_repo_id(repo := f"{owner}/{name}")
    except HFValidationError:
        assert parse_hub_id(repo) is None
    else:
        assert parse_hub_id(repo) == HubId(repo)


def test_only_config_and_weights_of_one_commit(hub: Hub, files, tmp_path):
    sha = hub.add("org/name", files)
    adapter = gm.load("org/name")
    assert (adapter.source, adapter.revision) == ("org/name", sha)
    local = gm.load(tmp_path / "local")
    assert torch.equal(adapter.modules["layers.1.q"].delta(), local.modules["layers.1.q"].delta())
    fetched = {line.rpartition("/")[2] for line, _ in hub.requests if "/resolve/" in line}
    assert fetched == {CONFIG, WEIGHTS}
    assert not hub.asked(
        f"HEAD /org/name/resolve/main/{WEIGHTS}"
    )  # the commit of the config, even if main moves on
    assert hub.asked(f"HEAD /org/name/resolve/{sha}/{WEIGHTS}")


def test_revision_and_subfolder(hub: Hub, files):
    first = hub.add("org/name", {f"a/{name}": content for name, content in files.items()})
    hub.repos["org/name"].commit(
        "main", {f"a/{CONFIG}": files[CONFIG].replace(b'"lora_alpha": 4', b'"lora_alpha": 8')}
    )
    hub.repos["org/name"].refs["refs/pr/1"] = first
    scales = [
        gm.load(f"org/name{at}:a").modules["layers.0.q"].scale
        for at in ("", f"@{first}", "@refs/pr/1")
    ]
    assert scales == [4.0, 2.0, 2.0]


def test_a_file_with_its_own_config(hub: Hub, files):
    hub.add("org/name", {"x/one.safetensors": files[WEIGHTS], "x/one_config.json": files[CONFIG]})
    adapter = gm.load("org/name:x/one.safetensors")
    assert adapter.modules["layers.0.q"].scale == 2.0
    hub.add("org/bare", {"one.safetensors": files[WEIGHTS]})
    assert (
        gm.load("org/bare:one.safetensors", base_model="base", alpha=6).modules["layers.0.q"].scale
        == 3.0
    )


def test_a_config_that_cannot_be_asked_for_is_not_taken_for_missing(hub: Hub, files, monkeypatch):
    """The next name could be the config of another file, with another alpha."""
    other = files[CONFIG].replace(b'"lora_alpha": 4', b'"lora_alpha": 8')
    hub.add(
        "org/name",
        {"one.safetensors": files[WEIGHTS], "one_config.json": files[CONFIG], CONFIG: other},
    )
    hub.faults.append(Fault("HEAD .*/one_config.json"))
    with pytest.raises(gm.GamMergeError, match=r"connection to .* failed"):
        gm.load("org/name:one.safetensors")
    hub.faults.clear()
    assert gm.load("org/name:one.safetensors").modules["layers.0.q"].scale == 2.0
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert gm.load("org/name:one.safetensors").modules["layers.0.q"].scale == 2.0


def test_old_adapters_are_pickles_read_as_data_alone(hub: Hub, files, monkeypatch):
    content = io.BytesIO()
    torch.save(load(files[WEIGHTS]), content)
    hub.add("org/name", {CONFIG: files[CONFIG], "adapter_model.bin": content.getvalue()})
    hub.add("org/hostile", {CONFIG: files[CONFIG], "adapter_model.bin": pickle.dumps(print)})
    adapter = gm.load("org/name")
    assert "pickle" in adapter.notes[0]
    with pytest.raises(gm.GamMergeError, match="not a pickle of tensors alone"):
        gm.load("org/hostile")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert gm.load("org/name").rank == 2


def test_an_existing_path_is_no_hub_id(hub: Hub, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    (tmp_path / "local").rename(tmp_path / "org" / "name")
    assert gm.load("org/name").revision is None
    assert not hub.requests


def test_private_and_gated_with_a_token(hub: Hub, files, monkeypatch):
    hub.add("me/private", files, private=True)
    hub.add("me/gated", files, gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert gm.load("me/private").rank == gm.load("me/gated").rank == 2


def test_merges_from_the_cache_when_offline(hub: Hub, files, monkeypatch):
    hub.add("org/name", files)
    online = gm.load("org/name")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    result = gm.merge(["org/name", "org/name"])
    assert not hub.requests
    assert torch.allclose(
        result.adapter.modules["layers.0.q"].delta(),
        online.modules["layers.0.q"].delta(),
        atol=1e-6,
    )


def _missing_weights(hub: Hub, files):
    hub.add("org/name", {CONFIG: files[CONFIG]})


def _no_config(hub: Hub, files):
    hub.add("org/name", {WEIGHTS: files[WEIGHTS]})


def _in_subfolders(hub: Hub, files):
    hub.add("org/name", {f"step-{i}/{CONFIG}": files[CONFIG] for i in (1, 2)})


def _gated(hub: Hub, files):
    hub.add("org/name", files, gated=True)


def _private(hub: Hub, files):
    hub.add("org/name", files, private=True)


def _fault(*args, **kwargs):
    def arrange(hub: Hub, files):
        hub.add("org/name", files)
        hub.faults.append(Fault(*args, **kwargs))

    return arrange


@pytest.mark.parametrize("token", [None, STRANGER])
@pytest.mark.parametrize(
    ("source", "arrange", "expected"),
    [
        (
            "org/name",
            lambda hub, files: None,
            "no such repository, or it is private.*hf auth login",
        ),
        ("org/name", _private, "no such repository, or it is private.*hf auth login"),
        ("org/name", _gated, "is gated: request access"),
        ("org/name@v9", _in_subfolders, "there is no such revision"),
        ("org/name", _missing_weights, f"does not contain both {CONFIG} and {WEIGHTS}"),
        (
            "org/name:other",
            _missing_weights,
            "is not an adapter; name one that the repository contains: org/name$",
        ),
        (
            "org/name",
            _in_subfolders,
            "name one that the repository contains: org/name:step-1, org/name:step-2",
        ),
        ("org/name", _no_config, f"does not contain both {CONFIG} and {WEIGHTS}"),
        ("org/name:x.safetensors", _missing_weights, "no such file"),
        ("org/name", _fault("HEAD", 500), "127.0.0.1 answers with error 500"),
        ("org/name", _fault("HEAD", 403), "the token does not permit this"),
        ("org/name", _fault("HEAD", 429), "too many requests"),
        ("org/name", _fault("HEAD"), "connection to 127.0.0.1 failed"),
        ("org/name", _fault("HEAD", 200), "does not answer like a Hub"),
        ("org/name", _fault("GET /cdn/", 500), "answers with error 500"),
        ("org/name", _fault("GET /cdn/"), "connection to 127.0.0.1 failed"),
        ("org/name", _fault("GET /cdn/", keep=0), "connection to 127.0.0.1 failed"),
    ],
)
def test_each_failure_is_one_clear_line(
    hub: Hub, files, source, arrange, expected, token, monkeypatch, tmp_path
):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    arrange(hub, files)
    with pytest.raises(gm.GamMergeError, match=f"^{re.escape(source)}: .*{expected}") as caught:
        gm.load(source)
    assert "\n" not in str(caught.value)
    # a chain of causes would show URLs, signed ones among them
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_offline_and_not_in_the_cache(hub: Hub, files, monkeypatch):
    hub.add("org/name", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(gm.GamMergeError, match="not in the cache and HF_HUB_OFFLINE"):
        gm.load("org/name")


def test_a_dead_server(hub: Hub, files, monkeypatch):
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        "http://127.0.0.1:1/{repo_id}/{revision}/{filename}",
    )
    with pytest.raises(gm.GamMergeError, match=r"connection to .* failed"):
        gm.load("org/name")


def test_a_bad_token_is_said_and_never_shown(hub: Hub, files, monkeypatch, capfd):
    hub.add("org/name", files)
    monkeypatch.setenv("HF_TOKEN", "hf_wrongSecret")
    with pytest.raises(gm.GamMergeError, match="requires a valid token") as caught:
        gm.load("org/name")
    assert "Secret" not in "".join([*traceback.format_exception(caught.value), *capfd.readouterr()])


def test_a_download_that_breaks_is_resumed(hub: Hub, files):
    hub.add("org/name", files)
    hub.faults.append(Fault("GET /cdn/", keep=100, times=1))
    assert gm.load("org/name").rank == 2
    assert hub.asked("GET /cdn/") == 2


def test_a_fault_leaves_no_half_state(hub: Hub, files):
    hub.add("org/name", files)
    hub.faults.append(Fault("GET /cdn/", 500))
    with pytest.raises(gm.GamMergeError):
        gm.load("org/name")
    hub.faults.clear()
    assert gm.load("org/name").rank == 2


def test_names_cannot_leave_the_repository(hub: Hub, files):
    hub.add("org/name", files)
    for subfolder in ("../other", "a/../../b", "/etc"):
        with pytest.raises(gm.GamMergeError):
            gm.load(f"org/name:{subfolder}")


def test_hostile_config_from_the_hub(hub: Hub, files):
    hub.add(
        "org/name",
        {
            **files,
            CONFIG: json.dumps({"peft_type": "LORA", "velora_config": {"scale": 1}}).encode(),
        },
    )
    with pytest.raises(gm.GamMergeError, match="VeLoRA"):
        gm.load("org/name")


def test_a_hub_that_cannot_be_reached_is_said_at_once(hub: Hub, files, monkeypatch):
    """What huggingface_hub finds out in half a minute; an adapter in the cache needs no Hub."""
    hub.add("org/name", files)
    cached = gm.load("org/name")
    dead = "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "ENDPOINT", dead)
    template = dead + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    start = time.perf_counter()
    with pytest.raises(gm.GamMergeError, match="no such directory here; taken as a Hub id, and"):
        gm.load("org/other")
    assert gm.load("org/name").revision == cached.revision
    assert time.perf_counter() - start < 5


def test_behind_a_proxy_the_hub_is_asked(hub: Hub, files, monkeypatch):
    """A name that only the proxy can resolve is no reason to give up."""
    hub.add("org/name", files)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setenv("http_proxy", hub.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert gm.load("org/name").rank == 2


def test_a_hub_id_is_never_a_path(hub: Hub, files, tmp_path: Path, monkeypatch):
    """Where a text means the directory, and in what the merge records."""
    monkeypatch.chdir(tmp_path)
    write_adapter(
        tmp_path / "org" / "adapter", {"other": random_factors(torch.Generator(), 4, 4, 1)}
    )
    sha = hub.add("org/adapter", files)
    assert set(gm.load("org/adapter").modules) == {"other"}
    adapter = gm.load(gm.HubId("org/adapter"))
    assert set(adapter.modules) == {"layers.0.q", "layers.1.q"}
    result = gm.merge([gm.HubId.parse("org/adapter@main")], method="mean")
    assert result.record.sources[0].name(None) == f"org/adapter@{sha}"


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_files_that_are_too_large_are_not_fetched(hub: Hub, files, name):
    large = {**files, name: files[name] + bytes(10_000)}
    hub.add("org/adapter", large)
    most = len(large[name]) - 1
    with pytest.raises(gm.GamMergeError, match=f"{name} must have at most {most} bytes"):
        gm.load(gm.HubId.parse("org/adapter", max_bytes=most))
    assert hub.asked(f"GET .*{name}") == 0
    with pytest.raises(gm.GamMergeError, match=r"must be org/name.*got '/etc/passwd'"):
        gm.HubId.parse("/etc/passwd")
