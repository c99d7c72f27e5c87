#![allow(clippy::unwrap_used)]

use super::*;

#[test]
fn a_file_appears_whole_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/file.json");
    write_file(&path, |w| w.write_all(b"one")).unwrap();
    let failed = write_file(&path, |w| {
        w.write_all(b"half of two")?;
        Err(io::Error::other("disk full"))
    });
    assert!(failed.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"one");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn a_staged_folder_appears_on_commit_only() {
    let parent = tempfile::tempdir().unwrap();
    let target = parent.path().join("deep/er/out");
    let staged = StagedFolder::create(&target).unwrap();
    std::fs::write(staged.path().join("a"), b"x").unwrap();
    assert!(!target.exists());
    drop(staged);
    assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);

    let staged = StagedFolder::create(&target).unwrap();
    std::fs::write(staged.path().join("a"), b"x").unwrap();
    staged.commit().unwrap();
    assert_eq!(std::fs::read(target.join("a")).unwrap(), b"x");
    assert!(matches!(StagedFolder::create(&target), Err(OutputError::NotEmpty { .. })));
}

/// Whatever leads to an empty folder is filled there: no link is replaced, no folder taken away below a shell.
#[cfg(unix)]
#[test]
fn an_empty_folder_is_filled_where_it_is() {
    use std::os::unix::fs::{MetadataExt, symlink};
    let parent = tempfile::tempdir().unwrap();
    let (real, link) = (parent.path().join("elsewhere/real"), parent.path().join("link"));
    std::fs::create_dir_all(&real).unwrap();
    symlink(&real, &link).unwrap();
    for (number, target) in [link.clone(), link.join("."), real.join("."), real.join("../real/")].iter().enumerate() {
        require_new_folder(target).unwrap();
        assert_eq!(std::fs::read_dir(&real).unwrap().count(), 0, "asking leaves nothing");
        let staged = StagedFolder::create(target).unwrap();
        std::fs::write(staged.path().join("a"), [number as u8]).unwrap();
        staged.commit().unwrap();
        assert_eq!(std::fs::read(real.join("a")).unwrap(), [number as u8], "{}", target.display());
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(matches!(StagedFolder::create(target), Err(OutputError::NotEmpty { .. })));
        std::fs::remove_file(real.join("a")).unwrap();
        assert_eq!(std::fs::read_dir(real.parent().unwrap()).unwrap().count(), 1, "no temporary folder is left");
    }
    // Within, as where it cannot be replaced: the folder stays the one it was.
    let before = std::fs::metadata(&real).unwrap().ino();
    let found = Directory::open(&real).unwrap();
    let staging = TemporaryFolder::create(&found, OsStr::new("real"), NEW_FOLDER_MODE).unwrap();
    std::fs::create_dir(staging.folder().path().join("sub")).unwrap();
    for name in ["config.json", "model.safetensors", "sub/b"] {
        std::fs::write(staging.folder().path().join(name), name).unwrap();
    }
    let (name, _made) = ("real".into(), MadeParents(Vec::new()));
    let staged = StagedFolder { target: link, name, found: Some(found), staging, _claim: None, _made };
    staged.commit().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(&real).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors", "sub"]);
    assert_eq!(std::fs::metadata(&real).unwrap().ino(), before);
}

