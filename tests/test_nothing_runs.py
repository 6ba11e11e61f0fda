"""Nothing that comes in a file is run, becomes a path, or reaches a terminal as more than text."""

import ast
import json
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from children import in_child
from helpers import random_factors, tree, write_adapter
from rich.text import Text
from safetensors.torch import load_file, save_file
from terminal import run, run_in_terminal

import gam_merge as gm

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for package in ("gam_merge", "kernels", "cli")
    for path in sorted((ROOT / package).rglob("*.py"))
]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# --- the code ----------------------------------------------------------------------------------------------------

RUNS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "importlib.import_module",
        "runpy.run_path",
    ),
    *(
        "pickle.load",
        "pickle.loads",
        "pickle.Unpickler",
        "marshal.loads",
        "shelve.open",
        "joblib.load",
        "dill.load",
    ),
    *(
        "yaml.load",
        "yaml.load_all",
        "yaml.full_load",
        "yaml.unsafe_load",
        "numpy.load",
        "np.load",
        "shutil.unpack_archive",
    ),
    *(
        "subprocess.run",
        "subprocess.Popen",
        "subprocess.call",
        "subprocess.check_output",
        "os.execv",
        "os.startfile",
    ),
}
ALLOWED = {
    ("gam_merge/_trials/score.py", "subprocess.run")
}  # the user's own command, from the user's own command line


def dangers(code: str) -> Iterator[str]:
    """Calls that run, or may run, what they are given."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name in RUNS or "trust_remote_code" in given or given.get("shell", "False") != "False":
            yield name
        if name.endswith(("torch.load", "torch.hub.load")) and given.get("weights_only") != "True":
            yield name


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_no_module_runs_what_it_reads(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert [call for call in dangers(path.read_text()) if (name, call) not in ALLOWED] == []


@pytest.mark.parametrize(
    "code",
    [
        "eval(x)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "yaml.load(x, Loader=yaml.Loader)",
        "pickle.load(file)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "anything.run(x, shell=True)",
    ],
)
def test_the_search_finds_what_would(code: str) -> None:
    assert list(dangers(f"def f():\n    return [{code}]"))


# --- payloads ----------------------------------------------------------------------------------------------------


class Payload:
    """Leaves a mark where it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch owned",)


def adapter(folder: Path, *names: str, **config: Any) -> Path:
    generator = torch.Generator().manual_seed(0)
    factors = {
        name: random_factors(generator, 5, 4, 2, torch.float32) for name in names or ("layers.0.q",)
    }
    return write_adapter(folder, factors, **config)


