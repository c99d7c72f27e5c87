//! Spectra as a picture: a line a site, with its norm, its effective rank and its singular values from dark to light.

use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::error::AlgebraError;
use super::spectrum::Spectrum;
use crate::report::scale::short;

/// A site's spectrum under its path.
#[derive(Debug, Clone)]
pub struct SiteSpectrum {
    /// Native path.
    pub path: String,
    /// Its figures.
    pub spectrum: Spectrum,
}

/// In pixels.
const WIDTH: i32 = 1280;
const LINE: i32 = 22;
const TOP: i32 = 92;
const BOTTOM: i32 = 24;
const LETTERS: i32 = 16;
/// Right end of the paths, of the bars of norms and of the effective ranks; where cells begin and end.
const PATHS: i32 = 512;
const BARS: i32 = 700;
const RANKS: i32 = 780;
const CELLS: i32 = 800;
const CELLS_END: i32 = WIDTH - 24;
/// Characters of a path that have room.
const MAX_PATH: usize = 62;
/// Sites and singular values that are drawn; beyond them the picture says how many there are.
const MAX_SITES: usize = 512;
const MAX_VALUES: usize = 128;
/// Widest cell.
const MAX_CELL: i32 = 40;
/// Norms that are more than so many times as large as others are drawn by their logarithms.
const FAR_APART: f64 = 20.0;
/// Share of the greatest singular value at which a cell is white.
const FAINTEST: f64 = 1e-3;

const INK: RGBColor = RGBColor(28, 28, 26);
const SOFT: RGBColor = RGBColor(92, 91, 85);
const BAR: RGBColor = RGBColor(0x14, 0x75, 0x58);
const DARKEST: RGBColor = RGBColor(0x12, 0x35, 0x78);

/// Draws spectra of at least one site; the bytes of a PNG file.
///
/// # Errors
/// What the drawing library reports.
pub fn picture(sites: &[SiteSpectrum]) -> Result<Vec<u8>, AlgebraError> {
    let failed = |reason: String| AlgebraError::Picture { reason };
    let shown = sites.get(..MAX_SITES).unwrap_or(sites);
    let height = TOP + LINE * shown.len() as i32 + BOTTOM + if shown.len() < sites.len() { LINE } else { 0 };
    let pixels = draw(sites, shown, height).map_err(failed)?;
    let image = image::RgbImage::from_raw(WIDTH as u32, height as u32, pixels)
        .ok_or_else(|| failed("the picture has another size than asked for".into()))?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| failed(e.to_string()))?;
    Ok(bytes.into_inner())
}

fn draw(sites: &[SiteSpectrum], shown: &[SiteSpectrum], height: i32) -> Result<Vec<u8>, String> {
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font cannot be read".to_string())?;
    let mut pixels = vec![255u8; (WIDTH * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH as u32, height as u32)).into_drawing_area();
        let canvas = Canvas(&area);
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        let values = shown.iter().map(|site| site.spectrum.spectrum.len()).max().unwrap_or(1);
        let drawn = values.clamp(1, MAX_VALUES);
        let lengths = Lengths::of(shown);
        heading(&canvas, values, drawn, &lengths)?;
        for (number, site) in shown.iter().enumerate() {
            line(&canvas, TOP + LINE * number as i32, site, &lengths, drawn)?;
        }
        if shown.len() < sites.len() {
            let more = format!("and {} more sites", sites.len() - shown.len());
            canvas.text(&more, (24, height - BOTTOM - LINE / 2), SOFT, HPos::Left)?;
        }
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(pixels)
}

fn heading(canvas: &Canvas<'_, '_>, values: usize, drawn: usize, lengths: &Lengths) -> Result<(), String> {
    let cells = match values {
        _ if values > drawn => format!("singular values beside the site's greatest, the first {drawn} of {values}"),
        _ => "singular values beside the site's greatest".to_owned(),
    };
    let norm = if lengths.logarithmic { "norm, logarithmic" } else { "norm of the shift" };
    canvas.text("site", (PATHS - 8, TOP - 16), INK, HPos::Right)?;
    canvas.text(norm, (PATHS + 12, TOP - 16), INK, HPos::Left)?;
    canvas.text("eff. rank", (RANKS, TOP - 16), INK, HPos::Right)?;
    canvas.text(&cells, (CELLS, TOP - 16), INK, HPos::Left)?;
    // What the shades mean.
    let steps = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, FAINTEST];
    for (number, share) in steps.into_iter().enumerate() {
        let left = CELLS + 62 * number as i32;
        canvas.cell([(left, 24), (left + 16, 40)], shade(share))?;
        canvas.text(&format!("{share}"), (left + 20, 32), SOFT, HPos::Left)?;
    }
    Ok(())
}

/// How long the bars of norms are.
struct Lengths {
    least: f64,
    largest: f64,
    logarithmic: bool,
}

impl Lengths {
    fn of(sites: &[SiteSpectrum]) -> Self {
        let norms = || sites.iter().map(|site| site.spectrum.norm).filter(|norm| *norm > 0.0);
        let (least, largest) = (norms().fold(f64::INFINITY, f64::min), norms().fold(0.0, f64::max));
        Self { least, largest, logarithmic: largest > FAR_APART * least }
    }

    /// Share of the longest; the shortest is still seen.
    fn of_norm(&self, norm: f64) -> f64 {
        const SHORTEST: f64 = 0.05;
        match self.logarithmic {
            _ if norm <= 0.0 => 0.0,
            true => SHORTEST + (1.0 - SHORTEST) * (norm / self.least).ln() / (self.largest / self.least).ln(),
            false => norm / self.largest,
        }
    }
}

