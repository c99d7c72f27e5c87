//! What a report tells of the build: the commit, the target, its features, and the version of candle in the lock file.

use std::env::var;
use std::process::Command;
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
    println!("cargo::rustc-env=JANUS_COMMIT={}", commit().unwrap_or_default());
}

/// The commit of the repository whose workspace this is; none where the sources lie in another one, or in none.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let told = Command::new("git").args(arguments).output().ok().filter(|told| told.status.success())?;
        Some(String::from_utf8(told.stdout).ok()?.trim().to_owned())
    };
    let top = path::PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    if top.canonicalize().ok()? != path::Path::new("..").canonicalize().ok()? {
        return None;
    }
    // Each commit and each branch that is taken writes a line there; without it nothing would tell that this has to run again.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| path::Path::new(log).exists())?;
    println!("cargo::rerun-if-changed={log}");
    git(&["rev-parse", "--short=10", "HEAD"])
}
