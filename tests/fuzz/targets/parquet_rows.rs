//! A table of rows, mutated byte by byte and, as often, by the grammar of the format. The stream gives the rows that the scan accepted, as many as it counted, and no image lies outside the
//! table's folder.
#![no_main]

use std::sync::{Arc, LazyLock};

use janus_core::processing::clipped_grey;
use janus_fuzz::{Scratch, parquet};
use janus_lora::data::{ColumnKind, ColumnRequest, ImageChecks, Row, RowStream, ScanOptions, Table};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

/// What a file outside the table's folder holds: no image, so a row with it cannot be accepted, and no row may say why.
const OUTSIDE: &[u8] = b"nothing that a row may see";

/// Rows that are read again through the stream.
const STREAMED: usize = 64;

static PLACE: LazyLock<Scratch> = LazyLock::new(|| {
    let place = Scratch::new();
    place.write("outside.png", OUTSIDE);
    std::fs::create_dir(place.path("table")).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink("../outside.png", place.path("table/link.png")).unwrap();
    place
});

fn requests() -> Vec<ColumnRequest> {
    vec![
        ColumnRequest::optional("image", "image", ColumnKind::Image),
        ColumnRequest::optional("images", "images", ColumnKind::ImageList),
        ColumnRequest::optional("question", "question", ColumnKind::Text),
        ColumnRequest::optional("messages", "messages", ColumnKind::Messages),
        ColumnRequest::optional("boxes", "boxes", ColumnKind::Boxes),
        ColumnRequest::optional("labels", "labels", ColumnKind::TextList),
        ColumnRequest::optional("label", "label", ColumnKind::Label),
    ]
}

fn check_row(row: &Row) {
    assert!(row.images.values().flatten().all(|image| image.bytes != OUTSIDE), "{} sees outside", row.id);
}

fuzz_target!(|data: &[u8]| {
    let path = PLACE.write("table/rows.parquet", data);
    let Ok(table) = Table::open(&[path], &requests()) else { return };
    let images = ImageChecks {
        dimensions: |image| image.dimensions().map_err(|e| e.to_string()),
        decode: |image| image.decode().map(|_| ()).map_err(|e| e.to_string()),
        clipped_grey: |image| clipped_grey(&image.bytes, image.decoding).ok().flatten(),
    };
    let check = |row: &Row| {
        check_row(row);
        Ok(())
    };
    let Ok(index) = table.scan(&ScanOptions { images, check: &check, limit: None, decode_rows: u64::MAX }, &mut |_| {})
    else {
        return;
    };
    assert_eq!(index.rows(), index.accepted_rows() + index.rejected_rows());
    let accepted = index.accepted_rows();
    if accepted == 0 {
        return;
    }
    let mut stream = RowStream::new(Arc::new(table), Arc::new(index), 1, true).unwrap();
    for _ in 0..accepted.min(STREAMED) {
        check_row(&stream.next_row().expect("a row that was good is good"));
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let by_grammar = (seed % 2 == 0).then(|| parquet::mutated(&data[..size], max_size, seed / 2)).flatten();
    match by_grammar {
        Some(file) => {
            data[..file.len()].copy_from_slice(&file);
            file.len()
        }
        None => fuzzer_mutate(data, size, max_size),
    }
});
