//! Bases with random weights, made on first use and kept in the cache folder.

use std::path::{Path, PathBuf};

use candle_core::DType;
use janus_core::checkpoint::{Merges, init_checkpoint, learn_merges, write_tokenizer};
use janus_core::config::{JanusConfig, Layout};
use janus_core::output::StagedFolder;
use janus_core::processing::DEFAULT_SYSTEM_PROMPT;

use super::{BaseError, INIT_PREFIX, short_hash};
use crate::data::synth;
use crate::error::Result;
use crate::status::Status;

/// Raised when merges are learnt otherwise from the same drawn texts, so that no older vocabulary of the cache passes for a new
/// one.
const VOCABULARY_VERSION: u32 = 2;

/// Raised when a tensor of the same shape is drawn otherwise, for the same reason.
const VALUES_VERSION: u32 = 2;

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

/// The folder of a base with random weights. Its name carries a hash of the shape's sizes and of how values are drawn, so
/// that one made by an earlier version with others does not pass for it.
pub(super) fn folder(spec: &str, cache: &Path, status: &dyn Status) -> Result<PathBuf> {
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
    let sizes =
        short_hash([config.to_json(Layout::Native, DType::BF16).to_string().as_bytes(), &VALUES_VERSION.to_le_bytes()]);
    let folder = cache.join("bases").join(format!("{shape}-{sizes}-seed{seed}{suffix}"));
    if !folder.join("config.json").exists() {
        let staged = StagedFolder::create(&folder)?;
        let bar = status.bytes("making random weights", 0);
        let mut progress = |done, total| bar.set(done, total);
        init_checkpoint(&config, seed, DType::BF16, staged.path(), Layout::Native, &mut progress)?;
        if let Some(domain) = vocabulary {
            write_tokenizer(&config, &vocabulary_of(&config, domain, seed)?, staged.path())?;
        }
        // Another run may have made the same meanwhile: its folder is as good.
        if let Err(error) = staged.commit()
            && !folder.join("config.json").exists()
        {
            return Err(error.into());
        }
        bar.finish();
    }
    Ok(folder)
}
