//! Pictures to the model's numbers, and the image decoder's numbers to pictures.
//!
//! Source: deepseek-ai/Janus `janus/models/image_processing_vlm.py`; for [`ShortEdge::RoundHalfEven`] transformers'
//! `image_processing_pil_janus.py`.

use candle_core::{DType, Device, Tensor};
use image::{Rgb, RgbImage, imageops};

use super::Result;
use super::config::ShortEdge;
use super::error::ProcessingError;
use super::resize::{Window, resize_bicubic, resize_bicubic_window};

/// How a model's pictures are made. Made by [`ImageProcessor::new`] or [`ImageProcessor::from_folder`].
#[derive(Debug, Clone, PartialEq)]
pub struct ImageProcessor {
    /// Side of the square that the model sees, in pixels.
    pub image_size: usize,
    /// The shortest that the short side may become, in pixels.
    pub min_size: u32,
    /// Subtracted from each channel, which is from 0 to 1.
    pub mean: [f32; 3],
    /// What each channel is divided by then.
    pub std: [f32; 3],
    /// The colour beside pictures that are not square.
    pub background: [u8; 3],
    /// How the short side is rounded.
    pub short_edge: ShortEdge,
}

/// Where a picture lies in the square that the model sees of it: the rest is background. Made by [`ImageProcessor::frame`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// First column of the square that shows the picture.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns of the square that show it.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The picture's own width and height in pixels.
    pub picture: (u32, u32),
}

impl Frame {
    fn factors(&self) -> (f32, f32) {
        (self.width as f32 / self.picture.0 as f32, self.height as f32 / self.picture.1 as f32)
    }

    /// A point of the picture, in its pixels, in those of the square.
    pub fn to_square(&self, (x, y): (f32, f32)) -> (f32, f32) {
        let (across, down) = self.factors();
        (self.left as f32 + x * across, self.top as f32 + y * down)
    }

    /// A point of the square in the picture's pixels; it may lie outside the picture.
    pub fn to_picture(&self, (x, y): (f32, f32)) -> (f32, f32) {
        let (across, down) = self.factors();
        ((x - self.left as f32) / across, (y - self.top as f32) / down)
    }
}

impl ImageProcessor {
    /// With another rule for the short side.
    #[must_use]
    pub fn with_short_edge(mut self, short_edge: ShortEdge) -> Self {
        self.short_edge = short_edge;
        self
    }

    /// Where a picture of `width` times `height` lies in the square that the model sees.
    pub fn frame(&self, width: u32, height: u32) -> Frame {
        let (inner_width, inner_height) = self.resized_dimensions(width, height);
        Frame {
            left: (self.side() - inner_width) / 2,
            top: (self.side() - inner_height) / 2,
            width: inner_width,
            height: inner_height,
            picture: (width.max(1), height.max(1)),
        }
    }

    fn side(&self) -> u32 {
        // `ImageProcessor::new` keeps the size far below this; a larger one set by hand would not be allocated either.
        u32::try_from(self.image_size).unwrap_or(u32::MAX)
    }

    /// Width and height that a picture of `width` times `height` is resized to before it is padded to a square.
    pub fn resized_dimensions(&self, width: u32, height: u32) -> (u32, u32) {
        let long = f64::from(width.max(height).max(1));
        let size = f64::from(self.side());
        let scaled = |side: u32| {
            // The order of the operations is each implementation's own.
            let exact = match self.short_edge {
                ShortEdge::Truncate => f64::from(side) / long * size,
                ShortEdge::RoundHalfEven => (f64::from(side) * (size / long)).round_ties_even(),
            };
            (exact as u32).max(self.min_size).min(self.side())
        };
        (scaled(width), scaled(height))
    }

    /// The square that the model sees of a picture, whole, with the background beside it; `image_size` a side.
    pub fn understanding_u8(&self, image: &RgbImage) -> RgbImage {
        let Frame { left, top, width, height, .. } = self.frame(image.width(), image.height());
        let mut canvas = RgbImage::from_pixel(self.side(), self.side(), Rgb(self.background));
        if image.is_empty() {
            return canvas;
        }
        let resized = resize_bicubic(image, width, height);
        imageops::replace(&mut canvas, &resized, i64::from(left), i64::from(top));
        canvas
    }

