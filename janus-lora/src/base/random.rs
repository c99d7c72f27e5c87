//! Bases with random weights, made on first use and kept in the cache folder.

use std::path::{Path, PathBuf};
use std::time::Duration;

use candle_core::DType;
use janus_core::checkpoint::{
    Merges, expected_tensors, init_checkpoint, init_side_files, learn_merges, write_tokenizer,
};
use janus_core::config::{JanusConfig, Layout};
use janus_core::directory::Place;
use janus_core::output::{OutputError, StagedFolder};
use janus_core::processing::DEFAULT_SYSTEM_PROMPT;

use super::{BaseError, INIT_PREFIX, cache_folder, short_hash};
use crate::cache::stock::{hold, is_part, make_room};
use crate::cache::{CacheError, CacheSettings, seal};
use crate::data::synth;
use crate::error::Result;
use crate::status::Status;

/// Raised when merges are learnt otherwise from the same drawn texts, so that no older vocabulary of the cache passes for a new
/// one.
const VOCABULARY_VERSION: u32 = 2;

/// Raised when a tensor of the same shape is drawn otherwise, for the same reason.
const VALUES_VERSION: u32 = 2;

/// What makes a folder a base.
const CONFIG_FILE: &str = "config.json";

/// Between two looks at what another process makes.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How often a base is made that others give up at once.
const ATTEMPTS: usize = 3;

/// Rows of drawn data that merges are learnt from.
const VOCABULARY_ROWS: u32 = 4096;

/// Merges learnt from a domain of drawn data, and from what every prompt begins with: in bytes the system prompt alone is longer
/// than a picture and all that is said of it.
///
/// # Errors
/// No such domain.
pub fn vocabulary_of(config: &JanusConfig, domain: &str, seed: u64) -> Result<Merges> {
    let mut texts = synth::texts(domain, VOCABULARY_ROWS, seed)?;
    texts.extend(std::iter::repeat_n(DEFAULT_SYSTEM_PROMPT.to_owned(), VOCABULARY_ROWS as usize));
    Ok(learn_merges(config, &texts).map_err(janus_core::Error::from)?)
}

/// A base with random weights, as its spec describes it.
struct Random<'a> {
    config: JanusConfig,
    seed: u64,
    vocabulary: Option<&'a str>,
    /// Of its folder. It carries a hash of the shape's sizes and of how values are drawn, so that one made by an earlier
    /// version with others does not pass for it.
    name: String,
}

impl<'a> Random<'a> {
    fn parse(spec: &'a str) -> Result<Self> {
        let malformed = || BaseError::MalformedInit { spec: spec.to_owned() };
        let body = spec.strip_prefix(INIT_PREFIX).ok_or_else(malformed)?;
        let (shape, tail) = body.split_once('?').unwrap_or((body, ""));
        let (mut seed, mut vocabulary) = (1, None);
        for pair in tail.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("seed", value)) => seed = value.parse().map_err(|_| malformed())?,
                Some(("vocabulary", domain)) => vocabulary = Some(domain),
                _ => return Err(malformed().into()),
            }
        }
        let config = JanusConfig::shape(shape)
            .ok_or_else(|| BaseError::UnknownShape { spec: spec.to_owned(), shape: shape.to_owned() })?;
        let suffix =
            vocabulary.map(|domain| format!("-{domain}{}-{VOCABULARY_VERSION}", synth::VERSION)).unwrap_or_default();
        let json = config.to_json(Layout::Native, DType::BF16).to_string();
        let sizes = short_hash([json.as_bytes(), &VALUES_VERSION.to_le_bytes()]);
        let name = format!("{shape}-{sizes}-seed{seed}{suffix}");
        Ok(Self { config, seed, vocabulary, name })
    }

    /// Bytes of its weights.
    fn bytes(&self) -> u64 {
        let tensors = expected_tensors(&self.config, !self.config.tie_word_embeddings);
        let values = tensors.iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum::<u64>();
        values * DType::BF16.size_in_bytes() as u64
    }

    fn write_vocabulary(&self, into: Place<'_>) -> Result<()> {
        if let Some(domain) = self.vocabulary {
            write_tokenizer(&self.config, &vocabulary_of(&self.config, domain, self.seed)?, into)?;
        }
        Ok(())
    }
}

