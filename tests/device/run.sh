#!/usr/bin/env bash
# Tells on a machine with a CUDA device whether the program is right and fast there: `run.sh [--minutes 5] [--device cuda]
# [--shape janus-pro-1b] [--into results]`. It needs no network and installs nothing. What matters most comes first, each step has
# a limit of its own, and none that fails stops the next. `results/` then has `results.json` and `table.md`, and the words of
# each kind of step. `--device cpu` is the dry form: the same steps on the processor, over a small shape.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
minutes=5 device=cuda shape="" into=$PWD/results
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=$2 ;;
        --device) device=$2 ;;
        --shape) shape=$2 ;;
        --into) into=$2 ;;
        *) echo "unknown: $1; --minutes, --device, --shape and --into are known" >&2; exit 2 ;;
    esac
    shift 2
done
[ -n "$shape" ] || { [ "$device" = cpu ] && shape=janus-small || shape=janus-pro-1b; }
mkdir -p "$into"
into=$(cd "$into" && pwd)
rm -f "$into"/*
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
until=$((SECONDS + minutes * 60))
export JANUS_CACHE=$work/cache HF_HUB_OFFLINE=1 JANUS_TEST_DEVICE=$device JANUS_TEST_PROGRAM=$here/bin/janus
[ -f "$here/fixtures/manifest.json" ] && export JANUS_FIXTURES=$here/fixtures

# The libraries: a driver's and a toolkit's where the system has them, those of Python's wheels, and at last stand-ins.
libraries=$(python3 - 2>/dev/null <<'PYTHON'
import glob, os, site, sys
folders = site.getsitepackages() + [site.getusersitepackages()] + sys.path
print(":".join(sorted({path for folder in folders for path in glob.glob(os.path.join(folder, "nvidia", "*", "lib"))})))
PYTHON
)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$libraries
place="its own libraries"
if ! "$here/bin/janus" --version >"$work/version" 2>&1; then
    export LD_LIBRARY_PATH=$LD_LIBRARY_PATH:$here/stubs
    place="stand-ins for the libraries that are not here: $(sed -n 's/.*libraries: \([^:]*\):.*/\1/p' "$work/version")"
fi

rows=()
json=()
# step NAME LIMIT_S LOG COMMAND...: runs the command within its limit and what is left, and notes what came of it. What it
# writes to `$work/figures` as one JSON value goes into the results; `$work/told` into the table.
step() {
    local name=$1 limit=$2 log=$3 rc=0 begun=$SECONDS outcome figures=null told=""
    shift 3
    local left=$((until - SECONDS))
    rm -f "$work/figures" "$work/told" "$work/out"
    if [ $left -lt 3 ]; then
        outcome="no time left"
        rc=null
    else
        [ $left -ge "$limit" ] || limit=$left
        echo "== $name: $*" >>"$into/$log"
        timeout --kill-after=3 "$limit" "$@" >"$work/out" 2>&1 || rc=$?
        cat "$work/out" >>"$into/$log"
        case $rc in
            0) outcome=passed ;;
            124 | 137) outcome="cut off after $limit s" ;;
            77) outcome="left out" ;;
            *) outcome="FAILED ($rc)" ;;
        esac
    fi
    local seconds=$((SECONDS - begun))
    [ -s "$work/figures" ] && figures=$(cat "$work/figures")
    [ -s "$work/told" ] && told=$(tr '\n' ' ' <"$work/told")
    # The last words of what failed.
    [ -n "$told" ] || [ "$rc" = 0 ] || [ ! -e "$work/out" ] || told=$(grep -v '^$' "$work/out" | tail -2 | tr '\n|' ' /' | cut -c1-160)
    rows+=("| $name | $outcome | $seconds | $told |")
    json+=("{\"step\": \"$name\", \"rc\": $rc, \"seconds\": $seconds, \"figures\": $figures}")
    write
    echo "$name: $outcome, $seconds s $told"
}

