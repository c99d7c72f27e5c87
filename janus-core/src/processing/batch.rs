//! Rows of unequal length as one rectangle.

use candle_core::{Device, Tensor};

use super::Result;
use super::prompt::{IGNORE_INDEX, Sample};

/// Rows filled up with the pad id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Token ids, `[rows, len]`, row by row.
    pub ids: Vec<u32>,
    /// 1 for tokens, 0 for padding, `[rows, len]`.
    pub mask: Vec<u8>,
    /// Labels, `[rows, len]`, [`IGNORE_INDEX`] where nothing is to be learned; for batches of samples.
    pub labels: Option<Vec<i64>>,
    /// How many rows.
    pub rows: usize,
    /// Length of the longest row, and so of all.
    pub len: usize,
}

/// Pads on the left, as generation needs it.
pub fn left_pad<R: AsRef<[u32]>>(rows: &[R], pad: u32) -> PaddedBatch {
    padded(rows.iter().map(|row| (row.as_ref(), None)), pad)
}

/// Pads samples on the left, labels with them.
pub fn left_pad_samples(samples: &[Sample], pad: u32) -> PaddedBatch {
    padded(samples.iter().map(|sample| (sample.ids.as_slice(), Some(sample.labels.as_slice()))), pad)
}

fn padded<'a>(rows: impl ExactSizeIterator<Item = (&'a [u32], Option<&'a [i64]>)> + Clone, pad: u32) -> PaddedBatch {
    let count = rows.len();
    let len = rows.clone().map(|(ids, _)| ids.len()).max().unwrap_or(0);
    let with_labels = count > 0 && rows.clone().all(|(_, labels)| labels.is_some());
    let mut batch = PaddedBatch {
        ids: vec![pad; count * len],
        mask: vec![0; count * len],
        labels: with_labels.then(|| vec![IGNORE_INDEX; count * len]),
        rows: count,
        len,
    };
    for (row, (ids, labels)) in rows.enumerate() {
        let start = row * len + len - ids.len();
        batch.ids[start..start + ids.len()].copy_from_slice(ids);
        batch.mask[start..start + ids.len()].fill(1);
        if let (Some(all), Some(labels)) = (&mut batch.labels, labels) {
            for (to, from) in all[start..start + ids.len()].iter_mut().zip(labels) {
                *to = *from;
            }
        }
    }
    batch
}

impl PaddedBatch {
    /// Positions, `[rows, len]`: the count of tokens before, 0 under padding.
    pub fn positions(&self) -> Vec<u32> {
        let mut positions = Vec::with_capacity(self.mask.len());
        for mask in self.mask.chunks(self.len.max(1)) {
            let mut next = 0;
            positions.extend(mask.iter().map(|&attended| {
                let position = if attended == 0 { 0 } else { next };
                next += u32::from(attended);
                position
            }));
        }
        positions
    }

    /// Ids, U32 `[rows, len]`.
    ///
    /// # Errors
    /// The device's.
    pub fn ids_tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.ids, (self.rows, self.len), device)?)
    }

    /// Attention mask, U8 `[rows, len]`, 1 for tokens.
    ///
    /// # Errors
    /// The device's.
    pub fn mask_tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.mask, (self.rows, self.len), device)?)
    }

    /// Positions, U32 `[rows, len]`.
    ///
    /// # Errors
    /// The device's.
    pub fn positions_tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_slice(&self.positions(), (self.rows, self.len), device)?)
    }

    /// Labels, I64 `[rows, len]`, where there are any.
    ///
    /// # Errors
    /// The device's.
    pub fn labels_tensor(&self, device: &Device) -> Result<Option<Tensor>> {
        let Some(labels) = &self.labels else { return Ok(None) };
        Ok(Some(Tensor::from_slice(labels, (self.rows, self.len), device)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_filled_on_the_left() {
        let rows = [vec![5, 6, 7], vec![8]];
        let left = left_pad(&rows, 9);
        assert_eq!((left.ids.as_slice(), left.mask.as_slice()), (&[5, 6, 7, 9, 9, 8][..], &[1, 1, 1, 0, 0, 1][..]));
        assert_eq!(left.positions(), [0, 1, 2, 0, 0, 0]);
        assert_eq!((left.rows, left.len, &left.labels), (2, 3, &None));
        assert_eq!(left.mask_tensor(&Device::Cpu).unwrap().to_vec2::<u8>().unwrap(), [[1, 1, 1], [0, 0, 1]]);
        assert!(left_pad::<Vec<u32>>(&[], 9).positions().is_empty());
    }

    #[test]
    fn labels_are_filled_with_the_ignored_one() {
        let sample = |ids: &[u32], labels: &[i64]| Sample { ids: ids.into(), labels: labels.into() };
        let samples = [sample(&[1, 2], &[-100, 2]), sample(&[3], &[3])];
        assert_eq!(left_pad_samples(&samples, 9).labels.unwrap(), [-100, 2, -100, 3]);
        let labels = left_pad_samples(&samples, 9).labels_tensor(&Device::Cpu).unwrap().unwrap();
        assert_eq!(labels.to_vec2::<i64>().unwrap(), [[-100, 2], [-100, 3]]);
    }
}
