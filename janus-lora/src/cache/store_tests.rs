use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

/// Payload bytes of an entry.
const BYTES: usize = 300;
const ENTRY: u64 = (HEADER_BYTES + BYTES) as u64;

fn key(number: u64) -> Digest {
    digest(&number.to_le_bytes())
}

fn payload(number: u64) -> Vec<u8> {
    (0..BYTES as u64).map(|i| (i * 7 + number * 13) as u8).collect()
}

fn store(folder: &Path, limit_bytes: u64) -> Store {
    Store::open(&CacheSettings::new(folder.to_path_buf(), Some(limit_bytes))).unwrap()
}

fn put(store: &Store, number: u64) {
    store.put(Kind::Features, &key(number), &payload(number));
}

fn get(store: &Store, number: u64) -> Option<Vec<u8>> {
    store.get(Kind::Features, &key(number), BYTES)
}

/// Sets when an entry was last used, in seconds.
fn used_at(store: &Store, number: u64, seconds: u64) {
    let file = fs::OpenOptions::new().write(true).open(store.path(Kind::Features, &key(number))).unwrap();
    file.file().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

fn total(folder: &Path) -> u64 {
    entries(folder).iter().map(|(_, entry)| entry.bytes).sum()
}

#[test]
fn an_entry_comes_back_under_its_own_key_kind_and_length() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1 << 20);
    assert_eq!(get(&store, 1), None);
    put(&store, 1);
    assert_eq!(get(&store, 1), Some(payload(1)));
    assert_eq!(get(&store, 2), None);
    assert_eq!(store.get(Kind::Codes, &key(1), BYTES), None);
    for other in [0, BYTES - 1, BYTES + 1] {
        assert_eq!(store.get(Kind::Features, &key(1), other), None);
    }
    assert_eq!(total(folder.path()), ENTRY);
    let again = self::store(folder.path(), 1 << 20);
    assert_eq!(get(&again, 1), Some(payload(1)), "another run finds it");
}

#[test]
fn what_is_odd_counts_as_absent_and_is_written_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), 1 << 20);
    put(&store, 1);
    put(&store, 2);
    let path = store.path(Kind::Features, &key(1));
    let whole = fs::read(&path).unwrap();
    let flipped = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        bytes
    };
    let mut odd = vec![
        Vec::new(),
        whole[..whole.len() - 1].to_vec(),
        whole[..10].to_vec(),
        [&whole[..], b"x"].concat(),
        fs::read(store.path(Kind::Features, &key(2))).unwrap(),
    ];
    odd.extend([0, 16, 48, 56, HEADER_BYTES, whole.len() - 1].map(flipped));
    for bytes in odd {
        fs::write(&path, &bytes).unwrap();
        assert_eq!(get(&store, 1), None, "{} bytes", bytes.len());
        put(&store, 1);
        assert_eq!(fs::read(&path).unwrap(), whole);
        assert_eq!(get(&store, 1), Some(payload(1)));
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_eq!(get(&store, 1), None);
}

#[test]
fn the_least_recently_used_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 10 * ENTRY + 7;
    let store = store(folder.path(), limit);
    for number in 0..40 {
        put(&store, number);
        used_at(&store, number, 1000 + number);
        // Reading makes it the latest.
        assert_eq!(get(&store, 0), Some(payload(0)), "{number}");
        assert!(total(folder.path()) <= limit, "{number}");
    }
    assert!(total(folder.path()) >= limit - limit / 16 - 2 * ENTRY, "no more is given up than is needed");
    let there: BTreeSet<u64> = (0..40).filter(|number| get(&store, *number).is_some()).collect();
    let latest = (40 - (there.len() as u64 - 1)..40).chain([0]).collect();
    assert_eq!(there, latest);
}

