//! Downloads that succeed in the end.

use std::thread;

use super::server::{COMMIT, Hub, Reply, Seen, Server, git_hash, is_weights, ranged, sha256};
use super::*;

fn ranges_of_weights(seen: &[Seen]) -> Vec<Option<String>> {
    seen.iter()
        .filter(|request| request.method == "GET" && is_weights(&request.path))
        .map(|request| request.header("range").map(str::to_string))
        .collect()
}

#[test]
fn a_download_has_the_layout_of_the_python_cache() {
    let bytes = weights(5000);
    let hub = simple_hub(&bytes);
    let cache = tempfile::tempdir().unwrap();
    let progress = Remembered::default();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &progress).unwrap();
    assert_eq!(folder, in_repository(cache.path(), &format!("snapshots/{COMMIT}")));
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(std::fs::read(folder.join("config.json")).unwrap(), b"{}");
    let locks = ".locks/models--owner--name";
    let mut expected = vec![format!("models--owner--name/refs/main")];
    for (name, etag) in
        [("config.json", git_hash(b"{}")), ("tokenizer.json", git_hash(b"[1]")), ("model.safetensors", sha256(&bytes))]
    {
        expected.push(format!("{locks}/{etag}.lock"));
        expected.push(format!("models--owner--name/blobs/{etag}"));
        expected.push(format!("models--owner--name/snapshots/{COMMIT}/{name}"));
        #[cfg(unix)]
        assert_eq!(std::fs::read_link(folder.join(name)).unwrap(), Path::new("../../blobs").join(&etag));
    }
    expected.sort();
    // Beside that only records of which files are ours.
    let mut found = tree(cache.path());
    found.retain(|path| !path.starts_with("models--owner--name/.janus/"));
    assert_eq!(found, expected);
    assert_eq!(std::fs::read_to_string(in_repository(cache.path(), "refs/main")).unwrap(), COMMIT);
    assert_eq!(
        *progress.files.borrow(),
        [
            ("config.json".to_string(), Some(2), 0),
            ("tokenizer.json".to_string(), Some(3), 0),
            ("model.safetensors".to_string(), Some(5000), 0)
        ]
    );
    assert_eq!(*progress.finished_bytes.borrow(), [2, 3, 5000]);

    hub.server.take_seen();
    let again = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap();
    assert_eq!(again, folder);
    let seen = hub.server.take_seen();
    assert_eq!(seen.len(), 1, "only the commit is asked for: {seen:?}");
    assert_eq!(seen[0].path, "/api/models/owner/name/revision/main");
}

#[test]
fn a_cut_transfer_continues_where_it_was_cut() {
    let bytes = weights(700_000);
    let hub = simple_hub(&bytes);
    hub.behaviour().cuts = 2;
    hub.behaviour().cut_after = 300_000;
    let cache = tempfile::tempdir().unwrap();
    let progress = Remembered::default();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &progress).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(
        ranges_of_weights(&hub.server.take_seen()),
        [None, Some("bytes=300000-".to_string()), Some("bytes=600000-".to_string())]
    );
    assert_eq!(progress.finished_bytes.borrow().last(), Some(&700_000));
}

#[test]
fn a_transfer_cut_again_and_again_fails_and_the_next_run_completes_it() {
    let bytes = weights(10_000);
    let hub = simple_hub(&bytes);
    hub.behaviour().cuts = usize::MAX;
    hub.behaviour().cut_after = 1000;
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap_err();
    match &error {
        HubError::Interrupted { file, attempts: 3, have_bytes: 3000, total_bytes: Some(10_000), .. } => {
            assert_eq!(file, "model.safetensors");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(ranges_of_weights(&hub.server.take_seen()).len(), 3);
    let incomplete = in_repository(cache.path(), &format!("blobs/{}.incomplete", sha256(&bytes)));
    assert_eq!(std::fs::read(&incomplete).unwrap(), bytes[..3000]);
    assert!(!in_repository(cache.path(), "snapshots").exists());

    hub.behaviour().cuts = 0;
    let progress = Remembered::default();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &progress).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert!(!incomplete.exists());
    let seen = hub.server.take_seen();
    assert_eq!(ranges_of_weights(&seen), [Some("bytes=3000-".to_string())]);
    assert!(
        !seen.iter().any(|request| request.method == "GET" && request.path.ends_with(".json")),
        "what is there is not sent again"
    );
    assert_eq!(*progress.files.borrow(), [("model.safetensors".to_string(), Some(10_000), 3000)]);
}

#[test]
fn a_server_that_cannot_continue_sends_the_file_anew() {
    let bytes = weights(10_000);
    let hub = simple_hub(&bytes);
    hub.behaviour().cuts = 1;
    hub.behaviour().cut_after = 4000;
    hub.behaviour().knows_ranges = false;
    let cache = tempfile::tempdir().unwrap();
    let progress = Remembered::default();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &progress).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(ranges_of_weights(&hub.server.take_seen()), [None, Some("bytes=4000-".to_string())]);
    let files = progress.files.borrow();
    assert_eq!(files.iter().filter(|(name, ..)| name == "model.safetensors").count(), 2, "told that it starts over");
    assert_eq!(progress.finished_bytes.borrow().last(), Some(&10_000));
}

