//! A small hub on 127.0.0.1 that can be told to misbehave.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) headers: BTreeMap<String, String>,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// What is sent back. `Content-Length` is that of `body` unless `headers` has one.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Bytes of the body after which the connection is cut.
    pub(super) cut_after: Option<usize>,
    /// Silence before the reply.
    pub(super) delay: Duration,
    /// Silence after each byte of the body.
    pub(super) drip: Duration,
}

impl Reply {
    pub(super) fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            cut_after: None,
            delay: Duration::ZERO,
            drip: Duration::ZERO,
        }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// A listener that answers every request by a function, one request a connection.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(super) fn start(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let answer = Arc::new(answer);
        let thread = thread::spawn({
            let (seen, stop) = (seen.clone(), stop.clone());
            move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let (seen, answer) = (seen.clone(), answer.clone());
                    thread::spawn(move || serve(stream.unwrap(), &seen, &*answer));
                }
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Forgets and returns the requests so far.
    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: TcpStream, seen: &Mutex<Vec<Seen>>, answer: &dyn Fn(&Seen) -> Reply) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_string);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let request = Seen { method, path, headers };
    seen.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    thread::sleep(reply.delay);
    let mut head = format!("HTTP/1.1 {} Told\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    if !reply.headers.iter().any(|(name, _)| matches!(*name, "Content-Length" | "Transfer-Encoding")) {
        let _ = write!(head, "Content-Length: {}\r\n", reply.body.len());
    }
    head.push_str("\r\n");
    let _ = stream.write_all(head.as_bytes());
    if request.method != "HEAD" {
        let sent = &reply.body[..reply.cut_after.unwrap_or(reply.body.len()).min(reply.body.len())];
        let step = if reply.drip.is_zero() { sent.len().max(1) } else { 1 };
        for part in sent.chunks(step) {
            if stream.write_all(part).is_err() {
                break;
            }
            thread::sleep(reply.drip);
        }
    }
    // Waiting for the other side to close makes a cut arrive as an end, after all bytes, not as a reset.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    let _ = stream.read(&mut [0; 16]);
}

/// What the hub has and how it behaves; may be changed between requests.
#[derive(Clone)]
pub(super) struct Behaviour {
    pub(super) commit: String,
    pub(super) files: BTreeMap<String, Vec<u8>>,
    /// Names listed besides those of `files`.
    pub(super) also_listed: Vec<String>,
    /// What is sent in place of a file's bytes.
    pub(super) sent_instead: BTreeMap<String, Vec<u8>>,
    /// Transfers of weights to cut, and the bytes after which.
    pub(super) cuts: usize,
    pub(super) cut_after: usize,
    pub(super) knows_ranges: bool,
    /// Requests to answer with status 503 first.
    pub(super) busy: usize,
    /// Token without which status 401 is sent.
    pub(super) token: Option<String>,
    /// Address weights are redirected to.
    pub(super) storage: Option<String>,
    /// Entity tag sent in place of the right one.
    pub(super) etag: Option<String>,
    /// Whether weights are sent in chunks of an unannounced number.
    pub(super) chunked: bool,
    /// Whether the repository is a data set's.
    pub(super) is_dataset: bool,
    /// Silence before each reply.
    pub(super) delay: Duration,
    /// Silence after each byte of a body.
    pub(super) drip: Duration,
    /// Commit that answers with files say they are of.
    pub(super) repo_commit: Option<String>,
    /// Commit that the revision is said to be, in place of the right one.
    pub(super) says_commit: Option<String>,
}

/// A hub with one repository, `owner/name`, below a path of the server.
pub(super) struct Hub {
    pub(super) server: Server,
    behaviour: Arc<Mutex<Behaviour>>,
    prefix: &'static str,
}

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl Hub {
    pub(super) fn start(files: &[(&str, &[u8])]) -> Self {
        Self::start_below("", files)
    }

    pub(super) fn start_below(prefix: &'static str, files: &[(&str, &[u8])]) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour {
            commit: COMMIT.to_string(),
            files: files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect(),
            also_listed: Vec::new(),
            sent_instead: BTreeMap::new(),
            cuts: 0,
            cut_after: 0,
            knows_ranges: true,
            busy: 0,
            token: None,
            storage: None,
            etag: None,
            chunked: false,
            is_dataset: false,
            delay: Duration::ZERO,
            drip: Duration::ZERO,
            repo_commit: None,
            says_commit: None,
        }));
        let shared = behaviour.clone();
        let server = Server::start(move |request| {
            let mut behaviour = shared.lock().unwrap();
            let mut reply = behaviour.answer(prefix, request);
            (reply.delay, reply.drip) = (behaviour.delay, behaviour.drip);
            if let Some(commit) = behaviour.repo_commit.clone().filter(|_| !request.path.starts_with("/api/")) {
                reply = reply.with("X-Repo-Commit", commit);
            }
            reply
        });
        Self { server, behaviour, prefix }
    }

    pub(super) fn endpoint(&self) -> String {
        format!("{}{}", self.server.url(), self.prefix)
    }

    pub(super) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.behaviour.lock().unwrap()
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As Git names a file.
pub(super) fn git_hash(bytes: &[u8]) -> String {
    let named = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    Sha1::digest(named).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".parquet"].iter().any(|ending| name.ends_with(ending))
}

