//! The index of a base in several files. Beside the shards lie a file that is not the base's, a folder, and a link out of
//! the folder to a sound shard: whatever the index names, only files of the folder itself are read.
#![no_main]

use std::sync::LazyLock;

use janus_core::checkpoint::{Checkpoint, WriteOptions, convert_checkpoint};
use janus_core::config::Layout;
use janus_fuzz::{Scratch, check_checkpoint};
use libfuzzer_sys::fuzz_target;

const INDEX: &str = "model.safetensors.index.json";

static BASE: LazyLock<(Scratch, Scratch)> = LazyLock::new(|| {
    let (whole, sharded, outside) = (Scratch::with_base(), Scratch::new(), Scratch::new());
    let checkpoint = Checkpoint::open(whole.folder()).unwrap();
    let mut options = WriteOptions::new(Layout::Native);
    options.max_shard_bytes = 400_000;
    convert_checkpoint(&checkpoint, &options, sharded.folder(), &mut |_, _| {}).unwrap();
    let files = std::fs::read_dir(sharded.folder()).unwrap().map(|entry| entry.unwrap().path());
    let shard = files.filter(|path| path.extension() == Some("safetensors".as_ref())).max().unwrap();
    std::fs::copy(&shard, outside.path("outside.safetensors")).unwrap();
    std::fs::create_dir(sharded.path("sub")).unwrap();
    std::fs::copy(&shard, sharded.path("sub/inside.safetensors")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(outside.path("outside.safetensors"), sharded.path("link.safetensors")).unwrap();
    (sharded, outside)
});

fuzz_target!(|data: &[u8]| {
    let base = &BASE.0;
    base.write(INDEX, data);
    if let Ok(checkpoint) = Checkpoint::open(base.folder()) {
        check_checkpoint(&checkpoint, base.folder());
    }
});
