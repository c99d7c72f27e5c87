//! An image of a sample.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::Tensor;
use janus_core::Janus;
use janus_core::model::vision::VisionPoint;
use janus_core::pass::Pass;

use super::features::highest_point;
use super::key::{Digest, digest_of};
use super::{ImageCache, count};
use crate::data::EncodedImage;
use crate::error::{Error, Result};

/// An image as a sample carries it: decoded and resized only where no kept features make that needless.
#[derive(Clone)]
pub struct Image(Arc<Inner>);

#[derive(Default)]
struct Inner {
    encoded: Option<Encoded>,
    /// `[3, side, side]`.
    pixels: OnceLock<Tensor>,
    /// What the image tokenizer encodes, `[3, side, side]`.
    target: OnceLock<Tensor>,
    /// Whether a model asked for either.
    needed: AtomicBool,
    /// The aligner's output where it is given instead of pixels, `[1, patches, hidden]`.
    features: Option<Tensor>,
    /// What was read for one key.
    read: Mutex<Option<(Digest, Tensor)>>,
}

struct Encoded {
    cache: Arc<ImageCache>,
    image: EncodedImage,
    digest: Digest,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let image = self.0.encoded.as_ref().map(|encoded| &encoded.image);
        f.debug_struct("Image").field("encoded", &image).field("pixels", &self.0.pixels.get()).finish_non_exhaustive()
    }
}

impl Image {
    /// From a picture's file.
    pub fn encoded(cache: &Arc<ImageCache>, image: EncodedImage) -> Self {
        let digest = digest_of(&image);
        let encoded = Some(Encoded { cache: cache.clone(), image, digest });
        Self(Arc::new(Inner { encoded, ..Inner::default() }))
    }

    /// From pixels `[3, side, side]`, of which nothing is kept.
    pub fn from_pixels(pixels: Tensor) -> Self {
        Self(Arc::new(Inner { pixels: pixels.into(), ..Inner::default() }))
    }

