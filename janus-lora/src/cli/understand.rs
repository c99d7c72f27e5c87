//! `janus understand`.

use std::path::PathBuf;

use candle_core::Device;
use clap::Args;
use janus_core::processing::{IMAGE_PLACEHOLDER, find_placeholders};
use janus_core::{Diagnose, Janus, Parts};
use serde_json::json;

use super::arguments::{BaseArguments, DeviceArgument, PictureArguments, TypeArgument};
use super::ask::{Ask, HeadTask};
use super::out::result;
use super::picture_words::{check_question, shown};
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use crate::adapter::Adapter;
use crate::base::Base;
use crate::cache::Image;
use crate::culprit::explain;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::heads::Heads;
use crate::infer::{Answer, Engine, Kind, Limits, Request, TextAnswer, TextRequest};
use crate::status::Status;
use crate::tasks::{TaskError, answer_room, place};
use crate::visible::one_line;

/// Answer questions about images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus understand --base deepseek-ai/Janus-Pro-1B --image part.jpg \"Is there a defect?\"
  janus understand --base base --adapter runs/inspection --image a.png b.png \"What differs?\" --json
  janus understand --base base --each --image test/*.jpg \"Is there a defect?\"
  janus understand --base base --image part.jpg \"What is it?\" \"Is there a defect?\"
  janus understand --base base --image phone.jpg --orientation stored \"What is it?\"
  janus understand --base base --adapter runs/a:0.5 --adapter runs/b \"Only text\" --temperature 0.7 --seed 3
  janus understand --base base --adapter runs/defects --task classify --image a.png --image b.png --json
  janus understand --base base --adapter runs/defects --task locate --image part.jpg --out found.png
  janus understand --base base --adapter runs/defects --task segment --image part.jpg
  janus understand --base base --adapter runs/shop --task retrieve --image a.png \"a red apple\" \"a green pear\"")]
pub(super) struct Understand {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    dtype: TypeArgument,
    #[command(flatten)]
    device: DeviceArgument,
    /// Picture (png, jpeg, webp, bmp, gif, tiff) and the files that follow it, up to the first word that is no file; several
    /// are one prompt, in order
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    #[command(flatten)]
    reading: PictureArguments,
    /// Ask the questions of every picture by itself, not of all together
    #[arg(long, requires = "images")]
    each: bool,
    /// The question; several are answered together, each of its own about the same pictures. With `--task retrieve`, captions
    #[arg(required_unless_present = "task", value_name = "QUESTION")]
    questions: Vec<String>,
    /// Ask an adapter's head instead: each picture is told by itself
    #[arg(long, value_enum, requires = "images")]
    task: Option<HeadTask>,
    /// The head, named as the table it was trained on; needed where there are several of the task
    #[arg(long, value_name = "NAME", requires = "task")]
    head: Option<String>,
    /// PNG file with what `--task locate` or `segment` found drawn over the picture; a number is put before its extension where
    /// there are several pictures. By default named after the picture, in the current folder
    #[arg(long, value_name = "FILE", requires = "task")]
    out: Option<PathBuf>,
    /// Tokens of the answer at most; it ends with the base's positions, too
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=16384))]
    max_new_tokens: u32,
    /// 0 takes the best token each time
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Seed of the draws; each further question has the next one
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object a question: text, token_ids; with `--each` one of all: answers, each image, question, text,
    /// token_ids; with `--task`, one a picture: image and label, probabilities | boxes, overlay | pixels, share, runs, size,
    /// overlay | captions
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

/// A text with its pictures' places, where another toolkit's way to write them fits their number.
pub(super) fn placed(text: &str, pictures: usize) -> Result<String> {
    let placed = place(&[text], pictures).map_err(|reason| TaskError::Placeholders { reason })?;
    if !placed.foreign.is_empty() {
        let spelt = placed.foreign.join("`, `");
        Terminal.note(&format!("`{spelt}` is taken for the place of a picture, as `<image_placeholder>`"));
    }
    Ok(placed.texts.into_iter().next().map_or_else(String::new, |(text, _)| text))
}

/// Refuses a text for which there is no picture, but a place for one: it would be read as words.
pub(super) fn without_pictures(what: &str, text: &str, hint: &str) -> Result<()> {
    let found = find_placeholders(text);
    let stands_for = match (&found.video, found.count) {
        (Some((spelling, _)), _) => (spelling.as_str(), "a video"),
        (None, 0) => return Ok(()),
        (None, _) => (found.foreign.first().map_or(IMAGE_PLACEHOLDER, String::as_str), "a picture"),
    };
    let (spelling, meant) = stands_for;
    let message = format!("the {what} contains `{}`, which stands for {meant}, and there is none", shown(spelling));
    Err(Error::Usage { message, hint: hint.into() })
}

/// Pictures that can be decoded: what is wrong with one is reported with its path before the weights are read.
pub(super) fn readable(base: &Base, paths: &[PathBuf], pictures: Vec<EncodedImage>) -> Result<Vec<Image>> {
    let image = |(path, picture): (&PathBuf, EncodedImage)| {
        let image = base.image(&picture);
        match image.pixels() {
            Ok(_) => Ok(image),
            Err(error) => {
                let hint = error.hints().join("; ");
                Err(Error::Usage { message: format!("image `{}`: {error}", path.display()), hint })
            }
        }
    };
    paths.iter().zip(pictures).map(image).collect()
}

impl Understand {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        // Without `--out` pictures go into the current folder.
        let outputs = self.task.map(|_| self.out.clone().unwrap_or_default()).into_iter().collect();
        Writes { outputs, on_device: self.device.may_be_gpu() }
    }

    pub(super) fn run(self) -> Result<()> {
        check_temperature(self.temperature)?;
        for question in &self.questions {
            check_question(question)?;
        }
        let mut pictures = self.images.iter().map(|path| self.reading.read(path)).collect::<Result<Vec<_>>>()?;
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let asked = self.task.map_or("understand", HeadTask::name);
        self.reading.settle(&mut pictures, &adapters, &[asked], &Terminal);
        if let Some(task) = self.task {
            for caption in &self.questions {
                without_pictures("caption", caption, "leave it out: a caption is held against each picture as it is")?;
            }
            let ask = Ask {
                task,
                head: self.head.as_deref(),
                images: &self.images,
                captions: &self.questions,
                out: self.out.as_deref(),
                json: self.json,
            };
            let told = ask.run(&base, &adapters, &self.dtype, &device, &pictures);
            return told.map_err(|error| explain(error, &base, &adapters));
        }
        let together = if self.each { 1 } else { pictures.len() };
        let prompt = |question: &String| -> Result<Vec<u32>> {
            let prompt = base.prompts().understanding_prompt(&placed(question, together)?, together, true)?;
            // What is too long is reported before the weights are read.
            answer_room(&base, &prompt, 1)?;
            Ok(prompt)
        };
        let prompts = self.questions.iter().map(prompt).collect::<Result<Vec<_>>>()?;
        if self.each {
            return self.ask_each(&base, &adapters, &device, &pictures, &prompts);
        }
        let images = readable(&base, &self.images, pictures)?;
        let parts = Parts { text_head: true, vision: !images.is_empty(), ..Parts::default() };
        let (model, _) = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
        let answers =
            self.answers(&model, &base, &prompts, &images).map_err(|error| explain(error, &base, &adapters))?;
        for answer in answers {
            if self.json {
                report::json(&json!({ "text": answer.text, "token_ids": answer.token_ids }));
            } else {
                result!("{}", answer.text);
            }
        }
        Ok(())
    }

    /// The request of a question about these pictures together, in its place among the questions.
    fn request(&self, place: usize, prompt: &[u32], images: &[Image]) -> Request {
        Request::plain(Kind::Text(TextRequest {
            prompt: prompt.to_vec(),
            images: images.to_vec(),
            max_new_tokens: self.max_new_tokens as usize,
            temperature: self.temperature,
            seed: self.seed.wrapping_add(place as u64),
        }))
    }

    /// Answers to every question about these pictures together.
    fn answers(&self, model: &Janus, base: &Base, prompts: &[Vec<u32>], images: &[Image]) -> Result<Vec<TextAnswer>> {
        let request = |(place, prompt): (usize, &Vec<u32>)| self.request(place, prompt, images);
        let heads = Heads::new();
        let mut engine = Engine::new(model, base, &heads, Limits::of(model)?);
        let answers = engine.answer_all(prompts.iter().enumerate().map(request), &mut |_| {})?;
        Ok(answers.into_iter().filter_map(Answer::into_text).collect())
    }

    /// Every question about one picture after the other, as if each were the only one.
    fn ask_each(
        &self,
        base: &Base,
        adapters: &[(Adapter, f64)],
        device: &Device,
        pictures: &[EncodedImage],
        prompts: &[Vec<u32>],
    ) -> Result<()> {
        // One by one, so that the pixels of a folder of pictures are never in memory together.
        for (path, picture) in self.images.iter().zip(pictures) {
            readable(base, std::slice::from_ref(path), vec![picture.clone()])?;
        }
        let parts = Parts { text_head: true, vision: true, ..Parts::default() };
        let (model, _) = self.dtype.model(base, adapters, device, parts, &Terminal)?;
        let mut asked = self.images.iter().flat_map(|path| self.questions.iter().map(move |question| (path, question)));
        // Decoded when their turn comes.
        let requests = pictures.iter().flat_map(|picture| {
            let image = base.image(picture);
            let request = move |(place, prompt): (usize, &Vec<u32>)| {
                Ok(self.request(place, prompt, std::slice::from_ref(&image)))
            };
            prompts.iter().enumerate().map(request)
        });
        let (heads, mut told) = (Heads::new(), Vec::new());
        let mut engine = Engine::new(&model, base, &heads, Limits::of(&model)?);
        let answered = engine.answer_each(requests, &mut |_, answer| {
            let (Some(TextAnswer { text, token_ids, .. }), Some((path, question))) =
                (answer?.into_text(), asked.next())
            else {
                return Ok(());
            };
            if self.json {
                told.push(json!({ "image": path, "question": question, "text": text, "token_ids": token_ids }));
            } else if self.questions.len() == 1 {
                result!("{}: {}", path.display(), one_line(&text));
            } else {
                result!("{}: {question} {}", path.display(), one_line(&text));
            }
            Ok(())
        });
        answered.map_err(|error| explain(error, base, adapters))?;
        if self.json {
            report::json(&json!({ "answers": told }));
        }
        Ok(())
    }
}
