#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::SystemTime;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// As a process leaves it that is killed: the lock goes, what it held stays.
fn killed(mut file: TemporaryFile) {
    file.name = None;
}

fn killed_folder(mut folder: TemporaryFolder) {
    folder.name = None;
}

fn aged(path: &Path, age: Duration) {
    fs::File::open(path).unwrap().set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn what_killed_processes_left_goes_and_what_living_ones_hold_stays() {
    let parent = tempfile::tempdir().unwrap();
    let at = Directory::open(parent.path()).unwrap();
    let name = OsStr::new("out");
    let living = TemporaryFile::create(&at, name).unwrap();
    let folder = TemporaryFolder::create(&at, OsStr::new("other"), 0o777).unwrap();
    let left = TemporaryFolder::create(&at, name, 0o777).unwrap();
    fs::create_dir(left.folder().path().join("sub")).unwrap();
    fs::write(left.folder().path().join("sub/half"), "half").unwrap();
    killed_folder(left);
    killed(TemporaryFile::create(&at, name).unwrap());
    assert_eq!(names(parent.path()).len(), 4);
    clear(&at, &|_| true);
    let held = [living.name.clone().unwrap(), folder.name.clone().unwrap()];
    assert_eq!(names(parent.path()).len(), 2);
    assert!(held.iter().all(|name| parent.path().join(name).exists() && is_living(&at, name)));
    drop((living, folder));
    assert!(names(parent.path()).is_empty());
}

#[test]
fn of_one_name_there_is_one_folder_at_a_time() {
    let parent = tempfile::tempdir().unwrap();
    let at = Directory::open(parent.path()).unwrap();
    let create = |name: &str| TemporaryFolder::create(&at, OsStr::new(name), 0o777);
    let first = create("out").unwrap();
    assert!(matches!(create("out"), Err(NoFolder::Busy)));
    let other = create("out2").unwrap();
    let (long, longer) = ("n".repeat(60), "n".repeat(61));
    let _both = (create(&long).unwrap(), create(&longer).unwrap());
    assert!(matches!(create(&long), Err(NoFolder::Busy)));
    // Of one that was killed the next takes the place, and nothing of what was in it.
    fs::write(first.folder().path().join("half"), "half").unwrap();
    killed_folder(first);
    let second = create("out").unwrap();
    assert!(second.folder().entries().unwrap().is_empty());
    assert!(matches!(create("out"), Err(NoFolder::Busy)));
    drop((second, other));
}

#[test]
fn many_at_once_and_one_has_it() {
    let parent = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let at = Directory::open(parent.path()).unwrap();
        if round % 2 == 0 {
            killed_folder(TemporaryFolder::create(&at, OsStr::new("out"), 0o777).unwrap());
        }
        let barrier = std::sync::Barrier::new(4);
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        TemporaryFolder::create(&at, OsStr::new("out"), 0o777)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1, "round {round}: {made:?}");
        assert!(made.iter().all(|made| matches!(made, Ok(_) | Err(NoFolder::Busy))), "{made:?}");
    }
}

#[test]
fn what_an_earlier_version_left_goes_after_a_day() {
    let parent = tempfile::tempdir().unwrap();
    let at = Directory::open(parent.path()).unwrap();
    let (hour, days) = (Duration::from_secs(3600), Duration::from_secs(48 * 3600));
    for (name, age) in [(".out.tmp-Ab3dEf", days), (".out.tmp-young1", hour), (".another.tmp-Ab3dEf", days)] {
        fs::write(parent.path().join(name), "half").unwrap();
        aged(&parent.path().join(name), age);
    }
    for (name, age) in [(".out.tmp-Folder", days), (".out.tmp-Filled", hour)] {
        fs::create_dir(parent.path().join(name)).unwrap();
        fs::write(parent.path().join(name).join("model"), "half").unwrap();
        aged(&parent.path().join(name).join("model"), age);
        aged(&parent.path().join(name), days);
    }
    clear_of(&at, OsStr::new("out"));
    assert_eq!(names(parent.path()), [".another.tmp-Ab3dEf", ".out.tmp-Filled", ".out.tmp-young1"]);
}

/// Links and folders of the name that a temporary one would have: nothing behind them is touched, and the work goes on.
#[test]
fn planted_names_are_not_followed() {
    let parent = tempfile::tempdir().unwrap();
    let victim = parent.path().join("victim");
    fs::create_dir(&victim).unwrap();
    fs::write(victim.join("file"), "mine").unwrap();
    let place = parent.path().join("place");
    fs::create_dir(&place).unwrap();
    let at = Directory::open(&place).unwrap();
    symlink(&victim, place.join(".out.tmp-janus-folder")).unwrap();
    symlink(victim.join("file"), place.join(".out.tmp-janus-0123456789abcdef")).unwrap();
    symlink(&victim, place.join(".out.tmp-Ab3dEf")).unwrap();
    let folder = TemporaryFolder::create(&at, OsStr::new("out"), 0o777).unwrap();
    fs::write(folder.folder().path().join("model"), "m").unwrap();
    drop(folder);
    let mut file = TemporaryFile::create(&at, OsStr::new("out")).unwrap();
    io::Write::write_all(file.file(), b"x").unwrap();
    drop(file);
    clear(&at, &|_| true);
    assert_eq!(names(&victim), ["file"]);
    assert_eq!(fs::read_to_string(victim.join("file")).unwrap(), "mine");
    assert_eq!(names(&place).len(), 3, "links that nobody here made stay");
}