impl Behaviour {
    fn answer(&mut self, prefix: &str, request: &Seen) -> Reply {
        let nothing = || Reply::new(404, "nothing here").with("X-Error-Code", "RepoNotFound");
        let Some(path) = request.path.strip_prefix(prefix) else { return nothing() };
        let path = match (self.is_dataset, path.strip_prefix("/api/datasets/"), path.strip_prefix("/datasets/")) {
            (false, None, None) => path.to_string(),
            (true, Some(rest), _) => format!("/api/models/{rest}"),
            (true, _, Some(rest)) => format!("/{rest}"),
            _ => return nothing(),
        };
        let path = path.as_str();
        if self.busy > 0 {
            self.busy -= 1;
            return Reply::new(503, "busy");
        }
        if let Some(token) = &self.token
            && request.header("authorization") != Some(&format!("Bearer {token}"))
        {
            return Reply::new(401, "who are you").with("X-Error-Code", "GatedRepo");
        }
        if path == "/api/models/owner/name/revision/main"
            || path == "/api/models/owner/name/revision/refs%2Fpr%2F1"
            || path == format!("/api/models/owner/name/revision/{}", self.commit)
        {
            let siblings: Vec<_> = self
                .files
                .keys()
                .chain(&self.also_listed)
                .map(|name| serde_json::json!({ "rfilename": name }))
                .collect();
            let listing = serde_json::json!({ "id": "owner/name", "sha": self.says_commit.as_ref().unwrap_or(&self.commit), "siblings": siblings });
            return Reply::new(200, listing.to_string()).with("Content-Type", "application/json");
        }
        if path.starts_with("/api/models/owner/name/") {
            return Reply::new(404, "no such revision").with("X-Error-Code", "RevisionNotFound");
        }
        let Some(name) = path.strip_prefix(&format!("/owner/name/resolve/{}/", self.commit)) else { return nothing() };
        let Some(bytes) = self.files.get(name).cloned() else {
            return Reply::new(404, "no such file").with("X-Error-Code", "EntryNotFound");
        };
        if !is_weights(name) {
            let etag = self.etag.clone().unwrap_or_else(|| git_hash(&bytes));
            let sent = self.sent_instead.get(name).cloned().unwrap_or(bytes);
            return Reply::new(200, sent).with("ETag", format!("W/\"{etag}\""));
        }
        let etag = self.etag.clone().unwrap_or_else(|| sha256(&bytes));
        if let Some(storage) = &self.storage {
            return Reply::new(302, "")
                .with("Location", format!("{storage}/{name}?signature=secret"))
                .with("X-Linked-Etag", format!("\"{etag}\""))
                .with("X-Linked-Size", bytes.len().to_string());
        }
        let sent = self.sent_instead.get(name).unwrap_or(&bytes);
        let mut reply = if self.chunked {
            let body = sent.chunks(1000).fold(Vec::new(), |mut body, chunk| {
                body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                body.extend_from_slice(chunk);
                body.extend_from_slice(b"\r\n");
                body
            });
            Reply::new(200, [&body[..], b"0\r\n\r\n"].concat()).with("Transfer-Encoding", "chunked")
        } else {
            ranged(request, sent, self.knows_ranges).with("X-Linked-Size", bytes.len().to_string())
        };
        reply = reply.with("X-Linked-Etag", format!("\"{etag}\""));
        if request.method == "GET" && self.cuts > 0 {
            self.cuts -= 1;
            reply.cut_after = Some(self.cut_after);
        }
        reply
    }
}

/// The part of a file that a request wants.
pub(super) fn ranged(request: &Seen, bytes: &[u8], knows_ranges: bool) -> Reply {
    let range = request.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
    let start = range.and_then(|(start, last)| match start {
        "" => last.parse().ok().map(|count: usize| bytes.len().saturating_sub(count)),
        start => start.parse().ok(),
    });
    match start {
        Some(start) if knows_ranges && start < bytes.len() => Reply::new(206, &bytes[start..])
            .with("Content-Range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len())),
        Some(_) if knows_ranges => Reply::new(416, "").with("Content-Range", format!("bytes */{}", bytes.len())),
        _ => Reply::new(200, bytes),
    }
}
