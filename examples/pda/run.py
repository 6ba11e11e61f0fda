"""Run Preference Delta Aggregation from one YAML file: pairs, deltas, merge, figures.

    python run.py toy.yaml --work /tmp/toy          # run it again after a stop, and it continues
    python run.py qwen3-8b.yaml --work runs --dry-run

Each step is a command of its own, which is printed before it runs, and left out if its result
exists. The merge is the command `gam-merge`.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def options(values):
    """Return the words of a command: {"max_new_tokens": 64} -> --max-new-tokens=64."""
    return [f"--{key.replace('_', '-')}={value}" for key, value in (values or {}).items()]


def script(name, *words, **values):
    return [sys.executable, str(HERE / f"{name}.py"), *map(str, words), *options(values)]


def steps(config, work):
    """Yield (result, command) in order."""
    sources = {}
    for which in ("questions", "test"):
        source = config[which]
        if isinstance(source, dict):  # made here
            sources[which] = work / f"{which}.jsonl"
            yield sources[which], script("questions", out=sources[which], **source)
        else:
            sources[which] = source
    ask = config.get("ask", {})
    deltas = []
    for i, (name, pair) in enumerate(config["pairs"].items()):
        data = work / f"{name}.jsonl"
        generate = {**ask, **config.get("generate", {})}
        yield data, script("pairs", questions=sources["questions"], out=data, **pair, **generate)
        deltas.append(work / name)
        training = {"student": config["student"], "pairs": data, "out": deltas[-1]}
        training |= config.get("train") or {}
        if config.get("init") == "separate":  # else all start from the same factors
            training["init_seed"] = i
        yield deltas[-1], script("train_delta", **training)
    merged = work / "merged"
    merge = [sys.executable, "-m", "gam_merge", *map(str, deltas), "-o", str(merged)]
    yield merged, merge + options(config.get("merge"))
    evaluate = {**ask, **config.get("evaluate", {})}
    given = {
        "model": config["student"],
        "questions": sources["test"],
        "out": work / "figures.json",
        **evaluate,
    }
    if "harness" in evaluate:
        del given["questions"]
    # without a result: the script knows itself what is missing
    yield None, script("evaluate", "--adapters", *deltas, merged, **given)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    args = parser.parse_args()
    config = yaml.safe_load(args.config.read_text("utf-8"))
    if not args.dry_run:
        args.work.mkdir(parents=True, exist_ok=True)
    for result, command in steps(config, args.work):
        if result is not None and result.exists():
            print(f"{result} exists", flush=True)
            continue
        print(shlex.join(command), flush=True)
        if not args.dry_run and (code := subprocess.run(command).returncode):
            raise SystemExit(code)
    if not args.dry_run:
        print(json.dumps(json.loads((args.work / "figures.json").read_text("utf-8")), indent=2))


if __name__ == "__main__":
    main()
