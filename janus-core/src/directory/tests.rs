#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

/// A folder with a file and a folder of its own, beside a folder of somebody else.
fn place() -> (tempfile::TempDir, PathBuf, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let (own, other) = (parent.path().join("own"), parent.path().join("other"));
    fs::create_dir_all(own.join("sub")).unwrap();
    fs::create_dir_all(other.join("sub")).unwrap();
    fs::write(own.join("sub/file"), "own").unwrap();
    fs::write(other.join("sub/file"), "secret").unwrap();
    (parent, own, other)
}

fn text(mut file: File) -> String {
    let mut text = String::new();
    io::Read::read_to_string(&mut file, &mut text).unwrap();
    text
}

#[test]
fn no_link_is_followed_in_it_for_whatever_is_done() {
    let (_parent, own, other) = place();
    let folder = Directory::open(&own).unwrap();
    symlink(&other, own.join("link")).unwrap();
    symlink(other.join("sub/file"), own.join("file")).unwrap();
    symlink(own.join("sub"), own.join("inside")).unwrap();
    for name in ["link/sub/file", "file", "inside/file", "link/sub/new"] {
        let opened = [folder.open_file(name), folder.update_file(name)];
        assert!(opened.iter().all(|opened| opened.as_ref().is_err_and(is_of_link)), "{name}: {opened:?}");
    }
    assert!(is_of_link(&folder.create_file("link/new").unwrap_err()));
    assert!(is_of_link(&folder.folder("link").unwrap_err()));
    assert!(is_of_link(&folder.make_folder("link/new").unwrap_err()));
    assert!(is_of_link(&folder.remove_all("link/sub").unwrap_err()));
    assert!(is_of_link(&folder.rename("sub/file", &folder, "link/file").unwrap_err()));
    assert!(folder.create_file("file").is_err(), "not through a link either");
    assert_eq!(folder.about("file").unwrap().unwrap().kind, Kind::Link);
    // Of a link the link itself goes.
    folder.remove_all("link").unwrap();
    folder.remove_all("file").unwrap();
    assert_eq!(fs::read_to_string(other.join("sub/file")).unwrap(), "secret");
    assert_eq!(text(folder.open_file("./sub/file").unwrap()), "own");
}

#[test]
fn names_lead_nowhere_else() {
    let (_parent, own, _) = place();
    let folder = Directory::open(&own).unwrap();
    for name in ["..", "../other/sub/file", "sub/../../other", "/etc/passwd", ""] {
        assert_eq!(folder.open_file(name).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        assert!(folder.remove_all(name).is_err() && folder.create_file(name).is_err(), "{name}");
    }
    assert!(folder.about("none/at/all").unwrap().is_none());
    assert_eq!(folder.open_file("sub").unwrap_err().kind(), io::ErrorKind::IsADirectory);
}

#[test]
fn it_stays_the_folder_that_was_opened() {
    let (parent, own, other) = place();
    let folder = Directory::open(&own).unwrap();
    let sub = folder.folder("sub").unwrap();
    fs::rename(&own, parent.path().join("moved")).unwrap();
    symlink(&other, &own).unwrap();
    assert_eq!(text(sub.open_file("file").unwrap()), "own");
    folder.create_file("new").unwrap();
    folder.remove_all("sub").unwrap();
    assert!(parent.path().join("moved/new").exists() && !parent.path().join("moved/sub").exists());
    assert_eq!(fs::read_to_string(other.join("sub/file")).unwrap(), "secret");
}

#[test]
fn what_is_no_file_is_not_opened_and_not_waited_for() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Directory::open(parent.path()).unwrap();
    let pipe = std::ffi::CString::new(parent.path().join("pipe").to_str().unwrap()).unwrap();
    // SAFETY: a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    for opened in [folder.open_file("pipe"), folder.update_file("pipe")] {
        assert_eq!(opened.unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}

#[test]
fn it_can_be_told_who_may_write_to_it() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Directory::open(parent.path()).unwrap();
    for (mode, is_for_all) in [(0o777, true), (0o1777, false), (0o775, false), (0o770, false), (0o702, true)] {
        fs::set_permissions(parent.path(), fs::Permissions::from_mode(mode)).unwrap();
        let about = folder.about_itself().unwrap();
        assert_eq!((about.is_for_all, about.mode), (is_for_all, mode), "{mode:o}");
        assert!(about.is_own && about.kind == Kind::Folder);
    }
    fs::set_permissions(parent.path(), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn folders_without_an_end_are_not_removed_with_a_handle_for_each() {
    let parent = tempfile::tempdir().unwrap();
    let folder = Directory::open(parent.path()).unwrap();
    let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 2).collect();
    fs::create_dir_all(parent.path().join(&deep)).unwrap();
    assert!(folder.remove_all("d").unwrap_err().to_string().contains("deep"));
    let shallow: PathBuf = std::iter::repeat_n("s", MAX_DEPTH).collect();
    fs::create_dir_all(parent.path().join(&shallow)).unwrap();
    folder.remove_all("s").unwrap();
    assert!(!parent.path().join("s").exists());
}
