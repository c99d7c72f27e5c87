//! Data sets: files when they are needed, a bounded cache, and servers that misbehave.

use std::time::Duration;

use super::server::{COMMIT, Hub};
use super::*;

const SHARDS: [&str; 4] =
    ["data/train-0.parquet", "data/train-1.parquet", "data/train-2.parquet", "data/train-3.parquet"];
const SHARD_BYTES: u64 = 3000;

fn content(shard: usize) -> Vec<u8> {
    weights(SHARD_BYTES as usize + shard)[shard..].to_vec()
}

fn hub() -> Hub {
    let contents: Vec<Vec<u8>> = (0..SHARDS.len()).map(content).collect();
    let mut files: Vec<(&str, &[u8])> = vec![("README.md", b"a data set")];
    files.extend(SHARDS.iter().zip(&contents).map(|(name, bytes)| (*name, bytes.as_slice())));
    let hub = Hub::start(&files);
    hub.behaviour().is_dataset = true;
    hub
}

fn id() -> RepoId {
    RepoId::dataset("owner/name").unwrap()
}

fn open(hub: &Hub, cache: &Path, limit_bytes: u64) -> std::sync::Arc<DatasetRepository> {
    DatasetRepository::open(id(), options(hub, cache), limit_bytes, &Silent).unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

/// Which shards are in the cache.
fn cached(repository: &std::sync::Arc<DatasetRepository>) -> Vec<usize> {
    (0..SHARDS.len()).filter(|&shard| repository.shard(SHARDS[shard]).unwrap().cached().unwrap().is_some()).collect()
}

#[test]
fn files_come_when_they_are_asked_for_and_lie_where_python_looks() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let repository = open(&hub, cache.path(), u64::MAX);
    assert_eq!((repository.commit(), repository.files().len()), (COMMIT, 5));
    assert_eq!(repository.id().to_string(), "datasets/owner/name");
    assert!(repository.shard("data/none.parquet").is_none());
    assert!(cached(&repository).is_empty());
    let path = repository.shard(SHARDS[1]).unwrap().fetch(&Silent).unwrap();
    let expected = format!("datasets--owner--name/snapshots/{COMMIT}/{}", SHARDS[1]);
    assert_eq!(path, cache.path().join(expected));
    assert_eq!(read(&path), content(1));
    assert_eq!(cached(&repository), [1]);
    let requests = hub.server.take_seen().len();
    repository.shard(SHARDS[1]).unwrap().fetch(&Silent).unwrap();
    assert_eq!((requests, hub.server.take_seen().len()), (3, 0), "listing, metadata, bytes; then nothing");
}

#[test]
fn the_end_of_a_file_comes_alone() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let repository = open(&hub, cache.path(), u64::MAX);
    let shard = repository.shard(SHARDS[2]).unwrap();
    let (tail, size_bytes) = shard.tail(7).unwrap().unwrap();
    assert_eq!((size_bytes, tail.as_slice()), (SHARD_BYTES, &content(2)[SHARD_BYTES as usize - 7..]));
    assert_eq!(shard.tail(1 << 20).unwrap().unwrap(), (content(2), SHARD_BYTES));
    hub.behaviour().busy = 2;
    assert_eq!(shard.tail(5).unwrap().unwrap().0.len(), 5);
    hub.behaviour().cuts = 2;
    hub.behaviour().cut_after = 3;
    assert_eq!(shard.tail(5).unwrap().unwrap().0.len(), 5, "a cut answer is asked for again");
    hub.behaviour().knows_ranges = false;
    assert_eq!(shard.tail(7).unwrap(), None);
    assert!(cached(&repository).is_empty());
}

#[test]
fn what_was_used_longest_ago_goes_and_comes_again() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let repository = open(&hub, cache.path(), 2 * SHARD_BYTES + 10);
    let fetch = |shard: usize| {
        let path = repository.shard(SHARDS[shard]).unwrap().fetch(&Silent).unwrap();
        assert_eq!(read(&path), content(shard));
        // File times are as coarse as the system's clock tick.
        std::thread::sleep(Duration::from_millis(20));
        cached(&repository)
    };
    assert_eq!(fetch(0), [0]);
    assert_eq!(fetch(1), [0, 1]);
    assert_eq!(fetch(0), [0, 1]);
    assert_eq!(fetch(2), [0, 2], "1 was used longest ago");
    assert_eq!(fetch(3), [2, 3]);
    assert_eq!(fetch(1), [1, 3]);
    let blobs = tree(&in_repository(cache.path(), "").parent().unwrap().join("datasets--owner--name/blobs"));
    assert_eq!(blobs.len(), 2, "{blobs:?}");

    let small = open(&hub, cache.path(), 1);
    for shard in [0, 2, 3] {
        small.shard(SHARDS[shard]).unwrap().fetch(&Silent).unwrap();
        assert!(cached(&small).len() <= 2, "two files stay whatever the limit is");
    }
}

