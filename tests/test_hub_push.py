"""To the Hub and back, over real HTTP: one commit of our files, no path and no token in it, and every failure."""

import json
import os
import re
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from helpers import random_factors, write_adapter
from hub_server import PUSH_STEPS, STRANGER, TOKEN, Fault, Hub
from safetensors.torch import save_file

import gam_merge as gm

# huggingface_hub uploads in a way that its HTTP client will drop
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAMES = {
    "adapter_model.safetensors",
    "adapter_config.json",
    "gam_merge_recipe.yaml",
    "merge_report.json",
    "README.md",
    "merge.png",
}
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def merged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A merge of two local adapters on disk, and the token of its owner."""
    for seed, name in enumerate(("code", "maths")):
        factors = {
            f"layers.{i}.q": random_factors(torch.Generator().manual_seed(seed), 8, 6, 2)
            for i in range(2)
        }
        write_adapter(
            tmp_path / "secret" / name,
            factors,
            base_model_name_or_path="org/base",
            task_type="CAUSAL_LM",
        )
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return gm.merge(
        [tmp_path / "secret" / "code", tmp_path / "secret" / "maths"], out=tmp_path / "out"
    ).path


def test_there_and_back(hub: Hub, merged: Path):
    url = gm.push(merged, "me/merged", commit_message="First")
    repo = hub.repos["me/merged"]
    assert set(hub.files("me/merged")) == NAMES | {".gitattributes"}
    assert repo.messages == ["commit", "First"]  # its creation, and one commit
    assert url == f"{hub.url}/me/merged/commit/{repo.refs['main']}"
    assert not repo.private
    back = gm.load("me/merged")
    assert back.file.read_bytes() == (merged / WEIGHTS).read_bytes()
    assert back.revision == repo.refs["main"]


def test_in_parts(hub: Hub, merged: Path):
    hub.chunk_size = 700
    gm.push(merged, "me/merged")
    assert hub.asked("PUT /lfs-part/") >= 2
    assert gm.load("me/merged").file.read_bytes() == (merged / WEIGHTS).read_bytes()


def test_a_merge_from_the_hub_and_its_recipe(hub: Hub, merged: Path, tmp_path: Path):
    gm.push(merged, "me/one")
    gm.push(gm.merge([tmp_path / "secret" / "maths"], out=tmp_path / "two").path, "me/two")
    hub.repos["me/two"].commit("main", {"more": b""})
    first = gm.merge(["me/one", "me/two@main"], out=tmp_path / "both")
    gm.push(first.path, "me/both")
    again = tmp_path / "again.yaml"
    again.write_bytes(hub.files("me/both")["gam_merge_recipe.yaml"])
    paths = [source["path"] for source in yaml.safe_load(again.read_text())["sources"]]
    assert paths == [f"{name}@{hub.repos[name].refs['main']}" for name in ("me/one", "me/two")]
    second = gm.merge_recipe(again, out=tmp_path / "again")
    assert (second.path / WEIGHTS).read_bytes() == (first.path / WEIGHTS).read_bytes()


def test_no_path_of_this_machine_goes_there(hub: Hub, merged: Path, tmp_path: Path, monkeypatch):
    gm.push(merged, "me/merged")
    files = hub.files("me/merged")
    for content in files.values():
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
    assert [s["path"] for s in yaml.safe_load(files["gam_merge_recipe.yaml"])["sources"]] == [
        "code",
        "maths",
    ]
    assert json.loads(files["merge_report.json"])["sources"] == ["code", "maths"]
    assert b'"me/merged"' in files["README.md"]
    assert b"](merge.png)" in files["README.md"]
    assert files["merge.png"].startswith(b"\x89PNG")
    for name in (WEIGHTS, "adapter_config.json"):
        assert files[name] == (merged / name).read_bytes()


def test_notes_tell_no_path_either(hub: Hub, merged: Path, tmp_path: Path, monkeypatch):
    """What a note says of a source that was typed with its path, from where the path leads nowhere."""
    (merged.parent / "here" / "adapters").mkdir(parents=True)
    (merged.parent / "secret").rename(merged.parent / "here" / "adapters" / "secret")
    monkeypatch.chdir(merged.parent / "here")
    source = gm.load("adapters/secret/code")
    noted = replace(source, notes=("one thing to know",))
    gm.merge([noted, "adapters/secret/maths"], out="out")
    monkeypatch.chdir(merged)
    gm.push(tmp_path / "here" / "out", "me/merged")
    files = hub.files("me/merged")
    assert json.loads(files["merge_report.json"])["notes"][0] == "code: one thing to know"
    assert json.loads(files["merge_report.json"])["sources"] == ["code", "maths"]
    assert b"code: one thing to know" in files["README.md"]
    assert not any(b"secret" in content or b"adapters/" in content for content in files.values())


def test_a_local_base_model_keeps_its_name_alone(hub: Hub, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    factors = {"w": random_factors(torch.Generator().manual_seed(0), 8, 6, 2)}
    for base in (str(tmp_path / "models" / "llama"), "models/llama"):
        write_adapter(tmp_path / "a", factors, base_model_name_or_path=base)
        gm.push(gm.merge(["a"], out="out", force=True).path, "me/merged")
        files = hub.files("me/merged")
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "llama"
        assert not any(
            b"models" in content for name, content in files.items() if name != "README.md"
        )
        assert b"base_model:" not in files["README.md"]


def leaks(hub: Hub, folder: Path) -> list[str]:
    """The files on the Hub that name the folder of the inputs."""
    words = (str(folder).encode(), b"secret")
    return [
        name
        for name, content in hub.files("me/merged").items()
        if any(word in content for word in words)
    ]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model and a fine-tuned copy of it in a folder that is nobody's business."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, generator=generator)
    paths = []
    for name in ("base", "tuned"):
        path = tmp_path / "secret" / name
        path.mkdir(parents=True)
        save_file({"layers.0.q.weight": weight}, path / "model.safetensors")
        own = {"_name_or_path": str(path), "text_config": {"_name_or_path": str(path)}}
        (path / "config.json").write_text(json.dumps({"model_type": "llama", **own}))
        (path / "tokenizer_config.json").write_text(json.dumps({"name_or_path": str(path)}))
        (path / "tokenizer.model").write_bytes(b"\xff\x00")
        weight = weight + torch.outer(torch.ones(8), torch.arange(8.0))
        paths.append(path)
    return paths[0], paths[1]


def test_an_extracted_adapter_has_no_path(hub: Hub, models, tmp_path: Path):
    gm.extract(*models, rank=1, out=tmp_path / "out")
    assert "secret" in (tmp_path / "out" / "extract_report.json").read_text()
    gm.push(tmp_path / "out", "me/merged")
    files = hub.files("me/merged")
    assert {"adapter_model.safetensors", "adapter_config.json", "extract_report.json"} < set(files)
    report = json.loads(files["extract_report.json"])
    assert (report["base"], report["tuned"]) == ("base", "tuned")
    assert leaks(hub, tmp_path) == []


def test_a_fused_model_has_no_path(hub: Hub, models, tmp_path: Path):
    factors = {"layers.0.q": random_factors(torch.Generator().manual_seed(0), 8, 8, 2)}
    adapter = write_adapter(tmp_path / "secret" / "adapter", factors)
    gm.fuse(models[0], adapter, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    gm.push(tmp_path / "out", "me/merged")
    files = hub.files("me/merged")
    assert set(files) == {
        ".gitattributes", "model.safetensors", "config.json", "tokenizer_config.json",
        "tokenizer.model", "fuse_report.json",
    }  # fmt: skip
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert files["tokenizer.model"] == b"\xff\x00"
    report = json.loads(files["fuse_report.json"])
    assert (report["base"], report["adapter"]) == ("base", "adapter")
    config = json.loads(files["config.json"])
    assert config == {
        "model_type": "llama", "_name_or_path": "base", "text_config": {"_name_or_path": "base"},
    }  # fmt: skip
    assert leaks(hub, tmp_path) == []


def test_the_best_of_a_search_has_no_path(hub: Hub, merged: Path, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text(
        f"sources: [{{path: {tmp_path}/secret/code}}, {{path: secret/maths}}]"
    )
    best = gm.search(tmp_path / "recipe.yaml", lambda _: 1.0, tmp_path / "search", trials=2)
    with pytest.raises(gm.GamMergeError, match="is not a merge that gam-merge wrote"):
        gm.push(tmp_path / "search", "me/merged")
    gm.push(gm.merge_recipe(best.recipe, out=tmp_path / "best").path, "me/merged")
    assert leaks(hub, tmp_path) == []


def test_a_base_model_in_the_recipe_has_no_path(hub: Hub, merged: Path, tmp_path: Path):
    recipe = merged / "gam_merge_recipe.yaml"
    recipe.write_text(recipe.read_text() + "base_model: ../secret/base\n")
    report = merged / "merge_report.json"
    notes = json.loads(report.read_text())
    notes["notes"] = [f"read {tmp_path}/secret/base/model.safetensors: ok", "and ../secret/b, c/d"]
    report.write_text(json.dumps(notes))
    gm.push(merged, "me/merged")
    files = hub.files("me/merged")
    assert yaml.safe_load(files["gam_merge_recipe.yaml"])["base_model"] == "base"
    assert json.loads(files["merge_report.json"])["notes"] == [
        "read model.safetensors: ok",
        "and b, c/d",
    ]
    assert leaks(hub, tmp_path) == []


@pytest.mark.parametrize("name", sorted(NAMES - {"merge.png"}))
@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe"])
def test_only_regular_files_go_there(hub: Hub, merged: Path, tmp_path: Path, name, kind):
    """A link may lead to the token itself."""
    file, content = merged / name, (merged / name).read_bytes()
    file.unlink()
    (tmp_path / "token").write_bytes(content)
    match kind:
        case "link":
            file.symlink_to(tmp_path / "token")
        case "link to nothing":
            file.symlink_to("nothing")
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
    with pytest.raises(gm.GamMergeError, match=r"is not a (regular file|merge)") as error:
        gm.push(merged, "me/merged")
    assert "\n" not in str(error.value)
    assert not hub.requests


EDITS = {
    "merge_report.json": [
        "", "[]", "{}", "null", "{", '{"sources": 1, "notes": []}', '{"sources": [1, 2]}',
        '{"sources": ["a", "b"], "notes": [1]}', '{"sources": ["a", "b"], "notes": [], "modules": 1}',
        '{"sources": ["a", "b"], "notes": [], "modules": [{}]}', "[" * 100_000,
        '{"sources": ["a", "b"], "notes": [], "modules": [{"name": "q", "norms": ["x"], "inners": []}]}',
    ],
    "adapter_config.json": ["", "[]", "null", "{", "[" * 100_000],
    "gam_merge_recipe.yaml": ["", "[]", "a: b", "sources: 1", "sources: [{}]", "{", "&a [*a]"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "i"), [(name, i) for name in EDITS for i in range(len(EDITS[name]))]
)
def test_files_that_were_edited_are_an_error_in_one_line(hub: Hub, merged: Path, name, i):
    (merged / name).write_text(EDITS[name][i])
    with pytest.raises(gm.GamMergeError, match=re.escape(name)) as error:
        gm.push(merged, "me/merged")
    assert "\n" not in str(error.value)
    assert not hub.requests


def test_only_our_files_go_there(hub: Hub, merged: Path):
    (merged / "notes.txt").write_text("mine")
    gm.push(merged, "me/merged")
    assert "notes.txt" not in hub.files("me/merged")
    with pytest.raises(gm.GamMergeError, match="is not a merge that gam-merge wrote"):
        gm.push(merged.parent / "secret" / "code", "me/merged")


def test_pushing_twice_changes_nothing(hub: Hub, merged: Path):
    gm.push(merged, "me/merged")
    before = hub.files("me/merged")
    gm.push(merged, "me/merged")
    assert hub.files("me/merged") == before
    assert hub.asked("PUT /lfs/") == 2  # weights and figure, once


def test_private_branch_and_pull_request(hub: Hub, merged: Path):
    gm.push(merged, "me/merged", private=True, revision="v1")
    repo = hub.repos["me/merged"]
    assert repo.private
    assert set(hub.files("me/merged")) == {".gitattributes"}
    assert set(hub.files("me/merged", "v1")) > NAMES
    assert gm.load("me/merged@v1").rank == 2
    url = gm.push(merged, "me/merged", create_pr=True)
    assert url == f"{hub.url}/me/merged/discussions/1"
    assert set(hub.files("me/merged")) == {".gitattributes"}
    assert gm.load("me/merged@refs/pr/1").rank == 2


def test_a_pull_request_to_others(hub: Hub, merged: Path, monkeypatch):
    hub.add("them/adapter", {".gitattributes": b""})
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    gm.push(merged, "them/adapter", create_pr=True)
    assert set(hub.files("them/adapter", "refs/pr/1")) > NAMES


def test_what_is_public_does_not_pass_for_private(hub: Hub, merged: Path):
    hub.add("me/merged", {".gitattributes": b""})
    with pytest.raises(gm.GamMergeError, match="already exists and is public"):
        gm.push(merged, "me/merged", private=True)
    assert set(hub.files("me/merged")) == {".gitattributes"}


def test_from_memory(hub: Hub, merged: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    result = gm.merge([tmp_path / "secret" / "code", tmp_path / "secret" / "maths"])
    result.push_to_hub("me/merged", private=True)
    assert hub.files("me/merged")[WEIGHTS] == (merged / WEIGHTS).read_bytes()
    assert not list((tmp_path / "temporary").iterdir())
    hub.faults.append(Fault("POST /api/models/.*/commit", 500))
    with pytest.raises(gm.GamMergeError, match="push it again with: gam-merge push ") as caught:
        result.push_to_hub("me/other")
    kept = re.search(r"gam-merge push (\S+) me/other", str(caught.value))[1]
    assert (Path(kept) / WEIGHTS).read_bytes() == (merged / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    "repo",
    ["merged", "me/merged@v1", "me/merged:sub", "me/mer ged", "../me/merged", "https://hf.co/me/x"],
)
def test_names_that_are_none(hub: Hub, merged: Path, repo):
    with pytest.raises(gm.GamMergeError, match="is not a repository name"):
        gm.push(merged, repo)
    assert not hub.requests


REASONS = {
    500: "127.0.0.1 answers with error 500",
    403: "the token does not permit this",
    401: "the Hub requires a valid token|no such repository, or it is private",
    0: "the connection to 127.0.0.1 failed",
}


@pytest.mark.parametrize("status", REASONS)
@pytest.mark.parametrize("step", PUSH_STEPS)
def test_each_fault_leaves_both_sides_whole(hub: Hub, merged: Path, step, status, capfd):
    before = {path.name: path.read_bytes() for path in merged.iterdir()}
    hub.faults.append(Fault(PUSH_STEPS[step], status, {"X-Error-Message": f"you sent {TOKEN}"}))
    with pytest.raises(gm.GamMergeError, match=f"^me/merged: .*({REASONS[status]})") as caught:
        gm.push(merged, "me/merged", private=True, revision="it's")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(
        f"push it again with: gam-merge push {merged} me/merged --private --revision 'it'\"'\"'s'"
    )
    said = "".join([message, *traceback.format_exception(caught.value), *capfd.readouterr()])
    assert TOKEN not in said
    assert "secretSignature" not in said
    assert {path.name: path.read_bytes() for path in merged.iterdir()} == before
    if repo := hub.repos.get("me/merged"):
        assert all(set(files) == {".gitattributes"} for files in repo.commits.values())
    hub.faults.clear()
    gm.push(merged, "me/merged", private=True, revision="it's")
    assert gm.load("me/merged@it's").file.read_bytes() == before[WEIGHTS]


def test_a_short_outage_is_bridged(hub: Hub, merged: Path):
    for step in ("preupload", "batch", "put", "verify"):
        hub.faults.append(Fault(PUSH_STEPS[step], 503, times=1))
    gm.push(merged, "me/merged")
    assert gm.load("me/merged").rank == 2


def test_nobody_is_logged_in(hub: Hub, merged: Path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        gm.GamMergeError,
        match=r"the Hub requires a valid token; log in with `hf auth login` or set HF_TOKEN",
    ):
        gm.push(merged, "me/merged")
    assert not hub.repos


def test_a_namespace_of_others(hub: Hub, merged: Path):
    with pytest.raises(gm.GamMergeError, match="the token does not permit this"):
        gm.push(merged, "them/merged")


def test_offline(hub: Hub, merged: Path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(gm.GamMergeError, match="HF_HUB_OFFLINE"):
        gm.push(merged, "me/merged")


def test_a_token_that_is_given_is_the_one_that_is_sent(hub: Hub, merged: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", STRANGER)
    gm.push(merged, "me/merged", token=TOKEN)
    assert {token for _, token in hub.requests if token} == {f"Bearer {TOKEN}"}
    with pytest.raises(gm.GamMergeError, match=r"does not permit|valid token") as error:
        gm.push(merged, "me/merged", token="hf_wrong")
    assert "hf_wrong" not in str(error.value)
