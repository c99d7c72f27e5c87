//! A contact sheet: cells of pictures with text beneath them.

use image::RgbImage;
use plotters::prelude::*;
use plotters::style::register_font;

use super::SurveyError;
use crate::error::Result;

/// Some text of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) text: String,
    /// Whether it counts in the loss.
    pub(super) learnt: bool,
}

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) title: String,
    pub(super) subtitle: String,
    pub(super) images: Vec<RgbImage>,
    pub(super) text: Vec<Piece>,
}

/// All rows.
#[derive(Debug, Clone)]
pub(super) struct Sheet {
    /// Width and height of every picture, in pixels.
    pub(super) image_side: u32,
    pub(super) cells: Vec<Cell>,
}

const COLUMNS: usize = 4;
/// Narrower cells have no room for text: their pictures are enlarged, each pixel by a whole number.
const LEAST_WIDTH: u32 = 288;
const MARGIN: u32 = 16;
const LEGEND_HEIGHT: u32 = 30;
const FONT: &str = "monospace";
const FONT_SIZE: u32 = 13;
const LINE_HEIGHT: u32 = 17;
/// Hack's letters are all 1233 of 2048 units wide, at a size of 13 pixels 7.8.
const LETTER_WIDTH: f64 = FONT_SIZE as f64 * 1233.0 / 2048.0;
const MAX_LINES: usize = 18;
const MAX_PIXELS: u64 = 100_000_000;

const PAPER: RGBColor = RGBColor(255, 255, 255);
const TITLE: RGBColor = RGBColor(20, 20, 20);
const GIVEN: RGBColor = RGBColor(120, 120, 128);
const LEARNT: RGBColor = RGBColor(0, 92, 52);
const LEARNT_PAPER: RGBColor = RGBColor(214, 242, 224);

/// A stretch of a line in one colour.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stretch {
    pub(super) column: usize,
    pub(super) text: String,
    pub(super) learnt: bool,
}

/// Text in lines of at most `letters` letters, at most `lines` of them; what is left out is counted in the last one.
pub(super) fn lines_of(pieces: &[Piece], letters: usize, lines: usize) -> Vec<Vec<Stretch>> {
    let mut all: Vec<Vec<Stretch>> = vec![Vec::new()];
    let mut column = 0;
    for piece in pieces {
        for letter in piece.text.chars() {
            let is_break = letter == '\n';
            if column == letters {
                all.push(Vec::new());
                column = 0;
            }
            // A line break is shown, for it is a token.
            let letter = match letter {
                '\n' => '↵',
                // The bars of special tokens, which the font does not have in full width.
                '｜' => '|',
                letter if letter.is_control() => '·',
                letter => letter,
            };
            if let Some(line) = all.last_mut() {
                match line.last_mut() {
                    Some(last) if last.learnt == piece.learnt => last.text.push(letter),
                    _ => line.push(Stretch { column, text: letter.into(), learnt: piece.learnt }),
                }
            }
            column += 1;
            if is_break {
                all.push(Vec::new());
                column = 0;
            }
        }
    }
    if all.last().is_some_and(Vec::is_empty) {
        all.pop();
    }
    if all.len() > lines {
        let shown = lines.saturating_sub(1);
        let hidden: usize = all[shown..].iter().flatten().map(|stretch| stretch.text.chars().count()).sum();
        all.truncate(shown);
        all.push(vec![Stretch { column: 0, text: format!("... and {hidden} more letters"), learnt: false }]);
    }
    all
}

