use std::collections::BTreeSet;
use std::io;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, HeaderValue, Method, Response, Uri, header};
use ureq::{Agent, Body};

use super::cache::is_commit;
use super::content::is_telling;
use super::download::{ContentRange, parse_content_range};
use super::limits::Limits;
use super::pace::PacedBody;
use super::{HubError, HubOptions, Patience, RepoId, RepoKind};

/// A listing of ten thousand files is below 1 MB.
pub(super) const LARGEST_LISTING_BYTES: u64 = 64 << 20;

/// As many as curl and browsers about allow; a hub needs two.
const MOST_REDIRECTS: usize = 10;

/// Requests made for one thing of a server that answers each of them, but with nothing of use.
const MOST_USELESS_ANSWERS: u32 = 3;

const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Longest entity tag that leaves room for `.incomplete` in a file name of 255 bytes.
const LONGEST_ENTITY_TAG_BYTES: usize = 200;

/// Before the tags of other hosts than the hub.
const OTHER_TAG: &str = "other-";

/// Characters of what a server sent that a message shows.
const SHOWN_CHARS: usize = 200;

/// What the hub says of a revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) commit: String,
    /// Names relative to the repository, unchecked.
    pub(super) files: BTreeSet<String>,
}

/// What the hub says of a file.
#[derive(Debug)]
pub(super) struct Metadata {
    /// Name of the blob, safe as a file name; where it looks like a digest it is that of the file.
    pub(super) etag: String,
    pub(super) size_bytes: Option<u64>,
}

/// Requests to one hub for one repository.
pub(super) struct Transport<'a> {
    id: &'a RepoId,
    agent: Agent,
    endpoint: String,
    origin: Origin,
    authorization: Option<HeaderValue>,
    patience: Patience,
    limits: Limits,
}

/// Scheme, host and port: what a token may be sent to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let default_port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        let host = uri.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Self { scheme, host, port: uri.port_u16().unwrap_or(default_port) })
    }

    /// Whether the address is this machine itself, which no proxy can reach.
    fn is_loopback(&self) -> bool {
        self.host == "localhost" || self.host == "[::1]" || self.host.starts_with("127.")
    }
}

/// The end of a chain of redirections.
pub(super) struct Answer {
    pub(super) response: Response<Body>,
    /// Where it came from, without the query, which may hold a signature.
    pub(super) url: String,
    /// Whether the hub itself answered, not a host it pointed to.
    from_hub: bool,
    /// `X-Linked-Etag` and `X-Linked-Size` of whichever response of the hub had them.
    linked_etag: Option<String>,
    linked_size_bytes: Option<u64>,
    /// `X-Repo-Commit`, likewise.
    commit: Option<String>,
}

