"""Files of kohya's and of diffusers' grammar: read, merged and written, and read back by diffusers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gam_merge as gm

pipelines = pytest.importorskip("pipelines")
assert_close, combined, deltas = pipelines.assert_close, pipelines.combined, pipelines.deltas
save_diffusers, save_kohya = pipelines.save_diffusers, pipelines.save_kohya


@pytest.fixture
def kohya(tmp_path: Path) -> list[Path]:
    """Two files of unlike ranks and alphas, within one, too."""
    return [
        save_kohya(tmp_path / "a.safetensors", 1, rank=4, alpha=2.7, mixed=True),
        save_kohya(tmp_path / "b.safetensors", 2, rank=6, alpha=6.0),
    ]


@pytest.fixture
def own(tmp_path: Path) -> list[Path]:
    """Two directories that diffusers wrote, of unlike ranks and alphas."""
    return [
        save_diffusers(tmp_path / "a", 1, rank=4, alpha=8),
        save_diffusers(tmp_path / "b", 2, rank=6, alpha=3, pattern={"to_v": 2}),
    ]


@pytest.fixture(params=["kohya", "own"])
def pair(request: pytest.FixtureRequest) -> list[Path]:
    return request.getfixturevalue(request.param)


def outputs(folder: Path) -> list[Path]:
    return [folder / "merged.safetensors", folder / "merged"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_identity(kind: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / ("out.safetensors" if kind == "file" else "out")
    for source in pair:
        gm.merge([source], method="mean", out=out, force=True)
        assert_close(deltas(out), deltas(source))


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_weighted_mean(kind: str, pair: list[Path], tmp_path: Path) -> None:
    out = tmp_path / ("out.safetensors" if kind == "file" else "out")
    gm.merge(pair, method="mean", weights=[0.3, 0.7], rank=10, out=out)
    assert_close(deltas(out), combined(pair, [0.3, 0.7]))


def test_what_a_model_saves_of_itself(tmp_path: Path) -> None:
    """Its metadata are a LoraConfig, and its modules have no component in front of them."""
    sources = [tmp_path / "a", tmp_path / "b"]
    pipelines.trained_unet(1, rank=4, alpha=8).save_lora_adapter(sources[0])
    pipelines.trained_unet(2, rank=6, alpha=3, pattern={"to_v": 2}).save_lora_adapter(sources[1])
    gm.merge(sources, method="mean", weights=[0.3, 0.7], rank=10, out=tmp_path / "out")
    read = [pipelines.deltas_alone(path) for path in (*sources, tmp_path / "out")]
    expected = {name: 0.3 * read[0][name] + 0.7 * read[1][name] for name in read[0]}
    assert_close(read[2], expected)


@pytest.mark.parametrize(("metadata", "message"), [
    ({"unet": 2}, "lora_adapter_metadata: unet is set"),
    ({"r": 2, "lora_alpha": 2}, "does not describe unet"),
])  # fmt: skip
def test_metadata_that_are_of_something_else(
    metadata: dict[str, int], message: str, tmp_path: Path
) -> None:
    name = "unet.conv_in"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(metadata)})
    with pytest.raises(gm.GamMergeError, match=message):
        gm.load(path)


def test_a_file_holds_nothing_but_factors_and_alphas(kohya: list[Path], tmp_path: Path) -> None:
    """diffusers loads nothing at all from a file with one foreign tensor."""
    gm.merge(kohya, out=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    assert merged.keys() == load_file(kohya[0]).keys()
    for key, tensor in merged.items():
        if key.endswith(".alpha"):
            down = merged[key.replace("alpha", "lora_down.weight")]
            assert tensor.dtype == torch.float32
            assert tensor.item() == down.shape[0]


def test_modules_keep_ranks_of_their_own(kohya: list[Path], tmp_path: Path) -> None:
    gm.merge(kohya[:1], method="mean", out=tmp_path / "out.safetensors")
    merged, source = load_file(tmp_path / "out.safetensors"), load_file(kohya[0])
    assert {key: tensor.shape for key, tensor in merged.items()} == {
        key: tensor.shape for key, tensor in source.items()
    }


def test_a_merge_of_diffusers_files_needs_no_words_about_scale(
    own: list[Path], tmp_path: Path
) -> None:
    """Readers that look at neither alphas nor metadata, such as ComfyUI, take a scale of 1."""
    out = tmp_path / "out.safetensors"
    gm.merge(own, method="mean", rank=10, out=out)
    merged = load_file(out)
    assert not any(key.endswith("alpha") for key in merged)
    with safe_open(out, "pt") as file:
        assert "lora_adapter_metadata" not in file.metadata()
    expected = combined(own, [0.5, 0.5])
    for name, delta in expected.items():
        b, a = (merged[f"unet.{name}.lora_{letter}.weight"].double() for letter in "BA")
        product = (b.flatten(1) @ a.flatten(1)).reshape(delta.shape)
        assert (product - delta).norm() <= 1e-5 * delta.norm()


SPELLINGS = [
    (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_A", ".lora_B"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
]


@pytest.mark.parametrize(("down", "up"), SPELLINGS)
def test_every_spelling_is_kept(down: str, up: str, tmp_path: Path) -> None:
    name, generator = "diffusion_model.blocks.0.attn.q", torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 16, generator=generator), torch.randn(24, 4, generator=generator)
    save_file({name + down: a, name + up: b}, tmp_path / "a.safetensors")
    alpha = {f"{name}.alpha": torch.tensor(2.0)}
    save_file({name + down: a, name + up: b, **alpha}, tmp_path / "b.safetensors")
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    gm.merge(paths, method="mean", out=tmp_path / "out.safetensors")
    merged = load_file(tmp_path / "out.safetensors")
    assert merged.keys() == {name + down, name + up}
    product = merged[name + up].double() @ merged[name + down].double()
    assert torch.allclose(product, 0.75 * b.double() @ a.double(), rtol=1e-5, atol=1e-5)


def test_metadata_of_kohya(tmp_path: Path) -> None:
    about = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "lycoris.kohya",
        "ss_training_comment": "not of the merge",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    tags = [{"photos": {"cat": 3, "dog": 1}}, {"photos": {"cat": 2}, "drawings": {"fox": 1}}]
    paths: list[Path] = []
    for i, words in enumerate(("sks cat, photo", "photo, oil")):
        more = {"ss_tag_frequency": json.dumps(tags[i]), "modelspec.trigger_phrase": words}
        path = tmp_path / f"{i}.safetensors"
        paths.append(save_kohya(path, i, rank=4, alpha=4.0, metadata={**about, **more}))
    gm.merge(paths, out=tmp_path / "my merge.safetensors")
    with safe_open(tmp_path / "my merge.safetensors", "pt") as file:
        metadata = file.metadata()
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "4",
        "ss_network_alpha": "4",
        "ss_output_name": "my merge",
        "modelspec.title": "my merge",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.trigger_phrase": "sks cat, photo, oil",
    }
    assert {key: metadata.get(key) for key in expected} == expected
    assert "ss_training_comment" not in metadata
    united = {"photos": {"cat": 5, "dog": 1}, "drawings": {"fox": 1}}
    assert json.loads(metadata["ss_tag_frequency"]) == united
    assert metadata["sshs_model_hash"] == data_hash(tmp_path / "my merge.safetensors")
    assert gm.verify(tmp_path / "my merge.safetensors", rerun=True).holds


def data_hash(path: Path) -> str:
    """The hash that sd-scripts and A1111 know a file by: of all bytes behind the header."""
    import hashlib

    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    return hashlib.sha256(content[start:]).hexdigest()


def test_other_bases_are_refused(tmp_path: Path) -> None:
    paths: list[Path] = []
    for i, base in enumerate(("sd_v1", "sdxl_base_v1-0")):
        path = tmp_path / f"{i}.safetensors"
        metadata = {"ss_base_model_version": base}
        paths.append(save_kohya(path, i, rank=4, alpha=4.0, metadata=metadata))
    with pytest.raises(gm.GamMergeError, match=r"was trained on sd_v1 and .* on sdxl_base_v1-0"):
        gm.merge(paths, out=tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_other_verbs(pair: list[Path], tmp_path: Path) -> None:
    assert gm.inspect(pair[0]).problems == ()
    assert len(gm.inspect(pair[0]).by("layer")) > 1
    assert len(gm.compare(pair).modules) == len(deltas(pair[0]))
    small = gm.resize(pair[1], rank=2, out=tmp_path / "small.safetensors")
    assert small.adapter.rank == 2
    out = tmp_path / "out.safetensors"
    gm.merge(pair, out=out)
    again = gm.merge_recipe(
        tmp_path / "out.gam-merge" / "gam_merge_recipe.yaml", out=tmp_path / "x/out.safetensors"
    )
    assert again.path is not None
    assert again.path.read_bytes() == out.read_bytes()
    tensors = gm.state_dict(gm.load(out))
    assert gm.from_state_dict(tensors).modules.keys() == gm.load(out).modules.keys()


@pytest.mark.parametrize("method", ["gam", "ties", "consensus", "dare_ties@core"])
def test_same_as_in_memory(method: str, pair: list[Path], tmp_path: Path) -> None:
    on_disk = gm.merge(pair, method=method, out=tmp_path / "out.safetensors").adapter
    in_memory = gm.merge(pair, method=method).adapter
    for name, module in on_disk.modules.items():
        assert torch.equal(module.delta(), in_memory.modules[name].delta())


STEM = "lora_unet_x_to_q"
GOOD = {
    f"{STEM}.lora_down.weight": torch.zeros(4, 16),
    f"{STEM}.lora_up.weight": torch.zeros(24, 4),
}
DOTTED = {
    "unet.x.to_q.lora_A.weight": torch.zeros(4, 16),
    "unet.x.to_q.lora_B.weight": torch.zeros(24, 4),
}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**GOOD, **DOTTED}, r"unet\.x\.to_q\.lora_A\.weight is not part .*\(module lora_unet_x_to_q\)"),
        ({f"{STEM}.lora_down.weight": torch.zeros(4, 16)}, r"has no lora_up \(B\)"),
        ({f"{STEM}.lora_up.weight": torch.zeros(4, 16)}, r"has no lora_down \(A\)"),
        ({**GOOD, f"{STEM}.alpha": torch.ones(2)}, r"alpha of module .* one number, got shape \(2,\)"),
        ({**GOOD, f"{STEM}.alpha": torch.tensor(0.0)}, "finite number other than 0, .* got 0"),
        ({**GOOD, f"{STEM}.alpha": torch.tensor(float("nan"))}, "got nan"),
        ({**GOOD, f"{STEM}.lora_up.weight": torch.zeros(24, 5)}, r"A \(4, 16\) and B \(24, 5\)"),
        ({**GOOD, f"{STEM}.dora_scale": torch.zeros(24, 1)}, "dora_scale, which is not part"),
        ({**GOOD, f"{STEM}.diff": torch.zeros(24, 16)}, "diff, which is not part"),
        ({**GOOD, f"{STEM}.w_norm": torch.zeros(24)}, "w_norm, which is not part"),
        ({**DOTTED, "unet.x.to_q.alpha": torch.tensor(4)}, "int64, which diffusers does not read"),
        ({**DOTTED, "unet.y.alpha": torch.tensor(4.0)}, "belongs to no module"),
        ({**DOTTED, "unet.x.to_q.lora_magnitude_vector": torch.zeros(24)}, "DoRA"),
        ({**DOTTED, "unet.x.norm.weight": torch.zeros(24)}, "not part of a LoRA"),
    ],
)  # fmt: skip
def test_bad_input(tensors: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(gm.GamMergeError, match=message) as caught:
        gm.merge([tmp_path / "a.safetensors"], out=tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_integer_alphas_of_kohya_are_read(tmp_path: Path) -> None:
    """musubi-tuner's converter writes them."""
    save_file({**GOOD, f"{STEM}.alpha": torch.tensor(2)}, tmp_path / "a.safetensors")
    assert gm.load(tmp_path / "a.safetensors").modules[STEM].scale == 0.5


