"""Files of LyCORIS, through the disk, against the forward of LyCORIS's own modules."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gam_merge as gm
from gam_cli._options import GroupBy
from gam_cli._tables_inspect import of_inspection
from gam_merge._read import lycoris as reading

pytest.importorskip("lycoris")
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

STEM = "lora_unet_down_blocks_0_x"

LAYERS: Mapping[str, Callable[[], torch.nn.Module]] = {
    "linear": partial(torch.nn.Linear, 12, 16, bias=False),
    "wide": partial(torch.nn.Linear, 96, 16, bias=False),
    "1x1": partial(torch.nn.Conv2d, 12, 16, 1, bias=False),
    "3x3": partial(torch.nn.Conv2d, 12, 16, 3, padding=1, bias=False),
    "1d": partial(torch.nn.Conv1d, 12, 16, 3, padding=1, bias=False),
}
BOTH = {"decompose_both": True}
TUCKER = {"use_tucker": True}
KINDS: Mapping[str, tuple[type[Any], dict[str, Any]]] = {  # modules of LyCORIS, and arguments
    "locon": (LoConModule, {"lora_dim": 3}),
    "locon with mid": (LoConModule, {"lora_dim": 3, **TUCKER}),
    "loha": (LohaModule, {"lora_dim": 2}),
    "loha of more terms than sides": (LohaModule, {"lora_dim": 5}),
    "loha, rslora": (LohaModule, {"lora_dim": 3, "rs_lora": True}),
    "loha with cores": (LohaModule, {"lora_dim": 2, **TUCKER}),
    "lokr": (LokrModule, {"lora_dim": 2, "factor": 2}),
    "lokr with core": (LokrModule, {"lora_dim": 2, "factor": 2, **TUCKER}),
    "lokr, both decomposed": (LokrModule, {"lora_dim": 1, "factor": 4, **BOTH}),
    "lokr, both decomposed, with core": (LokrModule, {"lora_dim": 1, "factor": 4, **BOTH, **TUCKER}),
    "lokr, first decomposed": (
        LokrModule, {"lora_dim": 3, "factor": 2, "unbalanced_factorization": True, **BOTH},
    ),
    "lokr, both full": (LokrModule, {"lora_dim": 2, "factor": 4, "full_matrix": True}),
    "lokr, too large a rank": (LokrModule, {"lora_dim": 1000, "factor": 3}),
}  # fmt: skip


def module_of(kind: str, layer: str, seed: int = 0, alpha: float = 1.5) -> Any:
    """A module of LyCORIS with random factors, over a layer of zeros."""
    torch.manual_seed(seed)
    cls, arguments = KINDS[kind]
    base = LAYERS[layer]()
    torch.nn.init.zeros_(base.weight)
    module = cls("x", base, alpha=alpha, **arguments)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module


def save(path: Path, module: Any, stem: str = STEM, dtype: torch.dtype = torch.float32) -> Path:
    """A file as LyCORIS saves it. Values are rounded to the dtype in the module, too."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(dtype))
    tensors: dict[str, torch.Tensor] = {}
    for role, tensor in module.custom_state_dict().items():
        tensors[f"{stem}.{role}"] = tensor.detach().to(dtype)
    save_file(tensors, path)
    return path


def inputs(layer: str) -> torch.Tensor:
    """Random inputs of a layer."""
    shape = {"linear": (5, 12), "wide": (5, 96), "1d": (2, 12, 7)}.get(layer, (2, 12, 6, 6))
    return torch.randn(shape, generator=torch.Generator().manual_seed(99))


def outputs(path: Path, layer: str) -> torch.Tensor:
    """What the layer adds to its output with the plain LoRA of a merged file."""
    tensors = load_file(path)
    assert {key.removeprefix(f"{STEM}.") for key in tensors} == {
        "lora_down.weight", "lora_up.weight", "alpha",
    }  # fmt: skip
    down, up = tensors[f"{STEM}.lora_down.weight"], tensors[f"{STEM}.lora_up.weight"]
    assert tensors[f"{STEM}.alpha"].item() == len(down)
    base = LAYERS[layer]().double()
    delta = up.double().flatten(1) @ down.double().flatten(1)
    with torch.no_grad():
        base.weight.copy_(delta.reshape(base.weight.shape))
        return base(inputs(layer).double())


