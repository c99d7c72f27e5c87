//! A small hub with one repository, on this machine, that misbehaves as told.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use sha1::{Digest, Sha1};

/// How the hub answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manners {
    /// Every so many requests one gets status 503; 0 never.
    pub busy_every: usize,
    /// Every so many transfers one is cut in the middle; 0 never.
    pub cut_every: usize,
    /// Silence before each answer.
    pub delay: Duration,
    /// Whether parts of files are sent.
    pub knows_ranges: bool,
    /// Whether files are sent in chunks of an unannounced number.
    pub tells_no_size: bool,
}

/// What the hub did so far.
#[derive(Debug, Clone, Default)]
pub struct Record {
    /// Requests.
    pub requests: usize,
    /// Transfers of a whole file that were begun, by name.
    pub transfers: BTreeMap<String, usize>,
}

struct State {
    files: BTreeMap<String, Vec<u8>>,
    manners: Manners,
    record: Record,
    gets: usize,
}

/// The hub. It serves `datasets/owner/name`, and as a model's repository `owner/name`, until the process ends.
pub struct Hub {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    /// A hub with these files.
    ///
    /// # Panics
    /// The system gives no port.
    pub fn start(files: BTreeMap<String, Vec<u8>>, manners: Manners) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State { files, manners, record: Record::default(), gets: 0 }));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Self { address, state }
    }

    /// What goes into `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it did so far.
    pub fn record(&self) -> Record {
        self.lock().record.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap().to_string(), words.next().unwrap().to_string());
    let mut range = None;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        if name.eq_ignore_ascii_case("range") {
            range = value.strip_prefix("bytes=").map(str::to_string);
        }
    }
    let (head, body, delay) = state.lock().unwrap().answer(&method, &path, range.as_deref());
    thread::sleep(delay);
    let _ = stream.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes());
    if method != "HEAD" {
        let _ = stream.write_all(&body);
    }
    // Waiting for the other side to close makes a cut arrive as an end, after all bytes.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.read(&mut [0; 16]);
}

impl State {
    /// Status line and headers, the bytes sent, and the silence before.
    fn answer(&mut self, method: &str, path: &str, range: Option<&str>) -> (String, Vec<u8>, Duration) {
        let Manners { busy_every, cut_every, delay, knows_ranges, tells_no_size } = self.manners;
        let reply = |status: &str, headers: &str, body: &[u8], sent: usize| {
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{headers}");
            (head, body[..sent.min(length)].to_vec(), delay)
        };
        self.record.requests += 1;
        if busy_every > 0 && self.record.requests.is_multiple_of(busy_every) {
            return reply("503 Busy", "", b"", 0);
        }
        if ["/api/datasets/owner/name/revision/main", "/api/models/owner/name/revision/main"].contains(&path) {
            let siblings: Vec<_> = self.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
            let listing = serde_json::json!({ "sha": COMMIT, "siblings": siblings }).to_string();
            return reply("200 Yes", "", listing.as_bytes(), usize::MAX);
        }
        let path = path.strip_prefix("/datasets").unwrap_or(path);
        let name = path.strip_prefix(&format!("/owner/name/resolve/{COMMIT}/"));
        let Some((name, bytes)) = name.and_then(|name| self.files.get_key_value(name)) else {
            return reply("404 No", "X-Error-Code: RepoNotFound\r\n", b"", 0);
        };
        // As Git names a file.
        let hash = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
        let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let etag = format!("ETag: \"{hash}\"\r\n");
        if tells_no_size {
            let chunks = [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n0\r\n\r\n"].concat();
            return (format!("HTTP/1.1 200 Yes\r\nTransfer-Encoding: chunked\r\n{etag}"), chunks, delay);
        }
        if method == "HEAD" {
            return reply("200 Yes", &etag, bytes, 0);
        }
        let (length, parts) = (bytes.len(), range.filter(|_| knows_ranges).and_then(|range| range.split_once('-')));
        let (start, end) = match parts {
            Some(("", last)) => (length.saturating_sub(last.parse().unwrap()), length),
            Some((first, "")) => (first.parse().unwrap(), length),
            Some((first, last)) => (first.parse().unwrap(), length.min(last.parse::<usize>().unwrap() + 1)),
            None => (0, length),
        };
        if range.is_none() {
            *self.record.transfers.entry(name.clone()).or_default() += 1;
        }
        self.gets += 1;
        let sent = if cut_every > 0 && self.gets.is_multiple_of(cut_every) { (end - start) / 2 } else { length };
        match parts {
            Some(_) => {
                let headers = format!("{etag}Content-Range: bytes {start}-{}/{length}\r\n", end - 1);
                reply("206 Part", &headers, &bytes[start..end], sent)
            }
            None => reply("200 Yes", &etag, bytes, sent),
        }
    }
}
