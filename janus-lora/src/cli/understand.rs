//! `janus understand`.

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{D, Device};
use candle_nn::ops::softmax;
use clap::Args;
use janus_core::Parts;
use janus_core::pass::Pass;
use serde_json::{Value, json};

use super::arguments::{BaseArguments, DeviceArgument, TypeArgument};
use super::report;
use super::status::Terminal;
use crate::adapter::{Adapter, AdapterError};
use crate::base::Base;
use crate::cache::Image;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::eval::answer;
use crate::heads::{Head, HeadKind};
use crate::tasks::{LabelBatch, Question};

/// Answer questions about images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus understand --base deepseek-ai/Janus-Pro-1B --image part.jpg \"Is there a defect?\"
  janus understand --base base --adapter runs/inspection --image a.png --image b.png \"What differs?\" --json
  janus understand --base base --image part.jpg \"What is it?\" \"Is there a defect?\"
  janus understand --base base --adapter runs/a:0.5 --adapter runs/b \"Only text\" --temperature 0.7 --seed 3
  janus understand --base base --adapter runs/defects --task classify --image a.png --image b.png --json")]
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
    #[arg(required_unless_present = "task", conflicts_with = "task", value_name = "QUESTION")]
    questions: Vec<String>,
    /// Ask an adapter's head instead: each picture is told by itself
    #[arg(long, value_enum, requires = "images")]
    task: Option<HeadTask>,
    /// The head, named as the table it was trained on; needed where there are several of the task
    #[arg(long, value_name = "NAME", requires = "task")]
    head: Option<String>,
    /// Tokens of the answer at most
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    max_new_tokens: u32,
    /// 0 takes the best token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the draws; each further question has the next one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object a question: text, token_ids; with `--task`, one a picture: image, label, probabilities
    #[arg(long)]
    json: bool,
}

/// What heads tell of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum HeadTask {
    /// One of the labels that the head was trained on
    Classify,
}

/// Refuses a temperature that makes no distribution.
pub(super) fn check_temperature(temperature: f64) -> Result<()> {
    if temperature.is_finite() && temperature >= 0.0 {
        return Ok(());
    }
    let message = format!("`--temperature {temperature}` is no temperature");
    Err(Error::Usage { message, hint: "give 0 or a positive number".into() })
}

/// Pictures that can be decoded: what is wrong with one is told before the weights are read.
fn readable(base: &Base, pictures: Vec<Vec<u8>>) -> Result<Vec<Image>> {
    let image = |bytes| {
        let image = base.image(&EncodedImage { bytes });
        image.pixels().map(|_| image)
    };
    pictures.into_iter().map(image).collect()
}

impl Understand {
    pub(super) fn run(self) -> Result<()> {
        check_temperature(self.temperature)?;
        let pictures =
            self.images.iter().map(|path| super::generate::read_picture(path)).collect::<Result<Vec<_>>>()?;
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        if let Some(HeadTask::Classify) = self.task {
            return self.classify(&base, &adapters, &device, pictures);
        }
        let prompt = |question: &String| base.prompts().understanding_prompt(question, pictures.len(), true);
        let prompts = self.questions.iter().map(prompt).collect::<std::result::Result<Vec<_>, _>>()?;
        let images = readable(&base, pictures)?;
        let parts = Parts { text_head: true, vision: !images.is_empty(), ..Parts::default() };
        let (model, _) = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
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

    fn classify(
        &self,
        base: &Base,
        adapters: &[(Adapter, f64)],
        device: &Device,
        pictures: Vec<Vec<u8>>,
    ) -> Result<()> {
        let (name, labels) = self.chosen_head(adapters)?;
        let images = readable(base, pictures)?;
        let parts = Parts { vision: true, ..Parts::default() };
        let (model, heads) = self.dtype.model(base, adapters, device, parts, &Terminal)?;
        for (path, image) in self.images.iter().zip(images) {
            let batch = LabelBatch { head: name.clone(), images: vec![image], labels: Vec::new() };
            let logits = batch.logits(&model, &Pass::inference(), &heads)?;
            let probabilities: Vec<f32> = softmax(&logits, D::Minus1)?.flatten_all()?.to_vec1()?;
            let mut told: Vec<(&String, f32)> = labels.iter().zip(probabilities).collect();
            told.sort_by(|(_, a), (_, b)| b.total_cmp(a));
            let Some((label, probability)) = told.first() else { continue };
            if self.json {
                let all: serde_json::Map<String, Value> = told.iter().map(|(l, p)| ((*l).clone(), json!(p))).collect();
                report::json(&json!({ "image": path, "label": label, "probabilities": all }));
            } else {
                println!("{}: {label} ({:.1} %)", path.display(), 100.0 * probability);
            }
        }
        Ok(())
    }

    /// The head that is asked, with its labels.
    fn chosen_head<'a>(&self, adapters: &'a [(Adapter, f64)]) -> Result<(Arc<str>, &'a [String])> {
        let all = adapters.iter().flat_map(|(adapter, _)| &adapter.heads);
        let found: Vec<(&Arc<str>, &Head)> = all.collect();
        let names = || found.iter().map(|(name, _)| name.to_string()).collect();
        let chosen = match &self.head {
            Some(name) => found.iter().find(|(known, _)| ***known == **name),
            None if found.len() > 1 => {
                let names: Vec<String> = names();
                let message = format!("the adapters have several heads: {}", names.join(", "));
                return Err(Error::Usage { message, hint: "say which one is asked with `--head NAME`".into() });
            }
            None => found.first(),
        };
        let Some((name, head)) = chosen else {
            let name = self.head.clone().unwrap_or_else(|| "classify".into());
            return Err(AdapterError::NoHead { name, found: names() }.into());
        };
        let HeadKind::Classify { labels } = &head.kind;
        Ok(((*name).clone(), labels))
    }
}