def forward(module: Any, layer: str) -> torch.Tensor:
    """What LyCORIS itself adds: its layer is zero."""
    with torch.no_grad():
        return module.forward(inputs(layer)).double()


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """1e-5 of the norm: LyCORIS multiplies, and files are written, in float32."""
    assert expected.norm() > 0
    assert (actual - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
def test_identity(kind: str, layer: str, tmp_path: Path) -> None:
    module = module_of(kind, layer)
    source = save(tmp_path / "a.safetensors", module)
    out = tmp_path / "out.safetensors"
    result = gm.convert(source, out=out)
    assert_close(outputs(out, layer), forward(module, layer))
    assert result.report.energy_kept == 1
    gm.merge([source], method="mean", out=out, force=True)
    assert_close(outputs(out, layer), forward(module, layer))


def test_every_role_is_tried() -> None:
    roles: set[str] = set()
    for kind in KINDS:
        roles |= module_of(kind, "3x3").custom_state_dict().keys()
    assert roles >= reading.ROLES.keys()


PAIRS = [
    ("loha", "locon", "linear"),
    ("lokr", "loha", "wide"),
    ("lokr, both full", "lokr, first decomposed", "linear"),
    ("locon with mid", "locon", "3x3"),
    ("loha with cores", "lokr with core", "3x3"),
    ("lokr, both full", "locon with mid", "3x3"),
    ("lokr", "loha", "3x3"),
]


@pytest.mark.parametrize(("first", "second", "layer"), PAIRS)
def test_weighted_mean(first: str, second: str, layer: str, tmp_path: Path) -> None:
    modules = [module_of(first, layer, 1, alpha=0.7), module_of(second, layer, 2, alpha=3.0)]
    sources = [save(tmp_path / f"{i}.safetensors", module) for i, module in enumerate(modules)]
    out = tmp_path / "out.safetensors"
    gm.merge(sources, method="mean", weights=[0.3, 0.7], rank=64, out=out)
    expected = 0.3 * forward(modules[0], layer) + 0.7 * forward(modules[1], layer)
    assert_close(outputs(out, layer), expected)


def test_ranks_are_exact(tmp_path: Path) -> None:
    """LoHa has rank r^2, LoKr rank(w1) * r, and none more than its sides hold."""
    expected = {"loha": 4, "loha, rslora": 9, "loha of more terms than sides": 12, "lokr": 4}
    for kind, rank in expected.items():
        source = save(tmp_path / "a.safetensors", module_of(kind, "linear"))
        assert gm.load(source).modules[STEM].rank == rank


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_of_the_file_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", module_of("loha", "linear"), dtype=dtype)
    assert gm.load(source).dtype == dtype
    result = gm.merge([source], method="mean", out=tmp_path / "out.safetensors")
    assert result.adapter.dtype == dtype
    merged = load_file(tmp_path / "out.safetensors")
    assert merged[f"{STEM}.lora_up.weight"].dtype == dtype


def test_products_of_half_precision_are_formed_in_float32(tmp_path: Path) -> None:
    module = module_of("loha", "linear")
    source = save(tmp_path / "a.safetensors", module, dtype=torch.bfloat16)
    out = tmp_path / "out.safetensors"
    gm.merge([source], method="mean", dtype="float32", out=out)
    assert_close(outputs(out, "linear"), forward(module, "linear"))


def kronecker(path: Path, small: int, large: int, seed: int = 0) -> torch.Tensor:
    """A file of a LoKr of two full square factors, and its delta."""
    generator = torch.Generator().manual_seed(seed)
    w1 = torch.randn(small, small, generator=generator)
    w2 = torch.randn(large, large, generator=generator)
    tensors = {f"{STEM}.lokr_w1": w1, f"{STEM}.lokr_w2": w2, f"{STEM}.alpha": torch.tensor(3.0)}
    save_file(tensors, path)
    return torch.kron(w1.double(), w2.double())


def test_a_kronecker_product_of_high_rank_is_cut_and_says_so(tmp_path: Path) -> None:
    delta = kronecker(tmp_path / "a.safetensors", 10, 30)
    u, s, v = torch.linalg.svd(delta)
    best = u[:, :256] * s[:256] @ v[:256]
    kept = float(s[:256].square().sum() / s.square().sum())
    assert 0.9 < kept < 1
    adapter = gm.load(tmp_path / "a.safetensors")
    assert adapter.rank == reading.MAX_RANK == 256
    assert any(f"{kept:.1%} of the squared norm kept" in note for note in adapter.notes)
    inspection = gm.inspect(adapter)
    assert inspection.notes == adapter.notes
    shown = "".join(str(line) for line in of_inspection(inspection, GroupBy.type))
    page = inspection.save_html(tmp_path / "a.html").read_text("utf-8")
    assert all(note[1:] in shown and note[1:] in page for note in adapter.notes)
    result = gm.convert(adapter, out=tmp_path / "out.safetensors")
    assert result.report.energy_kept == pytest.approx(kept, rel=1e-6)
    assert any("LoKr of two full factors is cut" in note for note in result.report.notes)
    assert (result.adapter.modules[STEM].delta() - best).norm() <= 1e-5 * best.norm()


def test_both_cuts_are_in_the_report(tmp_path: Path) -> None:
    delta = kronecker(tmp_path / "a.safetensors", 10, 30)
    s = torch.linalg.svdvals(delta).square()
    result = gm.merge([tmp_path / "a.safetensors"], method="mean", rank=16)
    assert result.report.energy_kept == pytest.approx(float(s[:16].sum() / s.sum()), rel=1e-6)


def test_a_loss_is_counted_once(tmp_path: Path) -> None:
    kronecker(tmp_path / "a.safetensors", 10, 30)
    result = gm.convert(tmp_path / "a.safetensors")
    assert result.report.energy_kept < 1
    assert gm.convert(result.adapter).report.energy_kept == 1


def test_moderate_ranks_are_exact(tmp_path: Path) -> None:
    delta = kronecker(tmp_path / "a.safetensors", 8, 32)
    result = gm.convert(tmp_path / "a.safetensors", out=tmp_path / "out.safetensors")
    assert result.report.energy_kept == 1
    assert (result.adapter.modules[STEM].delta() - delta).norm() <= 1e-5 * delta.norm()


def test_a_zero_product_is_not_a_loss(tmp_path: Path) -> None:
    tensors = {f"{STEM}.lokr_w1": torch.eye(10), f"{STEM}.lokr_w2": torch.zeros(30, 30)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert gm.load(tmp_path / "a.safetensors").modules[STEM].kept == 1


def test_dotted_names(tmp_path: Path) -> None:
    """Trainers such as ai-toolkit store LoKr under the dotted names of a model."""
    name = "diffusion_model.blocks.0.attn.qkv"
    modules = [module_of("lokr", "linear"), module_of("loha", "linear", 1)]
    sources = [
        save(tmp_path / f"{i}.safetensors", module, name) for i, module in enumerate(modules)
    ]
    result = gm.merge(sources, method="mean", rank=12, out=tmp_path / "out.safetensors")
    assert result.adapter.format == "diffusers"
    tensors = load_file(tmp_path / "out.safetensors")
    assert tensors.keys() == {f"{name}.lora_A.weight", f"{name}.lora_B.weight"}
    delta = tensors[f"{name}.lora_B.weight"].double() @ tensors[f"{name}.lora_A.weight"].double()
    expected = sum(forward(module, "linear") for module in modules) / 2
    assert_close(inputs("linear").double() @ delta.T, expected)


def test_the_other_verbs(tmp_path: Path) -> None:
    source = save(tmp_path / "a.safetensors", module_of("loha", "3x3"))
    assert gm.inspect(source).problems == ()
    assert gm.resize(source, rank=2, out=tmp_path / "small.safetensors").adapter.rank == 2
    gm.merge([source], out=tmp_path / "out.safetensors")
    assert gm.verify(tmp_path / "out.safetensors", rerun=True).holds


ONE = torch.ones(4, 4)
W1 = {f"{STEM}.hada_w1_a": ONE, f"{STEM}.hada_w1_b": ONE}
LOHA = {**W1, f"{STEM}.hada_w2_a": ONE, f"{STEM}.hada_w2_b": ONE}
LOKR = {f"{STEM}.lokr_w1": ONE, f"{STEM}.lokr_w2": ONE}
DOWN = {f"{STEM}.lora_down.weight": torch.ones(4, 4, 1, 1)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (W1, "has no hada_w2_a; the file is incomplete"),
        ({**LOHA, f"{STEM}.hada_t1": torch.ones(4, 4, 3, 3)}, "has no hada_t2"),
        ({**LOHA, f"{STEM}.hada_w2_b": torch.ones(4, 5)}, r"LoHa that do not fit .*hada_w2_b \(4, 5\)"),
        ({**LOHA, f"{STEM}.hada_w2_b": torch.ones(3, 4)}, "LoHa that do not fit together"),
        ({**LOHA, f"{STEM}.hada_w1_b": torch.ones(4)}, "LoHa that do not fit together"),
        ({**LOHA, f"{STEM}.hada_w1_b": torch.ones(0, 4)}, "LoHa that do not fit together"),
        ({**LOHA, **DOWN}, "is LoHa by hada_w1_a, but has down, too"),
        ({**LOHA, **LOKR}, "is LoHa by hada_w1_a, but has lokr_w1, too"),
        ({**LOHA, f"{STEM}.alpha": torch.tensor(0.0)}, "finite number other than 0, .* got 0"),
        ({f"{STEM}.lokr_w2": ONE}, "has no lokr_w1_a"),
        ({f"{STEM}.lokr_w1": ONE, f"{STEM}.lokr_w2_a": ONE}, "has no lokr_w2_b"),
        ({**LOKR, f"{STEM}.lokr_w1_a": ONE}, "LoKr by lokr_w1, but has lokr_w1_a"),
        ({**LOKR, f"{STEM}.lokr_t2": torch.ones(4, 4, 3, 3)}, "but has lokr_t2"),
        ({**LOKR, f"{STEM}.lokr_w1": torch.ones(4, 4, 3)}, "LoKr that do not fit together"),
        ({f"{STEM}.lokr_w1": torch.full((20, 20), torch.inf), f"{STEM}.lokr_w2": torch.ones(20, 20)}, "NaN or Inf in lokr_w1"),
        ({**DOWN, f"{STEM}.lora_mid.weight": torch.ones(4, 4, 3, 3)}, "has no up"),
        ({f"{STEM}.diff": ONE}, r"diff, which is not part of a plain LoRA \(a weight in full size\)"),
        ({**LOHA, f"{STEM}.diff_b": ONE}, "a trained bias"),
        ({f"{STEM}.w_norm": ONE, f"{STEM}.b_norm": ONE}, "of a norm"),
        ({**LOHA, f"{STEM}.set_weight": ONE}, "replaces that of the base"),
        ({**LOHA, f"{STEM}.reshape_weight": ONE}, "the new shape of a weight"),
        ({f"{STEM}.weight": ONE, f"{STEM}.on_input": torch.tensor(1.0)}, r"\(IA\)\^3"),
        ({f"{STEM}.a1.weight": ONE, f"{STEM}.b1.weight": ONE}, "GLoRA"),
        ({f"{STEM}.oft_blocks": torch.ones(2, 4, 4)}, "OFT or BOFT"),
        ({**LOKR, f"{STEM}.dora_scale": ONE}, "DoRA, which is supported only in PEFT's format"),
        ({"diffusion_model.blocks.0.x.diff": ONE}, "a weight in full size"),
        ({"diffusion_model.blocks.0.x.lokr_w1": ONE, "diffusion_model.blocks.0.x.lokr_w2": ONE, "diffusion_model.blocks.0.x.dora_scale": ONE}, "DoRA"),
    ],
)  # fmt: skip
def test_bad_input(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    tensors = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.merge([tmp_path / "a.safetensors"], out=tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_alpha_of_the_user_is_refused(tmp_path: Path) -> None:
    save_file({key: tensor.clone() for key, tensor in LOHA.items()}, tmp_path / "a.safetensors")
    assert gm.load(tmp_path / "a.safetensors").modules[STEM].scale == 1
    with pytest.raises(gm.GamMergeError, match="is LoHa without an alpha"):
        gm.load(tmp_path / "a.safetensors", alpha=8)
