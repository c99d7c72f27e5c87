//! Downloads that are refused, and that nothing is left of.

use super::server::{Hub, Reply, Server, sha256};
use super::*;
use crate::error::{Diagnose, Fault};

fn fetch_error(hub: &Hub, cache: &Path) -> HubError {
    fetch_repository(&repository(), &options(hub, cache), &Silent).unwrap_err()
}

fn assert_nothing_is_usable(cache: &Path) {
    assert!(!in_repository(cache, "refs").exists());
    assert!(!in_repository(cache, "snapshots").exists());
}

#[test]
fn a_file_with_another_digest_is_refused_and_not_kept() {
    let bytes = weights(5000);
    let mut wrong = bytes.clone();
    wrong[4000] ^= 1;
    let hub = simple_hub(&bytes);
    hub.behaviour().sent_instead.insert("model.safetensors".to_string(), wrong.clone());
    let cache = tempfile::tempdir().unwrap();
    match fetch_error(&hub, cache.path()) {
        HubError::Digest { file, expected, got } => {
            assert_eq!((file.as_str(), expected, got), ("model.safetensors", sha256(&bytes), sha256(&wrong)));
        }
        other => panic!("{other:?}"),
    }
    let left = tree(cache.path());
    assert!(!left.iter().any(|path| path.contains("/blobs/") && path.contains(&sha256(&bytes))), "{left:?}");
    assert_nothing_is_usable(cache.path());
}

#[test]
fn the_digest_covers_what_an_earlier_run_left() {
    let bytes = weights(5000);
    let hub = simple_hub(&bytes);
    let cache = tempfile::tempdir().unwrap();
    let incomplete = in_repository(cache.path(), &format!("blobs/{}.incomplete", sha256(&bytes)));
    std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::fs::write(&incomplete, [7; 100]).unwrap();
    assert!(matches!(fetch_error(&hub, cache.path()), HubError::Digest { .. }));
    assert!(!incomplete.exists());
    let folder = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
}

#[test]
fn a_file_of_another_size_is_refused() {
    for (sent, cuts) in [(4000, 0), (6000, 0), (6000, 1)] {
        let bytes = weights(5000);
        let hub = simple_hub(&bytes);
        {
            let mut behaviour = hub.behaviour();
            behaviour.sent_instead.insert("model.safetensors".to_string(), weights(sent));
            behaviour.cuts = cuts;
            behaviour.cut_after = 1000;
        }
        let cache = tempfile::tempdir().unwrap();
        match fetch_error(&hub, cache.path()) {
            HubError::Size { expected_bytes: 5000, got_bytes, .. } => assert_eq!(got_bytes, sent as u64),
            other => panic!("{other:?}"),
        }
        assert_nothing_is_usable(cache.path());
    }
}

#[test]
fn a_range_other_than_asked_for_is_not_appended() {
    let bytes = weights(5000);
    let sent = bytes.clone();
    let server = Server::start(move |request| {
        if request.path.starts_with("/api/") {
            let listing = serde_json::json!({
                "sha": server::COMMIT,
                "siblings": [{ "rfilename": "config.json" }, { "rfilename": "model.safetensors" }],
            });
            return Reply::new(200, listing.to_string());
        }
        if request.path.ends_with("config.json") {
            return Reply::new(200, "{}").with("ETag", "abc");
        }
        let mut reply = match request.header("range") {
            // A cache that sends the start, whatever was asked for.
            Some(_) => Reply::new(206, &sent[..1000]).with("Content-Range", "bytes 0-999/5000"),
            None => Reply::new(200, &sent[..]),
        }
        .with("ETag", format!("\"{}\"", sha256(&sent)));
        reply.cut_after = request.header("range").is_none().then_some(5000);
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        endpoint: server.url(),
        patience: Patience { attempts: 3, first_wait: Duration::from_millis(1), silence: Duration::from_secs(2) },
        ..HubOptions::new(cache.path())
    };
    let incomplete = in_repository(cache.path(), &format!("blobs/{}.incomplete", sha256(&bytes)));
    std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
    std::fs::write(&incomplete, &bytes[..2000]).unwrap();
    let folder = fetch_repository(&repository(), &options, &Silent).unwrap();
    assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), bytes);
}