    /// What the vision tower gets: F32 `[3, image_size, image_size]`, `(value / 255 - mean) / std`.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn understanding(&self, image: &RgbImage) -> Result<Tensor> {
        normalised(&self.understanding_u8(image), self.mean, self.std)
    }

    /// The square that is to be drawn for a picture: its short side resized to `image_size`, its long side cropped
    /// about the centre, so that no bars are learned.
    ///
    /// The tech report of Janus-Pro states as much; where exactly to round is not published, here down.
    pub fn generation_target_u8(&self, image: &RgbImage) -> RgbImage {
        let side = self.side();
        let short = u64::from(image.width().min(image.height()).max(1));
        let scaled = |length: u32| {
            (u64::from(length) * u64::from(side) / short).clamp(u64::from(side), u64::from(u32::MAX)) as u32
        };
        let (width, height) = (scaled(image.width()), scaled(image.height()));
        let window = Window { left: (width - side) / 2, top: (height - side) / 2, width: side, height: side };
        resize_bicubic_window(image, width, height, window)
    }

    /// What the image tokenizer gets of a picture: F32 `[3, image_size, image_size]`, from -1 to 1, whatever the mean
    /// and deviation of the vision tower are.
    ///
    /// # Errors
    /// The tensor engine's.
    pub fn generation_target(&self, image: &RgbImage) -> Result<Tensor> {
        normalised(&self.generation_target_u8(image), [0.5; 3], [0.5; 3])
    }
}

/// F32 `[3, height, width]` of a picture: `(value / 255 - mean) / std` of each channel.
///
/// # Errors
/// None of its own; the tensor engine's.
pub fn normalised(image: &RgbImage, mean: [f32; 3], std: [f32; 3]) -> Result<Tensor> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut values = Vec::with_capacity(3 * width * height);
    for channel in 0..3 {
        let table: [f32; 256] = std::array::from_fn(|value| (value as f32 / 255.0 - mean[channel]) / std[channel]);
        values.extend(image.as_raw().iter().skip(channel).step_by(3).map(|&value| table[usize::from(value)]));
    }
    Ok(Tensor::from_vec(values, (3, height, width), &Device::Cpu)?)
}

