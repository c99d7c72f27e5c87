//! The settings of a checkpoint's image processor.
//!
//! Three forms are in use: `processor_config.json` with them under `image_processor` (transformers 5),
//! `preprocessor_config.json` with `size` (transformers 4), and the same file with `image_size` (DeepSeek).

use std::path::Path;

use serde_json::Value;

use super::Result;
use super::error::ProcessingError;
use super::image::ImageProcessor;
use super::settings::{Settings, setting};

/// Janus' mean and standard deviation of every channel.
const JANUS_MEAN: [f32; 3] = [0.5; 3];

/// The shortest that the short side of a resized picture may be, in pixels.
const JANUS_MIN_SIZE: u32 = 14;

/// The largest side of the square that a picture is brought to.
pub(super) const MAX_IMAGE_SIZE: usize = 8192;

/// How the length of a resized picture's short side is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortEdge {
    /// short / long · size, cut to an integer: DeepSeek's processor, which the weights were trained with.
    #[default]
    Truncate,
    /// short · (size / long), rounded half to even: transformers.
    RoundHalfEven,
}

impl ImageProcessor {
    /// The settings of Janus for images of `image_size` pixels a side.
    ///
    /// # Errors
    /// A size of 0, or so large that a picture would be beyond all use.
    pub fn new(image_size: usize) -> Result<Self> {
        if image_size == 0 || image_size > MAX_IMAGE_SIZE {
            return Err(ProcessingError::ImpossibleImageSize { size: image_size, limit: MAX_IMAGE_SIZE });
        }
        Ok(Self {
            image_size,
            min_size: JANUS_MIN_SIZE.min(image_size as u32),
            mean: JANUS_MEAN,
            std: JANUS_MEAN,
            background: background(JANUS_MEAN),
            short_edge: ShortEdge::default(),
        })
    }

    /// Reads the settings of a checkpoint folder; those that are absent are Janus'.
    ///
    /// `image_size` is the model's. With `do_normalize` off, mean and standard deviation are 0.5 all the same: the
    /// first release of Janus-1.3B had it off by mistake, and answers were wrong. The colour around a picture is the
    /// mean's, cut to 8 bits, as in DeepSeek's processor and in transformers, which both overwrite
    /// `background_color`.
    ///
    /// # Errors
    /// A file that is not JSON, a setting of the wrong type or that asks for something else than Janus' processing, a
    /// size that is not the model's.
    pub fn from_folder(folder: &Path, image_size: usize) -> Result<Self> {
        let mut processor = Self::new(image_size)?;
        let Some(settings) = Settings::find(folder)? else { return Ok(processor) };

        for key in ["do_resize", "do_rescale", "do_pad"] {
            if settings.flag(key)? == Some(false) {
                return Err(settings.wrong(key, "true"));
            }
        }
        if settings.number("resample")?.is_some_and(|resample| resample != 3.0) {
            return Err(settings.wrong("resample", "3 (bicubic)"));
        }
        if settings.number("rescale_factor")?.is_some_and(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
            return Err(settings.wrong("rescale_factor", "1/255"));
        }
        settings.check_size(image_size)?;
        if let Some(min_size) = settings.number("min_size")? {
            if min_size.fract() != 0.0 || !(1.0..=image_size as f64).contains(&min_size) {
                return Err(settings.wrong("min_size", &format!("an integer from 1 to {image_size}")));
            }
            processor.min_size = min_size as u32;
        }
        if settings.flag("do_normalize")? != Some(false) {
            processor.mean = settings.channels("image_mean", |x| (0.0..=1.0).contains(&x))?.unwrap_or(JANUS_MEAN);
            processor.std = settings.channels("image_std", |x| x > 1e-6)?.unwrap_or(JANUS_MEAN);
        }
        processor.background = background(processor.mean);
        Ok(processor)
    }
}

/// The mean as a colour, cut to 8 bits.
fn background(mean: [f32; 3]) -> [u8; 3] {
    mean.map(|x| (f64::from(x) * 255.0) as u8)
}

impl Settings {
    /// From `processor_config.json` if it has an image processor in it, else from `preprocessor_config.json`.
    fn find(folder: &Path) -> Result<Option<Self>> {
        for (file, inner) in [("processor_config.json", Some("image_processor")), ("preprocessor_config.json", None)] {
            let Some(mut whole) = Self::read(folder, file)? else { continue };
            match inner {
                None => return Ok(Some(whole)),
                Some(key) => match whole.values.remove(key) {
                    Some(Value::Object(values)) => return Ok(Some(Self { values, ..whole })),
                    None | Some(Value::Null) => {}
                    Some(value) => return Err(setting(&whole.path, key, "an object", &value)),
                },
            }
        }
        Ok(None)
    }

