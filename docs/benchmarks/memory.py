"""Holds the memory that `janus train --dry-run` predicts against what the same run takes.

    cargo build --release
    python docs/benchmarks/memory.py

Every case is a recipe of its own: tasks, batches, lengths, types, threads, tables. It is planned, then run for a few steps with
its evaluations, samples and report; what is measured is the largest resident memory of the process (`VmHWM` of proc(5)). A
prediction is good where it is within 10 % or 10 MB of that, whichever is more, and no more than 5 % below it. The figures go to
standard output and to `results/memory-<date>-<machine>.json` and `.md`.

Needs Python's standard library; the cases with tables of their own need `pyarrow`, `numpy` and `pillow` and are left out without
them. `--cases` picks cases, `--large` adds one over `init:janus-pro-1b` in bf16, which takes 6 GB of memory, 4 GB of disk for
random weights, and some minutes.
"""

import argparse
import datetime
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def synth(domain, rows, split="train", size=64):
    return f"synth:{domain}?rows={rows}&seed=1&size={size}&split={split}"


def table(task, domain="inspection", rows=256, evaluated=64, **keys):
    own = dict(name=task, task=task, train=synth(domain, rows), **keys)
    return dict(own, eval=synth(domain, evaluated, "eval")) if evaluated else own


UNDERSTAND = table("understand")
GENERATE = table("generate", columns=dict(prompt="caption", image="image"))
TEXT = table("text", "world", columns=dict(prompt="text_question", answer="text_answer"))
LOCATE = table("locate", columns=dict(labels="box_labels"))
RETRIEVE = table("retrieve", "world")
EDIT = table("edit", "creative")
NANO, SMALL = "janus-nano", "init:janus-small?seed=1"


def case(name, tables, base=NANO, dtype="f32", threads=2, targets=("decoder", "vision"), rank=8, own=None, more=None, **train):
    """One run; `own` makes files that `{folder}` in the tables' sources stands for, `more` are further sections."""
    recipe = dict(
        base=dict(path=base, dtype=dtype),
        adapter=dict(rank=rank, targets=list(targets)),
        data=tables,
        train=dict(dict(steps=8, batch_size=4, learning_rate=1e-3), **train),
    )
    for section, keys in (more or {}).items():
        recipe[section] = dict(recipe.get(section, {}), **keys) if isinstance(keys, dict) else keys
    return dict(name=name, recipe=recipe, threads=threads, own=own, large=base.startswith("init:janus-pro"))


def pictures(folder):
    """Photographs of twelve megapixels."""
    import numpy
    from PIL import Image

    rows = []
    generator = numpy.random.default_rng(1)
    for number in range(24):
        small = generator.integers(0, 255, (30, 40, 3), dtype=numpy.uint8)
        picture = Image.fromarray(small).resize((4000, 3000), Image.BILINEAR)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=92)
        rows.append(dict(image=dict(bytes=file.getvalue(), path=f"{number}"), question="What is it?", answer=f"number {number}"))
    write(folder / "pictures.parquet", rows)


def pngs(folder):
    """Large files: noise of half a megapixel."""
    import numpy
    from PIL import Image

    rows = []
    generator = numpy.random.default_rng(1)
    for number in range(80):
        picture = Image.fromarray(generator.integers(0, 255, (600, 800, 3), dtype=numpy.uint8))
        file = io.BytesIO()
        picture.save(file, "PNG")
        rows.append(dict(image=dict(bytes=file.getvalue(), path=f"{number}"), question="What is it?", answer=f"number {number}"))
    write(folder / "pngs.parquet", rows)


def texts(folder):
    """Long texts of all lengths."""
    words = "the plate has a scratch beside a bolt and two pits below it ".split()
    rows = []
    for number in range(400):
        text = " ".join(words[(number * 7 + place) % len(words)] for place in range(20 + number * 37 % 140))
        rows.append(dict(prompt=f"Say number {number}", answer=text))
    write(folder / "texts.parquet", rows)


def many(folder):
    """Sixty thousand short rows."""
    rows = [dict(prompt=f"What is {number} and {number}?", answer=f"It is {2 * number}.") for number in range(60_000)]
    write(folder / "many.parquet", rows)


def write(path, rows):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def own(task, name, **keys):
    return dict(name=task, task=task, train=f"{{folder}}/{name}.parquet", eval=f"{{folder}}/{name}.parquet", **keys)


