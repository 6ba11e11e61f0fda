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
from string import Template

import yaml

HERE = Path(__file__).parent


def options(values):
    """Return the words of a command: {"max_new_tokens": 64, "open": True} gives
    --max-new-tokens=64 --open.
    """
    words = []
    for key, value in (values or {}).items():
        name = f"--{key.replace('_', '-')}"
        words.append(name if value is True else f"{name}={value}")
    return words


def script(name, *words, **values):
    return [sys.executable, str(HERE / f"{name}.py"), *map(str, words), *options(values)]


def steps(config, work):
    """Yield (result, command) in order."""
    sources = {}
    for which in ("questions", "test"):
        source = config[which]
        sources[which] = work / f"{which}.jsonl" if isinstance(source, dict) else source
        if isinstance(source, dict):  # made here
            yield sources[which], script("questions", out=sources[which], **source)
    ask = config.get("ask") or {}
    generate = {"questions": sources["questions"], **ask, **(config.get("generate") or {})}
    training = {"student": config["student"], **(config.get("train") or {})}
    data, deltas = {}, {}
    for i, (name, pair) in enumerate(config["pairs"].items()):
        data[name], deltas[name] = work / f"{name}.jsonl", work / name
        if "axis" in pair:
            model = {"model": config["student"], "answers": work / "answers"}
            yield data[name], script("axes", out=data[name], **model, **pair, **generate)
        else:
            yield data[name], script("pairs", out=data[name], **pair, **generate)
        # unless they are separate, all start from the same factors
        init = {"init_seed": i} if config.get("init") == "separate" else {}
        delta = {**training, **init, "pairs": data[name], "out": deltas[name]}
        yield deltas[name], script("train_delta", **delta)
    subjects = dict(deltas)
    for way in config.get("trained_together") or []:
        subjects[way] = work / way
        yield from TOGETHER[way](data, deltas, work, training)
    for name, merge in config["merges"].items():
        subjects[name] = work / name
        command = [sys.executable, "-m", "gam_merge", *map(str, deltas.values())]
        yield subjects[name], [*command, "-o", str(subjects[name]), *options(merge)]
    evaluate = {**ask, **(config.get("evaluate") or {})}
    if "harness" not in evaluate:
        evaluate["questions"] = sources["test"]
    given = {"model": config["student"], "out": work / "figures.json", **evaluate}
    # without a result: the script knows itself what is missing
    yield None, script("evaluate", "--adapters", *subjects.values(), **given)


def joint(data, deltas, work, training):
    """Train one adapter on the pairs of all deltas: as many steps as they have together."""
    yield (
        work / "joint",
        script("train_delta", "--pairs", *data.values(), out=work / "joint", **training),
    )


def sequential(data, deltas, work, training):
    """Train on: the first delta on the pairs of the second one, and so on."""
    first, *others = data
    start = deltas[first]
    for name in others:
        last = name == others[-1]
        out = work / ("sequential" if last else f"sequential-{name}")
        yield out, script("train_delta", pairs=data[name], start=start, out=out, **training)
        start = out


TOGETHER = {"joint": joint, "sequential": sequential}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="where everything is kept")
    parser.add_argument("--seed", type=int, default=0, help="what $seed in the file stands for")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    args = parser.parse_args()
    text = Template(args.config.read_text("utf-8")).substitute(seed=args.seed)
    config = yaml.safe_load(text)
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