PICKLES: dict[str, Any] = {
    "payload": Payload(),
    "among_tensors": {"x": torch.ones(1), "y": Payload()},
    "as_a_key": {Payload(): torch.ones(1)},
    "a_class": {"x": Path("x")},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused(
    name: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a recipe names them."""
    monkeypatch.chdir(tmp_path)
    evil = adapter(tmp_path / "evil")
    (evil / WEIGHTS).unlink()
    torch.save(PICKLES[name], evil / "adapter_model.bin", _use_new_zipfile_serialization=not old)
    (tmp_path / "recipe.yaml").write_text("sources: [{path: evil}]\n")
    before = tree(tmp_path)
    with pytest.raises(gm.GamMergeError, match="is not a pickle of tensors alone"):
        gm.merge([evil], out=tmp_path / "out")
    with pytest.raises(gm.GamMergeError, match="is not a pickle of tensors alone"):
        gm.merge_recipe(tmp_path / "recipe.yaml", out=tmp_path / "out")
    assert tree(tmp_path) == before


def test_the_payload_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload()))
    assert (tmp_path / "owned").exists()


def watched(folder: Path) -> None:
    """Merges in a process that dies where anything but files of these names is opened beside the weights, or anything
    is unpickled or run, or a module is imported from there."""
    os.chdir(folder / "evil")
    sys.path.insert(0, str(folder / "evil"))
    known = {WEIGHTS, CONFIG, "README.md"}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in (
            "os.system",
            "subprocess.Popen",
            "pickle.find_class",
            "os.exec",
            "os.posix_spawn",
        ):
            os._exit(3)
        inside = (
            event == "open"
            and isinstance(args[0], str)
            and args[0].startswith(str(folder / "evil"))
        )
        if inside and Path(args[0]).name not in known:
            os._exit(4)

    gm.merge([adapter(folder / "warm")])  # libraries load parts of themselves
    sys.addaudithook(hook)
    gm.merge([folder / "evil"], out=folder / "out")
    gm.inspect(folder / "evil").to_dict()
    os._exit(0)


def test_what_lies_beside_the_weights_is_not_touched(tmp_path: Path) -> None:
    names = {"auto_map": {"AutoModel": "modeling_evil.Evil"}, "trust_remote_code": True}
    evil = adapter(
        tmp_path / "evil",
        auto_mapping={"base_model_class": "Evil", "parent_library": "modeling_evil"},
    )
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "rng_state.pth",
        "adapter_model.bin",
        "scheduler.pt",
    ):
        torch.save(Payload(), evil / name)
    for name in ("modeling_evil.py", "setup.py", "conftest.py", "sitecustomize.py"):
        (evil / name).write_text("import os; os.system('touch owned')\n")
    (evil / "config.json").write_text(json.dumps(names))
    (evil / "tokenizer_config.json").write_text(json.dumps(names))
    (evil / "README.md").write_text(
        "---\nlicense: !!python/object/apply:os.system ['touch owned']\n---\n"
    )
    assert in_child(watched, tmp_path) == 0
    assert not list(tmp_path.rglob("owned"))


@pytest.mark.parametrize("field", ["auto_map", "trust_remote_code", "custom_modules", "loader"])
def test_fields_that_would_name_code_are_refused(field: str, tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match=f"{field} is set in its config and unknown here"):
        gm.load(adapter(tmp_path / "evil", **{field: {"AutoModel": "modeling_evil.Evil"}}))


# --- paths -------------------------------------------------------------------------------------------------------

PATHS = [
    "../../owned",
    "/tmp/owned",
    "a/../../owned",
    "CON",
    "nul",
    "a\\..\\owned",
    "~root",
    "-rf",
    "|touch owned",
    ".",
]


@pytest.mark.parametrize("name", PATHS)
def test_names_in_files_are_no_paths(name: str, tmp_path: Path) -> None:
    """Of modules, of the base model, in the config: the output has our files and no other."""
    home = tmp_path / "deep" / "er"
    evil = adapter(
        home / "evil",
        f"{name}.q",
        f"x.{name}",
        base_model_name_or_path=name,
        revision=name,
        task_type=name,
    )
    before = tree(tmp_path)
    out = gm.merge([evil], out=home / "out").path
    assert out is not None
    ours = {WEIGHTS, CONFIG, "README.md", "merge_report.json", "gam_merge_recipe.yaml"}
    assert {path.name for path in out.iterdir()} == ours
    assert all(path.is_file() and not path.is_symlink() for path in out.iterdir())
    shutil.rmtree(out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", "a\0b", "a\\b"])
def test_a_name_of_a_merge_is_a_word(name: str, tmp_path: Path) -> None:
    adapter(tmp_path / "a")
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": name, "sources": [{"path": "a"}]}))
    with pytest.raises(gm.GamMergeError, match="name"):
        gm.merge_recipe(tmp_path / "recipe.yaml", out=tmp_path / "out")


@pytest.mark.parametrize("path", ["a\0b", "\0", "a" * 5000, "a/" * 3000])
def test_paths_that_cannot_be(path: str, tmp_path: Path) -> None:
    good = adapter(tmp_path / "a")
    (tmp_path / "recipe.yaml").write_text(json.dumps({"sources": [{"path": path}]}))
    for action in (
        lambda: gm.load(path),
        lambda: gm.merge([good, path]),
        lambda: gm.merge([good], out=path),
        lambda: gm.merge_recipe(tmp_path / "recipe.yaml"),
        lambda: gm.merge_recipe(path),
        lambda: gm.inspect(path),
        lambda: gm.verify(path),
    ):
        with pytest.raises(gm.GamMergeError) as error:
            action()
        assert str(error.value).isprintable()


def test_links_in_a_source_are_read_and_not_copied(tmp_path: Path) -> None:
    """As the cache of the Hub has them. What a link leads to does not get into an error either."""
    evil, secret = adapter(tmp_path / "evil"), tmp_path / "secret"
    secret.write_text("hf_secret")
    for name in (WEIGHTS, "README.md"):
        (evil / name).unlink(missing_ok=True)
        (evil / name).symlink_to(secret)
    with pytest.raises(gm.GamMergeError) as error:
        gm.merge([evil], out=tmp_path / "out")
    assert "hf_secret" not in str(error.value)
    (evil / CONFIG).unlink()
    (evil / CONFIG).symlink_to(secret)
    with pytest.raises(gm.GamMergeError) as error:
        gm.load(evil)
    assert "hf_secret" not in str(error.value)


# --- terminals ---------------------------------------------------------------------------------------------------

ATTACK = "\x1b[2J\x1b]0;owned\x07[bold red]x :boom: \u202e\x9b31m\r\x08"


@pytest.fixture
def attack(tmp_path: Path) -> list[Path]:
    """Adapters whose every name is an attack on a terminal; what they hold is mergeable."""
    found = []
    for i in range(2):
        module = f"layers.0.{ATTACK}".replace("\r", "")
        made = adapter(
            tmp_path / f"{i}{ATTACK}", module, base_model_name_or_path=ATTACK, task_type=ATTACK
        )
        tensors = load_file(made / WEIGHTS)
        save_file(tensors, made / WEIGHTS, {"format": ATTACK})
        found.append(made)
    return found


VERBS = [
    ["{a}", "{b}", "-o", "out", "-v"],
    ["inspect", "{a}", "--by", "module"],
    ["compare", "{a}", "{b}", "--by", "module"],
    ["{a}", "{broken}", "-o", "out"],
    ["inspect", "{broken}"],
]


def words(verb: list[str], attack: list[Path], folder: Path) -> list[str]:
    broken = adapter(folder / "broken", **{ATTACK: ATTACK}, modules_to_save=[ATTACK])
    names = {"a": attack[0].name, "b": attack[1].name, "broken": broken.name}
    return [word.format(**names) for word in verb]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_nothing_in_a_file_is_a_command_to_a_terminal(
    verb: list[str], attack: list[Path], tmp_path: Path
) -> None:
    _, sent = run_in_terminal(words(verb, attack, tmp_path), tmp_path)
    assert "Traceback" not in sent
    assert "\x1b]" not in sent
    assert "\x1b[2J" not in sent
    plain = Text.from_ansi(
        sent.replace("\r\n", "\n")
    ).plain  # our own colours and cursor moves taken out
    assert not set(plain) & {"\x07", "\x9b", "\u202e", "\x08"}


def test_nothing_in_json_or_markup_is_either(attack: list[Path], tmp_path: Path) -> None:
    done = run(words(["{a}", "{b}", "-o", "out", "--json"], attack, tmp_path), tmp_path)
    assert done.stdout.replace("\n", "").isascii()
    assert json.loads(done.stdout)["modules"][0]["name"].endswith(ATTACK.replace("\r", ""))
    error = run(words(["{broken}", "-o", "out2"], attack, tmp_path), tmp_path).stderr
    assert error.replace("\n", "").isprintable()
    assert "[bold red]x :boom:" in error
