//! Tables on a hub: the same rows as on disk, whatever the hub does, within a bounded cache.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use janus_core::hub::{DatasetRepository, HubError, HubOptions, Patience, RepoId, Silent};
use janus_lora::data::{
    ColumnKind, ColumnRequest, DataError, FileSource, ImageChecks, Index, Row, RowStream, ScanOptions, Table,
};
use janus_tests::hub::{Hub, Manners};
use janus_tests::program::{Done, command, run};
use janus_tests::rows::{optional_texts, texts, write_table};

const SHARDS: usize = 7;
const ROWS: usize = 30;

/// Shards of rows, one of which is bad in each, on disk.
fn shards(folder: &Path) -> Vec<PathBuf> {
    let shard = |number: usize| {
        let path = folder.join(format!("train-{number}.parquet"));
        let word = |row: usize| format!("row {row} of {number} {}", "with words ".repeat(40));
        let prompts: Vec<String> = (0..ROWS).map(word).collect();
        let prompts: Vec<Option<&str>> =
            prompts.iter().enumerate().map(|(row, text)| (row != 11).then_some(text.as_str())).collect();
        let answers = (0..ROWS).map(|row| format!("answer {row}"));
        write_table(&path, vec![("prompt", optional_texts(&prompts)), ("answer", texts(answers))], 12);
        path
    };
    (0..SHARDS).map(shard).collect()
}

fn hub(files: &[PathBuf], manners: Manners) -> Hub {
    let name = |path: &PathBuf| format!("data/{}", path.file_name().unwrap().to_str().unwrap());
    let mut all: BTreeMap<String, Vec<u8>> =
        files.iter().map(|path| (name(path), fs_err::read(path).unwrap())).collect();
    all.insert("README.md".into(), b"rows".to_vec());
    Hub::start(all, manners)
}

fn rude() -> Manners {
    Manners { busy_every: 5, cut_every: 3, delay: Duration::from_millis(3), knows_ranges: true, ..Manners::default() }
}

fn options(hub: &Hub, cache: &Path) -> HubOptions {
    let patience = Patience { attempts: 4, first_wait: Duration::from_millis(1), silence: Duration::from_secs(5) };
    HubOptions { endpoint: hub.endpoint(), patience, ..HubOptions::new(cache) }
}

fn requests() -> Vec<ColumnRequest> {
    ["prompt", "answer"].map(|name| ColumnRequest::required(name, name, ColumnKind::Text)).to_vec()
}

fn remote(hub: &Hub, cache: &Path, limit_bytes: u64) -> Result<Table, DataError> {
    let id = RepoId::dataset("owner/name").unwrap();
    let repository = DatasetRepository::open(id, options(hub, cache), limit_bytes, &Silent)?;
    let names: Vec<String> = repository.files().iter().filter(|name| name.ends_with(".parquet")).cloned().collect();
    let files: Vec<FileSource> = names.iter().map(|name| FileSource::Hub(repository.shard(name).unwrap())).collect();
    Table::open_sources(&files, &requests())
}

fn scan(table: &Table) -> Result<Index, DataError> {
    let images = ImageChecks { dimensions: |_| Ok((1, 1)), decode: |_| Ok(()), clipped_grey: |_| None };
    table.scan(&ScanOptions { images, check: &|_: &Row| Ok(()), limit: None, decode_rows: u64::MAX }, &mut |_| {})
}

/// The prompts of so many epochs, `look` being called after each row.
fn epochs(table: Table, index: Index, shuffle: bool, count: usize, look: &dyn Fn()) -> Vec<String> {
    let rows = index.accepted_rows() * count;
    let mut stream = RowStream::new(Arc::new(table), Arc::new(index), 3, shuffle).unwrap();
    (0..rows)
        .map(|_| {
            let row = stream.next_row().unwrap();
            look();
            row.text("prompt").unwrap().to_string()
        })
        .collect()
}

fn blobs(cache: &Path) -> Vec<u64> {
    let folder = cache.join("datasets--owner--name/blobs");
    let entries = fs_err::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|e| e.path().extension().is_none()).map(|e| e.metadata().unwrap().len()).collect()
}

