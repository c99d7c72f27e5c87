use std::io;
use std::path::PathBuf;

use super::limits::{FILE_BYTES_VARIABLE, FILES_VARIABLE, LEAST_RATE_VARIABLE};
use super::{RepoId, RepoKind};
use crate::error::{Diagnose, Fault};
use crate::home::HomeError;
use crate::input::fault_of_reading;
use crate::output::OutputError;

/// A base that cannot be found, downloaded or cached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// Something written as a path that does not exist.
    #[error("no such folder: `{}`", path.display())]
    NoSuchFolder {
        /// The path.
        path: PathBuf,
    },
    /// A path that is something else than a folder.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// Neither of the two things a base can be.
    #[error("`{spec}` is neither an existing folder nor a hub id `owner/name`: {problem}")]
    NotABase {
        /// What was written.
        spec: String,
        /// The rule for hub ids it breaks.
        problem: &'static str,
    },
    /// Not a hub id.
    #[error("`{spec}` is not a hub id `owner/name` or `owner/name@revision`: {problem}")]
    Id {
        /// What was written.
        spec: String,
        /// The rule it breaks.
        problem: &'static str,
    },
    /// An environment variable that cannot be used.
    #[error("environment variable `{variable}` is `{value}`, expected {expected}")]
    Setting {
        /// Its name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// An environment variable with the path of a folder that is not known here.
    #[error("environment variable `{variable}` cannot be used")]
    Folder {
        /// Its name.
        variable: &'static str,
        /// Why.
        source: HomeError,
    },
    /// A path that begins with a home folder that is not known here.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Neither a cache folder nor a home folder is known.
    #[error("no folder for downloads: `HF_HUB_CACHE`, `HF_HOME` and `HOME` are all unset")]
    NoCacheFolder,
    /// The address of the hub cannot be used.
    #[error("hub address `{endpoint}` cannot be used: {problem}")]
    Endpoint {
        /// The address.
        endpoint: String,
        /// Why.
        problem: &'static str,
    },
    /// The access token cannot be sent.
    #[error("the access token holds characters that cannot be sent in a header")]
    Token,
    /// Offline, and something is not in the cache.
    #[error("`{id}` is not whole in the cache `{}`: `{file}` is missing, and HF_HUB_OFFLINE forbids a download", cache_dir.display())]
    Offline {
        /// The repository.
        id: RepoId,
        /// The first thing that is missing, relative to the snapshot or, for a ref, to the repository's folder.
        file: String,
        /// The cache.
        cache_dir: PathBuf,
    },
    /// The hub does not let this user see the repository.
    #[error("the hub refuses access to `{id}` (HTTP status {status}{})", if *gated { ", gated repository" } else { "" })]
    Denied {
        /// The repository.
        id: RepoId,
        /// 401 or 403.
        status: u16,
        /// Whether the hub says that access must be asked for.
        gated: bool,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The hub has no such repository, or does not tell that it has.
    #[error("the hub at `{endpoint}` has no repository `{}`", id.repository())]
    NoRepository {
        /// The repository.
        id: RepoId,
        /// The hub.
        endpoint: String,
        /// Whether a token was sent.
        token_sent: bool,
    },
    /// The repository has no such revision.
    #[error("repository `{}` has no revision `{}`", id.repository(), id.revision())]
    NoRevision {
        /// The repository.
        id: RepoId,
    },
    /// A file a base needs is not in the repository.
    #[error("repository `{id}` has no file `{file}`")]
    MissingFile {
        /// The repository.
        id: RepoId,
        /// The file.
        file: String,
    },
    /// The repository has no weights in a form that can be read.
    #[error("repository `{id}` has no weights: none of {expected} is in it")]
    NoWeights {
        /// The repository.
        id: RepoId,
        /// The file names looked for.
        expected: String,
    },
    /// The list of files cannot be used.
    #[error("the hub's description of `{id}` cannot be used: {problem}")]
    Listing {
        /// The repository.
        id: RepoId,
        /// Why.
        problem: String,
    },
    /// A file name that would lead out of the repository's folder.
    #[error("repository `{id}` names a file {name:?}, which {problem}")]
    UnsafeName {
        /// The repository.
        id: RepoId,
        /// The name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The index of sharded weights cannot be used.
    #[error("shard index `{file}` of `{id}` cannot be used: {problem}")]
    Index {
        /// The repository.
        id: RepoId,
        /// The index file.
        file: String,
        /// Why.
        problem: String,
    },
    /// A file's entity tag, which names its blob, is absent or unusable.
    #[error("the hub sends no usable entity tag for `{file}` (got {got:?})")]
    EntityTag {
        /// The file.
        file: String,
        /// What it sends.
        got: String,
    },
    /// A redirection that is not followed.
    #[error("`{url}` redirects to {target:?}, which is not followed: {problem}")]
    Redirect {
        /// Where from.
        url: String,
        /// Where to.
        target: String,
        /// Why not.
        problem: &'static str,
    },
    /// A server breaks the rules of HTTP, or makes use of them without measure.
    #[error("the answer of `{url}` is not one of a hub: {problem}")]
    Malformed {
        /// The address, without its query.
        url: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A request failed on its way.
    #[error("`{url}` cannot be reached")]
    Unreachable {
        /// The address, without its query.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// A status that is no success.
    #[error("`{url}` answers with HTTP status {status}")]
    Status {
        /// The address, without its query.
        url: String,
        /// The status.
        status: u16,
        /// Whether trying again may help.
        transient: bool,
        /// How long the server asks to wait.
        retry_after_s: Option<u64>,
    },
    /// A part of a file other than the one asked for.
    #[error("`{url}` sends the bytes {got:?}, asked for were those from {asked_bytes} on")]
    Range {
        /// The address, without its query.
        url: String,
        /// First byte asked for.
        asked_bytes: u64,
        /// The `Content-Range` received.
        got: String,
    },
    /// A transfer that was cut again and again.
    #[error(
        "download of `{file}` was cut off in {attempts} requests; {have_bytes} of {} bytes are there",
        total_bytes.map_or("an unknown number of".to_string(), |total| total.to_string())
    )]
    Interrupted {
        /// The file.
        file: String,
        /// Requests made.
        attempts: u32,
        /// Bytes on the disk.
        have_bytes: u64,
        /// Bytes of the whole file.
        total_bytes: Option<u64>,
        /// The last failure.
        source: Box<HubError>,
    },
    /// A file of another size than announced.
    #[error("`{file}` has {got_bytes} bytes, the hub announced {expected_bytes}")]
    Size {
        /// The file.
        file: String,
        /// Announced.
        expected_bytes: u64,
        /// Sent, at least.
        got_bytes: u64,
    },
    /// A transfer of which the end cannot be told from a cut.
    #[error("the hub does not tell the size of `{file}`")]
    UnknownSize {
        /// The file.
        file: String,
    },
    /// A file that is longer than such a file can be.
    #[error("`{file}` has {got_bytes} bytes or more, at most {limit_bytes} are taken")]
    TooLarge {
        /// The file.
        file: String,
        /// Announced, or sent so far.
        got_bytes: u64,
        /// The limit.
        limit_bytes: u64,
        /// Whether the hub told its size.
        is_told: bool,
    },
    /// More files than such a repository can have.
    #[error("repository `{repository}` has {got} {of}, at most {limit} are taken")]
    TooMany {
        /// The repository.
        repository: String,
        /// What there are too many of.
        of: &'static str,
        /// How many there are.
        got: usize,
        /// The limit.
        limit: usize,
    },
    /// A transfer that goes on and gets nowhere.
    #[error("`{url}` sent {got_bytes} bytes in {seconds:.0} s, expected at least {least_bytes}")]
    TooSlow {
        /// The address, without its query.
        url: String,
        /// What came.
        got_bytes: u64,
        /// In this time.
        seconds: f64,
        /// What should have come in that time.
        least_bytes: u64,
    },
    /// An answer that is of another commit than was asked for.
    #[error("the hub answers with commit {got:?} of `{}`, asked for was `{asked}`", id.repository())]
    OtherCommit {
        /// The repository.
        id: RepoId,
        /// The commit asked for.
        asked: String,
        /// The commit received.
        got: String,
    },
    /// Something else lies in the cache than was once downloaded.
    #[error("`{}` in the cache is damaged: its digest should be {expected} and is {got}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What its name, or our record of it, says.
        expected: String,
        /// What it is.
        got: String,
    },
    /// A folder of the cache that everybody may change.
    #[error("nothing is written to the cache `{}`: every user may put something else there", path.display())]
    OpenToAll {
        /// The folder.
        path: PathBuf,
    },
    /// A cache of another user that was not asked for.
    #[error("the cache `{}` belongs to another user (number {owner})", path.display())]
    ForeignCache {
        /// The folder.
        path: PathBuf,
        /// Number of its owner.
        owner: u32,
    },
    /// A file with another content than announced.
    #[error("`{file}` has the digest {got}, the hub announced {expected}")]
    Digest {
        /// The file.
        file: String,
        /// Announced, in hexadecimal digits.
        expected: String,
        /// Computed, in hexadecimal digits.
        got: String,
    },
    /// Something in the cache stands where a file or folder of ours belongs.
    #[error("`{}` in the cache is not a plain {expected}", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
        /// `file` or `folder`.
        expected: &'static str,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The cache cannot be written.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl HubError {
    /// What a failed request or a body that ends too soon is.
    pub(super) fn of_transfer(url: String, source: io::Error) -> Self {
        use ureq::Error::{Http, LargeResponseHeader, Protocol};
        match source.get_ref().and_then(|inner| inner.downcast_ref::<ureq::Error>()) {
            Some(error @ (Http(_) | LargeResponseHeader(..) | Protocol(_))) => {
                HubError::Malformed { url, problem: error.to_string() }
            }
            _ => HubError::Unreachable { url, source },
        }
    }

    /// Whether a server was reached, and what it sent, or did not, is of no use: that seldom changes in a minute.
    pub(super) fn is_useless_answer(&self) -> bool {
        match self {
            HubError::Range { .. } => true,
            HubError::Unreachable { source, .. } => source.kind() == io::ErrorKind::UnexpectedEof,
            _ => false,
        }
    }

    /// Whether the same request may succeed a little later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self,
            HubError::Unreachable { .. }
                | HubError::Status { transient: true, .. }
                | HubError::Range { .. }
                | HubError::TooSlow { .. }
                | HubError::Interrupted { .. }
        )
    }

    /// Whether the cache may not be written to, by this user or by anybody.
    pub(super) fn is_refused(&self) -> bool {
        match self {
            HubError::OpenToAll { .. } => true,
            HubError::Write { source, .. } => is_refusal(source),
            HubError::Output(OutputError::Io { source, .. } | OutputError::Refused { source, .. }) => {
                is_refusal(source)
            }
            _ => false,
        }
    }

    /// Nothing if the cache may not be written to and does as well without, else the error.
    pub(super) fn unless_refused(self) -> Result<(), Self> {
        if self.is_refused() { Ok(()) } else { Err(self) }
    }
}