#[test]
fn an_early_end_is_a_cut_though_the_server_calls_it_the_end() {
    let server = Server::start(|request| {
        if request.path.starts_with("/api/") {
            let siblings = [
                serde_json::json!({ "rfilename": "config.json" }),
                serde_json::json!({ "rfilename": "model.safetensors" }),
            ];
            return Reply::new(200, serde_json::json!({ "sha": server::COMMIT, "siblings": siblings }).to_string());
        }
        Reply::new(200, "2\r\n{}\r\n0\r\n\r\n")
            .with("Transfer-Encoding", "chunked")
            .with("ETag", "\"abc\"")
            .with("X-Linked-Size", "5000")
    });
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        endpoint: server.url(),
        patience: Patience { attempts: 2, first_wait: Duration::ZERO, silence: Duration::from_secs(2) },
        ..HubOptions::new(cache.path())
    };
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Interrupted { have_bytes: 2, total_bytes: Some(5000), .. }), "{error:?}");
    assert_nothing_is_usable(cache.path());
}

#[test]
fn answers_of_no_use_are_not_asked_for_again_and_again() {
    let requests = |reply: fn() -> Reply| {
        let server = Server::start(move |_| reply());
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions {
            endpoint: server.url(),
            patience: Patience { attempts: 6, first_wait: Duration::ZERO, silence: Duration::from_secs(2) },
            ..HubOptions::new(cache.path())
        };
        let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
        assert!(!error.hints().is_empty(), "{error:?}");
        (server.take_seen().len(), error)
    };
    let malformed: [fn() -> Reply; 3] = [
        || Reply::new(200, "{}").with("Content-Length", "-1"),
        || Reply::new(200, "fffffffffffffffff\r\n{}").with("Transfer-Encoding", "chunked"),
        || Reply::new(200, "{}").with("X-Long", "x".repeat(1 << 20)),
    ];
    for reply in malformed {
        let (count, error) = requests(reply);
        assert!(count == 1 && matches!(error, HubError::Malformed { .. }), "{count} {error:?}");
        assert_eq!(error.fault(), Fault::Input);
    }
    // Every answer ends too soon: that may be a line of no use as well.
    let (count, error) = requests(|| Reply { cut_after: Some(1), ..Reply::new(200, "{}") });
    assert!(count == 3 && matches!(error, HubError::Unreachable { .. }), "{count} {error:?}");
    // A busy server is waited for longer.
    assert_eq!(requests(|| Reply::new(503, "")).0, 6);
}

#[test]
fn a_silent_server_is_given_up() {
    let server = Server::start(|_| {
        let mut reply = Reply::new(200, "{}");
        reply.delay = Duration::from_millis(1500);
        reply
    });
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        endpoint: server.url(),
        patience: Patience { attempts: 1, first_wait: Duration::ZERO, silence: Duration::from_millis(100) },
        ..HubOptions::new(cache.path())
    };
    let start = std::time::Instant::now();
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Unreachable { .. }), "{error:?}");
    assert!(start.elapsed() < Duration::from_millis(1400));
    assert_eq!(error.fault(), Fault::Internal);
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    let hub = simple_hub(b"some weights");
    hub.behaviour().token = Some("right".to_string());
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_error(&hub, cache.path());
    assert!(matches!(error, HubError::Denied { status: 401, gated: true, token_sent: false, .. }), "{error:?}");
    assert!(error.hints()[0].contains("HF_TOKEN"));
    assert_eq!(error.fault(), Fault::Input);
    assert_eq!(hub.server.take_seen().len(), 1, "asking again would not help");

    let wrong = HubOptions { token: Some("wrong".to_string()), ..options(&hub, cache.path()) };
    let error = fetch_repository(&repository(), &wrong, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Denied { token_sent: true, .. }), "{error:?}");
    assert!(!format!("{error:?} {error} {:?}", error.hints()).contains("wrong"));

    let broken = HubOptions { token: Some("line\nbreak".to_string()), ..options(&hub, cache.path()) };
    assert!(matches!(fetch_repository(&repository(), &broken, &Silent), Err(HubError::Token)));
    let right = HubOptions { token: Some("right".to_string()), ..options(&hub, cache.path()) };
    fetch_repository(&repository(), &right, &Silent).unwrap();
}