impl<'a> Transport<'a> {
    pub(super) fn new(id: &'a RepoId, options: &HubOptions) -> Result<Self, HubError> {
        let endpoint = options.endpoint.trim_end_matches('/').to_string();
        let wrong = |problem| HubError::Endpoint { endpoint: endpoint.clone(), problem };
        let origin = Origin::of(&endpoint).ok_or_else(|| wrong("it is not an `http` or `https` address"))?;
        if endpoint.contains(['?', '#']) {
            return Err(wrong("it has a query or a fragment"));
        }
        if endpoint.contains('@') {
            return Err(HubError::Endpoint {
                endpoint: format!("{}://(hidden)", origin.scheme),
                problem: "it holds a user name; use HF_TOKEN",
            });
        }
        let authorization = match &options.token {
            None => None,
            Some(token) => {
                let mut value = HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| HubError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let silence = Some(options.patience.silence);
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Sizes and ranges are those of the file only if it is sent as it is.
            .accept_encoding("identity")
            .user_agent(concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(silence)
            .timeout_connect(silence)
            // All headers, which might come a letter at a time.
            .timeout_recv_response(silence)
            .timeout_per_read(silence)
            .timeout_per_write(silence);
        if origin.is_loopback() {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        Ok(Self {
            id,
            agent,
            endpoint,
            origin,
            authorization,
            patience: options.patience.clone(),
            limits: options.limits.clone(),
        })
    }

    /// How much the hub may send.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The body of an answer, which must not come too slowly.
    pub(super) fn body_of(&self, answer: Answer) -> PacedBody {
        let reader = answer.response.into_body().into_reader();
        PacedBody::new(reader, answer.url, self.patience.silence, self.limits.least_bytes_per_s)
    }

    pub(super) fn id(&self) -> &RepoId {
        self.id
    }

    /// Requests made for one thing before giving up.
    pub(super) fn attempts(&self) -> u32 {
        self.patience.attempts.max(1)
    }

    /// Failures in a row before giving up, the last of which is `error`, and none of which brought anything new.
    pub(super) fn attempts_of(&self, error: &HubError) -> u32 {
        attempts_of(error, self.attempts())
    }

    /// Asks which commit the revision is and which files it has.
    pub(super) fn listing(&self, attempts: u32) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Model {
            sha: String,
            #[serde(default)]
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
        }
        let wrong = |problem: String| HubError::Listing { id: self.id.clone(), problem };
        let revision = percent_encode(self.id.revision(), false);
        let kind = match self.id.kind() {
            RepoKind::Model => "models",
            RepoKind::Dataset => "datasets",
        };
        let url = format!("{}/api/{kind}/{}/revision/{revision}", self.endpoint, self.id.repository());
        let text = self.patiently(attempts, || {
            let answer = self.request(&Method::GET, &url, None)?;
            if answer.response.status() != 200 {
                return Err(self.refusal(&answer, None));
            }
            let text = self.body_of(answer).read_all(LARGEST_LISTING_BYTES)?;
            text.ok_or_else(|| wrong(format!("it is longer than {LARGEST_LISTING_BYTES} bytes")))
        })?;
        let model: Model = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&model.sha) {
            return Err(wrong(format!("{:?} is not a commit hash", cut(&model.sha))));
        }
        if is_commit(self.id.revision()) {
            self.check_commit(self.id.revision(), Some(&model.sha))?;
        }
        self.limits.check_listed(self.id.repository(), model.siblings.len())?;
        Ok(Listing { commit: model.sha, files: model.siblings.into_iter().map(|file| file.rfilename).collect() })
    }

    /// Asks for the entity tag, size and digest of a file.
    pub(super) fn metadata(&self, commit: &str, file: &str) -> Result<Metadata, HubError> {
        self.patiently(self.attempts(), || {
            let mut answer = self.request_file(&Method::HEAD, commit, file, None)?;
            if matches!(answer.response.status().as_u16(), 405 | 501) {
                answer = self.request_file(&Method::GET, commit, file, None)?;
            }
            let status = answer.response.status();
            if !status.is_success() && !status.is_redirection() {
                return Err(self.refusal(&answer, Some(file)));
            }
            let headers = answer.response.headers();
            let from_hub = answer.from_hub || answer.linked_etag.is_some();
            let raw =
                answer.linked_etag.clone().or_else(|| text_of(headers, header::ETAG.as_str())).unwrap_or_default();
            let mut etag = raw.strip_prefix("W/").unwrap_or(&raw).trim_matches('"').to_string();
            let is_file_name = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
            if etag.is_empty() || etag.len() > LONGEST_ENTITY_TAG_BYTES || !etag.bytes().all(is_file_name) {
                return Err(HubError::EntityTag { file: cut(file), got: cut(&raw) });
            }
            // The hub names files in large-file storage by their SHA-256, others by their Git hash. Tags of other hosts name
            // what they like, and must not pass for either.
            if !from_hub && is_telling(&etag) {
                etag.insert_str(0, OTHER_TAG);
            }
            let size_bytes = answer
                .linked_size_bytes
                .or_else(|| number_of(headers, header::CONTENT_LENGTH.as_str()).filter(|_| status.is_success()));
            Ok(Metadata { etag, size_bytes })
        })
    }

    /// Asks once for a file from byte `offset` on. The answer has status 200, 206 or 416.
    pub(super) fn bytes_of(&self, commit: &str, file: &str, offset: u64) -> Result<Answer, HubError> {
        let range = (offset > 0).then(|| format!("bytes={offset}-"));
        let answer = self.request_file(&Method::GET, commit, file, range.as_deref())?;
        match answer.response.status().as_u16() {
            200 | 206 | 416 => Ok(answer),
            _ => Err(self.refusal(&answer, Some(file))),
        }
    }

    /// The last `bytes` bytes of a file, all of a shorter one, and the file's size; `None` where the server sends no parts.
    pub(super) fn tail_of(&self, commit: &str, file: &str, bytes: u64) -> Result<Option<(Vec<u8>, u64)>, HubError> {
        let range = format!("bytes=-{bytes}");
        self.patiently(self.attempts(), || {
            let answer = self.request_file(&Method::GET, commit, file, Some(&range))?;
            match answer.response.status().as_u16() {
                206 => {}
                200 | 416 => return Ok(None),
                _ => return Err(self.refusal(&answer, Some(file))),
            }
            let url = answer.url.clone();
            let got = text_of(answer.response.headers(), header::CONTENT_RANGE.as_str()).unwrap_or_default();
            let Some(ContentRange { start_bytes: Some(start), total_bytes: Some(total) }) = parse_content_range(&got)
            else {
                return Ok(None);
            };
            if start != total.saturating_sub(bytes) {
                return Err(HubError::Range { url, asked_bytes: total.saturating_sub(bytes), got });
            }
            let tail = self.body_of(answer).read_all(bytes)?;
            let tail = tail.ok_or_else(|| HubError::Range { url: url.clone(), asked_bytes: start, got })?;
            if tail.len() as u64 != total.saturating_sub(start) {
                return Err(cut_off(&url, io::ErrorKind::UnexpectedEof.into()));
            }
            Ok(Some((tail, total)))
        })
    }

    /// The first `bytes` bytes of a file, all of a shorter one; `None` where the server sends no parts.
    pub(super) fn start_of(&self, commit: &str, file: &str, bytes: u64) -> Result<Option<Vec<u8>>, HubError> {
        let range = format!("bytes=0-{}", bytes.saturating_sub(1));
        self.patiently(self.attempts(), || {
            let answer = self.request_file(&Method::GET, commit, file, Some(&range))?;
            match answer.response.status().as_u16() {
                206 => {}
                200 | 416 => return Ok(None),
                _ => return Err(self.refusal(&answer, Some(file))),
            }
            let url = answer.url.clone();
            let got = text_of(answer.response.headers(), header::CONTENT_RANGE.as_str()).unwrap_or_default();
            let other = || HubError::Range { url: url.clone(), asked_bytes: 0, got: got.clone() };
            let Some(ContentRange { start_bytes: Some(0), .. }) = parse_content_range(&got) else {
                return Err(other());
            };
            self.body_of(answer).read_all(bytes)?.map(Some).ok_or_else(other)
        })
    }

    fn file_url(&self, commit: &str, file: &str) -> String {
        format!("{}/{}/resolve/{commit}/{}", self.endpoint, self.id.path(), percent_encode(file, true))
    }

    /// Makes a request for a file of a commit, and sees to it that the answer is of that commit.
    fn request_file(&self, method: &Method, commit: &str, file: &str, range: Option<&str>) -> Result<Answer, HubError> {
        let answer = self.request(method, &self.file_url(commit, file), range)?;
        self.check_commit(commit, answer.commit.as_deref())?;
        Ok(answer)
    }

    /// Refuses an answer that is of another commit than was asked for; where a hub names none there is nothing to compare.
    fn check_commit(&self, asked: &str, got: Option<&str>) -> Result<(), HubError> {
        match got.filter(|got| *got != asked) {
            None => Ok(()),
            Some(got) => Err(HubError::OtherCommit { id: self.id.clone(), asked: asked.to_string(), got: cut(got) }),
        }
    }

    /// Makes a request and follows redirections. The token goes to the hub only. For `HEAD`, a redirection to another
    /// host ends the chain if the hub itself has told what is wanted.
    fn request(&self, method: &Method, url: &str, range: Option<&str>) -> Result<Answer, HubError> {
        let mut url = url.to_string();
        let mut linked_etag = None;
        let mut linked_size_bytes = None;
        let mut commit = None;
        for _ in 0..=MOST_REDIRECTS {
            let shown = without_query(&url);
            let from_hub = Origin::of(&url).as_ref() == Some(&self.origin);
            let mut request = match *method {
                Method::HEAD => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            if let (true, Some(authorization)) = (from_hub, &self.authorization) {
                request = request.header(header::AUTHORIZATION, authorization.clone());
            }
            let response = request.call().map_err(|error| HubError::of_transfer(shown.clone(), error.into_io()))?;
            let headers = response.headers();
            if from_hub {
                linked_etag = linked_etag.or_else(|| text_of(headers, "x-linked-etag"));
                linked_size_bytes = linked_size_bytes.or_else(|| number_of(headers, "x-linked-size"));
                commit = commit.or_else(|| text_of(headers, "x-repo-commit"));
            }
            let location = text_of(headers, header::LOCATION.as_str());
            let location = location.filter(|_| matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308));
            let Some(location) = location else {
                return Ok(Answer { response, url: shown, from_hub, linked_etag, linked_size_bytes, commit });
            };
            let target = resolve_location(&url, &location);
            let unusable =
                |problem| HubError::Redirect { url: shown.clone(), target: cut(&without_query(&target)), problem };
            let target_origin =
                Origin::of(&target).ok_or_else(|| unusable("it is not an `http` or `https` address"))?;
            if url.starts_with("https:") && target_origin.scheme != "https" {
                return Err(unusable("it leaves the encrypted connection"));
            }
            if *method == Method::HEAD && linked_etag.is_some() && target_origin != self.origin {
                return Ok(Answer { response, url: shown, from_hub, linked_etag, linked_size_bytes, commit });
            }
            url = target;
        }
        let shown = without_query(&url);
        Err(HubError::Redirect { url: shown.clone(), target: shown, problem: "there are too many redirections" })
    }

    /// The error that a status other than success is.
    fn refusal(&self, answer: &Answer, file: Option<&str>) -> HubError {
        let headers = answer.response.headers();
        let status = answer.response.status().as_u16();
        let code = text_of(headers, "x-error-code").unwrap_or_default();
        let id = self.id.clone();
        let token_sent = self.authorization.is_some();
        if answer.from_hub {
            match (status, code.as_str()) {
                (401 | 403 | 404, "RepoNotFound") => {
                    return HubError::NoRepository { id, endpoint: self.endpoint.clone(), token_sent };
                }
                (401 | 403, _) => {
                    return HubError::Denied { id, status, gated: code == "GatedRepo", token_sent };
                }
                (404, "RevisionNotFound") => return HubError::NoRevision { id },
                (404, _) => {
                    return match file {
                        Some(file) => HubError::MissingFile { id, file: file.to_string() },
                        None => HubError::NoRepository { id, endpoint: self.endpoint.clone(), token_sent },
                    };
                }
                _ => {}
            }
        }
        HubError::Status {
            url: answer.url.clone(),
            status,
            // A storage host answers 403 when the signature in the redirection has expired: the hub gives a new one.
            transient: matches!(status, 408 | 429 | 500..=599) || (status == 403 && !answer.from_hub),
            retry_after_s: number_of(headers, header::RETRY_AFTER.as_str()),
        }
    }

    /// Repeats what fails in passing, with pauses, at most `attempts` times.
    fn patiently<T>(&self, attempts: u32, mut action: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            match action() {
                Err(error) if error.is_transient() => {
                    failures += 1;
                    if failures >= attempts_of(&error, attempts) {
                        return Err(error);
                    }
                    self.pause(failures, &error);
                }
                result => return result,
            }
        }
    }

    /// Waits after the `failures`-th failure in a row: doubling, or as long as the server asks, within bounds.
    pub(super) fn pause(&self, failures: u32, error: &HubError) {
        let doubled = self.patience.first_wait.saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)));
        let asked = match error {
            HubError::Status { retry_after_s: Some(seconds), .. } => Duration::from_secs(*seconds),
            _ => Duration::ZERO,
        };
        thread::sleep(doubled.max(asked).min(LONGEST_WAIT));
    }
}

