"""The formats, each with two sources of unlike ranks and alphas and a reader of its files."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.formats import readers


@dataclass(frozen=True)
class Row:
    """A format and a reader of it.

    Attributes:
        name: of the format, in the table.
        reader: the package that reads, in the table.
        needs: the packages whose versions are given.
        save: writes two sources into a folder, as their usual writer would.
        read: by the reader.
        out: how the merge is called; its end makes it a file or a directory.
        rank: of the merge, large enough for it to be exact.
        module: of gam-merge, that reads the format; a version without it leaves the row out.
    """

    name: str
    reader: str
    needs: tuple[str, ...]
    save: Callable[[Path], Sequence[Path]]
    read: readers.Reader
    module: str
    out: str = "merged.safetensors"
    rank: int = 10

    @property
    def supported(self) -> bool:
        """Whether this version of gam-merge reads the format."""
        return is_supported(self.module)

    @property
    def runs(self) -> bool:
        """Whether the reader is installed, too."""
        packages = [name.removesuffix("-lora").replace("-", "_") for name in self.needs]
        return self.supported and all(find_spec(name) for name in packages)


def is_supported(module: str) -> bool:
    """Tell whether this version of gam-merge has the module that reads a format."""
    return find_spec(f"gam_merge._read.{module}") is not None


def _peft(folder: Path) -> list[Path]:
    from peft import LoraConfig
    from variants import save_any

    modules = ["q_proj", "v_proj", "down_proj"]
    configs = (
        LoraConfig(r=4, lora_alpha=9, target_modules=modules),
        LoraConfig(r=6, lora_alpha=2, target_modules=modules[:2], use_rslora=True),
    )
    return [save_any(folder / str(i), "llama", i, each) for i, each in enumerate(configs)]


def _mlx(folder: Path) -> list[Path]:
    from mlx_models import save

    keys = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
    return [
        save(folder / "a", 1, rank=4, scale=20.0, keys=keys),
        save(folder / "b", 2, rank=6, scale=2.5, keys=keys[:2]),
    ]


def _kohya(folder: Path) -> list[Path]:
    from pipelines import save_kohya

    return [
        save_kohya(folder / "a.safetensors", 1, rank=4, alpha=2.7, mixed=True),
        save_kohya(folder / "b.safetensors", 2, rank=6, alpha=None),
    ]


def _diffusers(folder: Path) -> list[Path]:
    from pipelines import save_diffusers

    return [
        save_diffusers(folder / "a", 1, rank=4, alpha=8),
        save_diffusers(folder / "b", 2, rank=6, alpha=3, pattern={"to_v": 2}),
    ]


def _flux(folder: Path) -> list[Path]:
    from pipelines import save_dotted, transformer

    ends = ("attn.to_q", "attn.to_out.0", "ff.net.2", "proj_out")
    layers = [(name, each) for name, each in transformer().named_modules() if name.endswith(ends)]
    named = [(f"transformer.{name}", layer) for name, layer in layers]
    return [
        save_dotted(folder / "a.safetensors", 1, named, rank=4, alpha=2.5),
        save_dotted(folder / "b.safetensors", 2, named, rank=6, alpha=None),
    ]


def _comfyui(folder: Path) -> list[Path]:
    from pipelines import save_dotted, wan_as_comfyui

    return [
        save_dotted(folder / "a.safetensors", 1, wan_as_comfyui(), rank=4, alpha=2.5),
        save_dotted(folder / "b.safetensors", 2, wan_as_comfyui(), rank=6, alpha=None),
    ]


def _of_lycoris(algorithm: str, rank: int) -> Row:
    def saved(folder: Path) -> list[Path]:
        from benchmarks.formats.lycoris_models import save

        return [
            save(folder / "a.safetensors", 1, algorithm, rank=2, alpha=1.5),
            save(folder / "b.safetensors", 2, algorithm, rank=3, alpha=3.0),
        ]

    reader = readers.summed(readers.by_lycoris)
    return Row(
        f"LyCORIS: {algorithm}", "LyCORIS", ("lycoris-lora",), saved, reader, "lycoris", rank=rank
    )


def _gguf(folder: Path) -> list[Path]:
    from benchmarks.formats.gguf_models import save

    return [
        save(folder / "a.gguf", 1, rank=4, alpha=8.0),
        save(folder / "b.gguf", 2, rank=6, alpha=3.0),
    ]


_PIPELINE, _MLX_PACKAGES = ("diffusers", "peft", "transformers"), ("mlx", "mlx-lm")
_BY_PEFT, _BY_MLX = readers.summed(readers.by_peft), readers.summed(readers.by_mlx)
_BY_UNET = readers.summed(readers.by_diffusers_unet)
_BY_FLUX = readers.summed(readers.by_diffusers_flux)
_BY_WAN = readers.summed(readers.by_diffusers_wan)

_SAVED = "diffusers, UNet of Stable Diffusion, as it saves it"
_LLAMA_CPP = ("gguf", "xllamacpp")
ROWS = (
    Row("PEFT", "PEFT", ("peft",), _peft, _BY_PEFT, "peft", "merged"),
    Row("kohya, UNet of Stable Diffusion", "diffusers", _PIPELINE, _kohya, _BY_UNET, "kohya"),
    Row(_SAVED, "diffusers", _PIPELINE, _diffusers, _BY_UNET, "diffusers", "merged"),
    Row("diffusers, transformer of Flux", "diffusers", _PIPELINE, _flux, _BY_FLUX, "diffusers"),
    Row("dotted, as ComfyUI has it: Wan", "diffusers", _PIPELINE, _comfyui, _BY_WAN, "diffusers"),
    Row("MLX-LM", "MLX-LM", _MLX_PACKAGES, _mlx, _BY_MLX, "mlx", "merged"),
    _of_lycoris("LoCon", 5),
    _of_lycoris("LoHa", 12),
    _of_lycoris("LoKr", 10),
    Row("GGUF", "llama.cpp", _LLAMA_CPP, _gguf, readers.by_llama_cpp, "gguf", "merged.gguf"),
)
