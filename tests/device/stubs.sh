#!/usr/bin/env bash
# Makes libraries of the names that a program for CUDA is linked to, in which every function answers that there is no device:
# `stubs.sh FOLDER CUDART`, CUDART being the toolkit's own `libcudart.so`. They serve where the program is linked, and where it
# is to start without a driver.
set -euo pipefail
folder=$1 cudart=$2
cudarc=$(cargo metadata --format-version 1 --locked --all-features | python3 -c "
import json, os, sys
packages = json.load(sys.stdin)['packages']
print(next(os.path.dirname(package['manifest_path']) for package in packages if package['name'] == 'cudarc'))")
mkdir -p "$folder"

# A library by its soname, of the functions named on standard input, perhaps of a version.
library() {
    local soname=$1
    # 100 is CUDA_ERROR_NO_DEVICE and cudaErrorNoDevice; the other libraries know it as a status that is no success.
    sort -u | awk '{ print "long " $1 "(void) { return 100; }" }' >"$folder/$soname.c"
    local versioned=()
    if [ $# -gt 1 ]; then
        # What is linked to the toolkit's own asks for the version that its functions have there.
        echo "$2 { global: *; };" >"$folder/version"
        versioned=(-Wl,--version-script="$folder/version")
    fi
    cc -shared -fPIC -w -Wl,-soname,"$soname" "${versioned[@]}" -o "$folder/$soname" "$folder/$soname.c"
    ln -sf "$soname" "$folder/${soname%.so.*}.so"
    rm "$folder/$soname.c"
}
declared() { grep -ohE '\bfn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/src/$1/sys/mod.rs" | cut -d' ' -f2; }
declared driver | library libcuda.so.1
declared cublas | library libcublas.so.13
declared cublaslt | library libcublasLt.so.13
declared curand | library libcurand.so.10
declared nvrtc | library libnvrtc.so.13
nm -D --defined-only "$cudart" | awk '$2 == "T" || $2 == "W" { sub(/@.*/, "", $3); print $3 }' | grep -E '^(cuda|__cuda)' | library libcudart.so.13 libcudart.so.13
rm -f "$folder/version"
