//! What the rows of a table come to: tokens, supervised tokens, pictures, repetitions.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::base::Base;
use crate::data::CheckReport;
use crate::error::Result;
use crate::status::Status;
use crate::tasks::{Task, codes_per_image};
use crate::train::tables::Source;

/// How a number is spread over the rows or pictures of a table.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distribution {
    /// The smallest.
    pub min: u64,
    /// Half are at most this.
    pub median: u64,
    /// 95 of 100 are at most this.
    pub p95: u64,
    /// The largest.
    pub max: u64,
    /// Their mean.
    pub mean: f64,
    /// Their sum.
    pub total: u64,
}

/// Numbers with how often each came: its size is bounded by how far the numbers go, not by the table.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    by_value: BTreeMap<u64, u64>,
}

impl Counts {
    /// Counts one more.
    pub fn add(&mut self, value: u64) {
        *self.by_value.entry(value).or_insert(0) += 1;
    }

    /// What they come to; `None` without any.
    pub fn distribution(&self) -> Option<Distribution> {
        let count: u64 = self.by_value.values().sum();
        let (&min, _) = self.by_value.first_key_value()?;
        let (&max, _) = self.by_value.last_key_value()?;
        // The nearest rank: the smallest value that so many percent of all do not exceed.
        let percentile = |percent: u64| {
            let rank = (u128::from(count) * u128::from(percent)).div_ceil(100);
            let mut below = 0u128;
            let found = self.by_value.iter().find(|(_, times)| {
                below += u128::from(**times);
                below >= rank
            });
            found.map_or(max, |(value, _)| *value)
        };
        let total =
            self.by_value.iter().fold(0u64, |sum, (value, times)| sum.saturating_add(value.saturating_mul(*times)));
        let mean = total as f64 / count as f64;
        Some(Distribution { min, median: percentile(50), p95: percentile(95), max, mean, total })
    }
}

/// What one split of a table comes to.
#[derive(Debug, Clone, Serialize)]
pub struct TableStats {
    /// Rows looked at.
    pub rows: usize,
    /// Good ones: those that the rest is about.
    pub accepted: usize,
    /// Bad ones.
    pub rejected: usize,
    /// Why rows are bad, and how many are for each reason, most frequent first.
    pub reasons: Vec<(String, usize)>,
    /// What is to be told of the rows as a whole.
    pub notes: Vec<String>,
    /// Tokens that the decoder reads, per row.
    pub tokens: Option<Distribution>,
    /// Tokens that count in the loss, per row.
    pub supervised: Option<Distribution>,
    /// Pictures of all rows.
    pub images: u64,
    /// Pictures whose file, byte for byte, came before.
    pub repeated_images: u64,
    /// In pixels, as the model sees them.
    pub image_width: Option<Distribution>,
    /// In pixels, as the model sees them.
    pub image_height: Option<Distribution>,
    /// Size of the encoded pictures.
    pub image_bytes: Option<Distribution>,
}

impl TableStats {
    /// Reads every good row of a source once. Beside the counts it holds 16 bytes a picture.
    ///
    /// # Errors
    /// A row that cannot be read any more.
    pub fn new(source: &Source, task: &dyn Task, base: &Base, what: &str, status: &dyn Status) -> Result<Self> {
        let report = CheckReport::new(&source.table, &source.index);
        let reasons = report.reasons.into_iter().map(|group| (group.reason, group.rows)).collect();
        let (mut tokens, mut supervised) = (Counts::default(), Counts::default());
        let (mut widths, mut heights, mut bytes) = (Counts::default(), Counts::default(), Counts::default());
        let mut contents: HashSet<[u8; 16]> = HashSet::new();
        let (mut images, mut repeated_images) = (0, 0);
        let codes = codes_per_image(base);
        if report.accepted > 0 {
            let bar = status.items(&format!("counting {what}"), report.accepted as u64);
            for row in source.rows()? {
                let row = row?;
                let (read, learnt) = task.draft(base, None, &row)?.lengths(codes);
                tokens.add(read as u64);
                supervised.add(learnt as u64);
                for image in row.images.values().flatten() {
                    images += 1;
                    let mut content = [0; 16];
                    content.copy_from_slice(&Sha256::digest(&image.bytes)[..16]);
                    repeated_images += u64::from(!contents.insert(content));
                    bytes.add(image.bytes.len() as u64);
                    let (width, height) = image.dimensions()?;
                    widths.add(width.into());
                    heights.add(height.into());
                }
                bar.advance(1);
            }
            bar.finish();
        }
        Ok(Self {
            rows: report.rows,
            accepted: report.accepted,
            rejected: report.rejected,
            reasons,
            notes: source.notes.to_vec(),
            tokens: tokens.distribution(),
            supervised: supervised.distribution(),
            images,
            repeated_images,
            image_width: widths.distribution(),
            image_height: heights.distribution(),
            image_bytes: bytes.distribution(),
        })
    }
}
