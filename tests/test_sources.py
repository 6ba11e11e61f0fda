"""What other trainers write in PEFT's layout is read alike: prefixes, infixes, pickles, bare files."""

import json
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import random_factors, relative, write_adapter
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_merge._common.tensors import read

WEIGHTS, PICKLE, CONFIG = "adapter_model.safetensors", "adapter_model.bin", "adapter_config.json"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    factors = {f"model.layers.{i}.q_proj": random_factors(generator, 6, 5, 2) for i in range(2)}
    return write_adapter(tmp_path / "saved", factors, lora_alpha=6)


def deltas(adapter: gm.Adapter) -> torch.Tensor:
    return torch.stack([module.delta() for _, module in sorted(adapter.modules.items())])


@pytest.mark.parametrize("prefix", ["base_model.model.", ""])
@pytest.mark.parametrize("infix", ["", ".default", ".my-adapter"])
def test_prefix_and_infix(prefix: str, infix: str, saved: Path) -> None:
    expected, names = deltas(gm.load(saved)), list(gm.load(saved).modules)
    tensors = load_file(saved / WEIGHTS)
    renamed = {
        prefix + key.removeprefix("base_model.model.").replace(".weight", f"{infix}.weight"): value
        for key, value in tensors.items()
    }
    save_file(renamed, saved / WEIGHTS)
    adapter = gm.load(saved)
    assert list(adapter.modules) == names
    assert torch.equal(deltas(adapter), expected)


def test_several_adapters_in_a_file(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS)
    first, *rest = tensors
    save_file(
        {first.replace(".weight", ".one.weight"): tensors[first]} | {k: tensors[k] for k in rest},
        saved / WEIGHTS,
    )
    with pytest.raises(gm.GamMergeError, match=r"several adapters, \['default', 'one'\]"):
        gm.load(saved)


def test_pickle(saved: Path, tmp_path: Path) -> None:
    expected = deltas(gm.load(saved))
    torch.save(load_file(saved / WEIGHTS), saved / PICKLE)
    (saved / WEIGHTS).unlink()
    adapter = gm.load(saved)
    assert torch.equal(deltas(adapter), expected)
    result = gm.merge([saved, saved], out=tmp_path / "out")
    assert relative(deltas(result.adapter), expected) < 1e-6
    assert any("pickle" in note for note in result.report.notes)


def _factors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    b, a = (torch.randn(shape, generator=generator) for shape in ((6, 2), (2, 8)))
    stem = "base_model.model.layers.0.q.lora_"
    return {f"{stem}A.weight": a, f"{stem}B.weight": b}


def _parameters(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: torch.nn.Parameter(value) for key, value in tensors.items()}


def _state_dict(tensors: dict[str, torch.Tensor]) -> OrderedDict[str, torch.Tensor]:
    """As Module.state_dict returns it, with an attribute."""
    state = OrderedDict(tensors)
    state._metadata = OrderedDict({"": {"version": 1}})  # type: ignore[attr-defined]
    return state


def _views(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Transposed, in the middle of a larger storage, every other column: what is not in order, or not alone."""
    first, second = tensors
    a, b = (torch.zeros(shape, dtype=tensors[first].dtype) for shape in ((8, 5), (10, 2)))
    a[:, 1:5:2] = tensors[first].mT
    b[3:9] = tensors[second]
    return {first: a[:, 1:5:2].mT, second: b[3:9]}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [dict, _parameters, _state_dict, _views])
def test_pickles_are_read_as_torch_reads_them(form, dtype, legacy, saved: Path) -> None:
    (saved / WEIGHTS).unlink()
    expected = {key: value.to(dtype) for key, value in _factors().items()}
    torch.save(form(expected), saved / PICKLE, _use_new_zipfile_serialization=not legacy)
    (saved / CONFIG).write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "b", "r": 2, "lora_alpha": 2})
    )
    (module,) = gm.load(saved).modules.values()
    for key, tensor in zip(expected, (module.a, module.b), strict=True):
        assert torch.equal(read(tensor), expected[key])
        assert tensor.dtype == dtype
        part = torch.empty(5, dtype=dtype)
        tensor.read_into(part, 3)
        assert torch.equal(part, expected[key].flatten()[3:8])


class Payload:
    """A pickle that writes a file when it is run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["code", "garbage", "empty", "list", "number", "integers", "cut"])
def test_hostile_pickle(kind: str, saved: Path, tmp_path: Path) -> None:
    content = {
        "code": lambda: pickle.dumps({"a": Payload(tmp_path / "pwned")}),
        "garbage": lambda: b"\x80\x02garbage",
        "empty": lambda: b"",
        "list": lambda: _saved_bytes([torch.ones(2)], tmp_path),
        "number": lambda: _saved_bytes({"a": 1}, tmp_path),
        "integers": lambda: _saved_bytes({"a": torch.ones(2, dtype=torch.int8)}, tmp_path),
        "cut": lambda: _saved_bytes({"a": torch.ones(2000)}, tmp_path)[:900],
    }[kind]()
    (saved / WEIGHTS).unlink()
    (saved / PICKLE).write_bytes(content)
    with pytest.raises(gm.GamMergeError, match=r"adapter_model\.bin"):
        gm.load(saved)
    assert not (tmp_path / "pwned").exists()


def _saved_bytes(value: object, folder: Path) -> bytes:
    torch.save(value, folder / "x")
    return (folder / "x").read_bytes()


def test_two_bare_files_with_their_own_configs(saved: Path, tmp_path: Path) -> None:
    """Same tensors, unlike alphas: each file by the config of its own name."""
    weights, config = (saved / WEIGHTS).read_bytes(), json.loads((saved / CONFIG).read_text())
    for name, file, alpha in (("a", "a.json", 2), ("b", "b_config.json", 10)):
        (tmp_path / f"{name}.safetensors").write_bytes(weights)
        (tmp_path / file).write_text(json.dumps({**config, "lora_alpha": alpha}))
    a, b = (gm.load(tmp_path / f"{name}.safetensors") for name in "ab")
    assert torch.allclose(deltas(b), 5 * deltas(a))


def test_two_bare_files_of_one_config(saved: Path, tmp_path: Path) -> None:
    """adapter_config.json may be of either: it holds if ranks and modules fit."""
    for name in "ab":
        (saved / f"{name}.safetensors").write_bytes((saved / WEIGHTS).read_bytes())
    (saved / WEIGHTS).unlink()
    assert torch.equal(
        deltas(gm.load(saved / "a.safetensors")), deltas(gm.load(saved / "b.safetensors"))
    )
    tensors = {
        key.replace("q_proj", "v_proj"): value
        for key, value in load_file(saved / "a.safetensors").items()
    }
    save_file(tensors, saved / "b.safetensors")
    with pytest.raises(gm.GamMergeError, match=r"v_proj.*b\.json"):
        gm.load(saved / "b.safetensors")


@pytest.mark.parametrize("alpha", [6.0, [6.0], [6.0, 6.0]])
def test_bare_files_without_a_config(
    alpha: float | list[float], saved: Path, tmp_path: Path
) -> None:
    expected = deltas(gm.load(saved))
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        file.write_bytes((saved / WEIGHTS).read_bytes())
    result = gm.merge(files, base_model="base", alpha=alpha, method="mean")
    assert relative(deltas(result.adapter), expected) < 1e-6
    with pytest.raises(gm.GamMergeError, match="--alpha"):
        gm.merge(files, base_model="base")
