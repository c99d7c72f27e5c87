"""Runs janus and transformers + PEFT side by side, case by case, and says who was faster by how much.

    cargo build --release
    python docs/benchmarks/compare.py --rounds 3

Needs Python's standard library here; the peer's scripts run with `--python`, which has torch, transformers and peft. In every
round each case is measured once on each side, one process at a time, and the side that goes first changes from round to
round; what several cases ask of the peer alike is measured once a round. Medians over the rounds and their ratios go to standard output and, with the raw figures and the facts of the machine,
to `results/<date>-<machine>.json` and `.md`.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# What is compared: (words, key of the reports, how, goal). `rate` is better high, `time` better low, and both give "so many
# times faster"; `memory` gives our share of the peer's; `own` is a figure of janus alone.
SPEED = ("tokens/s", "tokens_per_second", "rate")
MEMORY = ("peak memory", "peak_rss_bytes", "memory")


def case(name, title, janus, peer, figures):
    return dict(name=name, title=title, janus=janus, peer=peer, figures=figures)


TRAIN, PEER_TRAIN = ["train", "--dtype", "bf16"], ["peer_train.py", "--dtype", "bf16"]
THREE = ["--targets", "decoder,vision,aligner"]
CASES = [
    case("train-bf16", "training step, bf16", TRAIN, PEER_TRAIN, [(*SPEED, 2.2), (*MEMORY, 0.6)]),
    case(
        "train-bf16-cached", "training step, bf16, image features cached", [*TRAIN, "--cached-features"], PEER_TRAIN,
        [(*SPEED, 2.4), (*MEMORY, None)],
    ),
    case(
        "train-bf16-recompute", "training step, bf16, recompute against none", [*TRAIN, "--recompute"], PEER_TRAIN,
        [(*SPEED, 1.5), (*MEMORY, 0.5)],
    ),
    case(
        "train-bf16-recompute-both", "training step, bf16, recompute on both sides", [*TRAIN, "--recompute"],
        [*PEER_TRAIN, "--recompute"], [(*SPEED, None), (*MEMORY, None)],
    ),
    case(
        "train-bf16-lean-peer", "training step, bf16, peer with bf16 adapters and supervised logits only", TRAIN,
        [*PEER_TRAIN, "--bf16-adapters", "--only-supervised"], [(*SPEED, None), (*MEMORY, None)],
    ),
    case(
        "train-f32", "training step, f32", ["train", "--dtype", "f32"], ["peer_train.py", "--dtype", "f32"],
        [(*SPEED, 2.0), (*MEMORY, None)],
    ),
    case(
        "train-bf16-generate", "generation training step, bf16", [*TRAIN, "--task", "generate"],
        [*PEER_TRAIN, "--task", "generate"], [(*SPEED, 1.6), (*MEMORY, None)],
    ),
    case(
        "train-bf16-all", "training step, bf16, decoder, vision and aligner", [*TRAIN, *THREE], [*PEER_TRAIN, *THREE],
        [(*SPEED, 1.8), (*MEMORY, None)],
    ),
    case(
        "understand-bf16", "answer about an image, bf16", ["understand", "--dtype", "bf16"],
        ["peer_inference.py", "understand", "--dtype", "bf16"],
        [
            ("time to first token", "first_token_seconds", "time", 1.6),
            (*SPEED, 1.0),
            ("share of memory bandwidth", "memory_bandwidth_share", "own", 0.9),
            (*MEMORY, None),
        ],
    ),
    case(
        "generate-bf16", "image of 576 codes with guidance, bf16", ["generate", "--dtype", "bf16"],
        ["peer_inference.py", "generate", "--dtype", "bf16"],
        [
            ("codes", "codes_seconds", "time", 4.0),
            ("image decoder", "vq_decode_seconds", "time", None),
            (*MEMORY, None),
        ],
    ),
]


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip().split("\n")[0]
    except OSError:
        return ""


def machine():
    """Facts that decide about speed; no names of hosts or users."""
    facts = dict(system=platform.system(), architecture=platform.machine(), cores=os.cpu_count())
    if hasattr(os, "sched_getaffinity"):
        facts["usable_cores"] = len(os.sched_getaffinity(0))
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        fields = dict(re.findall(r"^(.+?)\s*:[ \t]*(.*)$", text.split("\n\n")[0], re.M))
        facts["processor"] = fields.get("model name", "")
        facts.update({key.replace(" ", "_"): fields[key] for key in ("cpu family", "model") if key in fields})
        flags = fields.get("flags", fields.get("Features", "")).split()
        facts["instructions"] = [f for f in flags if re.match(r"avx|amx|fma|bf16|sve|asimd", f)]
    else:
        facts["processor"] = first_line(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    try:
        facts["memory_bytes"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        pass
    return facts


def run(command):
    """The JSON object that a command prints last, or why there is none."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE)
    lines = done.stdout.strip().split("\n")
    if done.returncode == 0:
        try:
            return json.loads(lines[-1])
        except json.JSONDecodeError:
            return dict(failed="printed no JSON")
    told = [line for line in done.stderr.strip().split("\n") if line.strip()] or ["said nothing"]
    errors = [line for line in told if line.startswith("error")]
    # Places on this machine are of no use to others.
    reason = re.sub(r"(/[\w.+-]+){2,}", "...", (errors or told[-1:])[0])
    return dict(failed=f"exit code {done.returncode}: {reason}")


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def figure(rounds, words, key, how, goal):
    """Medians of both sides over the rounds in which both have the figure, and what they come to."""
    def pairs():
        for one in rounds:
            ours, theirs = one["janus"].get(key), one["peer"].get(key)
            if ours is not None and (theirs is not None or how == "own"):
                yield ours, theirs

    found = list(pairs())
    if not found:
        return dict(what=words, key=key, how=how, goal=goal)
    ours = median([pair[0] for pair in found])
    if how == "own":
        return dict(what=words, key=key, how=how, goal=goal, janus=ours, outcome=ours, reached=goal is None or ours >= goal)
    theirs = median([pair[1] for pair in found])
    outcome = dict(rate=ours / theirs, time=theirs / ours, memory=ours / theirs)[how]
    by_round = [dict(rate=a / b, time=b / a, memory=a / b)[how] for a, b in found]
    reached = goal is None or (outcome <= goal if how == "memory" else outcome >= goal)
    return dict(
        what=words, key=key, how=how, goal=goal, janus=ours, peer=theirs, outcome=outcome, by_round=by_round, reached=reached
    )