/// One site.
fn line(canvas: &Canvas<'_, '_>, top: i32, site: &SiteSpectrum, lengths: &Lengths, drawn: usize) -> Result<(), String> {
    let middle = top + LINE / 2;
    let Spectrum { norm, effective_rank, spectrum } = &site.spectrum;
    canvas.text(&end_of(&site.path), (PATHS - 8, middle), INK, HPos::Right)?;
    let bar = (lengths.of_norm(*norm) * f64::from(BARS - PATHS - 76)).round() as i32;
    canvas.cell([(PATHS + 12, top + 4), (PATHS + 12 + bar, top + LINE - 4)], BAR)?;
    canvas.text(&short(*norm), (PATHS + 18 + bar, middle), SOFT, HPos::Left)?;
    canvas.text(&format!("{effective_rank:.2}"), (RANKS, middle), INK, HPos::Right)?;
    let greatest = spectrum.first().copied().unwrap_or(0.0);
    let edge = |place: usize| CELLS + (CELLS_END - CELLS).min(MAX_CELL * drawn as i32) * place as i32 / drawn as i32;
    for (place, value) in spectrum.iter().enumerate().take(drawn) {
        let share = if greatest > 0.0 { value / greatest } else { 0.0 };
        canvas.cell([(edge(place), top + 1), (edge(place + 1) - 1, top + LINE - 1)], shade(share))?;
    }
    Ok(())
}

/// The colour of a share of the greatest value, by its logarithm.
fn shade(share: f64) -> RGBColor {
    let depth = if share > FAINTEST { 1.0 - share.min(1.0).log10() / FAINTEST.log10() } else { 0.0 };
    // What is there and faint is told from what is outside.
    let depth = 0.06 + 0.94 * depth;
    let mix = |dark: u8| (255.0 + (f64::from(dark) - 255.0) * depth).round() as u8;
    RGBColor(mix(DARKEST.0), mix(DARKEST.1), mix(DARKEST.2))
}

/// The end of a path, which says more than its beginning.
fn end_of(path: &str) -> String {
    let count = path.chars().count();
    match count.checked_sub(MAX_PATH).filter(|more| *more > 0) {
        Some(more) => format!("…{}", path.chars().skip(more + 1).collect::<String>()),
        None => path.to_owned(),
    }
}

/// What is drawn on, in pixels.
struct Canvas<'a, 'b>(&'a DrawingArea<BitMapBackend<'b>, plotters::coord::Shift>);

impl Canvas<'_, '_> {
    fn cell(&self, corners: [(i32, i32); 2], colour: RGBColor) -> Result<(), String> {
        self.0.draw(&Rectangle::new(corners, colour.filled())).map_err(|e| e.to_string())
    }

    fn text(&self, text: &str, place: (i32, i32), colour: RGBColor, at: HPos) -> Result<(), String> {
        let style = TextStyle::from(("sans-serif", LETTERS).into_font()).color(&colour).pos(Pos::new(at, VPos::Center));
        self.0.draw(&Text::new(text, place, style)).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn site(path: &str, spectrum: &[f64]) -> SiteSpectrum {
        let norm = spectrum.iter().map(|value| value * value).sum::<f64>().sqrt();
        SiteSpectrum {
            path: path.into(),
            spectrum: Spectrum { norm, effective_rank: 1.5, spectrum: spectrum.to_vec() },
        }
    }

    fn drawn(sites: &[SiteSpectrum]) -> image::RgbImage {
        image::load_from_memory(&picture(sites).unwrap()).unwrap().into_rgb8()
    }

    #[test]
    fn cells_darken_with_their_values_and_bars_grow_with_the_norm() {
        let image = drawn(&[site("a.q", &[1.0, 0.1, 0.0]), site("a.v", &[4.0, 4.0, 4.0])]);
        let width = MAX_CELL as u32;
        let cell = |line: u32, place: u32| {
            let pixel =
                image.get_pixel(CELLS as u32 + width * place + width / 2, (TOP + LINE / 2) as u32 + line * LINE as u32);
            pixel.0.iter().map(|part| u32::from(*part)).sum::<u32>()
        };
        assert!(cell(0, 0) < cell(0, 1) && cell(0, 1) < cell(0, 2) && cell(0, 2) < 3 * 255);
        assert_eq!((cell(1, 0), cell(1, 1)), (cell(0, 0), cell(1, 2)));
        let bar = |line: u32| {
            let y = (TOP + LINE / 2) as u32 + line * LINE as u32;
            (PATHS as u32..BARS as u32).filter(|x| image.get_pixel(*x, y).0 == [BAR.0, BAR.1, BAR.2]).count()
        };
        assert!(bar(1) > 4 * bar(0) && bar(0) > 0, "{} {}", bar(0), bar(1));
        let lengths = |norms: [f64; 3]| {
            let lengths = Lengths::of(&norms.map(|norm| site("x", &[norm])));
            norms.map(|norm| (100.0 * lengths.of_norm(norm)).round() as i32)
        };
        assert_eq!(lengths([1.0, 2.0, 0.0]), [50, 100, 0]);
        assert_eq!(lengths([1.0, 10.0, 100.0]), [5, 53, 100]);
    }

    #[test]
    fn any_spectra_can_be_drawn() {
        let many: Vec<SiteSpectrum> =
            (0..600).map(|number| site(&"ä.".repeat(number), &vec![1e-300; number])).collect();
        assert_eq!(drawn(&many).height(), (TOP + LINE * (MAX_SITES as i32 + 1) + BOTTOM) as u32);
        drawn(&[site("", &[]), site("x", &[0.0, 0.0]), site("y", &[f64::MAX, 1.0])]);
        drawn(&[]);
    }
}
