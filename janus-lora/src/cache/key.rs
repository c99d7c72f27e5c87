//! What an entry is known by: everything that its bytes depend on, hashed.

use candle_core::{Device, DeviceLocation};
use janus_core::ops::is_composed;
use janus_core::processing::{Decoding, ImageProcessor, Orientation, ShortEdge};
use sha2::{Digest as _, Sha256};

use crate::data::EncodedImage;

/// A SHA-256.
pub(super) type Digest = [u8; 32];

/// Goes into every key. To be raised with any change to the decoding and resizing of pictures or to the vision part that
/// moves a bit of what is kept.
const FORMAT: &str = "janus-cache-2";

/// The SHA-256 of bytes.
pub(super) fn digest(bytes: &[u8]) -> Digest {
    Sha256::digest(bytes).into()
}

/// What a picture is known by: its bytes, and how they are read.
pub(super) fn digest_of(image: &EncodedImage) -> Digest {
    // Every field by name, so that a new one cannot be forgotten here.
    let Decoding { orientation, grey_bits } = image.decoding;
    let orientation = match orientation {
        Orientation::Upright => "upright",
        Orientation::Stored => "stored",
    };
    // No picture has 0 bits.
    let key = Key(Sha256::new()).field("bytes", &image.bytes).field("orientation", orientation.as_bytes());
    key.field("grey_bits", &[grey_bits.unwrap_or(0)]).finish()
}

/// A key under construction: fields by name, each with its length.
pub(super) struct Key(Sha256);

impl Key {
    /// For things of one kind.
    pub(super) fn new(kind: &str) -> Self {
        let new = Self(Sha256::new()).field("format", FORMAT.as_bytes());
        new.field("version", env!("CARGO_PKG_VERSION").as_bytes()).field("kind", kind.as_bytes())
    }

    /// With one more field.
    pub(super) fn field(mut self, name: &str, value: &[u8]) -> Self {
        for bytes in [name.as_bytes(), value] {
            self.0.update((bytes.len() as u64).to_le_bytes());
            self.0.update(bytes);
        }
        self
    }

    /// With how pictures are prepared.
    pub(super) fn processing(self, processor: &ImageProcessor) -> Self {
        // Every field by name, so that a new one cannot be forgotten here.
        let ImageProcessor { image_size, min_size, mean, std, background, short_edge } = processor;
        let floats = |values: &[f32; 3]| values.map(f32::to_le_bytes).concat();
        let rule = match short_edge {
            ShortEdge::Truncate => "truncate",
            ShortEdge::RoundHalfEven => "round half even",
        };
        self.field("image_size", &(*image_size as u64).to_le_bytes())
            .field("min_size", &min_size.to_le_bytes())
            .field("mean", &floats(mean))
            .field("std", &floats(std))
            .field("background", background)
            .field("resampling", b"bicubic, 1/255")
            .field("short_edge", rule.as_bytes())
    }

    /// With what the numbers are computed on and by: another processor, another number of threads, or operations composed
    /// of others, may round otherwise.
    pub(super) fn engine(self, device: &Device) -> Self {
        let path = if is_composed(device) { "composed" } else { "fused" };
        let device = match device.location() {
            DeviceLocation::Cpu => "cpu",
            DeviceLocation::Cuda { .. } => "cuda",
            DeviceLocation::Metal { .. } => "metal",
        };
        let threads = rayon::current_num_threads() as u64;
        self.field("device", device.as_bytes())
            .field("path", path.as_bytes())
            .field("processor", processor_features().as_bytes())
            .field("threads", &threads.to_le_bytes())
    }

    pub(super) fn finish(self) -> Digest {
        self.0.finalize().into()
    }
}

/// The instruction sets that products are chosen by.
fn processor_features() -> String {
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))]
    let mut features = vec![std::env::consts::ARCH];
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512dq", std::arch::is_x86_feature_detected!("avx512dq")),
        ("avx512vl", std::arch::is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
    ] {
        if there {
            features.push(name);
        }
    }
    features.join(" ")
}
