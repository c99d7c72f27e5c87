//! A contact sheet of the first rows that a run takes: the pictures as the model gets them, and the text, what is learnt of
//! it in another colour.

use candle_core::Tensor;
use image::{Rgb, RgbImage};
use janus_core::processing::IMAGE_PLACEHOLDER;

use super::SurveyError;
use super::sheet::{Cell, Piece, Sheet};
use crate::base::Base;
use crate::cache::Image;
use crate::detection::LabelledBox;
use crate::error::Result;
use crate::heads::Target;
use crate::heads::segment;
use crate::recipe::Recipe;
use crate::tasks::{Draft, Pictured, codes_per_image};
use crate::train::tables::{RecipeTable, SampleStream};

/// Draws the first `rows` rows that a run of the recipe takes, the same number of each table.
///
/// # Errors
/// A row that cannot be read or decoded; more rows than a picture holds.
pub fn preview(recipe: &Recipe, base: &Base, tables: &[RecipeTable], rows: usize) -> Result<RgbImage> {
    let mut cells = Vec::new();
    for (number, table) in tables.iter().enumerate() {
        let share = rows / tables.len() + usize::from(number < rows % tables.len());
        let mut stream = SampleStream::new(table, recipe.train.seed, recipe.train.shuffle)?;
        for _ in 0..share {
            let (row, draft) = stream.draft(base)?;
            let (tokens, learnt) = draft.lengths(codes_per_image(base));
            let name = row.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let title = format!("{}: row {} of row group {}", table.section.name, row.row, row.row_group);
            let subtitle = format!("{tokens} tokens, {learnt} learnt, {name}");
            cells.push(Cell { title, subtitle, images: pictures(base, &draft)?, text: pieces(base, &draft)? });
        }
    }
    let side = u32::try_from(base.images().image_size).unwrap_or(u32::MAX);
    Sheet { image_side: side, cells }.draw()
}

/// The pictures of a row as the model gets them, made visible again.
fn pictures(base: &Base, draft: &Draft) -> Result<Vec<RgbImage>> {
    let processor = base.images();
    let seen = |image: &Image| visible(&image.pixels()?, processor.mean, processor.std);
    match draft {
        Draft::Text { images, .. } => images.iter().map(seen).collect(),
        Draft::Codes { images, image, .. } => {
            let drawn = visible(&image.target()?, [0.5; 3], [0.5; 3]);
            images.iter().map(seen).chain([drawn]).collect()
        }
        Draft::Pixels { image, .. } => Ok(vec![visible(&image.target()?, [0.5; 3], [0.5; 3])?]),
        Draft::Picture(pictured) => Ok(vec![shown(seen(&pictured.image)?, pictured, segment::side(base.config()))]),
    }
}

/// The square of a picture with what is true of it: boxes and mask in colour.
fn shown(mut square: RgbImage, pictured: &Pictured, side: usize) -> RgbImage {
    const COLOUR: Rgb<u8> = Rgb([213, 94, 0]);
    let size = square.width();
    match &pictured.target {
        Target::Label(_) | Target::Caption(_) => {}
        Target::Mask(mask) => {
            for (x, y, Rgb(pixel)) in square.enumerate_pixels_mut() {
                let place = |at: u32| at as usize * side / size.max(1) as usize;
                let share = mask.places.get(place(y) * side + place(x)).copied().unwrap_or(0.0) / 2.0;
                for (channel, colour) in pixel.iter_mut().zip(COLOUR.0) {
                    *channel = (f32::from(*channel) * (1.0 - share) + f32::from(colour) * share) as u8;
                }
            }
        }
        Target::Boxes(boxes) => {
            for LabelledBox { corners: [left, top, right, bottom], .. } in boxes.iter() {
                let frame = &pictured.frame;
                let ((x1, y1), (x2, y2)) = (frame.to_square((*left, *top)), frame.to_square((*right, *bottom)));
                let last = |at: f32| (at.round() as u32).clamp(1, size) - 1;
                let (x1, y1) = (x1.round() as u32, y1.round() as u32);
                let (x2, y2) = (last(x2), last(y2));
                let edge = (x1..=x2).flat_map(|x| [(x, y1), (x, y2)]).chain((y1..=y2).flat_map(|y| [(x1, y), (x2, y)]));
                for (x, y) in edge {
                    if let Some(pixel) = square.get_pixel_mut_checked(x, y) {
                        *pixel = COLOUR;
                    }
                }
            }
        }
    }
    square
}

/// A picture of normalised numbers `[3, height, width]`: `(value * std + mean) * 255`, rounded.
pub(super) fn visible(pixels: &Tensor, mean: [f32; 3], std: [f32; 3]) -> Result<RgbImage> {
    let wrong = || SurveyError::Draw { reason: format!("pixels of shape {:?}", pixels.dims()) };
    let (channels, height, width) = pixels.dims3()?;
    let values = pixels.flatten_all()?.to_vec1::<f32>()?;
    let plane = width * height;
    if channels != 3 || plane == 0 {
        return Err(wrong().into());
    }
    let mut bytes = vec![0; 3 * plane];
    for (channel, values) in values.chunks_exact(plane).enumerate() {
        for (byte, value) in bytes.iter_mut().skip(channel).step_by(3).zip(values) {
            *byte = ((value * std[channel] + mean[channel]) * 255.0).round().clamp(0.0, 255.0) as u8;
        }
    }
    let sides = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let image = sides.and_then(|(width, height)| RgbImage::from_raw(width, height, bytes));
    Ok(image.ok_or_else(wrong)?)
}

/// The text of a row as the tokenizer gives it back, in pieces that are learnt or not.
pub(super) fn pieces(base: &Base, draft: &Draft) -> Result<Vec<Piece>> {
    let (ids, learnt): (&[u32], Vec<bool>) = match draft {
        Draft::Text { tokens, .. } => (&tokens.ids, tokens.labels.iter().map(|label| *label >= 0).collect()),
        Draft::Codes { prompt, .. } => (prompt, vec![false; prompt.len()]),
        Draft::Pixels { .. } => (&[], Vec::new()),
        Draft::Picture(pictured) => {
            let text = match &pictured.target {
                Target::Label(label) => format!("label {label}"),
                Target::Boxes(boxes) => format!("{} boxes", boxes.len()),
                Target::Mask(_) => "mask".to_owned(),
                Target::Caption(ids) => base.tokenizer().decode(ids, true)?,
            };
            return Ok(vec![Piece { text, learnt: true }]);
        }
    };
    let placeholder = base.tokenizer().special().image_placeholder;
    let kinds: Vec<(bool, bool)> = ids.iter().zip(learnt).map(|(id, learnt)| (learnt, *id == placeholder)).collect();
    let mut pieces = Vec::new();
    let mut start = 0;
    for run in kinds.chunk_by(|a, b| a == b) {
        let (learnt, is_image) = run.first().copied().unwrap_or_default();
        let text = if is_image {
            format!("{} x {IMAGE_PLACEHOLDER}", run.len())
        } else {
            base.tokenizer().decode(ids.get(start..start + run.len()).unwrap_or_default(), false)?
        };
        pieces.push(Piece { text, learnt });
        start += run.len();
    }
    if let Draft::Codes { .. } = draft {
        pieces.push(Piece { text: format!("{} image codes", codes_per_image(base)), learnt: true });
    }
    Ok(pieces)
}
