//! What heads tell of a picture, drawn over it.

use image::{Rgb, RgbImage, imageops};
use plotters::prelude::*;
use plotters::style::register_font;

use crate::detection::Detection;

const FONT: &str = "monospace";
const FONT_SIZE: u32 = 13;
/// Hack's letters are all 1233 of 2048 units wide.
const LETTER_WIDTH: f64 = FONT_SIZE as f64 * 1233.0 / 2048.0;
/// Smaller pictures are enlarged, each pixel by a whole number, so that there is room for words.
const LEAST_SIDE: u32 = 320;
/// Colours that stand apart for those who see few of them, too: Okabe and Ito's, without black.
const COLOURS: [[u8; 3]; 7] =
    [[230, 159, 0], [86, 180, 233], [0, 158, 115], [240, 228, 66], [0, 114, 178], [213, 94, 0], [204, 121, 167]];
/// Share of the colour in a tinted pixel.
const TINT: f32 = 0.45;

/// Boxes below this score are neither drawn nor told in words.
pub(crate) const SHOWN_SCORE: f32 = 0.3;

/// What was found, in words.
pub fn words(found: &[Detection], labels: &[String]) -> String {
    let shown = found.iter().filter(|found| found.score >= SHOWN_SCORE);
    let all: Vec<String> = shown
        .map(|found| {
            let corners = found.corners.map(|corner| format!("{corner:.1}")).join(", ");
            format!("{} {:.2} at {corners}", label_of(found, labels), found.score)
        })
        .collect();
    if all.is_empty() { "nothing found".to_owned() } else { all.join("; ") }
}

fn label_of<'a>(found: &Detection, labels: &'a [String]) -> &'a str {
    labels.get(found.label as usize).map_or("", String::as_str)
}

/// A picture with drawings over it.
#[derive(Debug, Clone)]
pub struct Overlay {
    picture: RgbImage,
    /// Pixels that one pixel of the picture became, a side.
    scale: u32,
}

impl Overlay {
    /// Over this picture.
    pub fn new(picture: &RgbImage) -> Self {
        let shorter = picture.width().min(picture.height()).max(1);
        let scale = LEAST_SIDE.div_ceil(shorter).clamp(1, 16);
        let size = (picture.width() * scale, picture.height() * scale);
        let picture = match scale {
            1 => picture.clone(),
            _ => imageops::resize(picture, size.0, size.1, imageops::FilterType::Nearest),
        };
        Self { picture, scale }
    }

    /// Tints the pixels of a mask, which has the picture's own size, row by row, and draws its edge.
    #[must_use]
    pub fn mask(mut self, mask: &[bool], number: usize) -> Self {
        let colour = COLOURS[number % COLOURS.len()];
        let (scale, width) = (self.scale, self.picture.width() / self.scale);
        let height = self.picture.height() / scale;
        let inside = |x: i64, y: i64| {
            let within = (0..i64::from(width)).contains(&x) && (0..i64::from(height)).contains(&y);
            within && mask.get((y * i64::from(width) + x) as usize).copied().unwrap_or(false)
        };
        for (x, y, Rgb(pixel)) in self.picture.enumerate_pixels_mut() {
            let (own_x, own_y) = (i64::from(x / scale), i64::from(y / scale));
            if !inside(own_x, own_y) {
                continue;
            }
            let is_edge = [(-1, 0), (1, 0), (0, -1), (0, 1)].iter().any(|(dx, dy)| !inside(own_x + dx, own_y + dy));
            let share = if is_edge { 1.0 } else { TINT };
            for (channel, colour) in pixel.iter_mut().zip(colour) {
                *channel = (f32::from(*channel) * (1.0 - share) + f32::from(colour) * share) as u8;
            }
        }
        self
    }

