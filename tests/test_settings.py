"""Weights and parameters that differ from module to module: by filter, and over depth."""

import dense
import pytest
import torch
from helpers import adapter, delta, random_factors, relative

import gam_merge as gm
from gam_merge._lineup.lineup import line_up
from gam_merge._lineup.settings import make_settings

LAYERS = [f"model.layers.{i}.{part}" for i in range(3) for part in ("attn.q", "mlp.up")]


def adapters(names: list[str] = LAYERS, count: int = 2) -> list[gm.Adapter]:
    generator = torch.Generator().manual_seed(0)
    return [
        adapter(
            {name: random_factors(generator, 10, 8, 2) for name in names}, source=f"adapter-{i}"
        )
        for i in range(count)
    ]


def weight(setting: object, module: str, names: list[str] = LAYERS) -> float:
    return make_settings([setting], {}, names).weights_of(module)[0]


def test_one_value():
    assert weight(0.3, LAYERS[0]) == 0.3


@pytest.mark.parametrize(("layer", "expected"), [(0, 1.0), (1, 2.0), (2, 5.0)])
def test_a_list_is_spread_over_depth(layer, expected):
    assert weight([1.0, 2.0, 5.0], f"model.layers.{layer}.mlp.up") == expected


def test_between_its_numbers_a_list_is_interpolated():
    assert weight([1, 2], "model.layers.1.attn.q") == 1.5
    assert weight(
        [0, 1, 0], "model.layers.1.attn.q", [f"model.layers.{i}.attn.q" for i in range(4)]
    ) == pytest.approx(2 / 3)


def test_depth_is_counted_in_each_stack_of_layers():
    names = [f"{stack}.layers.{i}.q" for stack, n in (("vision", 2), ("text", 5)) for i in range(n)]
    assert (
        weight([0, 1], "vision.layers.1.q", names)
        == weight([0, 1], "text.layers.4.q", names)
        == 1.0
    )


def test_one_layer_is_the_first():
    assert weight([3, 4], "layers.0.q", ["layers.0.q"]) == 3.0


def test_the_first_filter_that_fits_holds():
    setting = [
        {"filter": "*.mlp.*", "value": 0.1},
        {"filter": "layers.0.", "value": [7, 8]},
        {"filter": "*", "value": 0.5},
    ]
    values = [weight(setting, name) for name in LAYERS]
    assert values == [7.0, 0.1, 0.5, 0.1, 0.5, 0.1]


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [("0", [0]), ("0-1", [0, 1]), ("1-", [1, 2, 10]), ("10", [10]), ("2-10", [2, 10])],
)
def test_a_filter_of_numbers_is_for_layers(pattern, layers):
    """As numbers: 1 is not in 10. A module outside the layers is left to the rest."""
    names = [f"model.layers.{i}.mlp.up" for i in (0, 1, 2, 10)] + ["lm_head"]
    setting = [{"filter": pattern, "value": 1}, {"filter": "*", "value": 0}]
    expected = [float(i in layers) for i in (0, 1, 2, 10)]
    assert [weight(setting, name, names) for name in names] == [*expected, 0.0]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("half", "weight must be a finite number, got 'half'"),
        ("0-9:1,*:2", r"got '0-9:1,\*:2'; filters are spelled"),
        (float("nan"), "must be a finite number"),
        (True, "must be a finite number"),
        ([], "must be a list of numbers or of"),
        ([1, "2"], "must be a list of numbers or of"),
        ([{"filter": "*"}], "must have entries"),
        ([{"filter": "*", "value": 1, "weight": 2}], "must have entries"),
        ([{"filter": 3, "value": 1}], "must have entries"),
        (
            [{"filter": "mlp.*", "value": 1}],
            "filter 'mlp.*' fits no module, for instance not model.layers.0.attn.q",
        ),
        (
            [{"filter": "*.mlp.*", "value": 1}],
            "weight: no filter fits module model.layers.0.attn.q",
        ),
        ([{"filter": "*", "value": ["x"]}], "must be a list of numbers or of"),
        ([{"filter": "3-", "value": 1}], "filter '3-' fits no module"),
        ([-1, 1], r"auto takes a mean, got \[-1.0, 1\] for module model.layers.0.attn.q"),
    ],
)
def test_what_is_malformed_is_an_error(setting, expected):
    with pytest.raises(gm.GamMergeError, match=expected):
        gm.merge(adapters(), weights=[setting, 1])


def test_depth_needs_a_layer_number():
    names = [*LAYERS, "lm_head"]
    with pytest.raises(gm.GamMergeError, match="module lm_head has no layer number"):
        gm.merge(adapters(names), weights=[[0, 1], 1])
    gm.merge(
        adapters(names),
        weights=[[{"filter": "lm_head", "value": 1}, {"filter": "*", "value": [0, 1]}], 1],
    )


def test_every_module_is_merged_with_its_own_weights():
    sources = adapters(count=3)
    weights = [[1, 0.5], 1.0, [{"filter": "mlp", "value": 3}, {"filter": "*", "value": 1}]]
    result = gm.merge(sources, method="gam", weights=weights)
    for name in LAYERS:
        own = torch.tensor([weight(setting, name) for setting in weights], dtype=torch.float64)
        expected = dense.gam([a.modules[name].delta() for a in sources], (own / own.sum()).tolist())
        assert relative(delta(result.adapter, name), expected) < 1e-9


def test_weight_zero_in_a_module_means_not_there():
    sources = adapters(count=3)
    result = gm.merge(
        sources, weights=[[{"filter": "mlp", "value": 0}, {"filter": "*", "value": 1}], 1, 1]
    )
    without = gm.merge(sources[1:])
    assert torch.equal(
        delta(result.adapter, "model.layers.1.mlp.up"),
        delta(without.adapter, "model.layers.1.mlp.up"),
    )
    assert [m.ranks[0] > 0 for m in result.report.modules] == [
        "attn" in m.name for m in result.report.modules
    ]


def test_a_module_of_weight_zero_everywhere_is_left_out():
    off = [{"filter": "mlp", "value": 0}, {"filter": "*", "value": 1}]
    result = gm.merge(adapters(), weights=[off, off])
    assert set(result.adapter.modules) == {name for name in LAYERS if "attn" in name}
    with pytest.raises(gm.GamMergeError, match="every module has weight zero"):
        gm.merge(adapters(), weights=[[0, 0], [0, 0]])


def test_report_tells_the_mean_weights():
    assert gm.merge(adapters(), weights=[[0, 2], 1]).report.weights == pytest.approx(
        (7 / 18, 11 / 18)
    )


def test_modules_of_other_parameters_are_in_other_buckets():
    sources = adapters()
    settings = make_settings(
        [1, 1], {"density": [{"filter": "mlp", "value": 0.5}, {"filter": "*", "value": 1}]}, LAYERS
    )
    buckets = line_up(sources, settings=settings).buckets
    assert [set(b.names) for b in buckets] == [
        {n for n in LAYERS if part in n} for part in ("attn", "mlp")
    ]
    assert [settings.params_of(b.names[0]) for b in buckets] == [{"density": 1}, {"density": 0.5}]
