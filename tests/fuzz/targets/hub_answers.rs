//! What a hub answers: status lines, headers and bodies, one answer a request, in the order in which they are asked for. Parts of
//! the input are whole answers; one that does not begin as such is the body of an answer with status 200.
#![no_main]

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex};
use std::thread;
use std::time::Duration;

use janus_core::hub::{HubOptions, Limits, Patience, Silent, fetch_repository};
use janus_fuzz::{Scratch, parts};
use libfuzzer_sys::fuzz_target;

/// Requests that an input has answers for; further ones are not answered.
const ANSWERS: usize = 8;

/// Longer files end at this limit.
const MOST_BYTES: u64 = 1 << 16;

static WAITING: Mutex<VecDeque<Vec<u8>>> = Mutex::new(VecDeque::new());

static HUB: LazyLock<SocketAddr> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            // The request is short and comes at once.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read(&mut [0; 4096]);
            if let Some(answer) = WAITING.lock().unwrap().pop_front() {
                let _ = stream.write_all(&answer);
            }
        }
    });
    address
});

fuzz_target!(|data: &[u8]| {
    let answers = parts::<ANSWERS>(data).into_iter().map(|part| match part.starts_with(b"HTTP/") {
        true => part.to_vec(),
        false => {
            [format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", part.len()).as_bytes(), part]
                .concat()
        }
    });
    *WAITING.lock().unwrap() = answers.collect();
    let cache = Scratch::new();
    let patience = Patience { attempts: 1, first_wait: Duration::ZERO, silence: Duration::from_millis(200) };
    let limits = Limits { file_bytes: Some(MOST_BYTES), files: Some(100), ..Limits::default() };
    let endpoint = format!("http://{}", *HUB);
    let options = HubOptions { endpoint, patience, limits, ..HubOptions::new(cache.path("hub")) };
    let fetched = fetch_repository(&"owner/name".parse().unwrap(), &options, &Silent);
    // Nothing lies beside the cache, nothing in it is longer than it may be, and what is whole without a network, too, is what came.
    let beside: Vec<_> = std::fs::read_dir(cache.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(beside.iter().all(|name| name == "hub"), "{beside:?}");
    for blob in std::fs::read_dir(cache.path("hub/models--owner--name/blobs")).into_iter().flatten() {
        let about = blob.unwrap().metadata().unwrap();
        assert!(about.is_file() && about.len() <= MOST_BYTES, "{about:?}");
    }
    if let Ok(folder) = fetched {
        assert!(folder.starts_with(cache.path("hub/models--owner--name/snapshots")), "{}", folder.display());
        let offline = HubOptions { offline: true, ..options };
        assert_eq!(fetch_repository(&"owner/name".parse().unwrap(), &offline, &Silent).unwrap(), folder);
    }
});
