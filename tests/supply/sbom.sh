#!/usr/bin/env bash
# Into a folder: the program with the list of its crates in it, as `cargo auditable` builds it, and that list as `janus.cdx.json`, a
# software bill of materials in CycloneDX's form.
set -euo pipefail
out=$(realpath -m "${1:?give a folder to write to}")
cd "$(dirname "$0")/../.."
command -v cargo-auditable >/dev/null || cargo install cargo-auditable --locked
command -v cargo-cyclonedx >/dev/null || cargo install cargo-cyclonedx --locked
mkdir -p "$out"
cargo auditable build --release --locked --bin janus
cp target/release/janus "$out/janus"
# It writes beside each manifest; the one of the program is kept.
cargo cyclonedx --format json --spec-version 1.5 --override-filename janus.cdx --manifest-path janus-lora/Cargo.toml
mv janus-lora/janus.cdx.json "$out/"
rm -f janus-core/janus.cdx.json tests/janus.cdx.json
python3 - "$out/janus.cdx.json" <<'PY'
import json, sys
bill = json.load(open(sys.argv[1]))
assert bill["bomFormat"] == "CycloneDX", bill.get("bomFormat")
names = {component["name"] for component in bill["components"]}
assert {"candle-core", "parquet", "clap"} <= names, "crates are missing"
print(f"{len(bill['components'])} components")
PY