    /// From the pixels of a batch, `[images, 3, side, side]`.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn each_of(pixels: &Tensor) -> Result<Vec<Self>> {
        (0..pixels.dim(0)?).map(|number| Ok(Self::from_pixels(pixels.get(number)?))).collect()
    }

    /// From the aligner's outputs for a batch, `[images, patches, hidden]`: good for models in which nothing of the
    /// vision part is trained or adapted.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn each_of_features(features: &Tensor) -> Result<Vec<Self>> {
        let image = |number| {
            let features = Some(features.narrow(0, number, 1)?);
            Ok(Self(Arc::new(Inner { features, ..Inner::default() })))
        };
        (0..features.dim(0)?).map(image).collect()
    }

    /// Whether this is known to be the same picture.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let same_file = match (&self.0.encoded, &other.0.encoded) {
            (Some(own), Some(other)) => own.digest == other.digest && Arc::ptr_eq(&own.cache, &other.cache),
            _ => false,
        };
        same_file || Arc::ptr_eq(&self.0, &other.0)
    }

    /// The picture as the vision tower gets it, F32 `[3, side, side]`.
    ///
    /// # Errors
    /// An image that cannot be decoded, or that is known by its features alone.
    pub fn pixels(&self) -> Result<Tensor> {
        self.0.needed.store(true, Ordering::Relaxed);
        self.make_pixels()?;
        let missing = || Error::from(janus_core::ModelError::NotLoaded { part: "image's pixels" });
        self.0.pixels.get().cloned().ok_or_else(missing)
    }

    fn make_pixels(&self) -> Result<()> {
        if let (None, Some(encoded)) = (self.0.pixels.get(), &self.0.encoded) {
            let pixels = encoded.cache.processor.understanding(&*encoded.image.decode()?)?;
            // Of two threads the second finds the same there.
            let _ = self.0.pixels.set(pixels);
        }
        Ok(())
    }

    /// The picture as the image tokenizer gets it, F32 `[3, side, side]`.
    ///
    /// # Errors
    /// As [`Image::pixels`].
    pub(crate) fn target(&self) -> Result<Tensor> {
        self.0.needed.store(true, Ordering::Relaxed);
        self.make_target()?;
        let missing = || Error::from(janus_core::ModelError::NotLoaded { part: "image's bytes" });
        self.0.target.get().cloned().ok_or_else(missing)
    }

    fn make_target(&self) -> Result<()> {
        if let (None, Some(encoded)) = (self.0.target.get(), &self.0.encoded) {
            let target = encoded.cache.processor.generation_target(&*encoded.image.decode()?)?;
            let _ = self.0.target.set(target);
        }
        Ok(())
    }

    /// Bytes of the picture as it is decoded, by its header: three a pixel; none of one that came as numbers.
    pub(crate) fn decoded_bytes(&self) -> u64 {
        let size = self.0.encoded.as_ref().and_then(|encoded| encoded.image.dimensions().ok());
        size.map_or(0, |(width, height)| 3 * u64::from(width) * u64::from(height))
    }

    /// Makes the pixels before a model asks for them. What is wrong with the picture comes out when one does.
    pub(crate) fn pixels_ahead(&self) {
        let _ = self.make_pixels();
    }

    /// Makes what the image tokenizer encodes before it is asked for, as [`Image::pixels_ahead`].
    pub(crate) fn target_ahead(&self) {
        let _ = self.make_target();
    }

    /// Whether a model asked for more than what is kept of the picture.
    pub(crate) fn was_needed(&self) -> bool {
        self.0.needed.load(Ordering::Relaxed)
    }

    /// What the picture's file is known by, `None` of one that came as numbers.
    pub(super) fn digest(&self) -> Option<&Digest> {
        self.0.encoded.as_ref().map(|encoded| &encoded.digest)
    }

    /// Whether its pixels were made.
    #[cfg(test)]
    pub(super) fn is_decoded(&self) -> bool {
        self.0.pixels.get().is_some()
    }

    /// Makes ready what this model needs of the image: what is kept of it, else its pixels.
    ///
    /// # Errors
    /// An image that cannot be decoded.
    pub fn prepare(&self, model: &Janus) -> Result<()> {
        if let Some(point) = highest_point(model) {
            if self.given(point).is_some() {
                return Ok(());
            }
            if let Some((key, encoded)) = self.key(model, point)?
                && self.read(encoded, model, point, key).is_some()
            {
                return Ok(());
            }
        }
        self.pixels().map(|_| ())
    }

    /// What the vision part gives at a point with nothing trainable below it: `[1, patches, width]`, at the aligner
    /// `[1, patches, hidden]`.
    ///
    /// # Errors
    /// An image that cannot be decoded or does not fit the model.
    pub(super) fn hidden(&self, model: &Janus, pass: &Pass, point: VisionPoint) -> Result<Tensor> {
        if let Some(features) = self.given(point) {
            return Ok(features.to_device(model.device())?);
        }
        let key = self.key(model, point)?;
        if let Some((key, encoded)) = key
            && let Some(hidden) = self.read(encoded, model, point, key)
        {
            return Ok(hidden);
        }
        let pixels = self.pixels()?.unsqueeze(0)?.to_device(model.device())?;
        let hidden = model.vision()?.forward_to(pass, point, &pixels)?;
        if let Some(encoded) = &self.0.encoded {
            count(&encoded.cache.counters.features_computed);
        }
        if let Some((key, encoded)) = key {
            encoded.cache.keep_features(&key, model, point, &hidden)?;
        }
        Ok(hidden)
    }

    /// The given features, where they are those of this point.
    fn given(&self, point: VisionPoint) -> Option<&Tensor> {
        self.0.features.as_ref().filter(|_| point == VisionPoint::Aligner)
    }

    /// What is kept of the image at a point is known by this; `None` where nothing is kept.
    fn key(&self, model: &Janus, point: VisionPoint) -> Result<Option<(Digest, &Encoded)>> {
        let Some(encoded) = &self.0.encoded else { return Ok(None) };
        let key = encoded.cache.features_key(model, point, &encoded.digest)?;
        Ok(key.map(|key| (key, encoded)))
    }

    fn read(&self, encoded: &Encoded, model: &Janus, point: VisionPoint, key: Digest) -> Option<Tensor> {
        let mut read = self.0.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, hidden)) = read.as_ref()
            && *known == key
        {
            return Some(hidden.clone());
        }
        let hidden = encoded.cache.kept_features(&key, model, point)?;
        *read = Some((key, hidden.clone()));
        count(&encoded.cache.counters.features_read);
        Some(hidden)
    }
}
