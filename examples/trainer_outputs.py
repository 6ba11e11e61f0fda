"""Merge what axolotl and LLaMA-Factory trained: both write PEFT directories.

    python examples/trainer_outputs.py outputs/math-lora saves/llama3-8b/lora/code --out merged

Both write to the ``output_dir`` of their YAML, for LLaMA-Factory often saves/MODEL/lora/STAGE. They
leave adapter_config.json and adapter_model.safetensors there when training ends, and in
checkpoint-<step> before that. Here the last checkpoints of an unfinished run are averaged, and the
method is the one that the default, ``auto``, takes. Neither tool needs to be installed.
"""

import argparse
from pathlib import Path

import gam_merge as gm


def adapter_of(run: Path) -> gm.Adapter:
    """Return the final adapter of a run, or the mean of its last three checkpoints."""
    if (run / "adapter_model.safetensors").is_file():
        return gm.load(run)
    print(f"{run}: has not ended; its last checkpoints are averaged")
    return gm.average_checkpoints(run, last=3).adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("merged"))
    arguments = parser.parse_args()

    adapters = [adapter_of(run) for run in arguments.runs]
    result = gm.merge(adapters, out=arguments.out)
    print(result.report.choice)
    for run, share in zip(arguments.runs, result.report.survival, strict=True):
        print(f"{run}: {share:.0%} survives")
    print(f"wrote {result.path}")


if __name__ == "__main__":
    main()