def test_alpha_of_the_user(tmp_path: Path) -> None:
    wide = {"transformer.x.norm.lora_A.weight": torch.zeros(2, 16), "transformer.x.norm.lora_B.weight": torch.zeros(24, 2)}  # fmt: skip
    save_file(DOTTED, tmp_path / "a.safetensors")
    assert gm.load(tmp_path / "a.safetensors", alpha=8).modules["unet.x.to_q"].scale == 2.0
    save_file({**DOTTED, **wide}, tmp_path / "b.safetensors")
    with pytest.raises(gm.GamMergeError, match="rank 2 to 4 and no alphas, so alpha is the rank"):
        gm.load(tmp_path / "b.safetensors", alpha=8)
    save_file({**DOTTED, "unet.x.to_q.alpha": torch.tensor(2.0)}, tmp_path / "c.safetensors")
    with pytest.raises(gm.GamMergeError, match=r"has its own alphas .*; leave --alpha"):
        gm.load(tmp_path / "c.safetensors", alpha=8)


def test_names_of_language_models_are_not_taken_for_a_pipeline(tmp_path: Path) -> None:
    """GPT-2's modules begin with "transformer.", as those of a pipeline do."""
    factors = {"transformer.h.0.attn.c_attn.lora_A.weight": torch.zeros(4, 16), "transformer.h.0.attn.c_attn.lora_B.weight": torch.zeros(24, 4)}  # fmt: skip
    save_file(factors, tmp_path / "a.safetensors")
    adapter = gm.load(tmp_path / "a.safetensors", base_model="gpt2", alpha=4)
    assert adapter.format == "peft"