/// How often a request that fails so is made, which may be made `attempts` times.
fn attempts_of(error: &HubError, attempts: u32) -> u32 {
    if error.is_useless_answer() { attempts.min(MOST_USELESS_ANSWERS) } else { attempts }
}

/// The beginning of what a server sent, for a message.
fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// The error that a cut inside a body is.
pub(super) fn cut_off(url: &str, source: io::Error) -> HubError {
    HubError::Unreachable { url: url.to_string(), source }
}

pub(super) fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_string())
}

fn number_of(headers: &HeaderMap, name: &str) -> Option<u64> {
    text_of(headers, name)?.parse().ok()
}

fn without_query(url: &str) -> String {
    url.split(['?', '#']).next().unwrap_or_default().to_string()
}

/// Where a `Location` header leads (RFC 3986 section 5.2, without removing dot segments: the server does).
fn resolve_location(base: &str, location: &str) -> String {
    let location = location.split('#').next().unwrap_or_default();
    let scheme_end = base.find("://").map_or(0, |at| at + 3);
    let path_start = base.get(scheme_end..).and_then(|rest| rest.find('/')).map_or(base.len(), |at| scheme_end + at);
    let (origin, path) = base.split_at(path_start);
    if location.split(['/', '?']).next().is_some_and(|first| first.contains(':')) {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{}:{location}", base.split(':').next().unwrap_or_default())
    } else if location.starts_with('/') {
        format!("{origin}{location}")
    } else {
        let path = without_query(path);
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{origin}{folder}/{location}")
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986 section 2.3 and, if told so, the slashes.
fn percent_encode(text: &str, keep_slashes: bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn locations_resolve_as_in_a_browser() {
        let base = "https://hub.test:8443/prefix/a/b/resolve/c/file?x=1";
        for (location, expected) in [
            ("https://cdn.test/x?sig=1", "https://cdn.test/x?sig=1"),
            ("//cdn.test/x", "https://cdn.test/x"),
            ("/api/resolve-cache/x?y=http://z", "https://hub.test:8443/api/resolve-cache/x?y=http://z"),
            ("other#part", "https://hub.test:8443/prefix/a/b/resolve/c/other"),
            ("ftp://old.test/x", "ftp://old.test/x"),
        ] {
            assert_eq!(resolve_location(base, location), expected);
        }
        assert_eq!(resolve_location("http://hub.test", "x"), "http://hub.test/x");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let hub = Origin::of("https://hub.test/prefix").unwrap();
        assert_eq!(Origin::of("https://HUB.test:443"), Some(hub.clone()));
        for other in ["http://hub.test", "https://hub.test:444", "https://cdn.hub.test", "https://hub.test.evil.test"] {
            assert_ne!(Origin::of(other), Some(hub.clone()), "{other}");
        }
        for nothing in ["hub.test", "/x", "ftp://hub.test", "https://", ""] {
            assert_eq!(Origin::of(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn names_are_encoded_for_addresses() {
        assert_eq!(percent_encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(percent_encode("a b/ü#?.json", true), "a%20b/%C3%BC%23%3F.json");
    }
}
