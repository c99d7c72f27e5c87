//! `janus generate`.

use std::path::PathBuf;

use clap::Args;
use janus_core::output::{require_file, write_file};
use janus_core::sample::CodeOptions;
use janus_core::{ModelError, Parts};
use serde_json::json;

use super::arguments::{BaseArguments, DeviceArgument, PictureArguments, TypeArgument};
use super::out::done;
use super::report;
use super::sandbox::Writes;
use super::status::Terminal;
use super::understand::{check_temperature, placed, readable, without_pictures};
use crate::culprit::explain;
use crate::error::{Error, Result};
use crate::heads::Heads;
use crate::infer::{Answer, Engine, Event, Kind, Limits, PictureAnswer, PictureRequest, Request};
use crate::status::Status;
use crate::tasks::check_drawing_room;

/// Pictures drawn side by side at most: each holds a cache of its own.
const MAX_COUNT: i64 = 64;

/// Far more than anybody guides with: where it lifts logits out of the numbers, it is to blame.
const USUAL_GUIDANCE: f64 = 1000.0;

/// Draw pictures of a prompt.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  janus generate --base deepseek-ai/Janus-Pro-1B \"a red apple on a wooden table\" --out apple.png
  janus generate --base base --adapter runs/shop \"a carton of oat milk\" --out milk.png --count 4 --seed 7
  janus generate --base base --adapter runs/shop --source cup.png \"Turn it into night style.\" --out night.png
  janus generate --base base \"a plate\" --out plate.png --guidance 1 --temperature 0 --json")]
pub(super) struct Generate {
    #[command(flatten)]
    base: BaseArguments,
    #[command(flatten)]
    dtype: TypeArgument,
    #[command(flatten)]
    device: DeviceArgument,
    /// What to draw
    prompt: String,
    /// PNG file; with --count above 1 a number is put before its extension
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Picture to be changed, as the prompt says; several are told in order
    #[arg(long = "source", value_name = "FILE")]
    sources: Vec<PathBuf>,
    #[command(flatten)]
    reading: PictureArguments,
    /// Strength of the prompt; 1 is without guidance [default: the base's `generation_config.json`, else 5]
    #[arg(long)]
    guidance: Option<f64>,
    /// 0 takes the best code each time [default: the base's `generation_config.json`, else 1]
    #[arg(long)]
    temperature: Option<f64>,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of pictures
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,
    /// Print one JSON object: files, codes
    #[arg(long)]
    json: bool,
}

/// Refuses to write over a picture that is read.
pub(super) fn refuse_own_pictures(read: &[PathBuf], written: &[PathBuf]) -> Result<()> {
    let place = |path: &PathBuf| path.canonicalize().ok();
    let read: Vec<PathBuf> = read.iter().filter_map(place).collect();
    match written.iter().find(|path| place(path).is_some_and(|place| read.contains(&place))) {
        None => Ok(()),
        Some(path) => {
            let message = format!("`{}` is a picture that is read, and would be written over", path.display());
            Err(Error::Usage { message, hint: "name another file with `--out`".into() })
        }
    }
}

/// Refuses a strength of the prompt that is no number.
pub(super) fn check_guidance(guidance: f64) -> Result<()> {
    if guidance.is_finite() {
        return Ok(());
    }
    let message = format!("`--guidance {guidance}` is no number");
    Err(Error::Usage { message, hint: "5 is the usual strength".into() })
}

impl Generate {
    /// What the command means to write.
    pub(super) fn writes(&self) -> Writes {
        Writes { on_device: self.device.may_be_gpu(), ..Writes::output(&self.out) }
    }

    pub(super) fn run(self) -> Result<()> {
        if let Some(temperature) = self.temperature {
            check_temperature(temperature)?;
        }
        if let Some(guidance) = self.guidance {
            check_guidance(guidance)?;
        }
        if self.sources.is_empty() {
            let hint = "leave it out: the prompt says what to draw; a picture to be changed is given with `--source`";
            without_pictures("prompt", &self.prompt, hint)?;
        }
        if self.out.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
            let message = format!("`{}` is not named `.png`", self.out.display());
            return Err(Error::Usage { message, hint: "pictures are written as PNG".into() });
        }
        let path = |number: u32| match self.count {
            1 => self.out.clone(),
            _ => self.out.with_extension(format!("{number}.png")),
        };
        let files: Vec<PathBuf> = (1..=self.count).map(path).collect();
        refuse_own_pictures(&self.sources, &files)?;
        let places = files.iter().map(|file| require_file(file)).collect::<std::result::Result<Vec<_>, _>>()?;
        let mut sources = self.sources.iter().map(|path| self.reading.read(path)).collect::<Result<Vec<_>>>()?;
        let device = self.device.open()?;
        let (base, adapters) = self.base.open(&Terminal)?;
        let prompt = match sources.len() {
            0 => base.prompts().generation_prompt(&self.prompt)?,
            count => base.prompts().edit_prompt(&placed(&self.prompt, count)?, count)?,
        };
        check_drawing_room(&base, &prompt)?;
        self.reading.settle(&mut sources, &adapters, &["edit"], &Terminal);
        let sources = readable(&base, &self.sources, sources)?;
        let parts = Parts { generation: true, image_tokenizer: true, vision: !sources.is_empty(), ..Parts::default() };
        let (model, _) = self.dtype.model(&base, &adapters, &device, parts, &Terminal)?;
        let mut options = base.drawing(self.seed);
        options.guidance = self.guidance.unwrap_or(options.guidance);
        options.temperature = self.temperature.unwrap_or(options.temperature);
        let request = |number: u32| {
            let options = CodeOptions { seed: self.seed.wrapping_add(u64::from(number)), ..options };
            Request::plain(Kind::Picture(PictureRequest { prompt: prompt.clone(), images: sources.clone(), options }))
        };
        let bar = Terminal.items("drawing", model.codes_per_image() as u64 * u64::from(self.count));
        let heads = Heads::new();
        let mut engine = Engine::new(&model, &base, &heads, Limits::of(&model)?);
        let answers = engine.answer_all((0..self.count).map(request), &mut |event| {
            bar.advance(u64::from(matches!(event, Event::Drew { .. })));
        });
        let answers = answers.map_err(|error| match &error {
            Error::Core(janus_core::Error::Model(ModelError::NotFinite { .. }))
                if options.guidance.abs() > USUAL_GUIDANCE =>
            {
                let message = format!("{error} with `--guidance {:e}`", options.guidance);
                Error::Usage { message, hint: "guidance is usually between 1 and 10".into() }
            }
            _ => explain(error, &base, &adapters),
        })?;
        bar.finish();
        let drawn: Vec<PictureAnswer> = answers.into_iter().filter_map(Answer::into_picture).collect();
        for (PictureAnswer { picture, .. }, place) in drawn.iter().zip(&places) {
            let mut bytes = std::io::Cursor::new(Vec::new());
            picture.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| Error::Usage {
                message: format!("cannot encode the picture: {e}"),
                hint: "this is a defect of janus".into(),
            })?;
            write_file(place, |file| file.write_all(bytes.get_ref()))?;
        }
        if self.json {
            let codes: Vec<&Vec<u32>> = drawn.iter().map(|answer| &answer.codes).collect();
            report::json(&json!({ "files": files, "codes": codes }));
        } else {
            files.iter().for_each(|file| done!("{}", file.display()));
        }
        Ok(())
    }
}
