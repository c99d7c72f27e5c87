//! `janus understand --task`: what an adapter's head tells of pictures.

use std::path::{Path, PathBuf};

use candle_core::Device;
use image::RgbImage;
use janus_core::Parts;
use janus_core::output::{require_file, write_file};
use serde_json::{Map, Value, json};

use super::arguments::TypeArgument;
use super::generate::refuse_own_pictures;
use super::out::result;
use super::report;
use super::status::Terminal;
use super::understand::readable;
use crate::adapter::{Adapter, AdapterError};
use crate::base::Base;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::heads::Head;
use crate::infer::{Answer, Engine, HeadRequest, Kind, Limits, Request};
use crate::report::{ReportError, picture_png};
use crate::tasks::{caption_ids, check_caption, frame};
use crate::visible::one_line;

/// What heads tell of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum HeadTask {
    /// One of the labels that the head was trained on
    Classify,
    /// Boxes around things; they are drawn over the picture
    Locate,
    /// A mask of what is looked for; it is drawn over the picture
    Segment,
    /// How close the picture is to each caption that is given
    Retrieve,
}

impl HeadTask {
    pub(super) fn name(self) -> &'static str {
        match self {
            HeadTask::Classify => "classify",
            HeadTask::Locate => "locate",
            HeadTask::Segment => "segment",
            HeadTask::Retrieve => "retrieve",
        }
    }
}

/// A head that is asked.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) task: HeadTask,
    /// The head's name, where it was given.
    pub(super) head: Option<&'a str>,
    /// Picture files.
    pub(super) images: &'a [PathBuf],
    pub(super) captions: &'a [String],
    /// Where overlays go.
    pub(super) out: Option<&'a Path>,
    pub(super) json: bool,
}

impl Ask<'_> {
    /// Asks the head about each picture.
    pub(super) fn run(
        &self,
        base: &Base,
        adapters: &[(Adapter, f64)],
        dtype: &TypeArgument,
        device: &Device,
        pictures: &[EncodedImage],
    ) -> Result<()> {
        self.check()?;
        let (name, head) = chosen_head(self.task.name(), self.head, adapters)?;
        let form = head.kind.form();
        if form.draws() {
            let overlays: Vec<PathBuf> = (0..pictures.len()).map(|number| self.overlay_path(number)).collect();
            refuse_own_pictures(self.images, &overlays)?;
            for path in &overlays {
                require_file(path)?;
            }
        }
        let images = readable(base, self.images, pictures.to_vec())?;
        let caption = |text: &String| -> Result<Vec<u32>> {
            let ids = caption_ids(base, text)?;
            check_caption(base, &ids)?;
            Ok(ids)
        };
        let captions = self.captions.iter().map(caption).collect::<Result<Vec<_>>>()?;
        let parts = Parts { vision: true, ..Parts::default() };
        let (model, heads) = dtype.model(base, adapters, device, parts, &Terminal)?;
        let mut engine = Engine::new(&model, base, &heads, Limits::of(&model)?);
        for ((number, path), (image, picture)) in self.images.iter().enumerate().zip(images.into_iter().zip(pictures)) {
            let asked =
                HeadRequest { head: name.into(), image, frame: frame(base, picture)?, captions: captions.clone() };
            let answers = engine.answer_all([Request::plain(Kind::Head(asked))], &mut |_| {})?;
            let Some(answer) = answers.into_iter().find_map(Answer::into_head) else { continue };
            let mut description = form.description(&answer, self.captions);
            let failed = |reason| ReportError::Picture { reason };
            if form.draws()
                && let Some(overlay) = form.overlay(&answer, &*picture.decode()?).map_err(failed)?
            {
                let path = self.write(&overlay, number)?;
                description.text = format!("{} ({})", description.text, path.display());
                description.json.push(("overlay".to_owned(), json!(path)));
            }
            if self.json {
                let mut line = Map::from_iter([("image".to_owned(), json!(path))]);
                line.extend(description.json);
                report::json(&Value::Object(line));
            } else {
                result!("{}: {}", path.display(), one_line(&description.text));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        let usage = |message: &str, hint: &str| Err(Error::Usage { message: message.into(), hint: hint.into() });
        let (is_retrieval, task) = (self.task == HeadTask::Retrieve, self.task.name());
        match (is_retrieval, self.captions.is_empty()) {
            (true, true) => usage("there are no captions to hold pictures against", "give some behind the options"),
            (false, false) => {
                usage(&format!("`--task {task}` takes no question"), "a head tells one thing: leave the question out")
            }
            _ if self.out.is_some() && !matches!(self.task, HeadTask::Locate | HeadTask::Segment) => {
                usage(&format!("`--task {task}` draws nothing over a picture"), "leave `--out` out")
            }
            _ if self.out.is_some_and(|out| out.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png"))) => {
                usage("`--out` is not named `.png`", "pictures are written as PNG")
            }
            _ => Ok(()),
        }
    }

    /// Where the overlay of a picture goes: as told, with a number where there are several, or beside no picture in the
    /// current folder.
    fn overlay_path(&self, number: usize) -> PathBuf {
        match self.out {
            Some(out) if self.images.len() == 1 => out.to_path_buf(),
            Some(out) => out.with_extension(format!("{}.png", number + 1)),
            None => {
                let stem = self.images.get(number).and_then(|path| path.file_stem()).unwrap_or_default();
                let mut name = stem.to_os_string();
                if self.images.iter().filter(|path| path.file_stem() == Some(stem)).count() > 1 {
                    name.push(format!(".{}", number + 1));
                }
                name.push(format!(".{}.png", self.task.name()));
                name.into()
            }
        }
    }

    fn write(&self, overlay: &RgbImage, number: usize) -> Result<PathBuf> {
        let path = self.overlay_path(number);
        let bytes = picture_png(overlay)?;
        write_file(&require_file(&path)?, |file| file.write_all(&bytes))?;
        Ok(path)
    }
}

/// The head that is asked to do a task, with its name.
pub(super) fn chosen_head<'a>(
    task: &str,
    head: Option<&str>,
    adapters: &'a [(Adapter, f64)],
) -> Result<(&'a str, &'a Head)> {
    let heads = || adapters.iter().flat_map(|(adapter, _)| &adapter.heads);
    let names = || heads().map(|(name, head)| format!("{name} ({})", head.kind.task())).collect::<Vec<String>>();
    let fitting: Vec<_> = heads().filter(|(_, head)| head.kind.task() == task).collect();
    let chosen = match head {
        Some(name) => fitting.iter().find(|(known, _)| ***known == *name),
        None if fitting.len() > 1 => {
            let message = format!("the adapters have several heads to {task}: {}", names().join(", "));
            return Err(Error::Usage { message, hint: "say which one is asked with `--head NAME`".into() });
        }
        None => fitting.first(),
    };
    match chosen {
        Some((name, head)) => Ok((name, head)),
        None => {
            let name = head.map_or_else(|| task.to_owned(), |name| format!("{name} ({task})"));
            Err(AdapterError::NoHead { name, found: names() }.into())
        }
    }
}
