"""Merge adapters for vLLM, and serve or query the result.

    pip install gam-merge vllm
    python examples/vllm_serve.py org/base adapter-a adapter-b --out merged

Without vLLM the merge is made all the same, as vLLM can load it, and the command that serves it is
printed.
"""

import argparse
import importlib.util
from pathlib import Path

import gam_merge as gm

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("adapters", nargs="+")
    parser.add_argument("--method", default="auto")
    parser.add_argument("--out", type=Path, default=Path("merged"))
    parser.add_argument("--prompt", default="What is 31 + 42?")
    arguments = parser.parse_args()

    # with target="vllm", what vLLM does not load is an error before any tensor is read
    result = gm.merge(arguments.adapters, method=arguments.method, target="vllm", out=arguments.out)
    rank = next(size for size in RANKS if size >= result.adapter.rank)
    options = f"--enable-lora --max-lora-rank {rank} --lora-modules merged={arguments.out}"
    print(f"vllm serve {arguments.base} {options}")

    if importlib.util.find_spec("vllm") is None:
        print("vllm is not installed: the merge is written but not served")
        return
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(arguments.base, enable_lora=True, max_lora_rank=rank)
    request = LoRARequest("merged", 1, str(arguments.out.resolve()))
    (answer,) = llm.generate(
        [arguments.prompt], SamplingParams(max_tokens=32), lora_request=request
    )
    print(answer.outputs[0].text)


if __name__ == "__main__":
    main()