impl Sheet {
    /// Draws the cells, as many in a line as fit.
    pub(super) fn draw(&self) -> Result<RgbImage> {
        let enlarged = LEAST_WIDTH.div_ceil(self.image_side.max(1)).max(1);
        let side = self.image_side.saturating_mul(enlarged);
        let letters = (f64::from(side) / LETTER_WIDTH) as usize;
        let columns = COLUMNS.min(self.cells.len()).max(1);
        let texts: Vec<Vec<Vec<Stretch>>> =
            self.cells.iter().map(|cell| lines_of(&cell.text, letters.max(1), MAX_LINES)).collect();
        let height_of = |number: usize| {
            let pictures = self.cells[number].images.len() as u64 * u64::from(side + MARGIN / 4);
            pictures + (texts[number].len() as u64 + 2) * u64::from(LINE_HEIGHT) + u64::from(MARGIN)
        };
        let numbers: Vec<usize> = (0..self.cells.len()).collect();
        let heights: Vec<u64> =
            numbers.chunks(columns).map(|row| row.iter().map(|&n| height_of(n)).max().unwrap_or(0)).collect();
        let width = columns as u64 * u64::from(side + MARGIN) + u64::from(MARGIN);
        let height = heights.iter().sum::<u64>() + u64::from(LEGEND_HEIGHT + 2 * MARGIN);
        let too_large = || SurveyError::TooLarge { rows: self.cells.len(), width, height, limit: MAX_PIXELS };
        if width.saturating_mul(height) > MAX_PIXELS {
            return Err(too_large().into());
        }
        let (Ok(width), Ok(height)) = (u32::try_from(width), u32::try_from(height)) else {
            return Err(too_large().into());
        };

        let mut words = Vec::new();
        let mut pictures = Vec::new();
        let mut top = MARGIN + LEGEND_HEIGHT;
        for (row, height) in numbers.chunks(columns).zip(heights) {
            for (column, &number) in row.iter().enumerate() {
                let left = MARGIN + column as u32 * (side + MARGIN);
                let mut at = top;
                for image in &self.cells[number].images {
                    pictures.push((left, at, image));
                    at += side + MARGIN / 4;
                }
                let cell = &self.cells[number];
                for (text, colour) in [(&cell.title, TITLE), (&cell.subtitle, GIVEN)] {
                    words.push((left, at, clipped(text, letters), colour, None));
                    at += LINE_HEIGHT;
                }
                for line in &texts[number] {
                    for Stretch { column, text, learnt } in line {
                        let left = left + (*column as f64 * LETTER_WIDTH).round() as u32;
                        let wide = (text.chars().count() as f64 * LETTER_WIDTH).round() as u32;
                        let (colour, paper) = if *learnt { (LEARNT, Some(wide)) } else { (GIVEN, None) };
                        words.push((left, at, text.clone(), colour, paper));
                    }
                    at += LINE_HEIGHT;
                }
            }
            top += height as u32;
        }
        let mut buffer = vec![255u8; width as usize * height as usize * 3];
        draw_words(&mut buffer, (width, height), &words).map_err(|reason| SurveyError::Draw { reason })?;
        let mut sheet = RgbImage::from_raw(width, height, buffer)
            .ok_or_else(|| SurveyError::Draw { reason: "the picture has another size than asked for".into() })?;
        for (left, top, image) in pictures {
            for (x, y, pixel) in image.enumerate_pixels() {
                for (dx, dy) in (0..enlarged).flat_map(|dy| (0..enlarged).map(move |dx| (dx, dy))) {
                    if let Some(place) = sheet.get_pixel_mut_checked(left + x * enlarged + dx, top + y * enlarged + dy)
                    {
                        *place = *pixel;
                    }
                }
            }
        }
        Ok(sheet)
    }
}

/// A text that fits a line.
fn clipped(text: &str, letters: usize) -> String {
    match text.chars().count() > letters {
        true => text.chars().take(letters.saturating_sub(3)).chain("...".chars()).collect(),
        false => text.to_owned(),
    }
}

/// Left, top, text, colour, and the width of the coloured paper behind it.
type Word = (u32, u32, String, RGBColor, Option<u32>);

fn draw_words(buffer: &mut [u8], size: (u32, u32), words: &[Word]) -> std::result::Result<(), String> {
    register_font(FONT, FontStyle::Normal, epaint_default_fonts::HACK_REGULAR)
        .map_err(|_| "the font cannot be read".to_string())?;
    let area = BitMapBackend::with_buffer(buffer, size).into_drawing_area();
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    area.fill(&PAPER).map_err(|e| failed(&e))?;
    let legend = [("given to the model", GIVEN, None), ("learnt", LEARNT, Some((6.0 * LETTER_WIDTH) as u32))];
    let mut left = MARGIN;
    let mut all = words.to_vec();
    for (text, colour, paper) in legend {
        all.push((left, MARGIN / 2, text.to_owned(), colour, paper));
        left += ((text.len() + 3) as f64 * LETTER_WIDTH) as u32;
    }
    for (left, top, text, colour, paper) in &all {
        let (left, top) = (*left as i32, *top as i32);
        if let Some(wide) = paper {
            let corners = [(left, top), (left + *wide as i32, top + LINE_HEIGHT as i32 - 1)];
            area.draw(&Rectangle::new(corners, LEARNT_PAPER.filled())).map_err(|e| failed(&e))?;
        }
        // Letter by letter, so that columns are columns whatever the drawing library makes of distances between letters.
        let style = (FONT, FONT_SIZE).into_font().color(colour);
        for (number, letter) in text.chars().enumerate().filter(|(_, letter)| *letter != ' ') {
            let place = (left + (number as f64 * LETTER_WIDTH).round() as i32, top + 1);
            area.draw(&Text::new(letter.to_string(), place, style.clone())).map_err(|e| failed(&e))?;
        }
    }
    area.present().map_err(|e| failed(&e))
}