#[test]
fn what_another_program_brought_stays() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    let repository = open(&hub, cache.path(), SHARD_BYTES);
    let path = repository.shard(SHARDS[0]).unwrap().fetch(&Silent).unwrap();
    let blob = std::fs::canonicalize(&path).unwrap();
    // As Python leaves it: without a record of ours.
    std::fs::remove_dir_all(cache.path().join("datasets--owner--name/.janus/shards")).unwrap();
    for shard in [1, 2, 3] {
        repository.shard(SHARDS[shard]).unwrap().fetch(&Silent).unwrap();
    }
    assert!(blob.is_file() && path.is_file());
    assert!(!cached(&repository).contains(&1));
}

#[test]
fn slow_cut_and_failing_answers_are_borne() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.behaviour().busy = 2;
    let repository = open(&hub, cache.path(), u64::MAX);
    {
        let mut behaviour = hub.behaviour();
        (behaviour.cuts, behaviour.cut_after) = (2, 1000);
        behaviour.delay = Duration::from_millis(30);
    }
    hub.server.take_seen();
    let path = repository.shard(SHARDS[0]).unwrap().fetch(&Silent).unwrap();
    assert_eq!(read(&path), content(0));
    let seen = hub.server.take_seen();
    let ranges: Vec<_> =
        seen.iter().filter(|r| r.method == "GET").map(|r| r.header("range").map(str::to_string)).collect();
    assert_eq!(
        ranges,
        [None, Some("bytes=1000-".into()), Some("bytes=2000-".into())],
        "each goes on where the last was cut"
    );

    hub.behaviour().delay = Duration::ZERO;
    (hub.behaviour().cuts, hub.behaviour().cut_after) = (99, 10);
    let error = repository.shard(SHARDS[1]).unwrap().fetch(&Silent).unwrap_err();
    assert!(matches!(&error, HubError::Interrupted { file, .. } if file == SHARDS[1]), "{error}");
    assert_eq!(cached(&repository), [0]);
    hub.behaviour().cuts = 0;
    assert_eq!(read(&repository.shard(SHARDS[1]).unwrap().fetch(&Silent).unwrap()), content(1));

    hub.behaviour().sent_instead.insert(SHARDS[2].into(), vec![7; SHARD_BYTES as usize]);
    let error = repository.shard(SHARDS[2]).unwrap().fetch(&Silent).unwrap_err();
    assert!(matches!(error, HubError::Digest { .. }), "{error}");
    hub.behaviour().files.remove(SHARDS[3]);
    let error = repository.shard(SHARDS[3]).unwrap().fetch(&Silent).unwrap_err();
    assert!(matches!(error, HubError::MissingFile { .. }), "{error}");
}

#[test]
fn without_a_network_the_last_listing_counts_and_missing_files_are_named() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    open(&hub, cache.path(), u64::MAX).shard(SHARDS[3]).unwrap().fetch(&Silent).unwrap();
    let offline = HubOptions { offline: true, ..options(&hub, cache.path()) };
    let repository = DatasetRepository::open(id(), offline.clone(), u64::MAX, &Silent).unwrap();
    assert_eq!(repository.files().len(), 5, "files that are not here are known of");
    assert_eq!(read(&repository.shard(SHARDS[3]).unwrap().fetch(&Silent).unwrap()), content(3));
    let error = repository.shard(SHARDS[0]).unwrap().fetch(&Silent).unwrap_err();
    assert!(matches!(&error, HubError::Offline { file, .. } if file == SHARDS[0]), "{error}");

    let told = Remembered::default();
    hub.behaviour().busy = 99;
    let repository = DatasetRepository::open(id(), options(&hub, cache.path()), u64::MAX, &told).unwrap();
    assert_eq!(repository.files().len(), 5);
    assert!(told.notes.borrow()[0].contains("as it was when it was last looked up"), "{:?}", told.notes.borrow());

    std::fs::remove_dir_all(cache.path().join("datasets--owner--name/.janus")).unwrap();
    let told = Remembered::default();
    let repository = DatasetRepository::open(id(), offline.clone(), u64::MAX, &told).unwrap();
    assert_eq!(repository.files().iter().collect::<Vec<_>>(), [SHARDS[3]]);
    assert!(told.notes.borrow()[0].starts_with("only the 1 files"), "{:?}", told.notes.borrow());
    let elsewhere = HubOptions { cache_dir: cache.path().join("other"), ..offline };
    let error = DatasetRepository::open(id(), elsewhere, u64::MAX, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[test]
fn names_that_lead_out_of_the_repository_are_refused() {
    let (hub, cache) = (hub(), tempfile::tempdir().unwrap());
    hub.behaviour().also_listed.push("../../train.parquet".into());
    let error = DatasetRepository::open(id(), options(&hub, cache.path()), u64::MAX, &Silent).unwrap_err();
    assert!(matches!(error, HubError::UnsafeName { .. }), "{error}");
}
