//! Hubs that send too much, too many, or for ever.

use super::server::{COMMIT, Hub, Reply, Server, git_hash};
use super::*;
use crate::error::{Diagnose, Fault};

fn limited(hub: &Hub, cache: &Path, file_bytes: u64) -> HubOptions {
    HubOptions { limits: Limits { file_bytes: Some(file_bytes), ..Limits::default() }, ..options(hub, cache) }
}

/// A refusal with this in its hint, of which no byte is left.
#[track_caller]
fn assert_refused(error: &HubError, hint: &str, cache: &Path) {
    assert_eq!(error.fault(), Fault::Input, "{error:?}");
    assert!(error.hints().iter().any(|text| text.contains(hint)), "{:?}", error.hints());
    let left = tree(cache);
    assert!(!left.iter().any(|path| path.ends_with(".incomplete") || path.contains("/.janus/")), "{left:?}");
    assert!(!in_repository(cache, "snapshots").exists() && !in_repository(cache, "refs").exists(), "{left:?}");
}

#[test]
fn a_small_file_that_goes_on_and_on_ends_at_its_limit() {
    let server = Server::start(|request| {
        if request.path.starts_with("/api/") {
            let siblings = ["config.json", "model.safetensors", "tokenizer.json"];
            let siblings = siblings.map(|name| serde_json::json!({ "rfilename": name }));
            return Reply::new(200, serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string());
        }
        let endless = request.path.ends_with("tokenizer.json");
        let body = if endless { "400\r\n".to_string() + &"x".repeat(1024) + "\r\n" } else { "2\r\n{}\r\n".into() };
        let body = if endless { body.repeat(200) } else { body + "0\r\n\r\n" };
        let etag = if endless { "1".repeat(40) } else { git_hash(b"{}") };
        Reply::new(200, body).with("Transfer-Encoding", "chunked").with("ETag", etag)
    });
    let cache = tempfile::tempdir().unwrap();
    let limits = Limits { file_bytes: Some(100_000), ..Limits::default() };
    let options = HubOptions { endpoint: server.url(), limits, ..HubOptions::new(cache.path()) };
    let error = fetch_repository(&repository(), &options, &Silent).unwrap_err();
    match &error {
        HubError::TooLarge { file, got_bytes, limit_bytes: 100_000, is_told: false } => {
            assert!(file == "tokenizer.json" && *got_bytes > 100_000, "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert!(error.hints()[0].contains("JANUS_HUB_MAX_FILE_BYTES") && error.fault() == Fault::Input);
    let left = tree(cache.path());
    assert!(!left.iter().any(|path| path.contains(&"1".repeat(40)) && !path.ends_with(".lock")), "{left:?}");
}

#[test]
fn a_file_that_is_announced_too_long_is_not_begun() {
    let bytes = weights(5000);
    for (hub, limit) in
        [(simple_hub(&bytes), 4999), (Hub::start(&[("config.json", &bytes), ("model.safetensors", b"x")]), 10)]
    {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch_repository(&repository(), &limited(&hub, cache.path(), limit), &Silent).unwrap_err();
        assert!(matches!(error, HubError::TooLarge { got_bytes: 5000, .. }), "{error:?}");
        let seen = hub.server.take_seen();
        assert_eq!(seen.last().unwrap().method, "HEAD", "{seen:?}");
        fetch_repository(&repository(), &limited(&hub, cache.path(), 5000), &Silent).unwrap();
    }
    // A bound on what nobody told before, too.
    let hub = simple_hub(&bytes);
    hub.behaviour().chunked = true;
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_repository(&repository(), &limited(&hub, cache.path(), 4000), &Silent).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { limit_bytes: 4000, .. }), "{error:?}");
    // `untold_bytes` takes precedence, and does not apply to announced sizes.
    let own = |untold| {
        let mut options = limited(&hub, cache.path(), 5000);
        options.limits.untold_bytes = Some(untold);
        fetch_repository(&repository(), &options, &Silent)
    };
    let error = own(4999).unwrap_err();
    assert!(matches!(error, HubError::TooLarge { limit_bytes: 4999, is_told: false, .. }), "{error:?}");
    hub.behaviour().chunked = false;
    own(1).unwrap();
}

#[test]
fn small_files_have_a_limit_together() {
    let bytes = [weights(900), weights(901), weights(902), weights(903), weights(904)];
    let mut files: Vec<(&str, &[u8])> = vec![("model.safetensors", b"x")];
    files.extend(
        ["config.json", "a.json", "b.json", "c.json", "d.json"].into_iter().zip(bytes.iter().map(Vec::as_slice)),
    );
    let hub = Hub::start(&files);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_repository(&repository(), &limited(&hub, cache.path(), 1000), &Silent).unwrap_err();
    assert!(matches!(&error, HubError::TooLarge { file, limit_bytes: 394, .. } if file == "d.json"), "{error:?}");
    fetch_repository(&repository(), &limited(&hub, cache.path(), 1200), &Silent).unwrap();
}

#[test]
fn too_many_files_are_refused_before_any_comes() {
    let hub = simple_hub(b"some weights");
    let cache = tempfile::tempdir().unwrap();
    for (names, of) in [
        ((0..50_000).map(|number| format!("pictures/{number}.png")).collect::<Vec<_>>(), "files"),
        ((0..256).map(|number| format!("side-{number}.json")).collect(), "files beside its weights"),
    ] {
        hub.behaviour().also_listed = names;
        hub.server.take_seen();
        let error = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap_err();
        assert!(matches!(&error, HubError::TooMany { of: told, .. } if *told == of), "{error:?}");
        assert_refused(&error, "JANUS_HUB_MAX_FILES", cache.path());
        assert_eq!(hub.server.take_seen().len(), 1);
    }
    let limits = Limits { files: Some(2), ..Limits::default() };
    let fewer = HubOptions { limits, ..options(&hub, cache.path()) };
    hub.behaviour().also_listed = Vec::new();
    let error = fetch_repository(&repository(), &fewer, &Silent).unwrap_err();
    assert!(matches!(error, HubError::TooMany { got: 3, limit: 2, .. }), "{error:?}");
    hub.behaviour().is_dataset = true;
    let id = RepoId::dataset("owner/name").unwrap();
    let error = DatasetRepository::open(id, fewer, u64::MAX, &Silent).unwrap_err();
    assert!(matches!(error, HubError::TooMany { .. }), "{error:?}");
}

#[test]
fn an_index_of_too_many_files_is_refused() {
    let map: serde_json::Map<_, _> =
        (0..513).map(|shard| (format!("t{shard}"), format!("model-{shard}.safetensors").into())).collect();
    let index = serde_json::json!({ "weight_map": map }).to_string();
    let hub = Hub::start(&[("config.json", b"{}"), ("model.safetensors.index.json", index.as_bytes())]);
    let cache = tempfile::tempdir().unwrap();
    let error = fetch_repository(&repository(), &options(&hub, cache.path()), &Silent).unwrap_err();
    assert!(matches!(error, HubError::Index { .. }) && error.to_string().contains("513 files"), "{error}");
}

/// So little patience that a trickle of bytes fails at once.
fn impatient(hub: &Hub, cache: &Path, least_bytes_per_s: u64) -> HubOptions {
    let patience = Patience { attempts: 2, first_wait: Duration::from_millis(1), silence: Duration::from_millis(300) };
    let limits = Limits { least_bytes_per_s, ..Limits::default() };
    HubOptions { patience, limits, ..options(hub, cache) }
}

#[test]
fn a_byte_now_and_then_is_as_good_as_silence_and_what_came_is_kept() {
    let bytes = weights(5000);
    let hub = simple_hub(&bytes);
    let cache = tempfile::tempdir().unwrap();
    let named = NamedFiles { needed: &["model.safetensors"], wanted: &[] };
    let fetch = |least: u64| named.fetch(&repository(), &impatient(&hub, cache.path(), least), &Silent);
    // The listing is long enough to be slow, too.
    hub.behaviour().drip = Duration::from_millis(20);
    let begun = std::time::Instant::now();
    let error = fetch(1000).unwrap_err();
    assert!(matches!(error, HubError::TooSlow { .. }), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));

    let id = RepoId::dataset("owner/name").unwrap();
    hub.behaviour().drip = Duration::ZERO;
    hub.behaviour().is_dataset = true;
    let repository = DatasetRepository::open(id, impatient(&hub, cache.path(), 1000), u64::MAX, &Silent).unwrap();
    hub.behaviour().drip = Duration::from_millis(10);
    let shard = repository.shard("model.safetensors").unwrap();
    let error = shard.fetch(&Silent).unwrap_err();
    match &error {
        HubError::Interrupted { have_bytes, source, .. } => {
            assert!(*have_bytes > 0 && *have_bytes < 1000, "{error:?}");
            assert!(matches!(**source, HubError::TooSlow { .. }), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(error.hints().iter().any(|hint| hint.contains("JANUS_HUB_MIN_BYTES_PER_S")), "{:?}", error.hints());
    assert!(matches!(shard.tail(4000), Err(HubError::TooSlow { .. })), "the end of a file, too");
    hub.behaviour().drip = Duration::ZERO;
    hub.server.take_seen();
    assert_eq!(std::fs::read(shard.fetch(&Silent).unwrap()).unwrap(), bytes);
    let seen = hub.server.take_seen();
    assert!(seen.iter().any(|request| request.header("range").is_some()), "it goes on where it was: {seen:?}");
}

#[test]
fn a_line_as_slow_as_is_allowed_brings_the_file() {
    let hub = simple_hub(b"some weights of no great length");
    hub.behaviour().drip = Duration::from_millis(5);
    let cache = tempfile::tempdir().unwrap();
    for least in [0, 10] {
        let cache = cache.path().join(least.to_string());
        fetch_repository(&repository(), &impatient(&hub, &cache, least), &Silent).unwrap();
    }
}
