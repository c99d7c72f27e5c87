#!/usr/bin/env bash
# Builds the program twice, in two folders of different names, and compares the bytes: `reproducible.sh [folder for the builds]`.
# Nothing of a machine's paths or of the time may be in what people install; the same compiler on the same commit gives the same file.
set -euo pipefail
root=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
work=$(mktemp -d "${1:-${TMPDIR:-/tmp}}/reproducible-XXXXXX")
trap 'rm -rf "$work"' EXIT

build() {
    local folder=$1 home=${CARGO_HOME:-$HOME/.cargo}
    git clone --quiet "$root" "$folder"
    # C sources of dependencies know where they lie, too.
    export RUSTFLAGS="--remap-path-prefix=$folder=/janus --remap-path-prefix=$home=/cargo"
    export CFLAGS="-ffile-prefix-map=$folder=/janus -ffile-prefix-map=$home=/cargo"
    export SOURCE_DATE_EPOCH=0
    (cd "$folder" && CARGO_TARGET_DIR="$folder/target" CARGO_INCREMENTAL=0 cargo build --release --locked --quiet --bin janus)
    cp "$folder/target/release/janus" "$work/$2"
    rm -rf "$folder"
}

build "$work/a" first
build "$work/somewhere-else/b" second
(cd "$work" && sha256sum first second)
if ! cmp "$work/first" "$work/second"; then
    echo "the two builds differ" >&2
    exit 1
fi
if grep -qaF -e "$work" -e "$HOME/" "$work/first"; then
    echo "the program names folders of this machine" >&2
    exit 1
fi
echo "the same bytes twice, $(stat -c %s "$work/first") of them, without this machine's folders"