# The results so far: whatever happens, what is known is there.
write() {
    local all
    all=$(printf '%s,\n' "${json[@]}")
    printf '[\n%s\n]\n' "${all%,}" >"$into/results.json"
    {
        echo "# $(head -1 "$here/built"), $(cat "$work/version.told"), $(date -u +%Y-%m-%d)"
        echo
        echo "| step | outcome | s | |"
        echo "| --- | --- | --- | --- |"
        printf '%s\n' "${rows[@]}"
    } >"$into/table.md"
}

machine() {
    cat "$here/built"
    echo "libraries: $place"
    nproc
    free -g | head -2
    python3 -c 'import torch; print("torch", torch.__version__, torch.version.cuda)' 2>/dev/null || echo "no torch"
    local gpu="the processor"
    if [ "$device" != cpu ]; then
        gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader) || return 1
        nvidia-smi
    fi
    echo "$gpu" >"$work/told"
    printf '"%s"' "$(echo "$gpu" | head -1)" >"$work/figures"
}

# A test program: its figures are how many passed.
tests() {
    "$here/bin/$1" --test-threads 4 "${@:2}" 2>&1 | tee "$work/tests"
    local rc=${PIPESTATUS[0]}
    grep -q '^test result: .* [1-9][0-9]* passed' "$work/tests" || rc=1
    sed -n 's/^test result: [^.]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$work/tests" >"$work/told"
    printf '"%s"' "$(cat "$work/told")" >"$work/figures"
    return $rc
}

# A test program that compares with the fixtures: without them its tests pass and have checked nothing.
parity() {
    [ -n "${JANUS_FIXTURES:-}" ] || { echo "no fixtures" >"$work/told"; return 77; }
    tests "$@"
}

# A short run into a folder, on a device.
train() {
    "$here/bin/janus" train "$here/recipes/quickstart.toml" --device "$2" "output.dir=$work/$1" train.steps=10 \
        train.eval_every=10 train.sample_every=1000 "data.0.eval=synth:inspection?rows=16&seed=1&size=64&split=eval" \
        "data.1.eval=synth:inspection?rows=8&seed=1&size=64&split=eval" data.1.eval_pictures=0 \
        "data.2.eval=synth:world?rows=16&seed=3&size=64&split=eval"
}

# Twice the same run: equal bytes.
runs() {
    local run
    for run in one two; do train $run "$device" || return; done
    cmp "$work/one/adapter_model.safetensors" "$work/two/adapter_model.safetensors" || return
    tail -1 "$work/one/metrics.jsonl"
    echo "two runs of 10 steps: equal bytes" >"$work/told"
}

# On the processor, too, and how far apart the losses are at the last step that both came to.
against_processor() {
    [ -s "$work/one/metrics.jsonl" ] || { echo "no run to compare with" >"$work/told"; return 77; }
    train processor cpu || return
    local loss='s/.*"step":\([0-9]*\),.*"loss":\([0-9.e+-]*\),"lr".*/\1 \2/p'
    join <(sed -n "$loss" "$work/one/metrics.jsonl" | sort) <(sed -n "$loss" "$work/processor/metrics.jsonl" | sort) | sort -n >"$work/losses"
    tail -1 "$work/losses" | awk '{ d = $2 - $3; d = (d < 0 ? -d : d) / $3
        print "losses of step " $1 ": " $2 ", on the processor " $3 ", " d " apart"
        exit !(d < 0.01) } END { if (!NR) { print "no step that both came to"; exit 1 } }' >"$work/told"
}