def test_a_directory_with_several_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file(GOOD, tmp_path / f"{name}.safetensors")
    with pytest.raises(gm.GamMergeError, match="2 files of weights; name one of them: a"):
        gm.load(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert gm.load(tmp_path).format == "kohya"


def test_a_format_that_needs_a_directory(kohya: list[Path], tmp_path: Path) -> None:
    with pytest.raises(gm.GamMergeError, match="format peft take a directory; name one"):
        gm.merge(["examples/adapters/addition"], out=tmp_path / "out.safetensors")
    with pytest.raises(gm.GamMergeError, match="format must be one of peft, "):
        gm.merge(kohya, format="civitai", out=tmp_path / "out.safetensors")


@pytest.mark.parametrize("name", ["out.pt", "out.bin", "out.ckpt", "out.npz", "out.SAFETENSORS"])
def test_a_name_that_looks_like_a_file_is_not_given_to_a_directory(
    name: str, kohya: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(gm.GamMergeError, match=r"must end with \.gguf or \.safetensors, got \."):
        gm.merge(kohya, out=tmp_path / name)
    assert not (tmp_path / name).exists()


def test_the_card_says_how_to_load_it(pair: list[Path], tmp_path: Path) -> None:
    gm.merge(pair, out=tmp_path / "out.safetensors")
    card = (tmp_path / "out.gam-merge" / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert 'pipeline.load_lora_weights("' in card


def test_fused_into_its_base(own: list[Path], tmp_path: Path) -> None:
    """The component is not part of the names in the file of its weights."""
    model = pipelines.unet()
    model.save_pretrained(tmp_path / "base")
    gm.fuse(tmp_path / "base", own[0], tmp_path / "fused")
    fused = pipelines.diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "fused")
    before, after = dict(model.named_parameters()), dict(fused.named_parameters())
    for name, delta in deltas(own[0]).items():
        change = (after[f"{name}.weight"] - before[f"{name}.weight"]).detach().double()
        assert (change - delta).norm() <= 1e-5 * delta.norm()
