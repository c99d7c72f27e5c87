//! The weights of a base in a file of `torch.save`. What begins with `P` is its pickle, put into an archive as torch makes
//! them (an archive's checksum would keep mutations of it out); anything else is the file as it is.
#![no_main]

use std::io::{Cursor, Write};
use std::sync::LazyLock;

use janus_core::checkpoint::Checkpoint;
use janus_fuzz::{Scratch, check_checkpoint};
use libfuzzer_sys::fuzz_target;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// Storages of the archive and their bytes; the pickle's claims may differ.
const STORAGES: [usize; 4] = [0, 64, 1 << 10, 1 << 14];

static BASE: LazyLock<Scratch> = LazyLock::new(|| {
    let base = Scratch::with_base();
    base.remove("model.safetensors");
    base
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    archive.start_file("archive/data.pkl", options).unwrap();
    archive.write_all(pickle).unwrap();
    for (key, bytes) in STORAGES.into_iter().enumerate() {
        archive.start_file(format!("archive/data/{key}"), options).unwrap();
        archive.write_all(&vec![0; bytes]).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((b'P', pickle)) if pickle.first() != Some(&b'K') => BASE.write("pytorch_model.bin", &archive(pickle)),
        _ => BASE.write("pytorch_model.bin", data),
    };
    if let Ok(checkpoint) = Checkpoint::open(BASE.folder()) {
        check_checkpoint(&checkpoint, BASE.folder());
    }
});
