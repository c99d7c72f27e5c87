//! What lies in the cache is checked, whoever put it there; and whose cache it is.

use super::server::{COMMIT, Hub, git_hash, sha256};
use super::*;
use crate::error::{Diagnose, Fault};

const CONFIG: &[u8] = b"{\"a\": 1}";

fn hub() -> Hub {
    Hub::start(&[("config.json", CONFIG), ("tokenizer.json", b"[1]"), ("model.safetensors", b"some weights")])
}

#[test]
fn a_small_file_that_is_not_what_git_calls_it_is_refused() {
    let hub = hub();
    hub.behaviour().sent_instead.insert("config.json".into(), b"{\"a\": 2}".to_vec());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap_err();
    match &error {
        HubError::Digest { file, expected, got } => {
            assert_eq!((file.as_str(), expected, got), ("config.json", &git_hash(CONFIG), &git_hash(b"{\"a\": 2}")));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(error.fault(), Fault::Input);
    let left = tree(cache.path());
    assert!(!left.iter().any(|path| path.contains("/blobs/") || path.contains("/.janus/")), "{left:?}");
}

#[test]
fn a_tag_of_another_host_passes_for_no_digest() {
    let storage = server::Server::start(|_| server::Reply::new(200, CONFIG).with("ETag", "a".repeat(40)));
    let url = storage.url();
    let server = server::Server::start(move |request| match request.path.starts_with("/api/") {
        true => {
            let siblings = [serde_json::json!({ "rfilename": "config.json" })];
            server::Reply::new(200, serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string())
        }
        false => server::Reply::new(302, "").with("Location", url.clone()),
    });
    let cache = tempfile::tempdir().unwrap();
    let mut options = HubOptions { endpoint: server.url(), ..HubOptions::new(cache.path()) };
    let named = NamedFiles { needed: &["config.json"], wanted: &[] };
    let folder = named.fetch(&repository(), &options, &Silent).unwrap();
    options.offline = true;
    assert_eq!(named.fetch(&repository(), &options, &Silent).unwrap(), folder);
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), CONFIG);
}

/// Writes over the bytes behind a name of the snapshot.
fn damage(folder: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(std::fs::canonicalize(folder.join(name)).unwrap(), bytes).unwrap();
}

