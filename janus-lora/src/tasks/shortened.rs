//! Batches of which only a part is computed, where it is enough that something passes: the gradient check before step 1.

use janus_core::model::decoder::Placement;

use super::{Batch, CodeBatch, TextBatch};

/// Tokens of each image that stay, and tokens of text before and after the first of a row that is learned from.
const TOKENS: usize = 16;

impl Batch {
    /// The same with the last tokens of each image and the text about a row's first label alone, or the first codes: a gradient
    /// takes the same ways through it. Heads and image tokenizers see whole pictures.
    #[must_use]
    pub fn shortened(self) -> Self {
        match self {
            Batch::Text(batch) if batch.rows == 1 => Batch::Text(batch.shortened(TOKENS)),
            Batch::Codes(CodeBatch { prompts, mut codes, images, placeholder }) => {
                codes.iter_mut().for_each(|codes| codes.truncate(TOKENS));
                Batch::Codes(CodeBatch { prompts, codes, images, placeholder })
            }
            other => other,
        }
    }
}

impl TextBatch {
    /// A packed batch with at most `most` tokens of each image, before, and from each row's first label on.
    fn shortened(self, most: usize) -> Self {
        let placeholders = self.ids.iter().filter(|id| **id == self.placeholder).count();
        let per_image = placeholders / self.images.len().max(1);
        let (mut ids, mut lengths, mut seen) = (Vec::new(), Vec::new(), 0);
        let (mut places, mut labels) = (Vec::new(), Vec::new());
        let mut supervised = self.places.iter().map(|place| *place as usize).zip(self.labels).peekable();
        let mut start = 0;
        while start < self.ids.len() {
            let own = self.placement.positions[start + 1..].iter().position(|position| *position == 0);
            let end = own.map_or(self.ids.len(), |length| start + 1 + length);
            let first = supervised.peek().map_or(usize::MAX, |(place, _)| *place);
            let before = ids.len();
            for at in start..end {
                let label = supervised.next_if(|(place, _)| *place == at);
                let is_kept = if self.ids[at] == self.placeholder {
                    seen += 1;
                    (seen - 1) % per_image >= per_image.saturating_sub(most)
                } else {
                    at + most > first && at < first.saturating_add(most)
                };
                if is_kept {
                    if let Some((_, label)) = label {
                        places.push(ids.len() as u32);
                        labels.push(label);
                    }
                    ids.push(self.ids[at]);
                }
            }
            lengths.extend(Some(ids.len() - before).filter(|length| *length > 0));
            start = end;
        }
        let last_patches = (per_image > most).then_some(most);
        Self { ids, placement: Placement::packed(&lengths), places, labels, last_patches, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACEHOLDER: u32 = 9;

    #[test]
    fn rows_keep_their_text_and_the_end_of_each_image() {
        let batch = |ids: Vec<u32>, lengths: &[usize], places: Vec<u32>, images: usize| {
            let pixels =
                candle_core::Tensor::zeros((images, 3, 4, 4), candle_core::DType::F32, &candle_core::Device::Cpu);
            let images = crate::cache::Image::each_of(&pixels.unwrap()).unwrap();
            let (labels, placement) = (places.clone(), Placement::packed(lengths));
            let placeholder = PLACEHOLDER;
            TextBatch { ids, rows: 1, placement, places, labels, images, placeholder, last_patches: None }
        };
        let image = [PLACEHOLDER; 5];
        // Two images side by side, a row without one, one at the start of a row, and a row without labels.
        let ids = [&[1, 2][..], &image, &image, &[3, 4], &[5, 6, 7], &image, &[8], &[7, 7, 7]].concat();
        let shortened = batch(ids.clone(), &[14, 3, 6, 3], vec![1, 11, 12, 14, 21, 22], 3).shortened(2);
        let image = [PLACEHOLDER; 2];
        assert_eq!(shortened.ids, [&[1, 2][..], &image, &image, &[5, 6], &image, &[8]].concat());
        let expected = Placement::packed(&[6, 2, 3]);
        assert_eq!(shortened.placement.positions, expected.positions);
        assert_eq!(format!("{:?}", shortened.placement.mask), format!("{:?}", expected.mask));
        assert_eq!((shortened.places, shortened.labels), (vec![1, 5, 6, 9, 10], vec![1, 11, 14, 21, 22]));
        assert_eq!(shortened.last_patches, Some(2));

        let whole = batch(ids.clone(), &[14, 3, 9], vec![1, 11, 15, 22], 3).shortened(30);
        assert_eq!((whole.ids, whole.last_patches), (ids, None), "nothing to leave out");
        assert_eq!((whole.places, whole.labels), (vec![1, 11, 15, 22], vec![1, 11, 15, 22]));
        let text = batch((0..9).collect(), &[9], vec![4, 5, 6, 7], 0).shortened(2);
        assert_eq!((text.ids, text.places, text.labels), (vec![3, 4, 5], vec![1, 2], vec![4, 5]));
        assert_eq!(text.last_patches, None);
    }
}
