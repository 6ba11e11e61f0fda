"""``python mergekit_peer.py JOBS ANSWERS``, in an environment of its own with mergekit.

JOBS is a JSON object of merges by name; ANSWERS becomes a JSON object with the version of mergekit
and the errors by name.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge


def main(jobs: Path, answers: Path) -> None:
    failed: dict[str, str] = {}
    for name, job in json.loads(jobs.read_text()).items():
        try:
            merge(**job)
        except BaseException as error:
            failed[name] = f"crash: {type(error).__name__}: {' '.join(str(error).split())}"
    answers.write_text(json.dumps({"version": version("mergekit"), "failed": failed}))


def merge(base: str, adapters: list[str], weights: list[float], out: str) -> None:
    """Write the weighted mean of the models that the adapters make of the base.

    mergekit merges whole models.
    """
    models: list[dict[str, Any]] = []
    for adapter, weight in zip(adapters, weights, strict=True):
        models.append({"model": f"{base}+{adapter}", "parameters": {"weight": weight}})
    config = MergeConfiguration.model_validate(
        {"merge_method": "linear", "models": models, "dtype": "float32"}
    )
    options = MergeOptions(
        lora_merge_cache=f"{out}-cache",
        lora_merge_dtype="float32",
        copy_tokenizer=False,
        write_model_card=False,
        quiet=True,
    )
    run_merge(config, out, options)


main(Path(sys.argv[1]), Path(sys.argv[2]))