#[test]
fn what_is_longer_than_the_file_is_dropped() {
    let bytes = weights(1000);
    let hub = simple_hub(&bytes);
    let cache = tempfile::tempdir().unwrap();
    let incomplete = in_repository(cache.path(), &format!("blobs/{}.incomplete", sha256(&bytes)));
    std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::fs::write(&incomplete, weights(2000)).unwrap();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(ranges_of_weights(&hub.server.take_seen()), [None]);
}

#[test]
fn chunks_of_an_unannounced_number_are_taken() {
    let bytes = weights(10_500);
    let hub = simple_hub(&bytes);
    hub.behaviour().chunked = true;
    hub.behaviour().cuts = 1;
    hub.behaviour().cut_after = 4000;
    let cache = tempfile::tempdir().unwrap();
    let progress = Remembered::default();
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &progress).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert_eq!(progress.files.borrow().last().unwrap().1, None);
}

#[test]
fn an_endpoint_may_have_a_path() {
    let hub =
        Hub::start_below("/mirror/hf", &[("config.json", b"{}"), ("model.safetensors", b"weights of some length")]);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(&hub, cache.path());
    options.endpoint.push('/');
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"weights of some length");
    for request in hub.server.take_seen() {
        assert!(request.path.starts_with("/mirror/hf/") && !request.path.contains("//"), "{}", request.path);
    }
}

#[test]
fn a_revision_is_asked_for_and_recorded_by_its_name() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let id = "owner/name@refs/pr/1".parse().unwrap();
    fetch_repository(&id, &options(&hub, cache.path()), &Silent).unwrap();
    assert_eq!(std::fs::read_to_string(in_repository(cache.path(), "refs/refs/pr/1")).unwrap(), COMMIT);
    assert_eq!(hub.server.take_seen()[0].path, "/api/models/owner/name/revision/refs%2Fpr%2F1");

    let pinned = format!("owner/name@{COMMIT}").parse().unwrap();
    fetch_repository(&pinned, &options(&hub, cache.path()), &Silent).unwrap();
    assert!(!in_repository(cache.path(), &format!("refs/{COMMIT}")).exists());
    let offline = HubOptions { offline: true, ..options(&hub, cache.path()) };
    fetch_repository(&pinned, &offline, &Silent).unwrap();
}

#[test]
fn the_token_stays_with_the_hub() {
    let bytes = weights(3000);
    let stored = bytes.clone();
    let storage = Server::start(move |request| {
        if request.path != "/model.safetensors?signature=secret" {
            return Reply::new(403, "wrong signature");
        }
        ranged(request, &stored, true)
    });
    let hub = simple_hub(&bytes);
    hub.behaviour().storage = Some(storage.url());
    hub.behaviour().token = Some("hf_secret".to_string());
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { token: Some("hf_secret".to_string()), ..options(&hub, cache.path()) };
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
    assert!(hub.server.take_seen().iter().all(|request| request.header("authorization") == Some("Bearer hf_secret")));
    let at_storage = storage.take_seen();
    assert_eq!(at_storage.len(), 1, "the size and digest come from the hub: {at_storage:?}");
    assert_eq!(at_storage[0].header("authorization"), None);
    assert!(!format!("{options:?}").contains("hf_secret"));
}

