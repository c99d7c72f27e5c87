#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::path::Path;

use candle_core::DType;

use super::*;
use crate::checkpoint::init_checkpoint;
use crate::config::{JanusConfig, Layout};

const FINGERPRINT: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

fn tiny(folder: &Path) -> Checkpoint {
    let config = JanusConfig::shape("janus-tiny").unwrap();
    init_checkpoint(&config, 7, DType::BF16, folder, Layout::Native, &mut |_, _| ()).unwrap();
    set_modified(folder, long_ago());
    Checkpoint::open(folder).unwrap()
}

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5)
}

fn set_modified(folder: &Path, time: SystemTime) {
    File::options().write(true).open(folder.join("model.safetensors")).unwrap().set_modified(time).unwrap();
}

/// Turns one bit of the last value, in place.
fn change_a_value(folder: &Path) {
    use std::io::{Read, Seek, SeekFrom, Write};
    let mut file = File::options().read(true).write(true).open(folder.join("model.safetensors")).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::End(-1)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::End(-1)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}

fn only_entry(folder: &Path) -> PathBuf {
    let entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(entries.len(), 1, "{entries:?}");
    entries[0].clone()
}

#[test]
fn a_fingerprint_is_known_until_a_file_changes() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = tiny(folder.path());
    let known = KnownFingerprints::new(cache.path().to_path_buf());
    let before = checkpoint.identity().unwrap();
    assert_eq!(known.get(&checkpoint, &before), None);
    known.put(&checkpoint, &before, FINGERPRINT).unwrap();
    let again = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(known.get(&again, &again.identity().unwrap()).as_deref(), Some(FINGERPRINT));

    change_a_value(folder.path());
    // The size is the same, and so is the time of writing; where the system keeps a time of change, that is not.
    if cfg!(unix) {
        set_modified(folder.path(), long_ago());
    }
    let changed = Checkpoint::open(folder.path()).unwrap();
    let identity = changed.identity().unwrap();
    assert_ne!(identity, before);
    assert_eq!(known.get(&changed, &identity), None);

    // The new weights take the place of the old ones.
    set_modified(folder.path(), long_ago());
    let identity = changed.identity().unwrap();
    let other = FINGERPRINT.replace('0', "f");
    known.put(&changed, &identity, &other).unwrap();
    only_entry(cache.path());
    assert_eq!(known.get(&changed, &identity), Some(other));
    assert_eq!(known.get(&changed, &before), None);
}

#[test]
fn files_that_are_or_were_just_written_to_are_not_kept() {
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let checkpoint = tiny(folder.path());
    let known = KnownFingerprints::new(cache.path().to_path_buf());
    let before = checkpoint.identity().unwrap();
    change_a_value(folder.path());
    known.put(&checkpoint, &before, FINGERPRINT).unwrap();
    for time in [SystemTime::now(), SystemTime::now() + Duration::from_secs(3600)] {
        set_modified(folder.path(), time);
        let now = checkpoint.identity().unwrap();
        known.put(&checkpoint, &now, FINGERPRINT).unwrap();
    }
    assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn entries_that_are_damaged_or_of_others_count_as_none() {
    let cache = tempfile::tempdir().unwrap();
    let known = KnownFingerprints::new(cache.path().to_path_buf());
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (checkpoint, other) = (tiny(folder.path()), tiny(other.path()));
    let identity = checkpoint.identity().unwrap();
    known.put(&checkpoint, &identity, FINGERPRINT).unwrap();
    let path = only_entry(cache.path());
    let text = std::fs::read_to_string(&path).unwrap();

    let cut = &text[..text.len() - 1];
    let longer = format!("{text} ");
    let turned = text.replacen('0', "1", 1);
    let sum = format!("{FINGERPRINT} {FINGERPRINT}\n");
    let wide = format!("é{}", &text[2..]);
    let split = format!("{}é{}", &FINGERPRINT[..63], &text[65..]);
    for damaged in ["", "\n", cut, &longer, &turned, &sum, &wide, &split, &"0".repeat(1 << 20)] {
        std::fs::write(&path, damaged).unwrap();
        assert_eq!(known.get(&checkpoint, &identity), None, "{:.200}", damaged);
    }
    std::fs::write(&path, [0xff; 130]).unwrap();
    assert_eq!(known.get(&checkpoint, &identity), None, "no text");

    // The entry of another checkpoint with the same values, put in this one's place.
    std::fs::remove_file(&path).unwrap();
    known.put(&other, &other.identity().unwrap(), FINGERPRINT).unwrap();
    std::fs::rename(only_entry(cache.path()), &path).unwrap();
    assert_eq!(known.get(&checkpoint, &identity), None, "of another place");
    std::fs::write(&path, &text).unwrap();
    assert_eq!(known.get(&checkpoint, &identity).as_deref(), Some(FINGERPRINT));
}
