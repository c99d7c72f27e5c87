"""Learning in three stages against learning all at once: same rows of every task, same steps, three seeds.

Both recipes of `tests/progressive/` begin from the same random weights with janus-nano's image tokenizer, without which
there are no codes worth predicting. The joint loss is the mean of those of captions, questions and pictures, held out.

    python tests/progressive.py --janus target/release/janus --out runs/progressive

Needs numpy and safetensors. Runs that are there already are not run again. Prints one JSON object.
"""

import argparse
import json
import pathlib
import statistics
import subprocess

from safetensors.numpy import load_file, save_file

JOINT = ("captions", "questions", "pictures")
RECIPES = pathlib.Path(__file__).parent / "progressive"


def make_base(janus, out):
    """Random weights, with the image tokenizer of janus-nano in the place of its own."""
    base, nano = out / "base", out / "nano"
    shape = ["--shape", "janus-nano", "--vocabulary", "world", "--seed", "1"]
    subprocess.run([janus, "base", "init", *shape, "--dtype", "f32", "--out", str(base)], check=True)
    convert = [janus, "base", "convert", "janus-nano", "--layout", "native", "--dtype", "f32", "--out", str(nano)]
    subprocess.run(convert, check=True)
    weights, trained = load_file(base / "model.safetensors"), load_file(nano / "model.safetensors")
    tokenizer = {name: values for name, values in trained.items() if ".vqmodel." in name}
    assert tokenizer and all(weights[name].shape == values.shape for name, values in tokenizer.items())
    save_file(weights | tokenizer, base / "model.safetensors", metadata={"format": "pt"})
    return base


def told(run):
    """Held-out losses of each table and of all three by step, training seconds by step, and the last evaluation."""
    seconds, losses, last = {}, {name: {} for name in ("joint", *JOINT)}, None
    spent = 0.0
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        if "tokens_per_second" in line:
            spent += line["tokens"] / line["tokens_per_second"]
            seconds[line["step"]] = spent
        for last in line.get("eval", {}).values():
            # Each stage evaluates its own tables.
            if all(name in last for name in JOINT):
                for name in JOINT:
                    losses[name][line["step"]] = last[name]["loss"]
                losses["joint"][line["step"]] = statistics.mean(last[name]["loss"] for name in JOINT)
    return losses, seconds, last


def reached(losses, seconds, goal):
    """The first evaluation at or below `goal`."""
    step = next((step for step in sorted(losses) if losses[step] <= goal), None)
    return None if step is None else {"step": step, "seconds": round(seconds[step])}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--janus", default="target/release/janus")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/progressive"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", default="2")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = arguments.out / "base"
    if not base.exists():
        base = make_base(arguments.janus, arguments.out)
    runs = {}
    for seed in arguments.seeds:
        for recipe in ("stages", "one-stage"):
            run = arguments.out / f"{recipe}-{seed}"
            if not (run / "adapter_config.json").exists():
                settings = [f"base.path={base}", f"train.seed={seed}", f"output.dir={run}"]
                command = [arguments.janus, "train", str(RECIPES / f"{recipe}.toml"), *settings]
                subprocess.run([*command, "--threads", arguments.threads], check=True)
            runs[recipe, seed] = told(run)
    result = {}
    for seed in arguments.seeds:
        both = {recipe: runs[recipe, seed] for recipe in ("stages", "one-stage")}
        result[seed] = {}
        for name in ("joint", *JOINT):
            # What the slower of the two ends with is what both reach.
            ends = {recipe: losses[name][max(losses[name])] for recipe, (losses, _, _) in both.items()}
            goal = max(ends.values())
            times = {recipe: reached(losses[name], seconds, goal) for recipe, (losses, seconds, _) in both.items()}
            result[seed][name] = {"end": ends, "goal": goal, "reached": times}
        for recipe, (losses, seconds, last) in both.items():
            result[seed][recipe] = {"losses": losses, "seconds": max(seconds.values()), "last": last}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
