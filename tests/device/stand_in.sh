#!/usr/bin/env bash
# Runs cargo over a stand-in for a CUDA device: `stand_in.sh build --release`, `stand_in.sh test --release --test parity_base`.
# An operation of tensors on two devices, or one that candle has no CUDA kernel for, fails as it would on a GPU; the numbers
# are the processor's. What is built lies in `target/stand-in`, over cargo's own copy of candle.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
into=$root/target/stand-in
source=$into/source
mkdir -p "$source"

# cargo would change the lock file of the repository, so that a copy is built; times are kept, and with them what is built.
git ls-files -z --cached --others --exclude-standard | (xargs -0 ls -d 2>/dev/null || true) | sort >"$into/files"
tar -cf - -T "$into/files" | tar -xf - -C "$source"
if [ -e "$into/files.before" ]; then
    comm -23 "$into/files.before" "$into/files" | (cd "$source" && xargs -r -d '\n' rm -f)
fi
mv "$into/files" "$into/files.before"

folder_of() {
    cargo metadata --format-version 1 --locked --all-features | python3 -c "
import json, os, sys
packages = json.load(sys.stdin)['packages']
print(next(os.path.dirname(package['manifest_path']) for package in packages if package['name'] == '$1'))"
}
put() { cmp -s "$1" "$2" || cp "$1" "$2"; }
[ -d "$into/candle-core" ] || cp -r "$(folder_of candle-core)" "$into/candle-core"
kernels=$(folder_of candle-kernels)
grep -ohE '\w+' "$kernels"/src/*.cu | sort -u >"$into/kernels.txt"
put "$into/kernels.txt" "$into/candle-core/src/kernels.txt"
put tests/device/stand_in/device.rs "$into/candle-core/src/dummy_cuda_backend.rs"
# Not on the command line: tests build the program by a cargo of their own.
mkdir -p "$source/.cargo"
printf "[patch.crates-io]\ncandle-core = { path = '%s' }\n" "$into/candle-core" >"$into/config.toml"
put "$into/config.toml" "$source/.cargo/config.toml"

[ -n "${JANUS_FIXTURES:-}" ] || [ ! -d ../shared/fixtures/tiny-janus ] ||
    export JANUS_FIXTURES=$root/../shared/fixtures/tiny-janus
# Of the crates of this repository alone: `RUSTFLAGS` would have all others compiled anew, which are taken over where there are some.
printf '#!/bin/sh\nexec "$@" --cfg janus_stand_in\n' >"$into/wrapper.new"
put "$into/wrapper.new" "$into/wrapper"
chmod +x "$into/wrapper"
export RUSTC_WORKSPACE_WRAPPER=$into/wrapper CARGO_TARGET_DIR=$into/target
for profile in release debug; do
    if [ -d "target/$profile/deps" ] && [ ! -e "$into/target/$profile" ]; then
        mkdir -p "$into/target/$profile"
        tar -C "target/$profile" -cf - --exclude '*janus*' .fingerprint build deps | tar -C "$into/target/$profile" -xf -
    fi
done
cd "$source"
exec cargo "$@"
