"""Merge two adapters of a live PEFT model in its memory, and let the model answer with all three.

    pip install "gam-merge[peft]" transformers
    cd examples/adapters
    python ../peft_model.py HuggingFaceTB/SmolLM2-135M-Instruct addition sorting

The base may be quantised, for instance by load_in_4bit: only factors are read, and nothing else in
the model changes.
"""

import argparse

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gam_merge.integrations.peft import add_merged_adapter


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("adapters", nargs=2)
    parser.add_argument("--method", default="mean")
    parser.add_argument("--prompt", default="Question: What is 31 + 42?\nAnswer:")
    arguments = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    model = AutoModelForCausalLM.from_pretrained(arguments.base)
    model = PeftModel.from_pretrained(model, arguments.adapters[0], adapter_name="first")
    model.load_adapter(arguments.adapters[1], adapter_name="second")

    report = add_merged_adapter(model, ["first", "second"], "merged", method=arguments.method)
    for name, share in zip(report.sources, report.survival, strict=True):
        print(f"{name}: {share:.0%} of it survives in the merge")

    inputs = tokenizer(arguments.prompt, return_tensors="pt")
    for name in ("first", "second", "merged"):
        model.set_adapter(name)
        with torch.no_grad():
            tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer_tokens = tokens[0, inputs["input_ids"].shape[1] :]
        answer = tokenizer.decode(answer_tokens, skip_special_tokens=True)
        print(f"{name}: {answer!r}")
    model.save_pretrained("merged", selected_adapters=["merged"])
    print("wrote merged/merged")


if __name__ == "__main__":
    main()