#[test]
fn rows_of_a_rude_hub_are_those_of_the_disk_within_a_bounded_cache() {
    let folder = tempfile::tempdir().unwrap();
    let files = shards(folder.path());
    let hub = hub(&files, rude());
    let local = Table::open(&files, &requests()).unwrap();
    let expected = scan(&local).unwrap();
    assert_eq!((expected.rows(), expected.rejected_rows()), (SHARDS * ROWS, SHARDS));

    let largest = files.iter().map(|path| fs_err::metadata(path).unwrap().len()).max().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let limit = 4 * largest + largest / 2;
    let table = remote(&hub, cache.path(), limit).unwrap();
    assert_eq!(table.claimed_rows(), (SHARDS * ROWS) as u64);
    assert!(hub.record().transfers.is_empty(), "descriptions alone are read: {:?}", hub.record());
    let index = scan(&table).unwrap();
    assert_eq!((index.rows(), index.accepted_rows()), (expected.rows(), expected.accepted_rows()));
    let places = |index: &Index| -> Vec<(usize, usize)> {
        index.rejected().iter().map(|row| (row.id.row_group, row.id.row)).collect()
    };
    assert_eq!(places(&index), places(&expected));
    let bad = index.rejected()[0].to_string();
    assert!(bad.contains("`hf://datasets/owner/name/data/train-0.parquet`: `prompt` is null"), "{bad}");

    let bounded = || {
        let held = blobs(cache.path());
        assert!(held.iter().sum::<u64>() <= limit, "{held:?} of {limit}");
    };
    let in_order = epochs(remote(&hub, cache.path(), limit).unwrap(), index.clone(), false, 2, &bounded);
    assert_eq!(in_order, epochs(local, expected, false, 2, &|| {}));
    let shuffled = epochs(table, index.clone(), true, 2, &bounded);
    let epoch = index.accepted_rows();
    let set = |rows: &[String]| -> BTreeSet<String> { rows.iter().cloned().collect() };
    assert_eq!(set(&shuffled[..epoch]), set(&in_order));
    assert_eq!(set(&shuffled[epoch..]), set(&in_order));
    assert_ne!(shuffled[..epoch], shuffled[epoch..]);
    let from = |rows: &[String]| -> BTreeSet<String> {
        rows.iter().map(|row| row.split(' ').nth(3).unwrap().to_string()).collect()
    };
    assert_eq!(from(&shuffled[..4 * (ROWS - 1)]).len(), 4, "four files at a time");
    assert_eq!(from(&shuffled[..ROWS]).len(), 4, "and mixed");

    // Another cache, another limit, better manners: the same order.
    let other = tempfile::tempdir().unwrap();
    let polite = self::hub(&files, Manners { knows_ranges: false, ..Manners::default() });
    let table = remote(&polite, other.path(), 1).unwrap();
    let index = scan(&table).unwrap();
    assert_eq!(epochs(table, index, true, 2, &|| {}), shuffled);
    assert!(blobs(other.path()).len() <= 2, "{:?}", blobs(other.path()));
}

#[test]
fn a_hub_that_fails_for_good_is_an_error_and_what_came_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let files = shards(folder.path());
    let cache = tempfile::tempdir().unwrap();
    let table =
        remote(&hub(&files, Manners { knows_ranges: true, ..Manners::default() }), cache.path(), u64::MAX).unwrap();
    drop(table);
    let failing = hub(&files, Manners { busy_every: 1, ..Manners::default() });
    // The listing of the better time is used, and then the descriptions cannot be had.
    let error = remote(&failing, cache.path(), u64::MAX).unwrap_err();
    assert!(matches!(&error, DataError::Hub(HubError::Status { status: 503, .. })), "{error}");
    let cutting = hub(&files, Manners { cut_every: 1, knows_ranges: false, ..Manners::default() });
    let error = remote(&cutting, &cache.path().join("new"), u64::MAX).unwrap_err();
    assert!(matches!(&error, DataError::Hub(HubError::Interrupted { .. })), "{error}");
}