    /// One number for each channel, or one for all.
    fn channels(&self, key: &str, allowed: impl Fn(f64) -> bool) -> Result<Option<[f32; 3]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect(),
            value => value.as_f64().map(|x| vec![x; 3]),
        };
        let channels = numbers.and_then(|numbers| <[f64; 3]>::try_from(numbers).ok());
        match channels.filter(|channels| channels.iter().all(|&x| allowed(x))) {
            Some(channels) => Ok(Some(channels.map(|x| x as f32))),
            None => Err(self.wrong(key, "three numbers, those of a mean from 0 to 1, of a deviation above 0")),
        }
    }

    /// Either `image_size` or `size`, a number or an object of `height` and `width`, has to be the model's.
    fn check_size(&self, image_size: usize) -> Result<()> {
        for key in ["image_size", "size"] {
            let Some(value) = self.get(key) else { continue };
            let sides = match value {
                Value::Object(sides) => vec![sides.get("height"), sides.get("width")],
                value => vec![Some(value)],
            };
            for side in sides {
                let side = side.and_then(Value::as_u64);
                let got = side.ok_or_else(|| self.wrong(key, "an integer, or `height` and `width`"))?;
                if got != image_size as u64 {
                    return Err(ProcessingError::ImageSize { path: self.path.clone(), expected: image_size, got });
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(files: &[(&str, &str)]) -> Result<ImageProcessor> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        ImageProcessor::from_folder(folder.path(), 384)
    }

    #[test]
    fn without_files_the_settings_are_those_of_janus() {
        let processor = from(&[]).unwrap();
        assert_eq!((processor.image_size, processor.min_size), (384, 14));
        assert_eq!((processor.mean, processor.std, processor.background), ([0.5; 3], [0.5; 3], [127; 3]));
        assert_eq!(processor.short_edge, ShortEdge::Truncate);
    }

    #[test]
    fn each_form_of_the_file_is_read() {
        let values = r#""min_size": 20, "image_mean": [0.4, 0.5, 0.6], "image_std": 0.25"#;
        for (name, text) in [
            ("preprocessor_config.json", format!(r#"{{"image_size": 384, {values}}}"#)),
            ("preprocessor_config.json", format!(r#"{{"size": {{"height": 384, "width": 384}}, {values}}}"#)),
            ("processor_config.json", format!(r#"{{"image_processor": {{"size": 384, {values}}}}}"#)),
        ] {
            let processor = from(&[(name, &text)]).unwrap();
            assert_eq!(processor.min_size, 20);
            assert_eq!((processor.mean, processor.std), ([0.4, 0.5, 0.6], [0.25; 3]));
            assert_eq!(processor.background, [102, 127, 153]);
        }
        let both = [
            ("processor_config.json", r#"{"num_image_tokens": 576}"#),
            ("preprocessor_config.json", r#"{"min_size": 30}"#),
        ];
        assert_eq!(from(&both).unwrap().min_size, 30);
    }

    #[test]
    fn switched_off_normalisation_is_switched_on() {
        let text = r#"{"do_normalize": false, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}"#;
        let processor = from(&[("preprocessor_config.json", text)]).unwrap();
        assert_eq!((processor.mean, processor.std, processor.background), ([0.5; 3], [0.5; 3], [127; 3]));
    }

    #[test]
    fn other_processing_than_janus_is_refused_by_name() {
        for (text, key) in [
            (r#"{"do_resize": false}"#, "do_resize"),
            (r#"{"do_pad": false}"#, "do_pad"),
            (r#"{"resample": 2}"#, "resample"),
            (r#"{"rescale_factor": 1.0}"#, "rescale_factor"),
            (r#"{"min_size": 0}"#, "min_size"),
            (r#"{"min_size": 1e30}"#, "min_size"),
            (r#"{"image_mean": [0.5, 0.5]}"#, "image_mean"),
            (r#"{"image_std": [0.5, 0.0, 0.5]}"#, "image_std"),
            (r#"{"image_std": "half"}"#, "image_std"),
            (r#"{"do_normalize": 1}"#, "do_normalize"),
            (r#"{"size": {"shortest_edge": 384}}"#, "size"),
            (r#"[1, 2]"#, "the whole file"),
        ] {
            let error = from(&[("preprocessor_config.json", text)]).unwrap_err();
            assert!(matches!(&error, ProcessingError::Setting { key: k, .. } if k == key), "{text}: {error}");
        }
        let size = from(&[("preprocessor_config.json", r#"{"image_size": 1024}"#)]);
        assert!(matches!(size, Err(ProcessingError::ImageSize { expected: 384, got: 1024, .. })));
        assert!(matches!(from(&[("processor_config.json", "{")]), Err(ProcessingError::Json { .. })));
        assert!(matches!(ImageProcessor::new(0), Err(ProcessingError::ImpossibleImageSize { .. })));
    }
}