def shown(figure, side):
    value = figure.get(side)
    if value is None:
        return ""
    if figure["how"] == "memory":
        return f"{value / 1e9:.2f} GB"
    if figure["how"] == "own":
        return f"{100 * value:.1f} %"
    if figure["how"] == "time":
        return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"
    return f"{value:.2f}"


def table(cases):
    lines = ["| case | figure | janus | transformers + PEFT | outcome | goal |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for one in cases:
        failed = {side: result["failed"] for r in one["rounds"] for side, result in r.items() if "failed" in result}
        for f in one["figures"]:
            if "outcome" not in f:
                why = "; ".join(f"{side}: {reason}" for side, reason in failed.items()) or "not told"
                lines.append(f"| {one['title']} | {f['what']} | not measured ({why}) | | | |")
                continue
            own = f["how"] == "own"
            outcome = "" if own else f"{f['outcome']:.2f} x"
            sign = "at most" if f["how"] == "memory" else "at least"
            wanted = "" if f["goal"] is None else f"{100 * f['goal']:g} %" if own else f"{f['goal']:g} x"
            goal = wanted and f"{sign} {wanted}: {'yes' if f['reached'] else 'no'}"
            lines.append(f"| {one['title']} | {f['what']} | {shown(f, 'janus')} | {shown(f, 'peer')} | {outcome} | {goal} |")
    return "\n".join(lines)


def free_name(folder, stem):
    """A name that no earlier run has."""
    name, number = stem, 2
    while (folder / f"{name}.json").exists() or (folder / f"{name}.md").exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def write(path, text):
    """Whole or not at all."""
    staged = path.with_name(f".{path.name}.part")
    staged.write_text(text)
    os.replace(staged, path)


def main():
    names = [one["name"] for one in CASES]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--janus", type=Path, default=ROOT / "target" / "release" / "janus", help="the program")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch, transformers and peft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shape", default="janus-pro-1b", help="janus-pro-1b, janus-pro-7b or, to try it out, janus-small")
    parser.add_argument("--steps", type=int, default=5, help="training steps of a run, the first left out")
    parser.add_argument("--peer-dtype", help="run the peer in this type in every case, where that is faster for it than bf16")
    parser.add_argument("--codes", type=int, help="draw only so many codes of the image")
    parser.add_argument("--cases", default=",".join(names), help="with commas: " + ", ".join(names))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    wanted = options.cases.split(",")
    unknown = [name for name in wanted if name not in names]
    if unknown:
        parser.error(f"--cases: {', '.join(unknown)} is none of {', '.join(names)}")
    if options.rounds < 1:
        parser.error("--rounds: at least 1")
    if not options.janus.exists():
        parser.error("no program to measure: `cargo build --release` first, or give `--janus`")
    options.out.mkdir(parents=True, exist_ok=True)

    def commands(one):
        shape = ["--shape", options.shape]
        extra = []
        if one["janus"][0] == "train":
            extra = ["--steps", str(options.steps)]
        if one["janus"][0] == "generate" and options.codes:
            extra = ["--tokens", str(options.codes)]
        janus = ["bench", *one["janus"], *shape, *extra, "--json"]
        peer = [*one["peer"], *shape, *extra]
        if options.peer_dtype:
            peer[peer.index("--dtype") + 1] = options.peer_dtype
        sides = dict(janus=[str(options.janus.resolve()), *janus], peer=[options.python, *peer])
        return sides, dict(janus=" ".join(["janus", *janus]), peer=" ".join(["python", *peer]))

    cases = [dict(one, rounds=[], commands=commands(one)[1]) for one in CASES if one["name"] in wanted]
    started = datetime.datetime.now(datetime.timezone.utc)
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    for number in range(options.rounds):
        known = {}
        for one in cases:
            sides, _ = commands(one)
            order = ["janus", "peer"] if number % 2 == 0 else ["peer", "janus"]
            results = {}
            for side in order:
                print(f"round {number + 1} of {options.rounds}, {one['name']}: {one['commands'][side]}", file=sys.stderr, flush=True)
                command = tuple(sides[side])
                if command not in known:
                    known[command] = run(sides[side])
                results[side] = known[command]
                if "failed" in results[side]:
                    print(f"  {results[side]['failed']}", file=sys.stderr, flush=True)
            one["rounds"].append(results)

    for one in cases:
        one["figures"] = [figure(one["rounds"], *wanted) for wanted in one["figures"]]
        one.pop("janus"), one.pop("peer")
    told = [r["peer"]["versions"] for one in cases for r in one["rounds"] if "versions" in r["peer"]]
    facts = machine()
    result = dict(
        date=started.date().isoformat(),
        machine=facts,
        load_average_before=load,
        versions=dict(janus=first_line([str(options.janus), "--version"]), commit=first_line(["git", "rev-parse", "--short", "HEAD"]), **(told[0] if told else {})),
        shape=options.shape,
        peer_dtype=options.peer_dtype,
        rounds=options.rounds,
        cases=cases,
    )
    processor = re.sub(r"[^a-z0-9]+", "-", facts.get("processor", "").lower()).strip("-") or facts["architecture"]
    stem = free_name(options.out, f"{result['date']}-{processor}-{facts.get('usable_cores', facts['cores'])}-cores")
    memory = facts.get("memory_bytes", 0) / 1e9
    versions = ", ".join(f"{name} {version.removeprefix('janus ')}" for name, version in result["versions"].items() if version)
    text = "\n".join([
        f"# {options.shape} on {facts.get('processor') or facts['architecture']}, {result['date']}", "",
        f"{facts.get('usable_cores', facts['cores'])} cores, {memory:.1f} GB of memory; {versions}.",
        f"Medians of {options.rounds} rounds; raw figures in `{stem}.json`.",
        *([f"The peer computes in {options.peer_dtype} in every case."] if options.peer_dtype else []), "", table(cases), "",
        "Commands, by case:", "",
        *[f"* {one['title']}: `{one['commands']['janus']}` and `{one['commands']['peer']}`" for one in cases], "",
    ])
    write(options.out / f"{stem}.json", json.dumps(result, indent=1) + "\n")
    write(options.out / f"{stem}.md", text)
    print(text)
    return 1 if any("failed" in side for one in cases for r in one["rounds"] for side in r.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