#[test]
fn what_the_hub_does_not_have_is_named() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    let fetch =
        |spec: &str| fetch_repository(&spec.parse().unwrap(), &options(&hub, cache.path()), &Silent).unwrap_err();
    let error = fetch("owner/other");
    assert!(matches!(error, HubError::NoRepository { .. }), "{error:?}");
    assert!(error.to_string().contains("owner/other") && error.to_string().contains(&hub.endpoint()));
    let error = fetch("owner/name@v9");
    assert!(matches!(error, HubError::NoRevision { .. }), "{error:?}");
    assert!(error.to_string().contains("`v9`"));
    hub.behaviour().also_listed.push("tokenizer_config.json".to_string());
    match fetch("owner/name") {
        HubError::MissingFile { file, .. } => assert_eq!(file, "tokenizer_config.json"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hostile_listing_writes_nothing() {
    for name in ["../x.json", "/etc/x.json", "a/../../x.json", "..\\x.json", "C:x.json", "", "a//b.json", "x\n.json"] {
        let hub = simple_hub(b"some weights");
        hub.behaviour().also_listed.push(name.to_string());
        let outer = tempfile::tempdir().unwrap();
        match fetch_error(&hub, &outer.path().join("cache")) {
            HubError::UnsafeName { name: told, .. } => assert_eq!(told, name),
            other => panic!("{name:?}: {other:?}"),
        }
        assert_eq!(tree(outer.path()), Vec::<String>::new(), "{name:?}");
    }
}

#[test]
fn a_hostile_commit_or_entity_tag_writes_nothing() {
    for commit in ["../../../escape", "main", "", "0123456789ABCDEF0123456789ABCDEF01234567"] {
        let hub = simple_hub(b"some weights");
        hub.behaviour().commit = commit.to_string();
        let outer = tempfile::tempdir().unwrap();
        let error = fetch_error(&hub, &outer.path().join("cache"));
        assert!(matches!(error, HubError::Listing { .. }), "{error:?}");
        assert_eq!(tree(outer.path()), Vec::<String>::new(), "{commit:?}");
    }
    for etag in ["../../escape", "", "a/b", "..", "a.incomplete", &"x".repeat(300)] {
        let hub = simple_hub(b"some weights");
        hub.behaviour().etag = Some(etag.to_string());
        let outer = tempfile::tempdir().unwrap();
        let error = fetch_error(&hub, &outer.path().join("cache"));
        assert!(matches!(error, HubError::EntityTag { .. }), "{error:?}");
        assert_eq!(tree(outer.path()), Vec::<String>::new(), "{etag:?}");
    }
}

#[test]
fn a_listing_that_is_no_listing_is_refused() {
    for body in ["", "[]", "{\"siblings\": []}", "<html>sign in</html>", "{\"sha\": 1}"] {
        let server = Server::start(move |_| Reply::new(200, body));
        let cache = tempfile::tempdir().unwrap();
        let options = HubOptions { endpoint: server.url(), ..HubOptions::new(cache.path()) };
        let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
        assert!(matches!(error, HubError::Listing { .. }), "{error:?}");
    }
}

#[test]
fn redirections_end() {
    let server = Server::start(|request| Reply::new(302, "").with("Location", request.path.clone()));
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions { endpoint: server.url(), ..HubOptions::new(cache.path()) };
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Redirect { .. }), "{error:?}");
    assert!(server.take_seen().len() < 20);

    let server = Server::start(|_| Reply::new(302, "").with("Location", "file:///etc/passwd"));
    let options = HubOptions { endpoint: server.url(), ..options };
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    assert!(matches!(error, HubError::Redirect { .. }), "{error:?}");
}

#[test]
fn an_endpoint_must_be_an_address() {
    let cache = tempfile::tempdir().unwrap();
    for endpoint in ["", "huggingface.co", "ftp://hub.test", "https://", "http://user:word@hub.test", "http://h/?x"] {
        let options = HubOptions { endpoint: endpoint.to_string(), ..HubOptions::new(cache.path()) };
        let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
        assert!(matches!(error, HubError::Endpoint { .. }), "{endpoint}: {error:?}");
        assert!(!error.to_string().contains("word"));
    }
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_do_not_lead_writes_out_of_it() {
    use std::os::unix::fs::symlink;
    let bytes = weights(1000);
    let hub = simple_hub(&bytes);
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, b"mine").unwrap();

    let cache = tempfile::tempdir().unwrap();
    let blobs = in_repository(cache.path(), "blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    symlink(&victim, blobs.join(format!("{}.incomplete", sha256(&bytes)))).unwrap();
    let error = fetch_error(&hub, cache.path());
    assert!(matches!(error, HubError::Occupied { expected: "file", .. }), "{error:?}");

    let cache = tempfile::tempdir().unwrap();
    let snapshots = in_repository(cache.path(), "snapshots");
    std::fs::create_dir_all(&snapshots).unwrap();
    symlink(outside.path(), snapshots.join(server::COMMIT)).unwrap();
    let error = fetch_error(&hub, cache.path());
    assert!(matches!(error, HubError::Occupied { expected: "folder", .. }), "{error:?}");

    assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}