/// Weights of more bytes are made where a user asks for them, not because an adapter names them.
const MAX_UNASKED_BYTES: u64 = 1 << 30;

/// Whether a base with random weights is here, or made in no time.
///
/// # Errors
/// A spec that describes none.
pub(super) fn is_at_hand(spec: &str, cache: &Path) -> Result<bool> {
    let random = Random::parse(spec)?;
    let made = cache.join("bases").join(&random.name).join(CONFIG_FILE);
    Ok(random.bytes() <= MAX_UNASKED_BYTES || made.is_file())
}

/// The folder of a base with random weights, held by this process.
pub(super) fn folder(spec: &str, cache: &Path, status: &dyn Status) -> Result<PathBuf> {
    let random = Random::parse(spec)?;
    let folder = cache.join("bases").join(&random.name);
    let config = folder.join(CONFIG_FILE);
    // Another process may give it up between its making and its holding.
    for _ in 0..ATTEMPTS {
        if seal::holds(&folder) && hold(&config) {
            break;
        }
        seal::require_own_hand(&folder)?;
        make_room(&CacheSettings::from_environment()?, random.bytes());
        make(&random, &folder, status)?;
    }
    Ok(folder)
}

fn make(random: &Random<'_>, folder: &Path, status: &dyn Status) -> Result<()> {
    let (mut is_told, mut is_cleared) = (false, false);
    let staged = loop {
        match StagedFolder::create(folder) {
            // Another process makes the same, and its folder is as good.
            Err(OutputError::Busy { .. }) => {
                if !std::mem::replace(&mut is_told, true) {
                    status.note("another process makes the same random weights; waiting for it");
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            Err(OutputError::NotEmpty { .. }) if seal::holds(folder) => return Ok(()),
            Err(OutputError::NotEmpty { .. }) if !std::mem::replace(&mut is_cleared, true) => clear_away(folder)?,
            created => break created?,
        }
    };
    let bar = status.bytes("making random weights", 0);
    let mut progress = |done, total| bar.set(done, total);
    init_checkpoint(&random.config, random.seed, DType::BF16, staged.folder(), Layout::Native, &mut progress)?;
    random.write_vocabulary(staged.folder().into())?;
    // Before the folder appears, or another run would take it for one that nobody vouches for.
    seal::seal(staged.path(), folder)?;
    // Another run may have made the same meanwhile: its folder is as good.
    if let Err(error) = staged.commit()
        && !seal::holds(folder)
    {
        return Err(error.into());
    }
    bar.finish();
    Ok(())
}

/// Takes away what is left of a base that is damaged, or of a version that noted no digests. What is not the program's own
/// stays, and keeps the folder from being made.
fn clear_away(folder: &Path) -> Result<()> {
    let failed = |source| OutputError::Io { path: folder.to_path_buf(), source };
    for entry in fs_err::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_part) {
            fs_err::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

/// The folder of a base with random weights if it was made before, else one below `scratch` with all but the weights; and
/// whether these are there.
pub(super) fn outline(spec: &str, scratch: &Path) -> Result<(PathBuf, bool)> {
    let random = Random::parse(spec)?;
    let kept = cache_folder()?.join("bases").join(&random.name);
    if seal::holds(&kept) {
        return Ok((kept, true));
    }
    let folder = scratch.join("bases").join(&random.name);
    fs_err::create_dir_all(&folder).map_err(|source| CacheError::Scratch { source })?;
    init_side_files(&random.config, DType::BF16, &folder, Layout::Native)?;
    random.write_vocabulary(folder.as_path().into())?;
    Ok((folder, false))
}