QUICKSTART = [
    table("understand", rows=1024, evaluated=192) | dict(name="questions"),
    GENERATE | dict(name="pictures", eval_pictures=8, weight=0.3, train=synth("inspection", 1024)),
    table("understand", "world", rows=1024, evaluated=128) | dict(name="world", weight=0.2),
]
EVERYTHING = dict(targets=["all", "lm_head"])

CASES = [
    case("quickstart", QUICKSTART, batch_size=16, steps=20, **EVERYTHING),
    case("quickstart, one thread", QUICKSTART, batch_size=16, steps=20, threads=1, **EVERYTHING),
    case("understand, batch 1", [UNDERSTAND], batch_size=1, steps=20),
    case("understand, batch 4", [UNDERSTAND]),
    case("understand, batch 16", [UNDERSTAND], batch_size=16),
    case("understand, batch 16, bf16", [UNDERSTAND], batch_size=16, dtype="bf16"),
    case("understand, batch 16, recompute", [UNDERSTAND], batch_size=16, recompute="on"),
    case("understand, batch 16, features kept", [UNDERSTAND], batch_size=16, targets=("decoder",)),
    case("understand, 4 x 4 rows", [UNDERSTAND], grad_accumulation=4),
    case("understand, 4 x 4 rows, one thread", [UNDERSTAND], grad_accumulation=4, threads=1),
    case("understand, no evaluation", [table("understand", evaluated=0)], batch_size=16),
    case("understand, evaluated on the way", [table("understand", evaluated=192)], batch_size=32, steps=6, eval_every=2,
         sample_every=3),
    case("understand, photographs", [own("understand", "pictures")], own=pictures, steps=5),
    case("understand, large files", [own("understand", "pngs")], own=pngs, steps=5, batch_size=8),
    case("text, batch 16", [TEXT], batch_size=16, targets=("decoder",)),
    case("text, long", [own("text", "texts")], own=texts, batch_size=8, targets=("decoder",)),
    case("text, sixty thousand rows", [dict(own("text", "many"), eval=None)], own=many, targets=("decoder",)),
    case("generate, batch 1", [GENERATE], batch_size=1, targets=("all",)),
    case("generate, batch 8", [GENERATE], batch_size=8, targets=("all",)),
    case("generate, pictures drawn", [dict(GENERATE, eval_pictures=8)], targets=("all",)),
    case("edit, batch 4", [EDIT], targets=("all",)),
    case("reconstruct, batch 4", [table("reconstruct", "world")], more=dict(adapter=dict(modules_to_save=["vqmodel"])), targets=()),
    case("classify, batch 16", [table("classify")], batch_size=16),
    case("locate, batch 16", [LOCATE], batch_size=16),
    case("segment, batch 8", [table("segment")], batch_size=8),
    case("retrieve, batch 16", [RETRIEVE], batch_size=16),
    case("copies of the head and the tables", [UNDERSTAND],
         more=dict(adapter=dict(modules_to_save=["lm_head", "embed_tokens", "language_model"])), targets=("vision",)),
    case("dynamic", [UNDERSTAND, GENERATE], more=dict(adapter=dict(method="lora"), dynamic=dict(enabled=True)),
         targets=("all",)),
    case("alignment", [UNDERSTAND, GENERATE], more=dict(mifs=dict(weight=0.05)), targets=("all",)),
    case("two stages", [UNDERSTAND, GENERATE], targets=("all",), steps=None,
         more=dict(stage=[dict(name="first", steps=4, data=["understand"]), dict(name="second", steps=4, data=["generate"])])),
    case("three tasks", [table("classify"), LOCATE, UNDERSTAND], batch_size=8, mixture="each", targets=("decoder", "vision", "lm_head")),
    case("janus-small, understand", [UNDERSTAND], base=SMALL, batch_size=8),
    case("janus-small, generate, bf16", [GENERATE], base=SMALL, dtype="bf16", batch_size=4, targets=("all",)),
    case("janus-pro-1b, understand, bf16", [table("understand", rows=32, evaluated=2)], base="init:janus-pro-1b?seed=1", dtype="bf16",
         batch_size=1, steps=3, targets=("decoder",)),
]


