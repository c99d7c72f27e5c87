//! A mask of what is looked for in a picture, by a head on low and mid features.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use janus_core::processing::decode_mask;
use janus_core::{ModelError, Parts};

use super::error::TaskError;
use super::mask_values::{MaskFacts, MaskKeys, MaskRule};
use super::target::{mask_target, pictured};
use super::{Draft, PICTURE_PATHS, Question, Task, image_column, unusable, within};
use crate::base::Base;
use crate::data::{ColumnKind, ColumnRequest, Row, Split};
use crate::error::Result;
use crate::heads::{HeadKind, Target, segment};
use crate::recipe::{Columns, DataSection};

#[derive(Debug)]
pub(super) struct Segment {
    columns: Columns,
    head: Arc<str>,
    keys: MaskKeys,
    /// Of the rows that were looked at since they were last judged.
    facts: Mutex<MaskFacts>,
    /// Rows that were checked since.
    checked: AtomicU64,
    /// Whether a mask had a palette.
    has_palette: AtomicBool,
    /// Whether rows have shown values that say more than one object's beside 0.
    has_others: AtomicBool,
    /// What the values are, once the rows to train on were looked at.
    rule: OnceLock<MaskRule>,
}

impl Segment {
    pub(super) fn new(section: &DataSection) -> Self {
        Self {
            columns: section.columns.clone(),
            head: section.name.as_str().into(),
            keys: MaskKeys::of(section),
            facts: Mutex::default(),
            checked: AtomicU64::new(0),
            has_palette: AtomicBool::new(false),
            has_others: AtomicBool::new(false),
            rule: OnceLock::new(),
        }
    }
}

impl Task for Segment {
    fn parts(&self) -> Parts {
        Parts { vision: true, ..Parts::default() }
    }

    fn reaches(&self, path: &str) -> bool {
        within(path, PICTURE_PATHS)
    }

    fn columns(&self) -> Vec<ColumnRequest> {
        let mask = ColumnRequest::required("mask", self.columns.name_of("mask"), ColumnKind::Image);
        vec![image_column(&self.columns), mask]
    }

    fn check(&self, _base: &Base, row: &Row) -> std::result::Result<(), String> {
        self.checked.fetch_add(1, Ordering::Relaxed);
        let size = |role| {
            let image = row.image(role).ok_or_else(|| format!("there is no {role}"))?;
            image.dimensions().map_err(|e| e.to_string())
        };
        let (image, mask) = (size("image")?, size("mask")?);
        if image != mask {
            let ((width, height), (mask_width, mask_height)) = (image, mask);
            let note = row.image("image").map_or("", |image| image.turned_note());
            return Err(format!(
                "the mask has {mask_width} x {mask_height} pixels, its image {width} x {height}{note}"
            ));
        }
        Ok(())
    }

    fn look(&self, row: &Row) -> std::result::Result<(), String> {
        let mask = row.image("mask").ok_or("there is no mask")?;
        self.has_palette.fetch_or(is_indexed(&mask.bytes), Ordering::Relaxed);
        let facts = MaskFacts::of(&decode_mask(&mask.bytes, mask.decoding).map_err(|e| e.to_string())?);
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).add(&facts);
        Ok(())
    }

    fn conclude(&self, split: Split) -> std::result::Result<Vec<String>, TaskError> {
        let facts = std::mem::take(&mut *self.facts.lock().unwrap_or_else(PoisonError::into_inner));
        let is_whole = facts.masks == self.checked.swap(0, Ordering::Relaxed);
        self.has_others.fetch_or(facts.objects() > 1, Ordering::Relaxed);
        self.keys.check(&self.head)?;
        if split == Split::Eval
            && let Some(rule) = self.rule.get()
        {
            rule.judge(&facts, &self.head, split)?;
            return Ok(Vec::new());
        }
        let rule = self.keys.decide(&facts, is_whole, &self.head)?;
        let mut note = format!("masks: {rule}");
        if rule.is_empty() && facts.masks > 0 {
            note.push_str("; nothing can be learnt of them but that");
        }
        if !is_whole {
            note.push_str(&format!("; by the first {} of them, the run stops where others differ", facts.masks));
        }
        self.rule.get_or_init(|| rule);
        Ok(vec![note])
    }

    fn read_otherwise_before(&self) -> Option<String> {
        // The object was what is brighter than half of the brightest in a mask.
        if self.has_palette.load(Ordering::Relaxed) {
            Some("masks with a palette were read by brightness and are read by number".into())
        } else {
            let has_others = self.has_others.load(Ordering::Relaxed);
            has_others.then(|| "the object in masks was what is brighter than half, and is what has one value".into())
        }
    }

    fn draft(&self, base: &Base, draw: Option<f64>, row: &Row) -> Result<Draft> {
        let mask = row.image("mask").ok_or(ModelError::NotLoaded { part: "row's mask" })?;
        let mask = decode_mask(&mask.bytes, mask.decoding)?;
        let alone;
        let rule = match self.rule.get() {
            Some(rule) => rule,
            None => {
                alone = self.keys.decide(&MaskFacts::of(&mask), true, &self.head)?;
                &alone
            }
        };
        let classes = rule
            .classes(&mask)
            .map_err(|problem| unusable(format!("{problem}; in the rows looked at before {rule}")))?;
        let sides = (mask.width, mask.height);
        let mask = mask_target(base, sides, &classes, segment::side(base.config()), draw.is_none());
        Ok(Draft::Picture(pictured(&self.head, base, row, Target::Mask(mask.into()))?))
    }

    fn question(&self, _base: &Base, _row: &Row) -> Result<Option<Question>> {
        Ok(None)
    }

    fn head(&self) -> Option<HeadKind> {
        Some(HeadKind::Segment {})
    }
}

/// Whether a file is a GIF, or a PNG whose colour type, behind signature, length and name of the first chunk, two sides and the
/// depth, is that of a palette.
fn is_indexed(bytes: &[u8]) -> bool {
    const COLOUR_TYPE: usize = 25;
    const INDEXED: u8 = 3;
    bytes.starts_with(b"GIF8") || bytes.starts_with(b"\x89PNG") && bytes.get(COLOUR_TYPE) == Some(&INDEXED)
}