    /// Outlines what was found, under its label and score.
    ///
    /// # Errors
    /// Why the words cannot be drawn.
    pub fn boxes(mut self, found: &[Detection], labels: &[String]) -> Result<Self, String> {
        // The surest last, over the others.
        for found in found.iter().rev().filter(|found| found.score >= SHOWN_SCORE) {
            let words = format!("{} {:.2}", label_of(found, labels), found.score);
            self = self.outlined(found.corners, found.label as usize, &words)?;
        }
        Ok(self)
    }

    /// Outlines a box, given in the picture's pixels, under some words.
    ///
    /// # Errors
    /// Why the words cannot be drawn.
    pub fn outlined(mut self, corners: [f32; 4], number: usize, words: &str) -> Result<Self, String> {
        let [red, green, blue] = COLOURS[number % COLOURS.len()];
        let colour = RGBColor(red, green, blue);
        let size = self.picture.dimensions();
        let [left, top, right, bottom] = corners.map(|corner| (corner * self.scale as f32).round() as i32);
        let (right, bottom) = ((right - 1).min(size.0 as i32 - 1), (bottom - 1).min(size.1 as i32 - 1));
        register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
            .map_err(|_| "the font cannot be read".to_owned())?;
        {
            let area = BitMapBackend::with_buffer(&mut self.picture, size).into_drawing_area();
            let failed = |e: &dyn std::fmt::Display| e.to_string();
            for inset in 0..2 {
                let frame = [(left + inset, top + inset), (right - inset, bottom - inset)];
                area.draw(&Rectangle::new(frame, colour.stroke_width(1))).map_err(|e| failed(&e))?;
            }
            let height = FONT_SIZE as i32 + 3;
            let above = if top >= height { top - height } else { top };
            let wide = (words.chars().count() as f64 * LETTER_WIDTH).ceil() as i32 + 4;
            let start = left.min(size.0 as i32 - wide).max(0);
            if !words.is_empty() {
                let paper = [(start, above), (start + wide, above + height - 1)];
                area.draw(&Rectangle::new(paper, colour.filled())).map_err(|e| failed(&e))?;
                let style = (FONT, FONT_SIZE).into_font().color(&BLACK);
                area.draw(&Text::new(words.to_owned(), (start + 2, above + 1), style)).map_err(|e| failed(&e))?;
            }
            area.present().map_err(|e| failed(&e))?;
        }
        Ok(self)
    }

    /// The picture with what was drawn.
    pub fn into_picture(self) -> RgbImage {
        self.picture
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_tint_their_pixels_alone() {
        let picture = RgbImage::from_pixel(400, 330, Rgb([100; 3]));
        let mask: Vec<bool> =
            (0..400 * 330).map(|place| (10..20).contains(&(place % 400)) && place < 400 * 50).collect();
        let drawn = Overlay::new(&picture).mask(&mask, 0).into_picture();
        assert_eq!(drawn.dimensions(), (400, 330));
        assert_eq!(drawn.get_pixel(9, 10).0, [100; 3]);
        assert_eq!(drawn.get_pixel(10, 10).0, COLOURS[0]);
        assert_eq!(drawn.get_pixel(15, 10).0, [158, 126, 55]);
        assert_eq!(drawn.get_pixel(15, 50).0, [100; 3]);
    }

    #[test]
    fn small_pictures_are_enlarged_and_boxes_outlined() {
        let picture = RgbImage::from_pixel(64, 40, Rgb([0; 3]));
        let drawn = Overlay::new(&picture).outlined([10.0, 20.0, 30.0, 40.0], 1, "pit 0.9").unwrap().into_picture();
        assert_eq!(drawn.dimensions(), (512, 320));
        assert_eq!(drawn.get_pixel(80, 200).0, COLOURS[1]);
        assert_eq!(drawn.get_pixel(239, 319).0, COLOURS[1]);
        assert_eq!(drawn.get_pixel(100, 250).0, [0; 3]);
        assert!((145..160).any(|y| drawn.get_pixel(83, y).0 == COLOURS[1]), "words have paper");
    }
}
