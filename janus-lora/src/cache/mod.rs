//! What is computed once of each image and never changes: vision features and image codes, kept on disk.
//!
//! | file | what |
//! | --- | --- |
//! | `image` | an image of a sample: its bytes, and pixels or kept features as soon as they are needed |
//! | `features` | vision features, kept at the highest point with nothing trainable below it |
//! | `codes` | image codes; the image tokenizer is opened with the first image that has none |
//! | `key` | what an entry is known by: everything that its bytes depend on |
//! | `store` | the folder: checked entries, bounded in size, safe for several runs at once |
//! | `stock` | everything that is kept, bases and tables too: what there is and what goes first |
//! | `seal` | whether what was made on the spot is still what was made |
//! | `place` | whether what is made on the spot stays |
//!
//! Features are computed one image at a time wherever there is a point, kept or not, so that a run gives the same bytes
//! with a cold cache, a warm one and none. Nothing that goes wrong with the cache ends a run.

mod codes;
mod error;
mod features;
mod image;
mod key;
mod place;
pub(crate) mod seal;
pub mod stock;
mod store;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use candle_core::TensorId;
use janus_core::model::vq::ImageTokenizer;
use janus_core::processing::ImageProcessor;

pub use codes::codes;
pub use error::CacheError;
pub use features::{features, highest_point, low_and_mid_features};
pub use image::Image;
pub use place::Place;
pub use store::{CacheSettings, LIMIT_VARIABLE};

use codes::CodesInMemory;
use key::Digest;
use store::Store;

use crate::status::Status;

/// How often something was computed and how often it was read from the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Vision features of one image computed.
    pub features_computed: u64,
    /// Vision features of one image read.
    pub features_read: u64,
    /// Codes of one image computed.
    pub codes_computed: u64,
    /// Codes of one image read.
    pub codes_read: u64,
}

#[derive(Debug, Default)]
struct Counters {
    features_computed: AtomicU64,
    features_read: AtomicU64,
    codes_computed: AtomicU64,
    codes_read: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Where entries go, and whose they are.
#[derive(Debug)]
struct Kept {
    store: Store,
    /// What the features of its images depend on, and what their codes do.
    features: String,
    codes: String,
}

/// What is computed of a base's images. It keeps nothing on disk before [`ImageCache::keep`].
#[derive(Debug)]
pub struct ImageCache {
    processor: ImageProcessor,
    kept: OnceLock<Kept>,
    codes: Mutex<CodesInMemory>,
    tokenizer: Mutex<Option<Arc<ImageTokenizer>>>,
    /// Digests of the values of parameters' frozen copies.
    copies: Mutex<HashMap<TensorId, Digest>>,
    /// Parameters whose copies are under training.
    moving: OnceLock<BTreeSet<Arc<str>>>,
    counters: Counters,
}

impl ImageCache {
    /// For images that this processor prepares.
    pub fn new(processor: ImageProcessor) -> Self {
        Self {
            processor,
            kept: OnceLock::new(),
            codes: Mutex::default(),
            tokenizer: Mutex::default(),
            copies: Mutex::default(),
            moving: OnceLock::new(),
            counters: Counters::default(),
        }
    }

    /// Keeps on disk from now on what is computed for the base of this fingerprint, and reads what is there. Further
    /// calls change nothing.
    pub fn keep(&self, fingerprint: &str, settings: &CacheSettings) {
        self.keep_by(fingerprint, fingerprint, settings);
    }

    /// As [`ImageCache::keep`], where features and codes of images are known by values of their own.
    pub(crate) fn keep_by(&self, features: &str, codes: &str, settings: &CacheSettings) {
        if let Some(store) = Store::open(settings) {
            // A second store is dropped.
            let _ = self.kept.set(Kept { store, features: features.to_owned(), codes: codes.to_owned() });
        }
    }

    /// Says which parameters' copies are under training: what depends on one of them will not come again, and is not kept.
    pub fn move_with(&self, parameters: BTreeSet<Arc<str>>) {
        // A second run over one open base would train the same or keep too little.
        let _ = self.moving.set(parameters);
    }

    /// What was computed and read so far.
    pub fn counts(&self) -> Counts {
        let now = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            features_computed: now(&self.counters.features_computed),
            features_read: now(&self.counters.features_read),
            codes_computed: now(&self.counters.codes_computed),
            codes_read: now(&self.counters.codes_read),
        }
    }

    /// Warns, once, that the folder cannot be written to.
    pub fn warn(&self, status: &dyn Status) {
        if let Some(failure) = self.kept.get().and_then(|kept| kept.store.take_failure()) {
            status.warn(&failure);
        }
    }

    /// Tells what was computed and what was read, if there was anything.
    pub fn tell(&self, status: &dyn Status) {
        self.warn(status);
        let counts = self.counts();
        let line = |what: &str, computed: u64, read: u64| {
            (computed + read > 0).then(|| format!("{what}: {computed} computed, {read} read from the cache"))
        };
        let features = line("vision features", counts.features_computed, counts.features_read);
        let codes = line("image codes", counts.codes_computed, counts.codes_read);
        let told: Vec<String> = features.into_iter().chain(codes).collect();
        if !told.is_empty() {
            status.note(&told.join("; "));
        }
    }
}

#[cfg(test)]
mod tests;