#[test]
fn a_second_run_counts_what_the_first_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let limit = 30 * ENTRY;
    let stores = [store(folder.path(), limit), store(folder.path(), limit)];
    for number in 0..120 {
        put(&stores[number as usize % 2], number);
        assert!(total(folder.path()) <= limit + 2 * (limit / 16), "{number}");
    }
    assert!(total(folder.path()) > limit / 2);
}

#[test]
fn what_is_not_an_entry_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let name = "0".repeat(62);
    let others = ["features/notes.txt", "features/ab/notes.txt", "other/big", "features/notes/0"];
    for other in others.iter().map(|other| folder.path().join(other)) {
        fs::create_dir_all(other.parent().unwrap()).unwrap();
        fs::write(other, vec![0; 5000]).unwrap();
    }
    let (old, young) = (format!("features/ab/.{name}.tmp-Q1"), format!("features/ab/.{name}.tmp-Q2"));
    for leftover in [&old, &young] {
        fs::write(folder.path().join(leftover), b"half").unwrap();
    }
    let file = fs::OpenOptions::new().write(true).open(folder.path().join(&old)).unwrap();
    file.file().set_modified(SystemTime::now() - Duration::from_secs(25 * 3600)).unwrap();
    let store = store(folder.path(), 3 * ENTRY);
    for number in 0..10 {
        put(&store, number);
    }
    assert_eq!(get(&store, 9), Some(payload(9)));
    for other in others {
        assert!(folder.path().join(other).is_file(), "{other}");
    }
    assert!(!folder.path().join(old).exists() && store.take_failure().is_none());
}

#[test]
fn an_entry_beyond_the_limit_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path(), ENTRY - 1);
    put(&store, 1);
    assert_eq!((get(&store, 1), total(folder.path()), store.take_failure()), (None, 0, None));
    assert!(Store::open(&CacheSettings::new(folder.path().to_path_buf(), Some(0))).is_none());
}

#[test]
fn without_a_limit_it_is_a_share_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("not/there/yet");
    let store = Store::open(&CacheSettings::new(deep, None)).unwrap();
    assert!(store.limit_bytes <= DEFAULT_LIMIT_BYTES);
    #[cfg(unix)]
    assert!(free_bytes(folder.path()).unwrap() / 10 >= store.limit_bytes / 2);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_once() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("features"), b"in the way").unwrap();
    let store = store(folder.path(), 1 << 20);
    put(&store, 1);
    let failure = store.take_failure().unwrap();
    assert!(failure.contains("nothing more is kept") && failure.contains("features"), "{failure}");
    put(&store, 2);
    store.put(Kind::Codes, &key(3), &payload(3));
    assert_eq!((store.take_failure(), get(&store, 1)), (None, None));
    assert_eq!(store.get(Kind::Codes, &key(3), BYTES), None, "nothing is written after a failure");
}

#[test]
fn threads_may_write_the_same_entries() {
    let folder = tempfile::tempdir().unwrap();
    let stores = [store(folder.path(), 1 << 20), store(folder.path(), 1 << 20)];
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &stores[thread % 2];
            scope.spawn(move || {
                for number in (0..50).map(|i| i % 5) {
                    put(store, number);
                    assert_eq!(get(store, number), Some(payload(number)));
                }
            });
        }
    });
    assert_eq!(total(folder.path()), 5 * ENTRY, "nothing half written is left");
    assert!(stores.iter().all(|store| store.take_failure().is_none()));
}

#[cfg(unix)]
#[test]
fn nothing_is_taken_from_where_everybody_may_have_put_it_and_nothing_is_put_there() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let set = |mode| fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    let store = store(folder.path(), 1 << 20);
    put(&store, 1);
    set(0o777);
    assert_eq!(get(&store, 1), None);
    put(&store, 2);
    assert!(store.take_failure().unwrap().contains("every user may put something else there"));
    assert_eq!(total(folder.path()), ENTRY);
    set(0o755);
    assert_eq!((get(&store, 1), get(&store, 2)), (Some(payload(1)), None));
}