#[test]
fn what_is_damaged_in_the_cache_is_fetched_again_or_refused() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let online = options(&hub, cache.path());
    let offline = HubOptions { offline: true, ..online.clone() };
    let folder = fetch_repository(&repository(), &online, &Silent).unwrap();
    let base = NamedFiles { needed: &["config.json"], wanted: &["model.safetensors"] };
    for (name, planted, whole) in
        [("config.json", &b"{\"a\": 2}"[..], CONFIG), ("model.safetensors", b"same weights", b"some weights")]
    {
        damage(&folder, name, planted);
        for refused in [
            fetch_repository(&repository(), &offline, &Silent),
            base.fetch(&repository(), &offline, &Silent),
            cached_base("owner/name", &offline).map(Option::unwrap),
        ] {
            let error = refused.unwrap_err();
            assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
            assert!(error.fault() == Fault::Input && error.hints()[0].contains("remove `"), "{:?}", error.hints());
        }
        let progress = Remembered::default();
        assert_eq!(fetch_repository(&repository(), &online, &progress).unwrap(), folder);
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), whole);
        assert!(progress.notes.borrow()[0].contains("it is fetched again"), "{:?}", progress.notes);
        fetch_repository(&repository(), &offline, &Silent).unwrap();

        damage(&folder, name, planted);
        base.fetch(&repository(), &online, &Silent).unwrap();
        assert_eq!(std::fs::read(folder.join(name)).unwrap(), whole);
    }
    // A blob that lies there without a pointer is looked at before it is used.
    damage(&folder, "config.json", b"{\"a\": 3}");
    std::fs::remove_file(folder.join("config.json")).unwrap();
    fetch_repository(&repository(), &online, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), CONFIG);
    // A hub that cannot be reached does not make it good.
    damage(&folder, "config.json", b"{\"a\": 4}");
    drop(hub);
    let error = fetch_repository(&repository(), &online, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn a_pointer_to_another_sound_blob_is_seen_by_our_record() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let online = options(&hub, cache.path());
    let folder = fetch_repository(&repository(), &online, &Silent).unwrap();
    let pointer = folder.join("config.json");
    std::fs::remove_file(&pointer).unwrap();
    std::os::unix::fs::symlink(Path::new("../../blobs").join(git_hash(b"[1]")), &pointer).unwrap();
    let offline = HubOptions { offline: true, ..online.clone() };
    let error = fetch_repository(&repository(), &offline, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
    fetch_repository(&repository(), &online, &Silent).unwrap();
    assert_eq!(std::fs::read(&pointer).unwrap(), CONFIG);
    assert_eq!(std::fs::read(folder.join("tokenizer.json")).unwrap(), b"[1]");
}

#[test]
fn files_that_python_left_without_links_are_used() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let folder = in_repository(cache.path(), &format!("snapshots/{COMMIT}"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::create_dir_all(in_repository(cache.path(), "refs")).unwrap();
    std::fs::write(in_repository(cache.path(), "refs/main"), COMMIT).unwrap();
    for (name, bytes) in [("config.json", CONFIG), ("model.safetensors", b"x"), ("tokenizer.json", b"[1]")] {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    let options = options(&hub, cache.path());
    assert_eq!(fetch_repository(&repository(), &options, &Silent).unwrap(), folder);
    let offline = HubOptions { offline: true, ..options };
    assert_eq!(fetch_repository(&repository(), &offline, &Silent).unwrap(), folder);
}

#[test]
fn tables_are_checked_once_when_they_are_found() {
    let bytes = weights(4000);
    let hub = Hub::start(&[("a.parquet", &bytes)]);
    hub.behaviour().is_dataset = true;
    let cache = tempfile::tempdir().unwrap();
    let open = |offline: bool| {
        let options = HubOptions { offline, ..options(&hub, cache.path()) };
        let id = RepoId::dataset("owner/name").unwrap();
        DatasetRepository::open(id, options, u64::MAX, &Silent).unwrap()
    };
    let path = open(false).shard("a.parquet").unwrap().fetch(&Silent).unwrap();
    let damage = || damage(path.parent().unwrap(), "a.parquet", &weights(4000)[1..]);
    damage();
    let shard = open(true).shard("a.parquet").unwrap();
    assert!(matches!(shard.cached(), Err(HubError::Damaged { .. })));
    assert!(matches!(shard.fetch(&Silent), Err(HubError::Damaged { .. })));
    assert_eq!(open(false).shard("a.parquet").unwrap().cached().unwrap(), None);
    let shard = open(false).shard("a.parquet").unwrap();
    assert_eq!(std::fs::read(shard.fetch(&Silent).unwrap()).unwrap(), bytes);
    assert!(shard.cached().unwrap().is_some());
}

#[test]
fn an_answer_of_another_commit_is_refused() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let other = "f".repeat(40);
    let pinned: RepoId = format!("owner/name@{COMMIT}").parse().unwrap();
    let fetch = || fetch_repository(&pinned, &options(&hub, cache.path()), &Silent);
    hub.behaviour().says_commit = Some(other.clone());
    match fetch().unwrap_err() {
        HubError::OtherCommit { asked, got, .. } => assert_eq!((asked.as_str(), got), (COMMIT, other.clone())),
        error => panic!("{error:?}"),
    }
    hub.behaviour().says_commit = None;
    hub.behaviour().repo_commit = Some(other);
    let error = fetch().unwrap_err();
    assert!(matches!(error, HubError::OtherCommit { .. }) && error.fault() == Fault::Input, "{error:?}");
    assert_eq!(tree(cache.path()), Vec::<String>::new());
    hub.behaviour().repo_commit = Some(COMMIT.into());
    fetch().unwrap();
}

#[cfg(unix)]
#[test]
fn links_pipes_and_giants_in_the_cache_are_not_read() {
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let online = options(&hub, cache.path());
    fetch_repository(&repository(), &online, &Silent).unwrap();
    let reference = in_repository(cache.path(), "refs/main");
    std::fs::remove_file(&reference).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&reference).status().unwrap().success());
    let offline = HubOptions { offline: true, ..online.clone() };
    let error = fetch_repository(&repository(), &offline, &Silent).unwrap_err();
    assert!(matches!(&error, HubError::Offline { file, .. } if file == "refs/main"), "{error:?}");

    // What a transfer is said to have left may claim any length.
    let incomplete = in_repository(cache.path(), &format!("blobs/{}.incomplete", sha256(b"some weights")));
    std::fs::remove_file(in_repository(cache.path(), &format!("blobs/{}", sha256(b"some weights")))).unwrap();
    std::fs::File::create(&incomplete).unwrap().set_len(1 << 40).unwrap();
    std::fs::remove_file(&reference).unwrap();
    let begun = std::time::Instant::now();
    let folder = fetch_repository(&repository(), &online, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"some weights");
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[cfg(unix)]
#[test]
fn a_cache_that_everybody_may_change_is_read_and_not_written() {
    use std::os::unix::fs::PermissionsExt;
    let hub = hub();
    let cache = tempfile::tempdir().unwrap();
    let set = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let options = options(&hub, cache.path());
    set(cache.path(), 0o777);
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::OpenToAll { .. }) && error.fault() == Fault::Input, "{error:?}");
    assert!(error.hints().iter().any(|hint| hint.contains("chmod o-w")), "{:?}", error.hints());
    assert_eq!(tree(cache.path()), Vec::<String>::new());
    // As `/tmp` is, where each may change what is his own.
    set(cache.path(), 0o1777);
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    for open in [cache.path().to_path_buf(), in_repository(cache.path(), "blobs")] {
        set(&open, 0o777);
        let before = tree(cache.path());
        assert_eq!(fetch_repository(&repository(), &options, &Silent).unwrap(), folder);
        // An earlier commit does, where a later one cannot be kept.
        let later = COMMIT.replace('0', "f");
        let earlier = std::mem::replace(&mut hub.behaviour().commit, later);
        let told = Remembered::default();
        assert_eq!(fetch_repository(&repository(), &options, &told).unwrap(), folder);
        assert!(told.notes.borrow()[0].contains("nothing is written to the cache"), "{:?}", told.notes);
        hub.behaviour().commit = earlier;
        damage(&folder, "config.json", b"{\"a\": 2}");
        let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
        assert!(matches!(error, HubError::Damaged { .. }), "{error:?}");
        damage(&folder, "config.json", CONFIG);
        assert_eq!(tree(cache.path()), before);
        set(&open, 0o755);
    }
}

#[cfg(unix)]
#[test]
fn a_cache_of_another_user_has_to_be_named() {
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("huggingface");
    // SAFETY: it takes nothing and cannot fail.
    if unsafe { libc::geteuid() } == 0 {
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
    } else {
        std::os::unix::fs::symlink("/", &theirs).unwrap();
    }
    let from = |variables: &[(&str, &Path)]| {
        HubOptions::from_lookup(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.as_os_str().to_owned())
        })
    };
    let error = from(&[("XDG_CACHE_HOME", folder.path())]).unwrap_err();
    assert!(matches!(&error, HubError::ForeignCache { path, .. } if *path == theirs), "{error:?}");
    assert!(error.fault() == Fault::Input && error.hints()[0].contains("HF_HOME"), "{:?}", error.hints());
    assert_eq!(from(&[("HF_HOME", &theirs)]).unwrap().cache_dir, theirs.join("hub"));
    assert_eq!(from(&[("HF_HUB_CACHE", &theirs), ("HOME", folder.path())]).unwrap().cache_dir, theirs);
}