#[cfg(unix)]
#[test]
fn what_cannot_be_written_is_found_out_before() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().unwrap();
    let inside = |name: &str| parent.path().join(name);
    std::fs::write(inside("file"), "mine").unwrap();
    std::fs::create_dir(inside("folder")).unwrap();
    symlink(inside("nothing"), inside("dangling")).unwrap();
    symlink("loop", inside("loop")).unwrap();
    symlink("file", inside("link")).unwrap();
    let long = "x".repeat(300);
    for name in ["file", "link", "file/out", "file/.", "dangling", "dangling/", "loop", "new/..", "", &long] {
        let path = if name.is_empty() { PathBuf::new() } else { inside(name) };
        let refused = require_new_folder(&path).expect_err(name);
        assert_eq!(refused.fault(), Fault::Input, "{name}: {refused}");
    }
    for name in ["folder", "folder/", "file/out", "file/", "dangling", "loop", "new/", "new/.", "new/..", "", &long] {
        let path = if name.is_empty() { PathBuf::new() } else { inside(name) };
        let refused = require_file(&path).expect_err(name);
        assert_eq!(refused.fault(), Fault::Input, "{name}: {refused}");
    }
    for device in ["/dev/null", "/dev/full"] {
        assert!(matches!(require_file(Path::new(device)), Err(OutputError::NotAFile { .. })));
        let written = write_file(Path::new(device), |file| file.write_all(b"x"));
        assert!(matches!(written, Err(OutputError::NotAFile { .. })), "{device} is not replaced");
    }
    require_new_folder(&inside("a/b/c")).unwrap();
    let long = format!("{}.png", "y".repeat(250));
    assert_eq!(require_file(&inside(&long)).unwrap(), inside(&long));
    assert_eq!(require_file(&inside("a/b.png")).unwrap(), inside("a/b.png"));
    let through = require_file(&inside("link")).unwrap();
    write_file(&through, |file| file.write_all(b"two")).unwrap();
    assert_eq!(std::fs::read(inside("file")).unwrap(), b"two", "a link to a file stays one");
    let mut names: Vec<_> = std::fs::read_dir(parent.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dangling", "file", "folder", "link", "loop"]);
}

#[cfg(unix)]
#[test]
fn a_link_below_a_folder_is_replaced_and_none_on_the_way_is_followed() {
    use std::os::unix::fs::symlink;
    let parent = tempfile::tempdir().unwrap();
    let (own, other) = (parent.path().join("own"), parent.path().join("other"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::create_dir_all(&other).unwrap();
    std::fs::write(other.join("file"), "mine").unwrap();
    symlink(other.join("file"), own.join("file")).unwrap();
    symlink(&other, own.join("link")).unwrap();
    let folder = Directory::open(&own).unwrap();
    write_below(&folder, "file", |file| file.write_all(b"new")).unwrap();
    write_below(&folder, "deep/er/file", |file| file.write_all(b"new")).unwrap();
    for name in ["file", "deep/er/file"] {
        assert!(own.join(name).symlink_metadata().unwrap().is_file(), "{name}");
        assert_eq!(std::fs::read(own.join(name)).unwrap(), b"new", "{name}");
    }
    for refused in [
        write_below(&folder, "link/new", |file| file.write_all(b"new")).unwrap_err(),
        StagedFolder::below(&folder, "link/new").unwrap_err(),
    ] {
        assert_eq!(refused.fault(), Fault::Input, "{refused}");
        assert!(!refused.hints().is_empty(), "{refused}");
    }
    assert!(matches!(StagedFolder::below(&folder, "link"), Err(OutputError::NotEmpty { .. })));
    assert_eq!(std::fs::read_dir(&other).unwrap().count(), 1);
    assert_eq!(std::fs::read(other.join("file")).unwrap(), b"mine");
}

#[test]
fn one_process_at_a_time_makes_a_folder() {
    let parent = tempfile::tempdir().unwrap();
    let (new, empty) = (parent.path().join("deep/new"), parent.path().join("empty"));
    std::fs::create_dir(&empty).unwrap();
    for target in [&new, &empty] {
        let first = StagedFolder::create(target).unwrap();
        let second = StagedFolder::create(target).unwrap_err();
        assert!(matches!(second, OutputError::Busy { .. }) && second.fault() == Fault::Input, "{second}");
        assert!(!second.hints().is_empty());
        drop(first);
        let third = StagedFolder::create(target).unwrap();
        std::fs::write(third.path().join("a"), b"x").unwrap();
        third.commit().unwrap();
        assert!(matches!(StagedFolder::create(target), Err(OutputError::NotEmpty { .. })));
        assert_eq!(std::fs::read_dir(target).unwrap().count(), 1);
    }
}
