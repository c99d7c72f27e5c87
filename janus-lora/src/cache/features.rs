//! Vision features, computed once of each image as far as nothing trainable is in the way.

use std::sync::PoisonError;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use janus_core::Janus;
use janus_core::checkpoint::tensor_digest;
use janus_core::model::vision::VisionPoint;
use janus_core::pass::{Part, Pass};

use super::image::Image;
use super::key::{Digest, Key};
use super::store::Kind;
use super::{ImageCache, Kept};
use crate::error::Result;

/// The highest point of a model's vision part that no trainable tensor and no correction moves, as the model is now.
///
/// A copy of a parameter that carries no graph is not in the way: its values are part of what features are known by.
pub fn highest_point(model: &Janus) -> Option<VisionPoint> {
    let sites = model.projections().iter().filter(|projection| projection.correction().is_some());
    let copies = model.parameters().iter().filter(|parameter| parameter.copy().is_some_and(|copy| copy.track_op()));
    let touched =
        sites.map(|projection| projection.site().path.as_ref()).chain(copies.map(|copy| copy.name().as_ref()));
    VisionPoint::highest(model.config().vision.num_hidden_layers, touched)
}

/// Aligned features of images in order, `[images, patches, hidden]`; `None` without images.
///
/// Up to the highest point each image is computed alone, or read; from there on, and where there is no such point, all
/// together. An image that comes several times is computed once, unless each time has noise or routes of its own.
///
/// # Errors
/// Images that cannot be decoded or do not fit the model.
pub fn features(model: &Janus, pass: &Pass, images: &[Image]) -> Result<Option<Tensor>> {
    if images.is_empty() {
        return Ok(None);
    }
    if pass.train || pass.is_routed(Part::Vision) {
        return each_of(model, pass, images).map(Some);
    }
    let mut distinct: Vec<Image> = Vec::new();
    let mut order = Vec::with_capacity(images.len());
    for image in images {
        let known = distinct.iter().position(|other| other.is(image));
        order.push(known.unwrap_or(distinct.len()) as u32);
        if known.is_none() {
            distinct.push(image.clone());
        }
    }
    let features = each_of(model, pass, &distinct)?;
    if distinct.len() == images.len() {
        return Ok(Some(features));
    }
    let order = Tensor::from_vec(order, images.len(), features.device())?;
    Ok(Some(features.contiguous()?.index_select(&order, 0)?))
}

fn each_of(model: &Janus, pass: &Pass, images: &[Image]) -> Result<Tensor> {
    let vision = model.vision()?;
    let Some(point) = highest_point(model).filter(|_| !pass.is_routed(Part::Vision)) else {
        let pixels = images.iter().map(Image::pixels).collect::<Result<Vec<_>>>()?;
        let pixels = Tensor::stack(&pixels, 0)?.to_device(model.device())?;
        return Ok(vision.forward(pass, &pixels)?);
    };
    let hidden = images.iter().map(|image| image.hidden(model, pass, point)).collect::<Result<Vec<_>>>()?;
    Ok(vision.forward_from(pass, point, &Tensor::cat(&hidden, 0)?)?)
}

/// Low and mid features of images in order: `[images, patches, width]` after a third of the tower's blocks, and what the
/// aligner gives, `[images, patches, hidden]`.
///
/// # Errors
/// Images that cannot be decoded or do not fit the model.
pub fn low_and_mid_features(model: &Janus, pass: &Pass, images: &[Image]) -> Result<(Tensor, Tensor)> {
    let low = VisionPoint::low(model.config().vision.num_hidden_layers);
    if !pass.is_routed(Part::Vision) && highest_point(model).is_some_and(|point| point.covers(low)) {
        let each = images.iter().map(|image| image.hidden(model, pass, low)).collect::<Result<Vec<_>>>()?;
        return Ok((Tensor::cat(&each, 0)?, each_of(model, pass, images)?));
    }
    let pixels = images.iter().map(Image::pixels).collect::<Result<Vec<_>>>()?;
    let pixels = Tensor::stack(&pixels, 0)?.to_device(model.device())?;
    let vision = model.vision()?;
    let hidden = vision.forward_to(pass, low, &pixels)?;
    let mid = vision.forward_from(pass, low, &hidden)?;
    Ok((hidden, mid))
}

impl ImageCache {
    /// What the features of an image are known by; `None` where nothing is kept.
    pub(super) fn features_key(&self, model: &Janus, point: VisionPoint, image: &Digest) -> Result<Option<Digest>> {
        let Some(Kept { features: fingerprint, .. }) = self.kept.get() else { return Ok(None) };
        let mut key = Key::new(Kind::Features.name())
            .field("image", image)
            .field("fingerprint", fingerprint.as_bytes())
            .processing(&self.processor)
            .field("point", point.to_string().as_bytes())
            .field("dtype", model.dtype().as_str().as_bytes())
            .engine(model.device());
        for parameter in model.parameters().iter() {
            if let Some(copy) = parameter.copy()
                && point.depends_on(parameter.name())
            {
                if self.moving.get().is_some_and(|moving| moving.contains(parameter.name())) {
                    return Ok(None);
                }
                key = key
                    .field(parameter.name(), &self.copy_digest(&copy)?)
                    .field("type", copy.dtype().as_str().as_bytes());
            }
        }
        Ok(Some(key.finish()))
    }

    /// The digest of a frozen copy's values, which never change under the same id.
    fn copy_digest(&self, copy: &Tensor) -> Result<Digest> {
        let mut known = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(digest) = known.get(&copy.id()) {
            return Ok(*digest);
        }
        let digest = tensor_digest(copy)?;
        known.insert(copy.id(), digest);
        Ok(digest)
    }

    /// Features that are kept, on the model's device.
    pub(super) fn kept_features(&self, key: &Digest, model: &Janus, point: VisionPoint) -> Option<Tensor> {
        let shape = shape(model, point);
        let bytes = shape.iter().product::<usize>() * model.dtype().size_in_bytes();
        let payload = self.kept.get()?.store.get(Kind::Features, key, bytes)?;
        Tensor::from_raw_buffer(&payload, model.dtype(), &shape, &Device::Cpu).ok()?.to_device(model.device()).ok()
    }

    /// Keeps features of the model's own type and shape.
    pub(super) fn keep_features(&self, key: &Digest, model: &Janus, point: VisionPoint, hidden: &Tensor) -> Result<()> {
        let Some(Kept { store, .. }) = self.kept.get() else { return Ok(()) };
        if hidden.dims() != shape(model, point) || hidden.dtype() != model.dtype() {
            return Ok(());
        }
        let values = hidden.to_device(&Device::Cpu)?.flatten_all()?;
        // In the machine's own order, as they are read: the key is of this machine's kind.
        let payload = match hidden.dtype() {
            DType::F32 => values.to_vec1::<f32>()?.into_iter().flat_map(f32::to_ne_bytes).collect::<Vec<u8>>(),
            DType::BF16 => values.to_vec1::<bf16>()?.into_iter().flat_map(bf16::to_ne_bytes).collect(),
            _ => return Ok(()),
        };
        store.put(Kind::Features, key, &payload);
        Ok(())
    }
}

/// One image's features at a point.
fn shape(model: &Janus, point: VisionPoint) -> [usize; 3] {
    let vision = &model.config().vision;
    let width = match point {
        VisionPoint::Blocks(_) | VisionPoint::Tower => vision.hidden_size,
        VisionPoint::Aligner => vision.projection_dim,
    };
    [1, vision.num_patches(), width]
}