# A benchmark, beside which the device's memory is looked at.
bench() {
    local kind=$1
    shift
    : >"$work/memory"
    if [ "$device" != cpu ]; then
        (while sleep 0.3; do nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits >>"$work/memory"; done) &
        local watch=$!
    fi
    "$here/bin/janus" bench "$kind" --shape "$shape" --device "$device" --json "$@" >"$work/bench" 2>"$work/errors"
    local rc=$?
    [ "$device" = cpu ] || kill $watch
    cat "$work/errors" "$work/bench"
    local most
    most=$(sort -n "$work/memory" | tail -1)
    if [ $rc = 0 ]; then
        { tr -d '\n' <"$work/bench" | sed 's/}[[:space:]]*$//'; echo ", \"device_memory_mib\": ${most:-null}}"; } >"$work/figures"
        figure() { grep -o "\"$1\": *[0-9.e+-]*" "$work/bench" | head -1 | sed 's/.*: *//'; }
        {
            echo "step $(figure step_seconds) s, $(figure tokens_per_second) tokens/s"
            for name in first_token_seconds image_seconds loss; do
                [ -z "$(figure $name)" ] || echo ", $name $(figure $name)"
            done
            [ -z "$most" ] || echo ", device memory $most MiB"
        } >"$work/told"
    fi
    return $rc
}

peer() {
    [ "$device" != cpu ] || { echo "on the processor docs/benchmarks/compare.py does this" >"$work/told"; return 77; }
    python3 -c 'import torch, transformers, peft' || { echo "no torch, transformers and peft" >"$work/told"; return 77; }
    local script=$1
    shift
    python3 "$here/peer/$script" "$@" --shape "$shape" --dtype bf16 --device "$device" >"$work/bench" 2>"$work/errors"
    local rc=$?
    cat "$work/errors" "$work/bench"
    tail -1 "$work/bench" >"$work/figures"
    grep -o '"\(step_seconds\|tokens_per_second\|first_token_seconds\|image_seconds\)": *[0-9.]*' "$work/figures" >"$work/told"
    return $rc
}

kernels() {
    [ "$device" != cpu ] || { echo "no kernels on the processor" >"$work/told"; return 77; }
    JANUS_KERNELS=$into/kernels.txt LD_PRELOAD=$here/bin/kernels.so \
        "$here/bin/janus" bench train --shape "$shape" --device "$device" --steps 4 --json || return
    [ -s "$into/kernels.txt" ] || { echo "no kernel was seen" >"$work/told"; return 1; }
    sed -n '2,4p' "$into/kernels.txt" | awk '{ $1 = $1; print }' | tr '\n' ';' >"$work/told"
}

# Functions run in a shell of their own, so that each can be cut off.
export -f machine tests parity train runs against_processor bench peer kernels
export here work into device shape place
"$here/bin/janus" --version >"$work/version.told" 2>&1 || echo "does not start" >"$work/version.told"
small=()
[ "$device" = cpu ] && small=(--tokens 8)

step machine 15 machine.log bash -c machine
step "operations" 60 tests.log bash -c 'tests device operations --nocapture'
step "parity, base" 60 tests.log bash -c 'parity parity_base'
step "parity, training" 60 tests.log bash -c 'parity parity_train'
step "methods and routes" 60 tests.log bash -c 'tests device adapters --nocapture'
step "two runs" 75 runs.log bash -c runs
step "beside the processor" 60 runs.log bash -c against_processor
step "training step, bf16" 60 bench.log bash -c 'bench train --steps 8'
step "answer, bf16" 45 bench.log bash -c "bench understand ${small[*]}"
step "picture, bf16" 60 bench.log bash -c "bench generate ${small[*]}"
step "kernels" 45 bench.log bash -c kernels
step "peer, training step" 60 peer.log bash -c 'peer peer_train.py --steps 8'
step "peer, answer" 60 peer.log bash -c 'peer peer_inference.py understand'
# These start the program some hundred times, and a device's context with it.
step "parity, gradients of adapters" 60 tests.log bash -c 'parity parity_peft gradients'
step "parity, adapters" 120 tests.log bash -c 'parity parity_peft --skip gradients'
step "runs of every method" 120 tests.log bash -c 'tests methods every_method'
step "training step, f32" 60 bench.log bash -c 'bench train --steps 6 --dtype f32'
step "training step, four rows" 60 bench.log bash -c 'bench train --steps 6 --batch 4'
step "peer, picture" 90 peer.log bash -c 'peer peer_inference.py generate'
cat "$into/table.md"
