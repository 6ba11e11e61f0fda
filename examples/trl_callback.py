"""Train on preferences with TRL, and merge the last checkpoints as it goes, if that is better.

    pip install "gam-merge[transformers]" trl datasets
    python examples/trl_callback.py HuggingFaceTB/SmolLM2-135M-Instruct pairs.jsonl --out run

pairs.jsonl has one {"prompt": ..., "chosen": ..., "rejected": ...} per line, and a tenth of them is
held out. The best merge is in run/merged, complete at any moment. Any transformers Trainer takes
the same callback.
"""

import argparse

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from gam_merge.integrations.transformers import MergeCheckpointsCallback


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base")
    parser.add_argument("pairs")
    parser.add_argument("--out", default="run")
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()

    pairs = load_dataset("json", data_files=arguments.pairs, split="train")
    pairs = pairs.train_test_split(test_size=0.1, seed=0)
    callback = MergeCheckpointsCallback(
        last=3,
        ema=0.5,
        evaluate=lambda model: trainer.evaluate()["eval_loss"],
        keep_if_better=True,
    )
    trainer = DPOTrainer(
        AutoModelForCausalLM.from_pretrained(arguments.base),
        args=DPOConfig(
            arguments.out,
            max_steps=arguments.steps,
            save_steps=max(1, arguments.steps // 10),
            save_total_limit=3,  # no fewer than the callback merges
            per_device_train_batch_size=4,
            bf16=torch.cuda.is_available(),
            report_to=[],
        ),
        train_dataset=pairs["train"],
        eval_dataset=pairs["test"],
        processing_class=AutoTokenizer.from_pretrained(arguments.base),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
        callbacks=[callback],
    )
    trainer.train()
    for record in callback.history:
        mark = " *" if record.kept else ""
        scores = f"run {record.run_score:.4f}, merge {record.score:.4f}"
        print(f"step {record.step}: {scores}{mark}")


if __name__ == "__main__":
    main()
