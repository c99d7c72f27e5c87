//! `janus understand`.

use std::path::PathBuf;

use clap::Args;
use janus_core::Parts;
use serde_json::json;

use super::arguments::{BaseArguments, DeviceArgument, TypeArgument};
use super::report;
use super::status::Terminal;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::eval::answer;
use crate::tasks::Question;

/// Answer questions about images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus understand --base deepseek-ai/Janus-Pro-1B --image part.jpg \"Is there a defect?\"
  janus understand --base base --adapter runs/inspection --image a.png --image b.png \"What differs?\" --json
  janus understand --base base --image part.jpg \"What is it?\" \"Is there a defect?\"
  janus understand --base base --adapter runs/a:0.5 --adapter runs/b \"Only text\" --temperature 0.7 --seed 3")]
pub(super) struct Understand {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    dtype: TypeArgument,
    #[command(flatten)]
    device: DeviceArgument,
    /// Picture (png, jpeg, webp, bmp, gif, tiff); several are told in order
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// The question; several are answered together, each of its own about the same pictures
    #[arg(required = true, value_name = "QUESTION")]
    questions: Vec<String>,
    /// Tokens of the answer at most
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    max_new_tokens: u32,
    /// 0 takes the best token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the draws; each further question has the next one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object a question: text, token_ids
    #[arg(long)]
    json: bool,
}

/// Refuses a temperature that makes no distribution.
pub(super) fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature >= 0.0 {
        return Ok(());
    }
    let message = format!("`--temperature {temperature}` is no temperature");
    Err(Error::Usage { message, hint: "give 0 or a positive number".into() })
}

impl Understand {
    pub(super) fn run(self) -> Result<()> {
        check_temperature(self.temperature)?;
        let pictures =
            self.images.iter().map(|path| super::generate::read_picture(path)).collect::<Result<Vec<_>>>()?;
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let prompt = |question: &String| base.prompts().understanding_prompt(question, pictures.len(), true);
        let prompts = self.questions.iter().map(prompt).collect::<std::result::Result<Vec<_>, _>>()?;
        let images: Vec<_> = pictures.into_iter().map(|bytes| base.image(&EncodedImage { bytes })).collect();
        for image in &images {
            // Told before the weights are read.
            image.pixels()?;
        }
        let parts = Parts { text_head: true, vision: !images.is_empty(), ..Parts::default() };
        let model = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
        let question = |prompt| Question { prompt, images: images.clone(), answer: String::new() };
        let questions: Vec<Question> = prompts.into_iter().map(question).collect();
        let limit = self.max_new_tokens as usize;
        let answers = answer(&model, &base, &questions, limit, self.temperature, self.seed)?;
        for answer in answers {
            if self.json {
                report::json(&json!({ "text": answer.text, "token_ids": answer.token_ids }));
            } else {
                println!("{}", answer.text);
            }
        }
        Ok(())
    }
}
