"""Products of the sizes of Janus-Pro-1B: janus's kernels beside PyTorch's, which are oneDNN's or MKL's on this kind of machine.

    cargo bench --workspace --bench products --no-run
    python docs/benchmarks/compare_products.py --rounds 5

Both sides run in turn, the first one changing from round to round, each product for three to four seconds. Of every round the
best time counts, as criterion's samples and PyTorch's are of different lengths; what is printed are medians of the rounds, in
GFLOP/s, their ratio, and the share of the peak that a loop on registers reaches in the same round.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from compare import ROOT, median

SHAPES = [(640, 2048, 2048), (640, 2048, 5632), (640, 5632, 2048)]

PEER = """
import sys, time, json, torch
rows, inner, columns, dtype, direction = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
kind = dict(bf16=torch.bfloat16, f32=torch.float32)[dtype]
weight = torch.randn(columns, inner, dtype=kind)
forward = direction == "forward"
x = torch.randn(rows, inner if forward else columns, dtype=kind)
other = weight.t() if forward else weight
best, end = float("inf"), time.perf_counter() + 3.5
with torch.inference_mode():
    while time.perf_counter() < end:
        clock = time.perf_counter()
        torch.mm(x, other)
        best = min(best, time.perf_counter() - clock)
print(json.dumps(2 * rows * inner * columns / best / 1e9))
"""


def ours(name):
    """GFLOP/s of one product, and the peak of its type."""
    command = ["cargo", "bench", "--workspace", "--locked", "--bench", "products", "--", name]
    told = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    rate = re.search(rf"^\| {re.escape(name)} \| ([\d.]+) \|", told, re.M)
    peaks = re.search(r"peak on registers: bf16 (\S+)(?: GFLOP/s)?, f32 (\S+)", told)
    peak = peaks.group(1 if name.startswith("bf16") else 2)
    return float(rate.group(1)), None if peak == "unknown" else float(peak)


def theirs(python, shape, dtype, direction):
    command = [python, "-c", PEER, *map(str, shape), dtype, direction]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="a Python with torch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtypes", default="bf16,f32")
    parser.add_argument("--out", type=Path, help="where the table goes, too")
    options = parser.parse_args()
    cases = [
        (dtype, direction, shape)
        for dtype in options.dtypes.split(",") for direction in ("forward", "backward") for shape in SHAPES
    ]
    found = {case: [] for case in cases}
    for number in range(options.rounds):
        for case in cases:
            dtype, direction, shape = case
            name = f"{dtype}/{direction}/" + "x".join(map(str, shape))
            print(f"round {number + 1} of {options.rounds}, {name}", file=sys.stderr, flush=True)
            if number % 2 == 0:
                (rate, peak), peer = ours(name), theirs(options.python, shape, dtype, direction)
            else:
                peer, (rate, peak) = theirs(options.python, shape, dtype, direction), ours(name)
            found[case].append((rate, peer, rate / peer, rate / peak if peak else None))
    lines = [
        "| product | janus, GFLOP/s | PyTorch, GFLOP/s | janus / PyTorch | of the peak |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for (dtype, direction, shape), rounds in found.items():
        rate, peer, ratio = (median([one[i] for one in rounds]) for i in range(3))
        shares = [one[3] for one in rounds if one[3] is not None]
        share = f"{100 * median(shares):.0f} %" if shares else "unknown"
        name = f"{dtype} {direction} " + " x ".join(map(str, shape))
        lines.append(f"| {name} | {rate:.0f} | {peer:.0f} | {ratio:.2f} | {share} |")
    text = "\n".join(lines)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
