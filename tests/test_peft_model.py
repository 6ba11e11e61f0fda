"""Merges of the adapters of a live PeftModel: what files would give, and nothing else in the model changes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import relative
from peft import LoraConfig, PeftModel, get_peft_model
from real import forward, forward_adapted, forward_with_deltas
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import gam_merge as gm
from gam_merge.integrations.peft import add_merged_adapter, from_model, merge_adapters

MODULES = ["q_proj", "v_proj", "down_proj"]
CONFIGS: dict[str, dict[str, Any]] = {
    "math": {"r": 4, "lora_alpha": 10},
    "code": {"r": 3, "lora_alpha": 6, "use_rslora": True, "rank_pattern": {"v_proj": 5}},
    "chat": {"r": 2, "alpha_pattern": {"down_proj": 9}, "target_modules": ["v_proj", "down_proj"]},
}


def adapted(base: Any, dtype: torch.dtype | None = torch.float32) -> PeftModel:
    """A copy of a model with the adapters of CONFIGS, every factor random; ``math`` is active and trainable."""
    torch.manual_seed(0)
    base = copy.deepcopy(base)
    configs = {
        name: LoraConfig(**{"target_modules": MODULES, "init_lora_weights": False, **config})
        for name, config in CONFIGS.items()
    }
    model = get_peft_model(
        base if dtype is None else base.to(dtype), configs["math"], adapter_name="math"
    )
    for name in ("code", "chat"):
        model.add_adapter(name, configs[name])
    return model


@contextmanager
def unchanged(model: PeftModel) -> Iterator[None]:
    """All that the model holds before is there after, to the bit, and the next random numbers are the same."""
    before = {name: (p.detach().clone(), p.requires_grad) for name, p in model.named_parameters()}
    active, training, state = list(model.active_adapters), model.training, torch.get_rng_state()
    yield
    after = dict(model.named_parameters())
    for name, (value, trainable) in before.items():
        assert torch.equal(after[name], value), name
        assert after[name].requires_grad == trainable, name
    assert (list(model.active_adapters), model.training) == (active, training)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", ["gam", "mean"])
def test_as_from_files(llama, method, tmp_path):
    model = adapted(llama)
    options: dict[str, Any] = {"method": method, "weights": [0.5, 0.2, 0.3]}
    model.save_pretrained(tmp_path)
    filed = gm.merge([tmp_path / name for name in CONFIGS], **options, out=tmp_path / "merged")
    with unchanged(model):
        alone = merge_adapters(model, list(CONFIGS), **options)
    with unchanged(model):
        report = add_merged_adapter(model, list(CONFIGS), "merged", **options)
    assert report.norms == filed.report.norms
    assert report.sources == tuple(CONFIGS)
    for merged in (alone, from_model(model, "merged")):
        assert merged.modules.keys() == filed.adapter.modules.keys()
        for name, module in filed.adapter.modules.items():
            assert relative(merged.modules[name].delta(), module.delta()) < 1e-6
    model.set_adapter("merged")
    assert relative(forward_adapted(model), forward(llama, tmp_path / "merged")) == 0


def test_the_merge_is_what_the_model_computes(llama):
    model = adapted(llama)
    deltas: dict[str, torch.Tensor] = {}
    for name in CONFIGS:
        for module, delta in _deltas_by_peft(model, name).items():
            deltas[module] = deltas.get(module, 0) + delta / len(CONFIGS)
    add_merged_adapter(model, list(CONFIGS), "merged", method="mean", rank=12)
    model.set_adapter("merged")
    effect = forward_with_deltas(llama, deltas) - forward_with_deltas(llama, {})
    assert relative(forward_adapted(model) - forward_with_deltas(llama, {}), effect) < 1e-5


@torch.no_grad()
def _deltas_by_peft(model: PeftModel, adapter: str) -> dict[str, torch.Tensor]:
    layers = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    return {
        name: layer.get_delta_weight(adapter)
        for name, layer in layers.items()
        if adapter in layer.lora_A
    }


@pytest.mark.parametrize("adapters", [torch.float32, torch.bfloat16])
def test_half_base(llama, adapters):
    """PEFT keeps factors in float32 over a bfloat16 base unless told otherwise: the merge has their dtype."""
    model = adapted(llama, torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapters)
    with unchanged(model):
        add_merged_adapter(model, ["math", "code"], "merged")
    expected, merged = merge_adapters(model, ["math", "code"]), from_model(model, "merged")
    assert merged.dtype == adapters
    for name, module in expected.modules.items():
        assert torch.equal(merged.modules[name].delta(), module.delta())
    assert dict(model.named_parameters())[LAYER.format("base_layer")].dtype == torch.bfloat16


LAYER = "base_model.model.model.layers.0.self_attn.q_proj.{}.weight"


@pytest.fixture(scope="module")
def wide_llama(tmp_path_factory):
    """A saved model that bitsandbytes can quantise: its kernels want widths that are multiples of 32."""
    path = tmp_path_factory.mktemp("base") / "wide-llama"
    sizes = {"vocab_size": 61, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(path)
    return path


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_base(bits, wide_llama, tmp_path):
    """Real bitsandbytes layers, on the CPU."""
    quantised = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    base = LlamaForCausalLM.from_pretrained(
        wide_llama, quantization_config=quantised, device_map="cpu"
    )
    model = adapted(base, None)
    weight = dict(model.named_parameters())[LAYER.format("base_layer")]
    assert not weight.is_floating_point()
    with unchanged(model):
        add_merged_adapter(model, list(CONFIGS), "merged")
    model.set_adapter("merged")
    model.save_pretrained(tmp_path)
    filed = gm.merge([tmp_path / name for name in CONFIGS], out=tmp_path / "filed")
    for name, module in from_model(model, "merged").modules.items():
        assert relative(module.delta(), filed.adapter.modules[name].delta()) < 1e-6
    assert torch.equal(forward_adapted(model), forward(base, tmp_path / "filed"))


def test_training_goes_on(llama):
    """As it would have without the merge."""
    ids = torch.arange(12).reshape(1, 12)
    results = []
    for merging in (False, True):
        model = adapted(llama).train()
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if merging and "merged" not in model.peft_config:
                add_merged_adapter(model, ["math", "code"], "merged")
        results.append(dict(model.named_parameters()))
    without, with_merge = results
    assert all(torch.equal(with_merge[name], value) for name, value in without.items())


def test_merged_adapter_can_be_trained_and_merged_again(llama, tmp_path):
    model = adapted(llama)
    add_merged_adapter(model, ["math", "code"], "merged")
    model.set_adapter("merged")
    assert all(p.requires_grad for name, p in model.named_parameters() if ".merged." in name)
    add_merged_adapter(model, ["merged", "chat"], "again", anchor="chat")
    model.save_pretrained(tmp_path, selected_adapters=["again"])
    assert gm.load(tmp_path / "again").rank == 5


@pytest.mark.parametrize(
    ("adapters", "name", "options", "message"),
    [
        (["math", "x"], "merged", {}, r"no adapter 'x'; it has: math, code, chat"),
        (["math", "code"], "chat", {}, r"already has an adapter 'chat'"),
        (["math", "code"], "x.y", {}, r"'x\.y' cannot be the name of a module"),
        (["math", "code"], "keys", {}, r"'keys' cannot be the name of a module"),
        (["math", "code"], "merged", {"weights": [1.0]}, r"1 weights for 2 adapters"),
        (["math", "code"], "merged", {"method": "nope"}, r"unknown method 'nope'"),
        ([], "merged", {}, r"no adapters to merge"),
        ("ab", "merged", {}, r"adapters must be a list of names, got the one name 'ab'"),
    ],
)
def test_mistakes_change_nothing(llama, adapters, name, options, message):
    model = adapted(llama)
    parameters = [name for name, _ in model.named_parameters()]
    with unchanged(model), pytest.raises(gm.GamMergeError, match=message):
        add_merged_adapter(model, adapters, name, **options)
    assert [name for name, _ in model.named_parameters()] == parameters
    assert list(model.peft_config) == list(CONFIGS)


def test_different_bases_and_initialisers_that_change_the_base_are_refused(llama):
    model = adapted(llama)
    model.peft_config["code"].base_model_name_or_path = "another"
    with (
        unchanged(model),
        pytest.raises(gm.GamMergeError, match=r"math was trained on .* and code on another"),
    ):
        add_merged_adapter(model, ["math", "code"], "merged")
    model.peft_config["code"].init_lora_weights = "pissa"
    with (
        unchanged(model),
        pytest.raises(gm.GamMergeError, match=r"^code: init_lora_weights='pissa' changed the base"),
    ):
        add_merged_adapter(model, ["math", "code"], "merged")
    with pytest.raises(gm.GamMergeError, match=r"model must be a PeftModel, got LlamaForCausalLM"):
        merge_adapters(llama, ["math"])


def test_state_dicts(llama, tmp_path):
    """From tensors and configs as PEFT holds them, and back."""
    model = adapted(llama)
    model.save_pretrained(tmp_path)
    sources = [from_model(model, name) for name in ("math", "code")]
    dicts, configs = (
        [gm.state_dict(source) for source in sources],
        [model.peft_config[name] for name in ("math", "code")],
    )
    merged = gm.merge_state_dicts(dicts, configs, weights=[3, 1])
    filed = gm.merge([tmp_path / "math", tmp_path / "code"], weights=[3, 1])
    for key, value in gm.state_dict(filed.adapter).items():
        assert torch.equal(gm.state_dict(merged.adapter)[key], value)
    with pytest.raises(gm.GamMergeError, match="1 configs for 2 state dicts"):
        gm.merge_state_dicts(dicts, configs[:1])
    with pytest.raises(gm.GamMergeError, match=r"^state dict 1: module .* has no lora_B"):
        gm.merge_state_dicts([dicts[0], dict([*dicts[1].items()][:-1])], configs)
