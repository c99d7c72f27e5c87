//! Whose a folder is, and who may write to it. Caches may be shared: what lies in one is checked, and one is written to only
//! where not everybody may.

use std::path::Path;

/// Writing of all users, in a folder's mode.
#[cfg(unix)]
const WRITTEN_BY_ALL: u32 = 0o002;

/// What keeps files in a folder to their owners.
#[cfg(unix)]
const STICKY: u32 = 0o1000;

/// The number of the user that a file or folder belongs to, if that is another one than who runs the program; `None` where
/// nothing is there, or the system tells no owners.
pub fn other_owner(path: &Path) -> Option<u32> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let owner = path.metadata().ok()?.uid();
        // SAFETY: it takes nothing and cannot fail.
        let user = unsafe { libc::geteuid() };
        (owner != user).then_some(owner)
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// A folder's mode; 0 where nothing is there.
#[cfg(unix)]
fn mode(folder: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    folder.metadata().map_or(0, |about| if about.is_dir() { about.permissions().mode() } else { 0 })
}

/// Whether every user of the machine may put something else in the place of what lies in a folder: all may write to it, and no
/// sticky bit keeps what is there to its owners.
pub fn is_open_to_all(folder: &Path) -> bool {
    #[cfg(unix)]
    {
        mode(folder) & (WRITTEN_BY_ALL | STICKY) == WRITTEN_BY_ALL
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        false
    }
}

/// Whether what lies in a folder may be taken for what it claims to be, where nothing but itself tells: not where everybody may
/// have put it there.
pub fn is_believable(path: &Path, folder: &Path) -> bool {
    #[cfg(unix)]
    {
        let mode = mode(folder);
        if mode & WRITTEN_BY_ALL == 0 {
            return true;
        }
        let owner = other_owner(path);
        mode & STICKY != 0 && (owner.is_none() || owner == other_owner(folder))
    }
    #[cfg(not(unix))]
    {
        let _ = (path, folder);
        true
    }
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_folder_is_open_to_all_where_all_may_replace_what_is_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        for (mode, open) in [(0o755, false), (0o700, false), (0o775, false), (0o777, true), (0o1777, false)] {
            std::fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_all(folder.path()), open, "{mode:o}");
            assert_eq!(is_believable(&file, folder.path()), !open, "{mode:o}");
        }
        assert!(!is_open_to_all(&folder.path().join("absent")));
        assert_eq!((other_owner(folder.path()), other_owner(&folder.path().join("absent"))), (None, None));
    }
}
