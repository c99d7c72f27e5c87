//! `janus understand --task`: what an adapter's head tells of pictures.

use std::path::{Path, PathBuf};

use candle_core::{D, Device};
use candle_nn::ops::softmax;
use janus_core::output::{require_file, write_file};
use janus_core::pass::Pass;
use janus_core::{Janus, Parts};
use serde_json::{Map, Value, json};

use super::arguments::TypeArgument;
use super::out::result;
use super::report;
use super::status::Terminal;
use super::understand::readable;
use crate::adapter::{Adapter, AdapterError};
use crate::base::Base;
use crate::culprit::finite;
use crate::data::EncodedImage;
use crate::error::{Error, Result};
use crate::heads::locate::Found;
use crate::heads::{Head, HeadKind, Heads, segment};
use crate::overlay::{Overlay, words};
use crate::report::{ReportError, picture_png};
use crate::tasks::{PictureBatch, Target, caption_ids, check_caption, frame};
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

/// A model with its heads.
struct Model {
    model: Janus,
    heads: Heads,
    kind: HeadKind,
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
        let (name, head) = self.chosen_head(adapters)?;
        if matches!(self.task, HeadTask::Locate | HeadTask::Segment) {
            for number in 0..pictures.len() {
                require_file(&self.overlay_path(number))?;
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
        let model = Model { model, heads, kind: head.kind.clone() };
        for (number, (image, picture)) in images.into_iter().zip(pictures).enumerate() {
            let mut batch = PictureBatch {
                head: name.into(),
                images: vec![image],
                frames: vec![frame(base, picture)?],
                targets: Vec::new(),
            };
            let Some(path) = self.images.get(number) else { continue };
            let told = match &model.kind {
                HeadKind::Classify { labels } => told_label(&model, &batch, labels)?,
                HeadKind::Locate { labels } => self.told_boxes(&model, &batch, labels, picture, number)?,
                HeadKind::Segment {} => self.told_mask(&model, &batch, picture, number)?,
                HeadKind::Retrieve {} => {
                    batch.targets = captions.iter().map(|ids| Target::Caption(ids.clone().into())).collect();
                    self.told_similarities(&model, &batch)?
                }
            };
            if self.json {
                let mut line = Map::from_iter([("image".to_owned(), json!(path))]);
                line.extend(told.json);
                report::json(&Value::Object(line));
            } else {
                result!("{}: {}", path.display(), one_line(&told.text));
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

    /// The head that is asked, with its name.
    fn chosen_head<'a>(&self, adapters: &'a [(Adapter, f64)]) -> Result<(&'a str, &'a Head)> {
        let heads = || adapters.iter().flat_map(|(adapter, _)| &adapter.heads);
        let task = self.task.name();
        let names = || heads().map(|(name, head)| format!("{name} ({})", head.kind.task())).collect::<Vec<String>>();
        let fitting: Vec<_> = heads().filter(|(_, head)| head.kind.task() == task).collect();
        let chosen = match self.head {
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
                let name = self.head.map_or_else(|| task.to_owned(), |name| format!("{name} ({task})"));
                Err(AdapterError::NoHead { name, found: names() }.into())
            }
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

    fn write(&self, overlay: Overlay, number: usize) -> Result<PathBuf> {
        let path = self.overlay_path(number);
        let bytes = picture_png(&overlay.into_picture())?;
        write_file(&require_file(&path)?, |file| file.write_all(&bytes))?;
        Ok(path)
    }

    fn told_boxes(
        &self,
        model: &Model,
        batch: &PictureBatch,
        labels: &[String],
        picture: &EncodedImage,
        number: usize,
    ) -> Result<Told> {
        let places = batch.places(&model.model, &Pass::inference(), &model.heads)?;
        for values in places.tensors() {
            finite(values.clone(), HEAD)?;
        }
        let found = batch.found(&places)?.concat();
        let overlay = Overlay::new(&*picture.decode()?).boxes(&found, labels);
        let path = self.write(overlay.map_err(|reason| ReportError::Picture { reason })?, number)?;
        let label = |found: &Found| labels.get(found.label as usize).map_or("", String::as_str);
        let all: Vec<Value> =
            found.iter().map(|f| json!({ "box": f.corners, "label": label(f), "score": f.score })).collect();
        Ok(Told {
            text: format!("{} ({})", words(&found, labels), path.display()),
            json: [("boxes".to_owned(), json!(all)), ("overlay".to_owned(), json!(path))].into(),
        })
    }

    fn told_mask(&self, model: &Model, batch: &PictureBatch, picture: &EncodedImage, number: usize) -> Result<Told> {
        let config = model.model.config();
        let logits = finite(batch.mask_logits(&model.model, &Pass::inference(), &model.heads)?, HEAD)?;
        let logits: Vec<f32> = logits.flatten_all()?.to_vec1()?;
        let Some(frame) = batch.frames.first() else { return Ok(Told::default()) };
        let mask = segment::mask(&logits, segment::side(config), config.vision.image_size, frame);
        let (width, height) = frame.picture;
        let pixels = mask.iter().filter(|inside| **inside).count();
        let share = pixels as f64 / mask.len().max(1) as f64;
        let path = self.write(Overlay::new(&*picture.decode()?).mask(&mask, 0), number)?;
        Ok(Told {
            text: format!("{:.2} % of {width} x {height} pixels ({})", 100.0 * share, path.display()),
            json: [
                ("pixels".to_owned(), json!(pixels)),
                ("share".to_owned(), json!(share)),
                ("runs".to_owned(), json!(runs(&mask))),
                ("size".to_owned(), json!([width, height])),
                ("overlay".to_owned(), json!(path)),
            ]
            .into(),
        })
    }

    fn told_similarities(&self, model: &Model, batch: &PictureBatch) -> Result<Told> {
        let (images, captions) = batch.vectors(&model.model, &Pass::inference(), &model.heads)?;
        let similarities = finite(images.matmul(&captions.t()?)?, HEAD)?;
        let similarities: Vec<f32> = similarities.flatten_all()?.to_vec1()?;
        let mut told: Vec<(&String, f32)> = self.captions.iter().zip(similarities).collect();
        told.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        let all: Vec<Value> = told.iter().map(|(c, s)| json!({ "caption": c, "similarity": s })).collect();
        let lines: Vec<String> = told.iter().map(|(caption, s)| format!("{s:.3} {caption}")).collect();
        Ok(Told { text: lines.join("; "), json: [("captions".to_owned(), json!(all))].into() })
    }
}

/// What a head computes, as errors name it.
const HEAD: &str = "values of the head";

/// What was told of one picture.
#[derive(Debug, Default)]
struct Told {
    text: String,
    json: Vec<(String, Value)>,
}

fn told_label(model: &Model, batch: &PictureBatch, labels: &[String]) -> Result<Told> {
    let logits = finite(batch.label_logits(&model.model, &Pass::inference(), &model.heads)?, HEAD)?;
    let probabilities: Vec<f32> = softmax(&logits, D::Minus1)?.flatten_all()?.to_vec1()?;
    let mut told: Vec<(&String, f32)> = labels.iter().zip(probabilities).collect();
    told.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let Some((label, probability)) = told.first() else { return Ok(Told::default()) };
    let all: Map<String, Value> = told.iter().map(|(label, p)| ((*label).clone(), json!(p))).collect();
    Ok(Told {
        text: format!("{label} ({:.1} %)", 100.0 * probability),
        json: [("label".to_owned(), json!(label)), ("probabilities".to_owned(), json!(all))].into(),
    })
}

/// A mask as lengths of runs in turn outside and inside, row by row, the first outside: COCO's uncompressed form, but by rows.
fn runs(mask: &[bool]) -> Vec<usize> {
    let mut runs: Vec<usize> = if mask.first() == Some(&true) { vec![0] } else { Vec::new() };
    runs.extend(mask.chunk_by(|a, b| a == b).map(<[bool]>::len));
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_begin_outside() {
        assert_eq!(runs(&[false, false, true, false]), [2, 1, 1]);
        assert_eq!(runs(&[true, true, false]), [0, 2, 1]);
        assert_eq!(runs(&[]), [0usize; 0]);
    }
}
