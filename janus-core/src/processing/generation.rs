//! How a checkpoint's pictures are drawn where nobody says otherwise.

use std::path::Path;

use super::Result;
use super::settings::Settings;

/// The file of a checkpoint folder.
const FILE: &str = "generation_config.json";

/// What `generation_config.json` asks for, by transformers' names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GenerationConfig {
    /// Strength of the prompt; 1 is without guidance.
    pub guidance_scale: f64,
    /// 0 takes the best code each time.
    pub temperature: f64,
}

impl Default for GenerationConfig {
    /// Source: `generation_inference.py` of deepseek-ai/Janus at `1daa72f`.
    fn default() -> Self {
        Self { guidance_scale: 5.0, temperature: 1.0 }
    }
}

impl GenerationConfig {
    /// Reads the settings of a checkpoint folder; those that are absent are Janus'.
    ///
    /// # Errors
    /// A file that is not JSON, a setting that is no number, a negative temperature.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let mut config = Self::default();
        let Some(settings) = Settings::read(folder, FILE)? else { return Ok(config) };
        if let Some(scale) = settings.number("guidance_scale")? {
            config.guidance_scale = scale;
        }
        if let Some(temperature) = settings.number("temperature")? {
            if temperature < 0.0 {
                return Err(settings.wrong("temperature", "0 or a positive number"));
            }
            config.temperature = temperature;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::super::ProcessingError;
    use super::*;

    fn from(text: &str) -> Result<GenerationConfig> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), text).unwrap();
        GenerationConfig::from_folder(folder.path())
    }

    #[test]
    fn what_is_absent_is_as_janus_has_it() {
        let nowhere = tempfile::tempdir().unwrap();
        assert_eq!(GenerationConfig::from_folder(nowhere.path()).unwrap(), GenerationConfig::default());
        let own = from(r#"{"guidance_scale": 1.5, "temperature": null, "bos_token_id": 7}"#).unwrap();
        assert_eq!(own, GenerationConfig { guidance_scale: 1.5, temperature: 1.0 });
        assert_eq!(
            from(r#"{"temperature": 0.25}"#).unwrap(),
            GenerationConfig { guidance_scale: 5.0, temperature: 0.25 }
        );
    }

    #[test]
    fn what_cannot_be_drawn_with_is_refused_by_name() {
        let cases = [
            (r#"{"guidance_scale": "strong"}"#, "guidance_scale"),
            (r#"{"temperature": -1}"#, "temperature"),
            ("[5]", "the whole file"),
        ];
        for (text, key) in cases {
            let error = from(text).unwrap_err();
            assert!(matches!(&error, ProcessingError::Setting { key: k, .. } if k == key), "{text}: {error}");
        }
        assert!(matches!(from("{"), Err(ProcessingError::Json { .. })));
    }
}