#[test]
fn a_signature_that_expired_is_renewed_by_the_hub() {
    let bytes = weights(3000);
    let stored = bytes.clone();
    let refusals = std::sync::atomic::AtomicUsize::new(1);
    let storage = Server::start(move |request| {
        use std::sync::atomic::Ordering::SeqCst;
        if refusals.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Reply::new(403, "expired");
        }
        ranged(request, &stored, true)
    });
    let hub = simple_hub(&bytes);
    hub.behaviour().storage = Some(storage.url());
    let cache = tempfile::tempdir().unwrap();
    fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap();
    assert_eq!(ranges_of_weights(&hub.server.take_seen()).len(), 2, "the hub was asked again");
}

#[test]
fn a_busy_hub_is_asked_again() {
    let hub = simple_hub(b"some weights");
    hub.behaviour().busy = 2;
    let cache = tempfile::tempdir().unwrap();
    fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap();
    let cache = tempfile::tempdir().unwrap();
    hub.behaviour().busy = 3;
    let error = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Status { status: 503, transient: true, .. }), "{error:?}");
}

#[test]
fn two_at_once_download_each_file_once() {
    let bytes = weights(300_000);
    let hub = simple_hub(&bytes);
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
                assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
            });
        }
    });
    let seen = hub.server.take_seen();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let transfers = seen.iter().filter(|request| request.method == "GET" && request.path.ends_with(name)).count();
        assert_eq!(transfers, 1, "{name}");
    }
}

#[test]
fn offline_takes_what_the_cache_has_and_sends_nothing() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let online = options(&hub, cache.path());
    let offline = HubOptions { offline: true, ..online.clone() };
    let missing = |expected: &str| match fetch_repository(&repository(), &offline, &Silent).unwrap_err() {
        error @ HubError::Offline { .. } => {
            let text = error.to_string();
            for part in [expected, "HF_HUB_OFFLINE", cache.path().to_str().unwrap()] {
                assert!(text.contains(part), "{text}");
            }
        }
        other => panic!("{other:?}"),
    };
    missing("refs/main");
    assert_eq!(tree(cache.path()), Vec::<String>::new());
    assert!(hub.server.take_seen().is_empty());

    let folder = fetch_repository(&repository(), &online, &Silent).unwrap();
    hub.server.take_seen();
    assert_eq!(fetch_repository(&repository(), &offline, &Silent).unwrap(), folder);
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    missing("model.safetensors");
    std::fs::remove_file(folder.join("config.json")).unwrap();
    missing("config.json");
    assert!(hub.server.take_seen().is_empty());
}

#[test]
fn without_a_network_the_cache_serves_and_says_so() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    drop(hub);
    let progress = Remembered::default();
    assert_eq!(fetch_repository(&repository(), &options, &progress).unwrap(), folder);
    assert_eq!(progress.notes.borrow().len(), 1);
    assert!(progress.notes.borrow()[0].contains(&options.endpoint), "{:?}", progress.notes);

    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
}

#[test]
fn an_update_that_is_cut_leaves_the_old_commit_in_use() {
    let hub = simple_hub(b"old weights");
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());
    let old = fetch_repository(&repository(), &options, &Silent).unwrap();
    let commit = COMMIT.replace('0', "f");
    {
        let mut behaviour = hub.behaviour();
        behaviour.commit = commit.clone();
        behaviour.files.insert("model.safetensors".to_string(), b"new weights".to_vec());
        behaviour.cuts = 3;
    }
    fetch_repository(&repository(), &options, &Silent).unwrap_err();
    let offline = HubOptions { offline: true, ..options.clone() };
    assert_eq!(fetch_repository(&repository(), &offline, &Silent).unwrap(), old);

    hub.server.take_seen();
    let new = fetch_repository(&repository(), &options, &Silent).unwrap();
    assert!(new.ends_with(&commit));
    assert_eq!(std::fs::read(new.join("model.safetensors")).unwrap(), b"new weights");
    assert_eq!(std::fs::read(old.join("model.safetensors")).unwrap(), b"old weights");
    let seen = hub.server.take_seen();
    assert!(!seen.iter().any(|r| r.method == "GET" && r.path.ends_with("config.json")), "a known blob is used again");
    assert_eq!(fetch_repository(&repository(), &offline, &Silent).unwrap(), new);
}

#[cfg(unix)]
#[test]
fn a_pointer_to_nothing_is_replaced() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let options = options(&hub, cache.path());
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    std::fs::remove_file(std::fs::canonicalize(folder.join("model.safetensors")).unwrap()).unwrap();
    fetch_repository(&repository(), &options, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), b"some weights");
}
