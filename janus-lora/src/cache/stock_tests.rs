use super::*;

const BASE: &str = "janus-tiny-0123456789ab-seed1";
const TABLE: &str = "inspection-v7-train-rows64-seed1-size64.parquet";

fn write(path: &Path, bytes: usize, seconds: u64) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![7; bytes]).unwrap();
    used_at(path, seconds);
}

fn used_at(path: &Path, seconds: u64) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.file().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
}

/// A cache with one item of each kind, used in the order of the kinds, and what is not ours beside each.
fn stocked() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, bytes) in [("config.json", 10), ("model.safetensors", 1000), ("tokenizer.json", 90)] {
        write(&at(&format!("bases/{BASE}/{name}")), bytes, 1000);
    }
    write(&at(&format!("data/{TABLE}")), 500, 2000);
    let (shelf, rest) = ("ab", "c".repeat(62));
    write(&at(&format!("features/{shelf}/{rest}")), 300, 3000);
    write(&at(&format!("codes/{shelf}/{rest}")), 200, 4000);
    write(&at(&format!("fingerprints/{}", "d".repeat(64))), 100, 5000);
    for foreign in [
        "notes.txt",
        "bases/mine/config.json",
        "bases/janus-tiny-0123456789ab-seed2/config.json",
        "bases/janus-tiny-0123456789ab-seed2/thesis.doc",
        "data/mine.parquet",
        "data/inspection-v7-train-rows64-seed1-size64.parquet.txt",
        "features/ab/notes",
        "fingerprints/readme",
    ] {
        write(&at(foreign), 5, 1);
    }
    folder
}

fn foreign_files(folder: &Path) -> usize {
    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        entries
            .map(|entry| match entry.file_type().unwrap().is_dir() {
                true => count(&entry.path()),
                false => usize::from(fs::metadata(entry.path()).unwrap().len() == 5),
            })
            .sum()
    }
    count(folder)
}

fn names(folder: &Path) -> Vec<&'static str> {
    items(folder, None).iter().map(|item| item.kind.name()).collect()
}

#[test]
fn what_the_program_made_is_listed_and_nothing_else() {
    let folder = stocked();
    let found = items(folder.path(), None);
    let told: Vec<(&str, u64)> = found.iter().map(|item| (item.kind.name(), item.bytes)).collect();
    assert_eq!(told, [("bases", 1100), ("data", 500), ("features", 300), ("codes", 200), ("fingerprints", 100)]);
    for item in found {
        assert!(!item.is_in_use(), "{item:?}");
        assert!(item.remove().unwrap(), "{item:?}");
        assert!(!item.path.exists(), "{item:?}");
    }
    assert!(items(folder.path(), None).is_empty());
    assert_eq!(foreign_files(folder.path()), 8);
    assert!(items(&folder.path().join("absent"), Some(&folder.path().join("absent"))).is_empty());
}

#[test]
fn what_was_used_longest_ago_goes_first_whatever_it_is() {
    let folder = stocked();
    let room = |limit, bytes| make_room(&CacheSettings::new(folder.path().to_path_buf(), Some(limit)), bytes);
    room(2200, 0);
    assert_eq!(names(folder.path()).len(), 5, "it fits");
    room(2200, 1);
    assert_eq!(names(folder.path()), ["data", "features", "codes", "fingerprints"]);
    room(1000, 400);
    assert_eq!(names(folder.path()), ["features", "codes", "fingerprints"]);
    room(0, 0);
    assert!(names(folder.path()).is_empty());
    assert_eq!(foreign_files(folder.path()), 8);
}

#[test]
fn what_is_in_use_stays_and_is_used_now() {
    let folder = stocked();
    let (base, table) =
        (folder.path().join(format!("bases/{BASE}/config.json")), folder.path().join("data").join(TABLE));
    assert!(hold(&base) && hold(&table));
    make_room(&CacheSettings::new(folder.path().to_path_buf(), Some(0)), 0);
    assert_eq!(names(folder.path()), ["bases", "data"]);
    for item in items(folder.path(), None) {
        assert!(item.is_in_use() && !item.remove().unwrap(), "{item:?}");
        assert!(item.age() < Duration::from_secs(3600), "{item:?}");
    }
    HELD.lock().unwrap().retain(|path, _| *path != base && *path != table);
    make_room(&CacheSettings::new(folder.path().to_path_buf(), Some(0)), 0);
    assert!(names(folder.path()).is_empty());
    assert!(!hold(&base), "what is gone cannot be held");
}

#[test]
fn what_killed_processes_left_half_written_goes() {
    let folder = stocked();
    let at = |name: String| folder.path().join(name);
    let (rest, digits) = ("c".repeat(62), "d".repeat(40));
    // Of today's version, and of an earlier one more than a day ago.
    let gone = [
        at(format!("bases/.{BASE}.tmp-janus-folder/model.safetensors")),
        at(format!("bases/{BASE}/.model.safetensors.tmp-janus-0123456789abcdef")),
        at(format!("bases/.{BASE}.tmp-Ab3dEf/model.safetensors")),
        at(format!("data/.{}.tmp-janus-0123456789abcdef", &TABLE[..40])),
        at(format!("data/.{TABLE}.tmp-Ab3dEf")),
        at(format!("features/ab/.{}.tmp-janus-0123456789abcdef", &rest[..40])),
        at(format!("codes/ab/.{rest}.tmp-Ab3dEf")),
        at(format!("fingerprints/.{digits}.tmp-janus-0123456789abcdef")),
    ];
    gone.iter().for_each(|path| write(path, 70, 1000));
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    File::open(at(format!("bases/.{BASE}.tmp-Ab3dEf"))).unwrap().set_modified(old).unwrap();
    // Under way: locked, or of an earlier version and young.
    let living = [at(format!("data/.{TABLE}.tmp-janus-fedcba9876543210")), at(format!("data/.{TABLE}.tmp-Young1"))];
    living.iter().for_each(|path| fs::write(path, "under way").unwrap());
    let lock = File::open(&living[0]).unwrap();
    lock.lock().unwrap();
    for item in items(folder.path(), None) {
        let is_living = living.contains(&item.path);
        assert_eq!((item.is_in_use(), item.remove().unwrap()), (is_living, !is_living), "{item:?}");
    }
    assert!(gone.iter().all(|path| !path.exists()), "{gone:?}");
    assert!(living.iter().all(|path| path.exists()));
    assert_eq!(foreign_files(folder.path()), 8);
}

#[cfg(unix)]
#[test]
fn links_lead_nowhere() {
    let folder = tempfile::tempdir().unwrap();
    let outside = stocked();
    fs::create_dir_all(folder.path().join("bases")).unwrap();
    fs::create_dir_all(folder.path().join("data")).unwrap();
    let link = |from: &str| {
        let target = outside.path().join(from);
        fs_err::os::unix::fs::symlink(target, folder.path().join(from)).unwrap();
    };
    link(&format!("bases/{BASE}"));
    link(&format!("data/{TABLE}"));
    assert!(items(folder.path(), None).is_empty());
}
