#!/usr/bin/env bash
# Builds the program and the tests for a CUDA device, where none has to be, into one archive: `pack.sh [COMPUTE_CAPABILITY]`, 90
# (H100, H200) unless told otherwise. Everything lies in `target/device`; what is there already is not made again. The archive
# is unpacked on the device's machine, and `run.sh` in it does the rest.
set -euo pipefail
cd "$(dirname "$0")/../.."
capability=${1:-90}
into=$PWD/target/device
most_bytes=50000000
mkdir -p "$into"
begun=$SECONDS
said() { echo "$((SECONDS - begun)) s: $*" >&2; }

# The toolkit, of which nvcc and its parts are enough to build. A CUDA_HOME of one's own goes before.
if [ -z "${CUDA_HOME:-}" ]; then
    export CUDA_HOME=$into/toolkit/nvidia/cu13
    if [ ! -e "$into/toolkit/whole" ]; then
        said "fetching the toolkit's wheels"
        python3 -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$into/toolkit" \
            nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
            nvidia-cuda-cccl==13.0.85
        chmod +x "$CUDA_HOME"/bin/* "$CUDA_HOME"/nvvm/bin/*
        ln -sfn lib "$CUDA_HOME/lib64"
        ln -sf libcudart.so.13 "$CUDA_HOME/lib/libcudart.so"
        touch "$into/toolkit/whole"
    fi
fi
export PATH=$CUDA_HOME/bin:$PATH CUDA_COMPUTE_CAP=$capability NVCC_APPEND_FLAGS=--compress-mode=size CUDAFORGE_THREADS=1
if [ ! -e "$into/stubs/libcudart.so.13" ]; then
    said "making stand-ins for the libraries"
    tests/device/stubs.sh "$into/stubs" "$CUDA_HOME/lib/libcudart.so"
fi
export LIBRARY_PATH=$into/stubs LD_LIBRARY_PATH=$into/stubs

# Kernels of quantised models and of mixtures of experts take longer than all others together, and no Janus computes with them:
# in this program their functions only stop it.
kernels=$(cargo metadata --format-version 1 --locked --all-features | python3 -c "
import json, os, sys
packages = json.load(sys.stdin)['packages']
print(next(os.path.dirname(package['manifest_path']) for package in packages if package['name'] == 'candle-kernels'))")
grep -ohE 'pub fn \w+' "$kernels/src/ffi.rs" | awk '{ print "void " $3 "(void) { __builtin_trap(); }" }' >"$into/unused.c"
cat >"$into/nvcc" <<'NVCC'
#!/bin/sh
for source; do :; done
case $source in
*/mmq_gguf/mmq_quantize.cu) stand_in=$(dirname "$0")/unused.c ;;
*/mmq_gguf/*.cu | */mmvq_gguf.cu | */moe/*.cu) stand_in=/dev/null ;;
*) exec nvcc "$@" ;;
esac
while [ "$1" != -o ]; do shift; done
exec cc -fPIC -x c -c -o "$2" "$stand_in"
NVCC
chmod +x "$into/nvcc"
export NVCC=$into/nvcc

said "building the program and its tests"
tests=(device parity_base parity_train parity_peft methods)
arguments=(--release --locked --workspace --features janus-tests/cuda --target-dir "$into/build")
cargo build "${arguments[@]}" --bins
cargo test "${arguments[@]}" "${tests[@]/#/--test=}" --no-run --message-format json >"$into/built.json"

said "packing"
pack=$into/janus-device
rm -rf "$pack"
mkdir -p "$pack/bin" "$pack/fixtures"
python3 - "$into/built.json" "${tests[@]}" <<'PYTHON' >"$into/executables"
import json, sys
wanted = set(sys.argv[2:])
for line in open(sys.argv[1]):
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] in wanted:
        print(message["target"]["name"], message["executable"])
PYTHON
cp "$into/build/release/janus" "$pack/bin/janus"
while read -r name executable; do cp "$executable" "$pack/bin/$name"; done <"$into/executables"
strip "$pack"/bin/*
cc -shared -fPIC -O2 -o "$pack/bin/kernels.so" tests/device/kernels.c -ldl -lpthread
cp -r "$into/stubs" "$pack/stubs"
fixtures=${JANUS_FIXTURES:-../shared/fixtures/tiny-janus}
if [ -d "$fixtures" ]; then
    cp -r "$fixtures/." "$pack/fixtures/"
else
    said "no parity fixtures at $fixtures (JANUS_FIXTURES): their tests are left out"
fi
cp tests/device/run.sh "$pack/"
mkdir -p "$pack/peer" "$pack/recipes"
cp docs/benchmarks/peer_*.py "$pack/peer/"
cp recipes/quickstart.toml "$pack/recipes/"
{ git rev-parse HEAD; git status --porcelain | head -5; "$CUDA_HOME/bin/nvcc" --version | tail -1; } >"$pack/built"

archive=$into/janus-device.tar.xz
# One window over all programs, which have most of their bytes in common.
tar -C "$into" -cf - janus-device | xz -T1 --lzma2=preset=2,dict=256MiB >"$archive.new"
mv "$archive.new" "$archive"
bytes=$(stat -c %s "$archive")
said "$archive: $bytes bytes"
[ "$bytes" -le "$most_bytes" ] || { echo "the archive is larger than $most_bytes bytes" >&2; exit 1; }
