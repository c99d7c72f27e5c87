#!/usr/bin/env bash
# Into a folder: the program with the list of its crates in it, as `cargo auditable` builds it, and that list as `janus.cdx.json`, a
# software bill of materials in CycloneDX's form. The bill of a commit is the same on every machine and in every folder.
set -euo pipefail
out=$(realpath -m "${1:?give a folder to write to}")
cd "$(dirname "$0")/../.."
command -v cargo-auditable >/dev/null || cargo install cargo-auditable --locked
command -v cargo-cyclonedx >/dev/null || cargo install cargo-cyclonedx --locked
mkdir -p "$out"
cargo auditable build --release --locked --bin janus
cp "${CARGO_TARGET_DIR:-target}/release/janus" "$out/janus"
# It writes beside each manifest; the one of the program is kept.
trap 'rm -f janus-core/janus.cdx.json janus-lora/janus.cdx.json tests/janus.cdx.json' EXIT
# Without it the bill has the time and a random number.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH
cargo cyclonedx --format json --spec-version 1.5 --override-filename janus.cdx --manifest-path janus-lora/Cargo.toml
python3 - janus-lora/janus.cdx.json "$out" "$PWD" <<'PY'
import json, os, struct, sys, zlib
bill, out, root = open(sys.argv[1]).read(), sys.argv[2], sys.argv[3]
# The crates of this repository are named by the folder they lie in.
bill = bill.replace(f"path+file://{root}/", "path+file:///janus/")
assert root not in bill, "the bill names a folder of this machine"
parsed = json.loads(bill)
assert parsed["bomFormat"] == "CycloneDX", parsed.get("bomFormat")
assert "serialNumber" not in parsed, "the bill has a random number"
listed = {(component["name"], component["version"]) for component in parsed["components"]}
own = parsed["metadata"]["component"]
listed.add((own["name"], own["version"]))

# The section `.dep-v0` of the program, zlib over JSON.
program = open(os.path.join(out, "janus"), "rb").read()
assert program[:6] == b"\x7fELF\x02\x01", "only 64-bit ELF programs are read here"
table, = struct.unpack_from("<Q", program, 0x28)
size, count, names = struct.unpack_from("<HHH", program, 0x3A)
header = lambda number: struct.unpack_from("<IIQQQQ", program, table + number * size)
begin = header(names)[4]
name_of = lambda at: program[begin + at : program.index(b"\0", begin + at)]
sections = {name_of(header(number)[0]): header(number)[4:6] for number in range(count)}
assert b".dep-v0" in sections, "the program does not list its crates"
start, length = sections[b".dep-v0"]
packages = json.loads(zlib.decompress(program[start : start + length]))["packages"]
within = {(package["name"], package["version"]) for package in packages if package.get("kind", "runtime") == "runtime"}
assert {"candle-core", "parquet", "clap", "janus-core"} <= {name for name, _ in within}, "crates are missing"
assert within <= listed, f"in the program, not in the bill: {sorted(within - listed)}"
open(os.path.join(out, "janus.cdx.json"), "w").write(bill)
print(f"{len(within)} crates in the program, {len(listed)} in the bill with those that only build it")
PY
