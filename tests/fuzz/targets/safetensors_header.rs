//! The weights of a base in one safetensors file.
#![no_main]

use std::sync::LazyLock;

use janus_core::checkpoint::Checkpoint;
use janus_fuzz::{Scratch, check_checkpoint, write_safetensors};
use libfuzzer_sys::fuzz_target;

static BASE: LazyLock<Scratch> = LazyLock::new(Scratch::with_base);

fuzz_target!(|data: &[u8]| {
    write_safetensors(&BASE.path("model.safetensors"), data);
    if let Ok(checkpoint) = Checkpoint::open(BASE.folder()) {
        check_checkpoint(&checkpoint, BASE.folder());
    }
});
