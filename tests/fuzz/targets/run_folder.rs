//! A run's folder of somebody else: its metrics, its facts, its recipe and its expected losses, read and made into a report.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::{Scratch, parts};
use janus_lora::report::record::Record;
use janus_lora::report::write_report;
use libfuzzer_sys::fuzz_target;

static RUN: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let files = parts::<4>(data);
    for (name, bytes) in ["metrics.jsonl", "run.json", "recipe.toml", "recipe.curve.json"].into_iter().zip(files) {
        RUN.write(name, bytes);
    }
    let read = Record::read(RUN.folder()).is_ok();
    let written = write_report(RUN.folder());
    assert!(read || written.is_err());
    if let Ok(file) = written {
        let page = std::fs::read_to_string(file).expect("a page is text");
        // Its own.
        let (scripts, sound) = (page.matches("<script").count(), page.len() < (64 << 20));
        assert!(scripts == 1 && sound, "{scripts} scripts, {} bytes", page.len());
    }
});