/// Whether a folder may not be written to, rather than that a disk takes no more.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied, ReadOnlyFilesystem};
    matches!(error.kind(), PermissionDenied | ReadOnlyFilesystem | NotADirectory | AlreadyExists)
}

const RESUME_HINT: &str = "run the same command again: what is already there is kept and the download continues";
const OFFLINE_HINT: &str = "without a network, give a local folder instead";

impl Diagnose for HubError {
    fn fault(&self) -> Fault {
        match self {
            // What may be otherwise when it is tried again, and what this machine fails at.
            HubError::Unreachable { .. }
            | HubError::Status { transient: true, .. }
            | HubError::Range { .. }
            | HubError::TooSlow { .. }
            | HubError::Interrupted { .. } => Fault::Internal,
            HubError::Read { source, .. } => fault_of_reading(source),
            HubError::Write { source, .. } if !is_refusal(source) => Fault::Internal,
            HubError::Output(error) => error.fault(),
            _ => Fault::Input,
        }
    }

    fn hints(&self) -> Vec<String> {
        match self {
            HubError::Home(error) | HubError::Folder { source: error, .. } => error.hints(),
            HubError::NoSuchFolder { .. } | HubError::NotABase { .. } | HubError::Id { .. } => vec![
                "a base is an existing folder with a `config.json`, or a hub id such as `deepseek-ai/Janus-Pro-1B`"
                    .into(),
            ],
            HubError::NotAFolder { .. } => {
                vec!["give the folder that holds `config.json` and the weights, not a file in it".into()]
            }
            HubError::NoCacheFolder => vec!["set HF_HOME to a folder with room for the weights".into()],
            HubError::Setting { variable, .. } => vec![format!("correct `{variable}` or unset it")],
            HubError::Endpoint { .. } => {
                vec!["HF_ENDPOINT is an address such as `https://huggingface.co`; unset it to use that one".into()]
            }
            HubError::Token => vec!["copy the token anew into HF_TOKEN or the token file".into()],
            HubError::Offline { .. } => {
                vec!["unset HF_HUB_OFFLINE to download, or set HF_HOME or HF_HUB_CACHE to the cache that has it".into()]
            }
            HubError::Denied { token_sent: false, .. } => vec![
                "accept the conditions on the repository's page if it has any, and set HF_TOKEN to an access token"
                    .into(),
            ],
            HubError::Denied { id, .. } => vec![format!(
                "a token was sent; check that it is valid and that its owner was granted access to `{}`",
                id.repository()
            )],
            HubError::NoRepository { id, token_sent, .. } => {
                let mut hints = vec![format!("a local folder `{}` does not exist either", id.repository())];
                if !token_sent {
                    hints.push("a private repository needs an access token in HF_TOKEN".into());
                }
                hints
            }
            HubError::NoRevision { .. } => vec!["a revision is a branch, a tag or a whole commit hash".into()],
            HubError::MissingFile { id, .. } if id.kind() == RepoKind::Dataset => {
                vec!["the repository changed while it was read, or its list of files is out of date".into()]
            }
            HubError::NoWeights { .. } | HubError::MissingFile { .. } => {
                vec!["the repository must hold a Janus checkpoint: `config.json`, tokenizer and weights".into()]
            }
            HubError::Unreachable { .. } | HubError::Status { transient: true, .. } => vec![OFFLINE_HINT.into()],
            HubError::TooSlow { .. } => {
                vec![RESUME_HINT.into(), format!("`{LEAST_RATE_VARIABLE}` sets how slow a hub may be; 0 waits for any")]
            }
            HubError::Interrupted { source, .. } => match source.hints() {
                hints if matches!(**source, HubError::TooSlow { .. }) => hints,
                _ => vec![RESUME_HINT.into()],
            },
            HubError::Digest { .. } => vec!["the damaged file was removed; run the same command again".into()],
            HubError::TooLarge { .. } => {
                vec![format!(
                    "if you trust the repository, `{FILE_BYTES_VARIABLE}` sets how long a file may be, in bytes"
                )]
            }
            HubError::TooMany { .. } => {
                vec![format!("if you trust the repository, `{FILES_VARIABLE}` sets how many there may be")]
            }
            HubError::Damaged { path, .. } => vec![format!(
                "where it may be written to and a network is there it is fetched again; else remove `{}`, or set HF_HOME to another folder",
                path.display()
            )],
            HubError::OpenToAll { path } => vec![
                "set HF_HOME to a folder that not everybody may write to, such as a new one in there".into(),
                format!("or take that right from others: `chmod o-w {}`", path.display()),
            ],
            HubError::ForeignCache { .. } => {
                vec!["set HF_HOME to a folder of yours, or to that one if you trust whose it is".into()]
            }
            HubError::OtherCommit { .. }
            | HubError::Listing { .. }
            | HubError::EntityTag { .. }
            | HubError::Redirect { .. }
            | HubError::Size { .. }
            | HubError::UnknownSize { .. }
            | HubError::Malformed { .. }
            | HubError::Range { .. }
            | HubError::Status { .. } => vec![
                "HF_ENDPOINT must lead to a hub; if it does, try again later, or give a local folder instead".into(),
            ],
            HubError::UnsafeName { .. } | HubError::Index { .. } => {
                vec![
                    "the repository is damaged or hostile: tell its owner, and use another revision or a local folder"
                        .into(),
                ]
            }
            HubError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                vec!["make room, or set HF_HOME to a folder on a larger disk".into(), RESUME_HINT.into()]
            }
            HubError::Write { source, .. } if is_refusal(source) => {
                vec!["set HF_HOME to a folder that can be written to".into()]
            }
            HubError::Read { .. } | HubError::Write { .. } => {
                vec!["set HF_HOME to another folder if that one cannot be mended".into()]
            }
            HubError::Occupied { .. } => vec!["remove it and run the same command again".into()],
            HubError::Output(error) => error.hints(),
        }
    }
}
