//! A picture, also as a mask. What is decoded has the size that its header gave, is within the limits, and is brought to the model's size.
#![no_main]

use std::sync::LazyLock;

use janus_core::processing::{
    Decoding, ImageProcessor, MAX_PIXELS, Orientation, decode_image, decode_mask, image_dimensions,
};
use libfuzzer_sys::fuzz_target;

static PROCESSOR: LazyLock<ImageProcessor> = LazyLock::new(|| ImageProcessor::new(32).unwrap());

fuzz_target!(|data: &[u8]| {
    janus_fuzz::settle_panics();
    // The first byte of a picture is its format's: the last one chooses how it is read.
    let stored = data.last().is_some_and(|byte| byte & 1 == 1);
    let orientation = if stored { Orientation::Stored } else { Orientation::Upright };
    let decoding = Decoding { orientation, grey_bits: stored.then_some(12) };
    let size = image_dimensions(data, decoding);
    // The size alone is cheap; a picture of many millions of pixels takes seconds and teaches nothing.
    if size.as_ref().is_ok_and(|(width, height)| u64::from(*width) * u64::from(*height) > 1 << 20) {
        return;
    }
    if let Ok(mask) = decode_mask(data, decoding) {
        assert_eq!((mask.width, mask.height), *size.as_ref().expect("a mask that is decoded has a size"));
        assert_eq!(mask.values.len(), mask.width as usize * mask.height as usize);
    }
    let Ok(image) = decode_image(data, decoding) else { return };
    assert_eq!(image.dimensions(), size.expect("a picture that is decoded has a size"));
    assert!(u64::from(image.width()) * u64::from(image.height()) <= MAX_PIXELS);
    assert_eq!(PROCESSOR.understanding_u8(&image).dimensions(), (32, 32));
    assert_eq!(PROCESSOR.generation_target_u8(&image).dimensions(), (32, 32));
});
