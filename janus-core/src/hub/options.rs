use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;
use super::limits::{FILE_BYTES_VARIABLE, FILES_VARIABLE, LEAST_RATE_VARIABLE, Limits};
use crate::home;
use crate::input::{self, InputError};
use crate::ownership::other_owner;

/// Longest file of a token that is read.
const MOST_TOKEN_BYTES: u64 = 64 << 10;

/// The hub that is asked where `HF_ENDPOINT` names no other.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where and how repositories are fetched.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the hub, with or without a path, `http` or `https`.
    pub endpoint: String,
    /// Folder that holds `models--owner--name` folders.
    pub cache_dir: PathBuf,
    /// Send nothing; use what is cached.
    pub offline: bool,
    /// Access token, sent to the host of `endpoint` only.
    pub token: Option<String>,
    /// How much failure of the network is borne.
    pub patience: Patience,
    /// How much the hub may send.
    pub limits: Limits,
}

/// How much failure of the network is borne before giving up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patience {
    /// Requests made for one thing before giving up; a transfer that brings much counts anew.
    pub attempts: u32,
    /// Pause after the first failure; doubled after each further one, up to half a minute.
    pub first_wait: Duration,
    /// Longest silence of a server while connecting or sending.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { attempts: 6, first_wait: Duration::from_secs(1), silence: Duration::from_secs(30) }
    }
}

impl HubOptions {
    /// The public hub without a token, cached in `cache_dir`.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.to_string(),
            cache_dir: cache_dir.into(),
            offline: false,
            token: None,
            patience: Patience::default(),
            limits: Limits::default(),
        }
    }

    /// What the environment says, with the variables and defaults of Python's `huggingface_hub`: `HF_ENDPOINT`,
    /// `HF_HOME` (`$XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface`), `HF_HUB_CACHE` (`$HF_HOME/hub`),
    /// `HF_HUB_OFFLINE`, and `HF_TOKEN` or the file `HF_TOKEN_PATH` (`$HF_HOME/token`). Folders may begin with `~` or `$HOME`.
    /// Of our own are `JANUS_HUB_MAX_FILE_BYTES`, `JANUS_HUB_MAX_FILES` and `JANUS_HUB_MIN_BYTES_PER_S`, see [`Limits`].
    ///
    /// # Errors
    /// A variable that cannot be used, no home folder to put the cache in, or a cache of another user that neither `HF_HOME` nor
    /// `HF_HUB_CACHE` names.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_lookup(|name| std::env::var_os(name))
    }

    /// As [`HubOptions::from_env`], with `lookup` for the environment. An empty variable counts as absent.
    ///
    /// # Errors
    /// As [`HubOptions::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self, HubError> {
        let lookup = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let text = |name: &'static str| match lookup(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.trim().to_string()).filter(|value| !value.is_empty())),
            Some(Err(value)) => Err(HubError::Setting {
                variable: name,
                value: value.to_string_lossy().into_owned(),
                expected: "UTF-8 text",
            }),
        };
        let user_home = || lookup("HOME").or_else(|| lookup("USERPROFILE")).map(PathBuf::from);
        let folder = |variable: &'static str| {
            let path = lookup(variable).map(|value| home::expand_with(Path::new(&value), user_home()));
            path.transpose().map_err(|source| HubError::Folder { variable, source })
        };

        let xdg_home = || Ok::<_, HubError>(folder("XDG_CACHE_HOME")?.map(|cache| cache.join("huggingface")));
        let own_home = || user_home().map(|home| home.join(".cache").join("huggingface"));
        let hub_home = match folder("HF_HOME")? {
            Some(home) => Some(home),
            None => xdg_home()?.or_else(own_home),
        };
        let below_home = |name: &str| hub_home.as_ref().map(|home| home.join(name));
        let cache_dir = folder("HF_HUB_CACHE")?.or_else(|| below_home("hub")).ok_or(HubError::NoCacheFolder)?;
        // Who names a cache knows whose it is; nobody else is believed unasked.
        if lookup("HF_HUB_CACHE").is_none() && lookup("HF_HOME").is_none() {
            let foreign = cache_dir.ancestors().take(2).find_map(|path| Some((path, other_owner(path)?)));
            if let Some((path, owner)) = foreign {
                return Err(HubError::ForeignCache { path: path.to_path_buf(), owner });
            }
        }

        let endpoint = text("HF_ENDPOINT")?.unwrap_or_else(|| DEFAULT_ENDPOINT.to_string());
        let offline = match text("HF_HUB_OFFLINE")? {
            Some(value) => parse_switch("HF_HUB_OFFLINE", value)?,
            None => false,
        };
        let token = match text("HF_TOKEN")? {
            Some(token) => Some(token),
            None => match folder("HF_TOKEN_PATH")?.or_else(|| below_home("token")) {
                Some(path) => read_token(&path)?,
                None => None,
            },
        };
        let number = |variable: &'static str| match text(variable)? {
            None => Ok(None),
            Some(value) => match value.parse::<u64>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(HubError::Setting { variable, value, expected: "a whole number" }),
            },
        };
        let usual = Limits::default();
        let limits = Limits {
            file_bytes: number(FILE_BYTES_VARIABLE)?,
            untold_bytes: usual.untold_bytes,
            files: number(FILES_VARIABLE)?.map(|files| usize::try_from(files).unwrap_or(usize::MAX)),
            least_bytes_per_s: number(LEAST_RATE_VARIABLE)?.unwrap_or(usual.least_bytes_per_s),
        };
        Ok(Self { endpoint, offline, token, limits, ..Self::new(cache_dir) })
    }
}

/// Hides the token.
impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("token", &self.token.as_ref().map(|_| "(hidden)"))
            .field("patience", &self.patience)
            .field("limits", &self.limits)
            .finish()
    }
}

fn parse_switch(variable: &'static str, value: String) -> Result<bool, HubError> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err(HubError::Setting { variable, value, expected: "1, true, yes, on, 0, false, no or off" }),
    }
}

fn read_token(path: &Path) -> Result<Option<String>, HubError> {
    match input::read_named(path, MOST_TOKEN_BYTES) {
        Ok(text) => {
            let text = String::from_utf8(text).map_err(|_| HubError::Token)?;
            Ok(Some(text.trim().to_string()).filter(|token| !token.is_empty()))
        }
        Err(InputError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(InputError::Io { path, source }) => Err(HubError::Read { path, source }),
        Err(error) => {
            Err(HubError::Read { path: path.to_path_buf(), source: io::Error::new(io::ErrorKind::InvalidInput, error) })
        }
    }
}
