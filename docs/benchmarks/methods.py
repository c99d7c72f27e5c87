"""Trains every method of PEFT over `janus-nano` on two domains, at like numbers of trained values, and tells them apart.

    cargo build --release
    python docs/benchmarks/methods.py

Each method takes three rates with one seed; the rate with the least loss on held-out rows is taken with three other seeds. Of
those runs the table has medians: held-out loss and share of right answers, what the adapter cost the base on tables that it was
not trained on (`janus eval`), values trained, time of a step, memory. Steps are fewer than the finished adapters' (`--steps`):
the table compares, and does not boast. All methods meet the same rows in the same order.

Every run's figures go to `results/methods-<machine>.jsonl` as soon as they are there, and a run that is in the file is not
made again, so that the command may be stopped and given anew; the table goes to standard output. One thread, so that two
commands can share a machine: `--domains inspection` and `--domains creative`.

Needs Python's standard library alone.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

PICKING_SEED = 4
SEEDS = [1, 2, 3]

# What a recipe says of each, and three rates. Ranks are such that as many values are trained as by LoRA of rank 4, where the form
# allows that: IA3 has a factor for each feature, VeRA two vectors over random matrices, LoKr what its blocks have.
METHODS = {
    "lora": (dict(rank=4), (1e-3, 3e-3, 1e-2)),
    "rslora": (dict(rank=4, rslora=True), (1e-3, 3e-3, 1e-2)),
    "pissa": (dict(rank=4, init="pissa"), (3e-4, 1e-3, 3e-3)),
    "olora": (dict(rank=4, init="olora"), (3e-4, 1e-3, 3e-3)),
    "eva": (dict(rank=4, init="eva"), (1e-3, 3e-3, 1e-2)),
    "dora": (dict(method="dora", rank=4), (1e-3, 3e-3, 1e-2)),
    "loha": (dict(method="loha", rank=2), (3e-3, 1e-2, 3e-2)),
    "lokr": (dict(method="lokr", rank=8), (1e-3, 3e-3, 1e-2)),
    "vera": (dict(method="vera", rank=64), (3e-3, 1e-2, 3e-2)),
    "ia3": (dict(method="ia3"), (3e-3, 1e-2, 3e-2)),
}


def synth(domain, rows, seed=1, split="train"):
    return f"synth:{domain}?rows={rows}&seed={seed}&size=64&split={split}"


def table(name, task, domain, **keys):
    return dict(name=name, task=task, train=synth(domain, 2048), eval=synth(domain, 96, split="eval"), **keys)


DOMAINS = {
    "inspection": [
        table("defects", "classify", "inspection"),
        table("places", "locate", "inspection", columns=dict(labels="box_labels")),
        table("advice", "understand", "inspection", question="What should be done?", columns=dict(answer="advice")),
    ],
    "creative": [
        table("pictures", "generate", "creative"),
        table("copy", "understand", "creative", question="Write a line of copy.", columns=dict(answer="copy")),
        table("search", "retrieve", "creative", columns=dict(caption="prompt")),
    ],
}

# What the base can do, and no domain asks for.
OTHER = [
    dict(name="questions", task="understand", train=synth("world", 8), eval=synth("world", 64, split="eval")),
    dict(
        name="words", task="text", train=synth("world", 8), eval=synth("world", 64, split="eval"),
        columns=dict(prompt="text_question", answer="text_answer"),
    ),
    dict(
        name="pictures-of-parts", task="generate", train=synth("world", 8), eval=synth("world", 32, split="eval"),
        columns=dict(prompt="caption", image="image"),
    ),
]

# The figure of a table that says how many answers are right.
RIGHT = ("accuracy", "map_50", "exact_match", "recall_at_1", "token_accuracy")


def toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml(own)}" for key, own in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(toml(own) for own in value) + "]"
    return json.dumps(value)


def write(path, adapter, tables, train, folder):
    sections = [("[base]", dict(path="janus-nano", dtype="f32")), ("[adapter]", adapter)]
    sections += [("[[data]]", own) for own in tables]
    sections += [("[train]", train), ("[output]", dict(dir=str(folder)))]
    text = (name + "\n" + "".join(f"{key} = {toml(value)}\n" for key, value in own.items()) for name, own in sections)
    path.write_text("\n".join(text))


def command(arguments, **keys):
    done = subprocess.run([str(own) for own in arguments], capture_output=True, text=True, **keys)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def mean(values):
    return sum(values) / len(values) if values else None


def run(janus, domain, method, rate, seed, steps):
    """Trains once and gives the figures."""
    adapter, _ = METHODS[method]
    adapter = dict(targets=["decoder", "vision", "lm_head"], scale=4.0, **adapter)
    if method in ("vera", "ia3"):
        del adapter["scale"]
    train = dict(
        steps=steps, batch_size=8, mixture="each", learning_rate=rate, warmup_steps=steps // 20, seed=seed,
        eval_every=steps, checkpoint_every=steps, sample_every=0,
    )
    with tempfile.TemporaryDirectory(prefix="janus-methods-") as work:
        work = Path(work)
        recipe, other, folder = work / "recipe.toml", work / "other.toml", work / "run"
        write(recipe, adapter, DOMAINS[domain], train, folder)
        write(other, dict(targets=["decoder"]), OTHER, dict(steps=1), work / "unused")
        command([janus, "train", recipe, "--threads", 1, "--quiet"])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        told = [own for own in lines if "loss" in own]
        after = next(own["eval"]["after"] for own in reversed(lines) if "eval" in own and "after" in own["eval"])
        right = [own[name] for own in after.values() for name in [next((n for n in RIGHT if n in own), None)] if name]
        cost = json.loads(command([janus, "eval", other, "--adapter", folder, "--threads", 1, "--json", "--quiet"]))
        plan = json.loads((folder / "run.json").read_text())["plan"]
        return dict(
            domain=domain, method=method, rate=rate, seed=seed, steps=steps,
            loss=mean([own["loss"] for own in after.values()]),
            right=mean(right),
            forgetting=mean([own["after"] - own["before"] for own in cost["forgetting"].values()]),
            values=plan["trainable_parameters"],
            step_ms=1e3 * median([own["tokens"] / own["tokens_per_second"] for own in told[len(told) // 5:]]),
            peak_bytes=max(own["peak_rss_bytes"] for own in told),
            eval=after,
        )


def best(lines, domain, method):
    """The rate with the least held-out loss."""
    picked = [own for own in lines if own["domain"] == domain and own["method"] == method and own["seed"] == PICKING_SEED]
    return min(picked, key=lambda own: own["loss"])["rate"] if len(picked) == len(METHODS[method][1]) else None


def tell(lines):
    print("| domain | method | rate | held-out loss | right | forgetting | values | step | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for domain in DOMAINS:
        for method in METHODS:
            rate = best(lines, domain, method)
            own = [o for o in lines if (o["domain"], o["method"], o["rate"]) == (domain, method, rate) and o["seed"] in SEEDS]
            if not own:
                continue

            def middle(key):
                return median(o[key] for o in own)

            def spread(key, form):
                return f"{middle(key):{form}} ({min(o[key] for o in own):{form}} to {max(o[key] for o in own):{form}})"

            print(
                f"| {domain} | `{method}` | {rate:g} | {spread('loss', '.3f')} | {spread('right', '.3f')} | "
                f"{spread('forgetting', '.2f')} | {middle('values'):,} | {middle('step_ms'):.0f} ms | "
                f"{middle('peak_bytes') / 1e6:.0f} MB |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--janus", type=Path, default=ROOT / "target/release/janus")
    parser.add_argument("--domains", default=",".join(DOMAINS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--machine", default=None, help="as the results file is to call it")
    options = parser.parse_args()
    machine = options.machine or re.sub(r"[^a-z0-9]+", "-", f"{os.uname().machine}-{os.cpu_count()}-cores".lower())
    results = HERE / "results" / f"methods-{machine}.jsonl"
    read = lambda: [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []

    def once(domain, method, rate, seed):
        key = dict(domain=domain, method=method, rate=rate, seed=seed, steps=options.steps)
        if any(all(own[name] == value for name, value in key.items()) for own in read()):
            return
        figures = run(options.janus, domain, method, rate, seed, options.steps)
        with results.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        print(f"{domain} {method} {rate:g} seed {seed}: loss {figures['loss']:.3f}", file=sys.stderr, flush=True)

    for domain in options.domains.split(","):
        for method in options.methods.split(","):
            for rate in METHODS[method][1]:
                once(domain, method, rate, PICKING_SEED)
            for seed in SEEDS:
                once(domain, method, best([o for o in read() if o["steps"] == options.steps], domain, method), seed)
    tell([own for own in read() if own["steps"] == options.steps])


if __name__ == "__main__":
    main()
