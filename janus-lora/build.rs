//! What a report tells of the build: the target, its features, and the version of candle in the lock file.

use std::env::var;
use std::{fs, path};

fn main() {
    let lock = path::Path::new("../Cargo.lock");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", lock.display());
    let locked = fs::read_to_string(lock).unwrap_or_default();
    let version = locked
        .split("[[package]]")
        .find(|package| package.lines().any(|line| line == "name = \"candle-core\""))
        .and_then(|package| package.lines().find_map(|line| line.strip_prefix("version = ")))
        .map_or("unknown", |version| version.trim_matches('"'));
    println!("cargo::rustc-env=JANUS_CANDLE_VERSION={version}");
    println!("cargo::rustc-env=JANUS_TARGET={}", var("TARGET").unwrap_or_default());
    println!("cargo::rustc-env=JANUS_TARGET_FEATURES={}", var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default());
}
