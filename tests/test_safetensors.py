"""Files that the safetensors library writes and ours are the same format, and ours are the same bytes each time."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import random_factors, write_adapter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from strategies import generators

import gam_merge as gm
from gam_merge._common.tensors import read
from gam_merge._read.container import TensorSpec
from gam_merge._read.safetensors import SafetensorsWriter, read_header

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Any keys, shapes (empty and scalar too) and float dtypes."""
    keys = draw(
        st.sets(
            st.text(min_size=1, max_size=8).filter(lambda key: key != "__metadata__"), max_size=5
        )
    )
    keys = {key for key in keys if key.isprintable()}
    generator = draw(generators)
    shape = st.lists(st.integers(0, 4), max_size=3)
    return {
        key: torch.randn(draw(shape), generator=generator).to(draw(st.sampled_from(DTYPES)))
        for key in sorted(keys)
    }


def write(path: Path, values: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    specs = [TensorSpec(key, tuple(value.shape), value.dtype) for key, value in values.items()]
    writer = SafetensorsWriter(path, specs, metadata)
    for key in reversed(values):  # in any order
        writer.write(key, values[key])
    writer.finish()


@SHARED_FOLDER
@given(tensors(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_the_library_reads_what_we_write(
    tmp_path: Path, values: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    path = tmp_path / "x.safetensors"
    write(path, values, metadata)
    equal(load_file(path), values)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", **metadata}


@SHARED_FOLDER
@given(tensors())
def test_we_read_what_the_library_writes(tmp_path: Path, values: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    save_file(values, path, {"format": "pt"})
    entries, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    equal({key: read(entry) for key, entry in entries.items()}, values)


def equal(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (value.dtype, value.shape)
        assert torch.equal(actual[key], value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_is_read_back_equal(dtype: torch.dtype, tmp_path: Path) -> None:
    sources = adapters(tmp_path, dtype)
    in_memory = gm.merge(sources)
    on_disk = gm.merge(sources, out=tmp_path / "out")
    raw = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {value.dtype for value in raw.values()} == {dtype}
    for name, module in in_memory.adapter.modules.items():
        loaded = on_disk.adapter.modules[name]
        for factor, lazy, other in [("A", module.a, loaded.a), ("B", module.b, loaded.b)]:
            assert torch.equal(read(lazy), raw[f"base_model.model.{name}.lora_{factor}.weight"])
            assert torch.equal(read(lazy), read(other))


def adapters(folder: Path, dtype: torch.dtype = torch.float32) -> list[Path]:
    generator = torch.Generator().manual_seed(0)
    sizes = {"x.q_proj": (12, 9, 3), "y.q_proj": (12, 9, 3), "x.v_proj": (7, 9, 2)}
    return [
        write_adapter(
            folder / str(i),
            {name: random_factors(generator, *s, dtype) for name, s in sizes.items()},
        )
        for i in range(3)
    ]


def test_equal_merges_are_equal_bytes(tmp_path: Path) -> None:
    """In this process, in another with other hash seeds, by any number of threads, streamed or saved."""
    sources = adapters(tmp_path)
    gm.merge(sources, out=tmp_path / "one")
    gm.merge(sources).save(tmp_path / "two")
    script = "import sys, torch, gam_merge; torch.set_num_threads(3); gam_merge.merge(sys.argv[2:], out=sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, tmp_path / "three", *sources], check=True)
    one, *others = (
        [digest(path) for path in sorted((tmp_path / x).iterdir())] for x in ("one", "two", "three")
    )
    assert others == [one, one]


def digest(path: Path) -> tuple[str, str]:
    return path.name, hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_name_no_place_and_no_time(tmp_path: Path) -> None:
    """The same merge elsewhere gives the same weights and config."""
    for folder in (tmp_path / "here", tmp_path / "there"):
        gm.merge(adapters(folder), out=folder / "out")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert digest(tmp_path / "here" / "out" / name) == digest(tmp_path / "there" / "out" / name)


# --- files that lie ----------------------------------------------------------------------------------------------


def spoil(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Change the header of a file and leave the rest."""

    def apply(raw: bytes) -> bytes:
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        change(header)
        new = json.dumps(header).encode()
        return len(new).to_bytes(8, "little") + new + raw[8 + length :]

    return apply


def spoil_entry(**fields: Any) -> Callable[[bytes], bytes]:
    return spoil(lambda header: header["x"].update(fields))


WHOLE = "not a complete safetensors file"
LIES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda raw: b"", WHOLE),
    "seven_bytes": (lambda raw: raw[:7], WHOLE),
    "header_cut": (lambda raw: raw[:40], WHOLE),
    "data_cut": (lambda raw: raw[:-1], WHOLE),
    "data_added": (lambda raw: raw + b"\0", WHOLE),
    "header_of_2_to_the_63": (lambda raw: (1 << 63).to_bytes(8, "little") + raw[8:], WHOLE),
    "header_not_json": (lambda raw: raw[:8] + b"!" + raw[9:], WHOLE),
    "header_not_utf8": (lambda raw: raw[:9] + b"\xff" + raw[10:], WHOLE),
    "header_deep": (lambda raw: (200_000).to_bytes(8, "little") + b"[" * 200_000, WHOLE),
    "header_a_list": (lambda raw: (2).to_bytes(8, "little") + b"[]", WHOLE),
    "metadata_a_list": (spoil(lambda header: header.update(__metadata__=[])), WHOLE),
    "metadata_of_numbers": (spoil(lambda header: header.update(__metadata__={"x": 1})), WHOLE),
    "entry_a_number": (spoil(lambda header: header.update(x=1)), WHOLE),
    "key_half_a_character": (
        spoil(lambda header: header.update({"\ud800": header.pop("x")})),
        WHOLE,
    ),
    "no_shape": (spoil(lambda header: header["x"].pop("shape")), WHOLE),
    "shape_negative": (spoil_entry(shape=[-2, -3]), WHOLE),
    "shape_of_floats": (spoil_entry(shape=[2.0, 3.0]), WHOLE),
    "shape_of_booleans": (spoil_entry(shape=[True, 6]), WHOLE),
    "shape_a_number": (spoil_entry(shape=6), WHOLE),
    "shape_too_large": (spoil_entry(shape=[2, 1 << 62]), WHOLE),
    "offsets_beyond_the_end": (spoil_entry(data_offsets=[1 << 40, (1 << 40) + 24]), WHOLE),
    "offsets_reversed": (spoil_entry(data_offsets=[24, 0]), WHOLE),
    "offsets_three": (spoil_entry(data_offsets=[0, 12, 24]), WHOLE),
    "offsets_overlap": (spoil(lambda header: header.update(y=dict(header["x"]))), WHOLE),
    "offsets_with_a_hole": (
        spoil(
            lambda header: header.update(
                x={**header["x"], "shape": [1, 3], "data_offsets": [12, 24]}
            )
        ),
        WHOLE,
    ),
    "offsets_overlap_and_leave_a_hole": (
        lambda raw: spoil(lambda header: header.update(y=dict(header["x"])))(raw) + bytes(24),
        WHOLE,
    ),
    "integers": (spoil_entry(dtype="I32"), "stored as I32"),
    "dtype_a_number": (spoil_entry(dtype=7), WHOLE),
    "dtype_a_list": (spoil_entry(dtype=[]), WHOLE),
    "pickle": (lambda raw: b"PK\x03\x04" + raw, "a pickle of torch.save that was cut off"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_file_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    change, message = LIES[name]
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(2, 3)}, path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(gm.GamMergeError, match=message) as error:
        read_header(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


LENGTH = st.integers(0, 80).map(lambda n: n.to_bytes(8, "little"))


@SHARED_FOLDER
@given(st.binary(max_size=64) | st.builds(bytes.__add__, LENGTH, st.binary()))
def test_no_bytes_at_all_do_more_than_be_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(gm.GamMergeError):
        read_header(path)


def test_file_that_shrinks_after_the_plan_is_an_error(tmp_path: Path) -> None:
    """Read, not mapped: a mapped file that shrinks would kill the process."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(200, 300)}, path)
    entries, _ = read_header(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(gm.GamMergeError, match="ends within tensor x"):
        read(entries["x"])
    path.unlink()
    with pytest.raises(gm.GamMergeError, match="cannot read tensor x: No such file"):
        read(entries["x"])
