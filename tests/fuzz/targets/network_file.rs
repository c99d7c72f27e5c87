//! A file for `--lpips` or `--inception`, by the first byte: as PyTorch saves it, or in safetensors.
#![no_main]

use std::sync::LazyLock;

use janus_fuzz::Scratch;
use janus_lora::eval::Networks;
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<Scratch> = LazyLock::new(Scratch::new);

fuzz_target!(|data: &[u8]| {
    let Some((first, file)) = data.split_first() else { return };
    let path = FOLDER.write(if first & 2 == 0 { "net.pth" } else { "net.safetensors" }, file);
    let (lpips, inception) = if first & 1 == 0 { (Some(&*path), None) } else { (None, Some(&*path)) };
    // None is as small as a fuzzer's files: what opens was not read to its end.
    assert!(Networks::open(lpips, inception).is_err());
});
