use std::path::Path;

use candle_core::{DType, Device};
use janus_core::checkpoint::init_checkpoint;
use janus_core::config::{JanusConfig, Layout};
use janus_core::{Janus, Parts};

use super::tables::{RecipeTable, SampleStream, open_tables};
use crate::base::Base;
use crate::data::testing::{image_structs, numbered, png, write_table};
use crate::error::{Error, Result};
use crate::status::Silent;
use crate::tasks::Sample;
use crate::train::TrainError;

const ROWS: usize = 23;

struct Place {
    folder: tempfile::TempDir,
    base: Base,
    model: Janus,
}

impl Place {
    /// A table of one row group of pictures of different sizes, and a tiny base.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base");
        std::fs::create_dir(&base).unwrap();
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 5, DType::F32, &base, Layout::Native, &mut |_, _| {}).unwrap();
        let base = Base::open_folder("tiny", &base).unwrap();
        let model = base.model(DType::F32, &Device::Cpu, Parts::all(), &Silent).unwrap();
        let pictures: Vec<Vec<u8>> = (0..ROWS).map(picture).collect();
        let images: Vec<_> = pictures.iter().map(|bytes| Some((Some(bytes.as_slice()), None))).collect();
        let columns =
            vec![("image", image_structs(&images)), ("answer", numbered("a", ROWS)), ("prompt", numbered("p", ROWS))];
        write_table(&folder.path().join("rows.parquet"), columns, 100);
        Self { folder, base, model }
    }

    fn tables(&self, task: &str) -> Vec<RecipeTable> {
        let path = self.folder.path().join(format!("{task}.toml"));
        let text = format!(
            "[base]\npath = \"x\"\n[[data]]\ntask = \"{task}\"\ntrain = \"rows.parquet\"\n[train]\nsteps = 1\n[output]\ndir = \"run\"\n"
        );
        std::fs::write(&path, text).unwrap();
        let recipe = crate::recipe::load(&path, &[], Path::new(".")).unwrap();
        open_tables(&recipe, &self.base, &Silent).unwrap()
    }

    fn take(&self, stream: &mut SampleStream, count: usize) -> Vec<String> {
        (0..count).map(|_| shown(&stream.next(&self.base, &self.model).unwrap())).collect()
    }
}

fn picture(number: usize) -> Vec<u8> {
    png(20 + number as u32, 31)
}

/// Everything of a sample, pixels included.
fn shown(sample: &Sample) -> String {
    match sample {
        Sample::Text { tokens, images } => {
            let values =
                |image: &crate::cache::Image| image.pixels().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let pixels: Vec<Vec<f32>> = images.iter().map(values).collect();
            format!("{tokens:?} {pixels:?}")
        }
        Sample::Codes { prompt, codes, .. } => format!("{prompt:?} {codes:?}"),
        Sample::Pixels { image, .. } => format!("{:?}", image.target().unwrap()),
        Sample::Picture(pictured) => {
            format!("{} {:?} {:?}", pictured.head, pictured.image.pixels().unwrap(), pictured.target)
        }
    }
}

#[test]
fn rows_read_ahead_are_the_same_rows_in_the_same_order() {
    let place = Place::new();
    for task in ["understand", "generate"] {
        let tables = place.tables(task);
        let stream = || SampleStream::new(&tables[0], 7, true).unwrap();
        let expected = place.take(&mut stream(), 2 * ROWS + 5);
        assert_ne!(expected[..ROWS], expected[ROWS..2 * ROWS], "two epochs have two orders");
        for (rows_ahead, threads) in [(1, 1), (1, 4), (3, 2), (64, 1), (64, 5)] {
            let mut ahead = stream().with_rows_ahead(rows_ahead, threads);
            assert!(place.take(&mut ahead, 2 * ROWS + 5) == expected, "{task}, {rows_ahead} rows ahead of {threads}");
        }
    }
}

#[test]
fn a_damaged_picture_comes_out_at_its_row_and_not_before() {
    let place = Place::new();
    let tables = place.tables("understand");
    let path = place.folder.path().join("rows.parquet");
    let mut bytes = std::fs::read(&path).unwrap();
    let damaged = picture(13);
    let at = bytes.windows(damaged.len()).position(|window| window == damaged).unwrap();
    bytes[at + damaged.len() / 2..at + damaged.len() - 12].fill(0xFF);
    std::fs::write(&path, &bytes).unwrap();
    for (rows_ahead, threads) in [(0, 1), (2, 1), (64, 1), (64, 3)] {
        let mut stream = SampleStream::new(&tables[0], 7, false).unwrap().with_rows_ahead(rows_ahead, threads);
        assert_eq!(place.take(&mut stream, 13).len(), 13);
        let error = stream.next(&place.base, &place.model).unwrap_err();
        assert!(matches!(&error, Error::Train(TrainError::Row { row, .. }) if row.row == 13), "{error}");
        assert_eq!(place.take(&mut stream, 1).len(), 1, "the rows after it are there");
    }
}

#[test]
fn a_file_that_is_gone_is_an_error_and_again_the_next_time() {
    let place = Place::new();
    let tables = place.tables("understand");
    std::fs::remove_file(place.folder.path().join("rows.parquet")).unwrap();
    let mut stream = SampleStream::new(&tables[0], 7, true).unwrap().with_rows_ahead(4, 2);
    for _ in 0..2 {
        let outcome: Result<Sample> = stream.next(&place.base, &place.model);
        assert!(matches!(outcome, Err(Error::Data(_))), "{outcome:?}");
    }
}

#[test]
fn threads_that_paused_or_ended_lose_no_row() {
    let place = Place::new();
    let tables = place.tables("understand");
    let stream = || SampleStream::new(&tables[0], 7, true).unwrap();
    let expected = place.take(&mut stream(), 2 * ROWS);
    let mut ahead = stream().with_rows_ahead(5, 2);
    let mut taken = place.take(&mut ahead, 3);
    for count in [4, 1, 9] {
        // Rows that are ready are given out meanwhile.
        let paused = ahead.pause();
        assert!(paused.is_some());
        drop(paused);
        taken.extend(place.take(&mut ahead, count));
    }
    ahead.stop_reading_ahead();
    assert!(ahead.pause().is_none(), "no thread is left");
    taken.extend(place.take(&mut ahead, 2 * ROWS - taken.len()));
    assert_eq!(taken, expected);
}
