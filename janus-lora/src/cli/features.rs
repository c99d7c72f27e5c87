//! `janus base features`: what a model makes of a picture on the way.

use std::path::PathBuf;

use candle_core::{DType, Device, Tensor};
use clap::{Args, ValueEnum};
use janus_core::output::{require_file, write_file};
use janus_core::pass::Pass;
use janus_core::{Janus, Parts};
use serde_json::json;

use super::arguments::{BaseArguments, DeviceArgument, PictureArguments, TypeArgument};
use super::out::done;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use super::understand::{readable, without_pictures};
use crate::base::Base;
use crate::cache::{Image, codes, features, low_and_mid_features};
use crate::culprit::{explain, finite};
use crate::error::{Error, Result};
use crate::tasks::{CodeBatch, TextBatch};

/// Write the features of a picture on both paths: of the picture as it is seen, and of its image codes
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus base features --base base --image part.jpg --level mid --out features.safetensors
  janus base features --base base --adapter runs/parts --image part.jpg --level low --out low.safetensors
  janus base features --base base --image part.jpg --prompt \"Is there a defect?\" --level high --out high.safetensors")]
pub(super) struct Features {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    dtype: TypeArgument,
    #[command(flatten)]
    device: DeviceArgument,
    /// Picture (png, jpeg, webp, bmp, gif, tiff)
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    #[command(flatten)]
    reading: PictureArguments,
    /// With `--level high`, the question to the picture, and the prompt that its codes are drawn for
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// How far on the way
    #[arg(long, value_enum)]
    level: Level,
    /// safetensors file: `features` of the picture as it is seen and `code_features` of its image codes, f32
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Print one JSON object: file, shapes
    #[arg(long)]
    json: bool,
}

/// How far on the way of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Level {
    /// After a third of the vision tower's blocks, and the codes' embeddings
    Low,
    /// What both aligners give: the space that both paths share
    Mid,
    /// What each path's own head reads: the decoder's normed hidden states, of every token and before every code
    High,
}

impl Features {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes { on_device: self.device.may_be_gpu(), ..Writes::output(&self.out) }
    }

    pub(super) fn run(self) -> Result<()> {
        if (self.level == Level::High) != self.prompt.is_some() {
            let message = match self.level {
                Level::High => "`--level high` is of a picture behind a prompt, and there is none",
                Level::Low | Level::Mid => "features below the decoder know no prompt",
            };
            return Err(Error::Usage {
                message: message.into(),
                hint: "give `--prompt` with `--level high` alone".into(),
            });
        }
        if let Some(prompt) = &self.prompt {
            without_pictures("prompt", prompt, "leave it out: the picture comes first by itself")?;
        }
        let out = require_file(&self.out)?;
        let picture = self.reading.read(&self.image)?;
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let mut pictures = vec![picture];
        self.reading.settle(&mut pictures, &adapters, &[], &Terminal);
        let images = readable(&base, std::slice::from_ref(&self.image), pictures)?;
        let parts = Parts { vision: true, generation: true, ..Parts::default() };
        let (model, _) = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
        let codes: Vec<u32> = match images.first() {
            Some(image) => codes(&base, &device, image)?.to_vec(),
            None => Vec::new(),
        };
        let (seen, drawn) = match (self.level, &self.prompt) {
            (Level::Low, _) => low(&model, &images, &codes)?,
            (Level::High, Some(prompt)) => high(&base, &model, &images, &codes, prompt)?,
            (Level::Mid | Level::High, _) => mid(&model, &images, &codes)?,
        };
        let named: Vec<(&str, Tensor)> = [("features", seen), ("code_features", drawn)]
            .into_iter()
            .map(|(name, tensor)| {
                let tensor = finite(tensor, "features")?;
                Ok((name, tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?))
            })
            .collect::<Result<_>>()
            .map_err(|error| explain(error, &base, &adapters))?;
        let shapes: serde_json::Map<String, serde_json::Value> =
            named.iter().map(|(name, tensor)| ((*name).to_owned(), json!(tensor.dims()))).collect();
        let bytes = safetensors::serialize(named.iter().map(|(name, tensor)| (*name, tensor)), None)
            .map_err(candle_core::Error::from)?;
        write_file(&out, |file| file.write_all(&bytes))?;
        if self.json {
            report::json(&json!({ "file": self.out, "shapes": shapes }));
        } else {
            let told: Vec<String> = named.iter().map(|(name, t)| format!("{name} {:?}", t.dims())).collect();
            done!("{}: {}", self.out.display(), told.join(", "));
        }
        Ok(())
    }
}

fn low(model: &Janus, images: &[Image], codes: &[u32]) -> Result<(Tensor, Tensor)> {
    let pass = Pass::inference();
    let (low, _) = low_and_mid_features(model, &pass, images)?;
    Ok((low, model.generation()?.embed_codes(&pass, codes, 1)?))
}

fn mid(model: &Janus, images: &[Image], codes: &[u32]) -> Result<(Tensor, Tensor)> {
    let pass = Pass::inference();
    let missing = janus_core::ModelError::NotLoaded { part: "picture" };
    Ok((features(model, &pass, images)?.ok_or(missing)?, model.generation()?.embed(&pass, codes, 1)?))
}

fn high(base: &Base, model: &Janus, images: &[Image], codes: &[u32], prompt: &str) -> Result<(Tensor, Tensor)> {
    let pass = Pass::inference();
    let placeholder = base.tokenizer().special().image_placeholder;
    let ids = base.prompts().understanding_prompt(prompt, images.len(), true)?;
    let mask = vec![true; ids.len()];
    let text = TextBatch::padded(ids, &mask, &[], 1, images.to_vec(), placeholder);
    let features = text.features(model, &pass)?;
    let drawn = CodeBatch {
        prompts: vec![base.prompts().generation_prompt(prompt)?],
        codes: vec![codes.to_vec()],
        images: Vec::new(),
        placeholder,
    };
    Ok((text.hidden(model, &pass, features.as_ref())?, drawn.hidden(model, &pass)?.unsqueeze(0)?))
}
