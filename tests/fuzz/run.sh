#!/usr/bin/env bash
# Runs fuzz targets side by side and prints a table: `run.sh [seconds [target...]]`, 600 seconds and all of them unless told
# otherwise. What is found lies in `artifacts/` afterwards, and the script fails.
set -euo pipefail
cd "$(dirname "$0")"
seconds=${1:-600}
shift || true
targets=("$@")
if [ ${#targets[@]} -eq 0 ]; then
    for file in targets/*.rs; do targets+=("$(basename "$file" .rs)"); done
fi

# The stable compiler has all that cargo-fuzz asks of a nightly one, AddressSanitizer included.
RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir .
binaries=target/$(rustc -vV | sed -n 's/^host: //p')/release
# Leaks are no danger of a file, and looking for them takes time. What a file may make a process hold is ours to bound: one
# allocation at most 1 GiB, all together 3 GiB. A busy machine may stop a process for minutes, so that only twenty count as
# hanging.
export ASAN_OPTIONS=detect_odr_violation=0:detect_leaks=0
flags=(-max_total_time="$seconds" -rss_limit_mb=3072 -malloc_limit_mb=1024 -timeout=1200 -print_final_stats=1)

fuzz() {
    local target=$1 seeds=(seeds/"$1") dictionary=() status=0
    [ "$target" != image_decode ] || seeds=(../golden/images)
    case $target in
        adapter_folder | safetensors_header | shard_index) dictionary=(-dict=dictionaries/json.dict) ;;
        *) [ ! -f "dictionaries/$target.dict" ] || dictionary=(-dict="dictionaries/$target.dict") ;;
    esac
    mkdir -p "corpus/$target" "artifacts/$target"
    TIMEFORMAT='cpu %U %S'
    { time nice -n 19 "$binaries/$target" "${flags[@]}" "${dictionary[@]}" -artifact_prefix="artifacts/$target/" \
        "corpus/$target" "${seeds[@]}"; } >"artifacts/$target.log" 2>&1 || status=$?
    return $status
}

declare -A running
for target in "${targets[@]}"; do
    fuzz "$target" &
    running[$target]=$!
done
failed=0
printf '%-20s %12s %10s %12s %s\n' target executions seconds 'CPU seconds' result
for target in "${targets[@]}"; do
    result=clean
    wait "${running[$target]}" || { result="see artifacts/$target.log"; failed=1; }
    executions=$(sed -n 's/^stat::number_of_executed_units: *//p' "artifacts/$target.log")
    wall=$(sed -n 's/^Done [0-9]* runs in \([0-9]*\) second.*/\1/p' "artifacts/$target.log")
    cpu=$(awk '/^cpu /{print $2 + $3}' "artifacts/$target.log")
    printf '%-20s %12s %10s %12s %s\n' "$target" "${executions:--}" "${wall:--}" "${cpu:--}" "$result"
done
exit $failed