#[test]
fn a_file_that_is_no_parquet_is_refused_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train-0.parquet");
    for (bytes, reason) in [(b"version https://git-lfs".to_vec(), "does not end"), (Vec::new(), "0 bytes")] {
        fs_err::write(&path, &bytes).unwrap();
        let hub = hub(std::slice::from_ref(&path), Manners { knows_ranges: true, ..Manners::default() });
        let error = remote(&hub, &folder.path().join("cache"), u64::MAX).unwrap_err();
        assert!(matches!(&error, DataError::Unreadable { .. }) && error.to_string().contains(reason), "{error}");
        assert!(error.to_string().contains("hf://datasets/owner/name/data/train-0.parquet"), "{error}");
    }
    let mut claims = b"PAR1 nothing".to_vec();
    claims.extend(u32::MAX.to_le_bytes());
    claims.extend(b"PAR1");
    fs_err::write(&path, &claims).unwrap();
    let hub = hub(std::slice::from_ref(&path), Manners { knows_ranges: true, ..Manners::default() });
    let error = remote(&hub, &folder.path().join("other"), u64::MAX).unwrap_err();
    assert!(error.to_string().contains("claims a description of 4294967295 bytes"), "{error}");
}

#[test]
fn a_run_streams_its_rows_and_repeats_without_a_network() {
    let folder = tempfile::tempdir().unwrap();
    let files = shards(folder.path());
    // The program waits a second after each failure.
    let hub = hub(&files, Manners { busy_every: 11, cut_every: 13, ..rude() });
    fs_err::write(
        folder.path().join("recipe.toml"),
        "[base]\npath = \"init:janus-tiny?seed=1\"\n[adapter]\nrank = 2\ntargets = [\"decoder\"]\n[[data]]\ntask = \"text\"\n\
         train = \"hf://datasets/owner/name/data/train-*.parquet\"\ntoo_long = \"truncate\"\n[data_limits]\nmax_bad_rows = 0.1\n[train]\nsteps = 6\n",
    )
    .unwrap();
    let train = |name: &str, environment: &[(&str, &str)], more: &[&str]| -> Done {
        let dir = format!("output.dir={name}");
        let mut command = command(folder.path(), &[&["train", "recipe.toml", dir.as_str()], more].concat());
        command.env("HF_HOME", folder.path().join("hub")).envs(environment.iter().copied());
        run(command)
    };
    let endpoint = hub.endpoint();
    let online = [("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", endpoint.as_str())];
    train("one", &online, &[]).expect_success();
    let offline = [("HF_HUB_OFFLINE", "1"), ("HF_ENDPOINT", endpoint.as_str())];
    let requests = hub.record().requests;
    train("two", &offline, &[]).expect_success();
    assert_eq!(hub.record().requests, requests, "offline, nothing is asked");
    let adapter = |name: &str| fs_err::read(folder.path().join(name).join("adapter_model.safetensors")).unwrap();
    assert!(adapter("one") == adapter("two"));
    let rejected = fs_err::read_to_string(folder.path().join("one/rejected.jsonl")).unwrap();
    assert_eq!(rejected.lines().count(), SHARDS);

    let untold = self::hub(&files, Manners { tells_no_size: true, ..Manners::default() });
    let (home, endpoint) = (folder.path().join("untold"), untold.endpoint());
    let untold = [online[0], ("HF_ENDPOINT", endpoint.as_str()), ("HF_HOME", home.to_str().unwrap())];
    let done = train("four", &untold, &["data_limits.max_download_bytes=1000"]);
    assert_eq!(done.code, Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("hint: if you trust the repository") && !folder.path().join("four").exists());
    train("four", &untold, &["data_limits.max_download_bytes=100000000"]).expect_success();
    assert!(adapter("one") == adapter("four"));

    let elsewhere = ["data.0.train=hf://datasets/owner/other"];
    for (environment, more, expected) in [
        (&online[..], &elsewhere[..], "no repository `owner/other`"),
        (&offline[..], &elsewhere[..], "HF_HUB_OFFLINE forbids"),
        (&online[..], &["data.0.train=hf://datasets/owner/name/none"][..], "no `.parquet` file"),
        (&online[..], &["data.0.train=hf://owner/name"][..], "only data sets hold rows"),
        (&[online[0], online[1], ("JANUS_DATA_CACHE_BYTES", "lots")][..], &[][..], "expected a number of bytes"),
    ] {
        let done = train("three", environment, more);
        assert_eq!(done.code, Some(2), "{}", done.stderr);
        assert!(done.stderr.contains(expected), "`{expected}` is not in {}", done.stderr);
        assert!(!folder.path().join("three").exists());
    }
}