def value(thing):
    if isinstance(thing, dict):
        return "{ " + ", ".join(f"{key} = {value(v)}" for key, v in thing.items() if v is not None) + " }"
    if isinstance(thing, (list, tuple)):
        return "[" + ", ".join(value(item) for item in thing) + "]"
    return json.dumps(thing)


def toml(recipe, output):
    lines = []
    for section, keys in (recipe | dict(output=dict(dir=str(output)))).items():
        for table in keys if isinstance(keys, list) else [keys]:
            lines.append(f"[[{section}]]" if isinstance(keys, list) else f"[{section}]")
            lines.extend(f"{key} = {value(v)}" for key, v in table.items() if v is not None)
    return "\n".join(lines) + "\n"


def peak_bytes(pid):
    try:
        told = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(told.group(1)) * 1024 if told else 0


def run(command, environment):
    """What the command prints as JSON, and the largest resident memory of its process."""
    with tempfile.TemporaryFile() as told, tempfile.TemporaryFile() as spoken:
        process = subprocess.Popen(command, stdout=told, stderr=spoken, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_bytes(process.pid))
            time.sleep(0.01)
        for file in (told, spoken):
            file.seek(0)
        if process.returncode:
            sys.exit(f"{' '.join(command)}\n{spoken.read().decode()}")
        return json.loads(told.read()), peak


def measure(janus, case, folder):
    place = folder / re.sub(r"\W+", "-", case["name"])
    place.mkdir(parents=True, exist_ok=True)
    tables = json.loads(json.dumps(case["recipe"]["data"]).replace("{folder}", str(folder)))
    (place / "recipe.toml").write_text(toml(case["recipe"] | dict(data=tables), place / "run"))
    environment = dict(os.environ, JANUS_CACHE=str(place / "cache" if not case["large"] else folder / "cache"))
    command = [str(janus), "--threads", str(case["threads"]), "train", str(place / "recipe.toml"), "--json"]
    plan, _ = run([*command, "--dry-run"], environment)
    done, watched = run(command, environment)
    predicted, peak = plan["predicted_peak_bytes"], max(watched, done["peak_rss_bytes"])
    off = predicted - peak
    good = -0.05 * peak <= off <= max(0.1 * peak, 10e6)
    return dict(name=case["name"], predicted_peak_bytes=predicted, peak_rss_bytes=peak, ratio=predicted / peak, good=good,
                predicted_memory=plan["predicted_memory"])


def markdown(results):
    lines = ["| run | predicted, MB | taken, MB | predicted / taken | |", "| --- | ---: | ---: | ---: | --- |"]
    for r in results:
        figures = f"{r['predicted_peak_bytes'] / 1e6:.1f} | {r['peak_rss_bytes'] / 1e6:.1f} | {r['ratio']:.3f}"
        lines.append(f"| {r['name']} | {figures} | {'' if r['good'] else 'off'} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--janus", type=Path, default=ROOT / "target" / "release" / "janus")
    parser.add_argument("--cases", nargs="*", help="parts of the names of cases")
    parser.add_argument("--large", action="store_true", help="the case over janus-pro-1b, too")
    parser.add_argument("--folder", type=Path, help="where recipes, runs and caches go; a temporary one without")
    parser.add_argument("--write", action="store_true", help="keep the results beside this script")
    arguments = parser.parse_args()
    try:
        import numpy, PIL, pyarrow  # noqa: E401, F401
        own_tables = True
    except ImportError:
        own_tables = False
    wanted = [c for c in CASES if not arguments.cases or any(part in c["name"] for part in arguments.cases)]
    results, made = [], set()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for case in wanted:
            if (case["large"] and not arguments.large) or (case["own"] and not own_tables):
                continue
            if case["own"] and case["own"] not in made:
                case["own"](folder)
                made.add(case["own"])
            results.append(measure(arguments.janus.absolute(), case, folder))
            print(markdown(results[-1:]).splitlines()[-1], flush=True)
    print("\n" + markdown(results))
    if arguments.write:
        machine = re.sub(r"\W+", "-", (platform.processor() or platform.machine()).lower())
        stem = HERE / "results" / f"memory-{datetime.date.today()}-{machine}-{os.cpu_count()}-cores"
        stem.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        stem.with_suffix(".md").write_text(markdown(results))
    sys.exit(any(not r["good"] for r in results))


if __name__ == "__main__":
    main()