/// Pictures of the image decoder's output, `[batch, 3, height, width]`, nominally from -1 to 1.
///
/// `(y + 1) / 2 · 255`, held to 0 and 255, then cut to an integer, not rounded, as both implementations do.
///
/// # Errors
/// Another shape; values that are not finite, which a picture would hide.
pub fn pixels_to_images(pixels: &Tensor) -> Result<Vec<RgbImage>> {
    let wrong_shape = || ProcessingError::PixelShape { got: pixels.dims().to_vec() };
    let &[_, 3, height, width] = pixels.dims() else { return Err(wrong_shape()) };
    let (Ok(columns), Ok(rows)) = (u32::try_from(width), u32::try_from(height)) else { return Err(wrong_shape()) };
    let values = pixels.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let plane = width * height;
    if plane == 0 {
        return Err(wrong_shape());
    }
    let mut images = Vec::new();
    for (index, picture) in values.chunks_exact(3 * plane).enumerate() {
        if picture.iter().any(|y| !y.is_finite()) {
            return Err(ProcessingError::NotFinite { index });
        }
        let mut bytes = vec![0; 3 * plane];
        for (channel, values) in picture.chunks_exact(plane).enumerate() {
            for (byte, y) in bytes.iter_mut().skip(channel).step_by(3).zip(values) {
                *byte = ((y + 1.0) / 2.0 * 255.0).clamp(0.0, 255.0) as u8;
            }
        }
        images.push(RgbImage::from_raw(columns, rows, bytes).ok_or_else(wrong_shape)?);
    }
    Ok(images)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_rules_round_the_short_side_differently() {
        let deepseek = ImageProcessor::new(384).unwrap();
        let transformers = deepseek.clone().with_short_edge(ShortEdge::RoundHalfEven);
        // Content sizes of the model facts' golden checks and of their table of differences.
        for (size, truncated, rounded) in [
            ((640, 480), (384, 288), (384, 288)),
            ((250, 100), (384, 153), (384, 154)),
            ((1000, 333), (384, 127), (384, 128)),
            ((30, 3000), (14, 384), (14, 384)),
            ((5, 5), (384, 384), (384, 384)),
        ] {
            assert_eq!(deepseek.resized_dimensions(size.0, size.1), truncated);
            assert_eq!(transformers.resized_dimensions(size.0, size.1), rounded);
        }
        for long in 1..3000 {
            assert_eq!(deepseek.resized_dimensions(long, 1).0, 384, "{long}");
            assert_eq!(transformers.resized_dimensions(1, long).1, 384, "{long}");
        }
    }

    #[test]
    fn pictures_are_centred_on_grey() {
        let processor = ImageProcessor::new(32).unwrap();
        let square = processor.understanding_u8(&RgbImage::from_pixel(64, 42, Rgb([255, 0, 10])));
        assert_eq!(square.dimensions(), (32, 32));
        for (row, pixels) in square.rows().enumerate() {
            let expected = if (5..26).contains(&row) { [255, 0, 10] } else { [127; 3] };
            assert!(pixels.into_iter().all(|p| p.0 == expected), "row {row}");
        }
        let values = processor.understanding(&RgbImage::from_pixel(64, 42, Rgb([255, 0, 10]))).unwrap();
        assert_eq!(values.dims(), [3, 32, 32]);
        let values = values.to_vec3::<f32>().unwrap();
        assert!((values[2][0][0] + 0.003_921_6).abs() < 1e-6);
        assert_eq!((values[0][16][3], values[1][16][3]), (1.0, -1.0));
        assert_eq!(processor.understanding_u8(&RgbImage::new(0, 0)).get_pixel(0, 0).0, [127; 3]);
    }

    #[test]
    fn points_go_to_the_square_and_back() {
        let frame = ImageProcessor::new(32).unwrap().frame(64, 42);
        assert_eq!(frame, Frame { left: 0, top: 5, width: 32, height: 21, picture: (64, 42) });
        assert_eq!(frame.to_square((64.0, 42.0)), (32.0, 26.0));
        assert_eq!(frame.to_square((10.0, 0.0)), (5.0, 5.0));
        let (x, y) = frame.to_picture(frame.to_square((13.0, 29.0)));
        assert!((x - 13.0).abs() < 1e-4 && (y - 29.0).abs() < 1e-4);
        assert!(frame.to_picture((3.0, 2.0)).1 < 0.0);
    }

    #[test]
    fn targets_are_cropped_about_the_centre_without_bars() {
        let processor = ImageProcessor::new(16).unwrap();
        let image = RgbImage::from_fn(64, 16, |x, y| Rgb([x as u8, y as u8, 0]));
        let target = processor.generation_target_u8(&image);
        assert_eq!(target, imageops::crop_imm(&image, 24, 0, 16, 16).to_image());
        let tall = RgbImage::from_fn(40, 90, |x, y| Rgb([x as u8, y as u8, 200]));
        let whole = resize_bicubic(&tall, 16, 36);
        assert_eq!(processor.generation_target_u8(&tall), imageops::crop_imm(&whole, 0, 10, 16, 16).to_image());
        let line = RgbImage::from_pixel(1, 100, Rgb([9, 8, 7]));
        assert!(processor.generation_target_u8(&line).pixels().all(|p| p.0 == [9, 8, 7]));
        let values = processor.generation_target(&image).unwrap().to_vec3::<f32>().unwrap();
        assert_eq!((values[0][0][0], values[2][5][5]), ((24.0 / 255.0 - 0.5) / 0.5, -1.0));
    }

    #[test]
    fn decoded_values_are_held_and_cut() {
        let one = |y: f32| {
            let pixels = Tensor::new(&[y, 0.0, 1.0], &Device::Cpu).unwrap().reshape((1, 3, 1, 1)).unwrap();
            pixels_to_images(&pixels).map(|images| images[0].get_pixel(0, 0).0)
        };
        assert_eq!(one(-1.59).unwrap(), [0, 127, 255]);
        assert_eq!(one(1.59).unwrap()[0], 255);
        assert_eq!(one(0.999).unwrap()[0], 254);
        assert!(matches!(one(f32::NAN), Err(ProcessingError::NotFinite { index: 0 })));
        let flat = Tensor::zeros((3, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert!(matches!(pixels_to_images(&flat), Err(ProcessingError::PixelShape { .. })));
    }

    #[test]
    fn all_bytes_return_from_minus_one_to_one() {
        let image = RgbImage::from_fn(16, 16, |x, y| Rgb([(16 * y + x) as u8; 3]));
        let values = normalised(&image, [0.5; 3], [0.5; 3]).unwrap().unsqueeze(0).unwrap();
        let back = &pixels_to_images(&values).unwrap()[0];
        for (before, after) in image.pixels().zip(back.pixels()) {
            assert!(before.0[0].abs_diff(after.0[0]) <= 1);
        }
    }
}
