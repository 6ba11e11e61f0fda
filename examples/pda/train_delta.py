"""Train one preference delta: a LoRA adapter of the student, by DPO or ORPO on one model pair.

    python train_delta.py --student Qwen/Qwen3-8B --pairs qwen3.jsonl --out deltas/qwen3

The defaults are those of the paper's table 5. Adapters with the same --init-seed start from the
same factors A, so their row spaces stay close; with different seeds they stay at chance level. A
run that was stopped continues from its last checkpoint in OUT.work. With --start an adapter is
trained on, and is the reference. On several GPUs: accelerate launch train_delta.py ...
"""

import argparse
import os
import shutil
from pathlib import Path

from models import load, need

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(model, args):
    """Return the student with an adapter: a fresh one, which depends on --init-seed alone, or
    --start.
    """
    torch, peft = need("torch", "peft")
    if args.start:
        return peft.PeftModel.from_pretrained(model, args.start, is_trainable=True)
    config = peft.LoraConfig(
        r=args.rank,
        lora_alpha=args.alpha,
        lora_dropout=args.dropout,
        target_modules=PROJECTIONS,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(args.init_seed)
    return peft.get_peft_model(model, config)


def answer_only(trainer):
    """Return TRL's trainer for ORPO with the likelihood of the chosen answer alone.

    This is the loss of its paper (arXiv 2403.07691); TRL counts the tokens of the prompt, too.
    """

    class AnswerOnly(trainer):
        def concatenated_forward(self, model, batch):
            outputs = super().concatenated_forward(model, batch)
            chosen, rejected, chosen_logits, rejected_logits, _, *others = outputs
            tokens = (batch["chosen_labels"][:, 1:] != -100).sum(1)  # (answers,)
            nll = -(chosen * tokens).sum() / tokens.sum()  # chosen: mean over the tokens of each
            return chosen, rejected, chosen_logits, rejected_logits, nll, *others

    return AnswerOnly


def trainer(model, tokenizer, args, work):
    """Return TRL's trainer for the objective."""
    torch, datasets = need("torch", "datasets")
    if args.objective == "dpo":
        from trl import DPOConfig as Config
        from trl import DPOTrainer as Trainer
    else:
        os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
        from trl.experimental.orpo import ORPOConfig as Config
        from trl.experimental.orpo import ORPOTrainer as Trainer

        Trainer = answer_only(Trainer) if args.answer_only else Trainer
    data = datasets.load_dataset(
        "json", data_files=list(map(str, args.pairs)), split="train", cache_dir=str(work / "data")
    )
    workers = int(os.environ.get("WORLD_SIZE", "1"))
    config = Config(
        output_dir=str(work),
        learning_rate=args.lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,  # a share of all steps
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=max(1, args.batch // (args.micro_batch * workers)),
        gradient_checkpointing=torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        max_length=args.max_length,
        beta=args.beta,
        seed=args.seed,
        save_steps=args.save_steps,
        save_total_limit=1,
        logging_steps=1,
        report_to="none",
    )
    return Trainer(
        model=adapted(model, args), args=config, train_dataset=data, processing_class=tokenizer
    )


def options():
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="adapter to train on, in place of a fresh one")
    parser.add_argument("--objective", choices=("dpo", "orpo"), default="dpo")
    parser.add_argument("--answer-only", action="store_true", help="ORPO without prompt tokens")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--alpha", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--batch", type=int, default=128, help="pairs per step, over all GPUs")
    parser.add_argument("--micro-batch", type=int, default=4, help="pairs at a time on one GPU")
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--max-steps", type=int, default=-1)
    parser.add_argument("--max-length", type=int, default=8192)
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--save-steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="for the order of data and dropout")
    parser.add_argument("--init-seed", type=int, default=0, help="for the initial factors")
    return parser


def main():
    args = options().parse_args()
    if args.out.exists():
        return print(f"{args.out} exists")

    need("trl", "peft", "datasets", "accelerate")
    work = args.out.with_name(f"{args.out.name}.work")
    work.mkdir(parents=True, exist_ok=True)
    run = trainer(*load(args.student), args, work)
    run.train(resume_from_checkpoint=any(work.glob("checkpoint-*")) or None)
    if run.is_world_process_zero():
        run.model.peft_config["default"].base_model_name_or_path = args.student
        adapter = work / "adapter"
        run.model.save_pretrained(
            adapter, selected_adapters=["default"], save_embedding_layers=False
        )
        adapter.rename(args.out)  # complete or not at all
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
