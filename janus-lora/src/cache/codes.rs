//! Image codes, computed once of each image: they are labels and never change.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use candle_core::Device;
use janus_core::ModelError;
use janus_core::model::vq::ImageTokenizer;
use janus_core::pass::Pass;

use super::image::Image;
use super::key::{Digest, Key};
use super::store::Kind;
use super::{ImageCache, Kept, count};
use crate::base::Base;
use crate::error::Result;

/// Codes beyond this size are not held in memory: 576 of an image are 2.3 kB. Where they are on disk, too, memory is for the
/// images that come often, and does not grow with a large table.
const MAX_BYTES_IN_MEMORY: usize = 256 << 20;
const MAX_BYTES_BESIDE_DISK: usize = 8 << 20;

/// Codes by their image.
#[derive(Debug, Default)]
pub(super) struct CodesInMemory {
    by_image: HashMap<Digest, Arc<[u32]>>,
    bytes: usize,
}

/// The codes of an encoded picture in raster order, by the base's own image tokenizer, whatever is attached to a model.
/// It is opened on `device` with the first picture whose codes are not known.
///
/// # Errors
/// An image that cannot be decoded, or weights that cannot be read.
pub fn codes(base: &Base, device: &Device, image: &Image) -> Result<Arc<[u32]>> {
    let cache = base.cache();
    let Some(digest) = image.digest() else { return Err(ModelError::NotLoaded { part: "image's bytes" }.into()) };
    let in_memory = || cache.codes.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(codes) = in_memory().by_image.get(digest) {
        return Ok(codes.clone());
    }
    let codes = match cache.kept_codes(base, device, digest) {
        Some(codes) => {
            count(&cache.counters.codes_read);
            codes
        }
        None => {
            let pixels = image.target()?.unsqueeze(0)?.to_device(device)?;
            let codes = cache.tokenizer(base, device)?.encode(&Pass::inference(), &pixels)?.concat();
            count(&cache.counters.codes_computed);
            cache.keep_codes(device, digest, &codes);
            codes
        }
    };
    let codes: Arc<[u32]> = codes.into();
    let mut in_memory = in_memory();
    let bytes = size_of_val(&*codes);
    let limit = if cache.kept.get().is_some() { MAX_BYTES_BESIDE_DISK } else { MAX_BYTES_IN_MEMORY };
    if in_memory.bytes + bytes <= limit && in_memory.by_image.insert(*digest, codes.clone()).is_none() {
        in_memory.bytes += bytes;
    }
    Ok(codes)
}

impl ImageCache {
    /// The base's image tokenizer, opened on first use and kept.
    ///
    /// # Errors
    /// Weights that cannot be read.
    pub fn tokenizer(&self, base: &Base, device: &Device) -> Result<Arc<ImageTokenizer>> {
        let mut opened = self.tokenizer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokenizer) = &*opened {
            return Ok(tokenizer.clone());
        }
        let tokenizer = Arc::new(ImageTokenizer::open(base.checkpoint(), device, &mut |_| {})?);
        *opened = Some(tokenizer.clone());
        Ok(tokenizer)
    }

    fn codes_key(&self, fingerprint: &str, device: &Device, image: &Digest) -> Digest {
        let key = Key::new(Kind::Codes.name()).field("image", image).field("fingerprint", fingerprint.as_bytes());
        key.processing(&self.processor).engine(device).finish()
    }

    fn kept_codes(&self, base: &Base, device: &Device, image: &Digest) -> Option<Vec<u32>> {
        let Kept { store, codes, .. } = self.kept.get()?;
        let vq = &base.config().vq;
        let grid = base.config().vision.image_size / vq.down_factor();
        let key = self.codes_key(codes, device, image);
        let payload = store.get(Kind::Codes, &key, grid * grid * size_of::<u32>())?;
        let codes = payload.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
        codes.map(|code| ((code as usize) < vq.num_embeddings).then_some(code)).collect()
    }

    fn keep_codes(&self, device: &Device, image: &Digest, codes: &[u32]) {
        if let Some(Kept { store, codes: fingerprint, .. }) = self.kept.get() {
            let payload: Vec<u8> = codes.iter().flat_map(|code| code.to_le_bytes()).collect();
            store.put(Kind::Codes, &self.codes_key(fingerprint, device, image), &payload);
        }
    }
}
