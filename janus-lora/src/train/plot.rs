//! `loss.png`: the loss of every table over the steps, without its noise, and the evaluations.

use janus_core::directory::Directory;
use janus_core::output::write_below;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::TrainError;
use crate::beginning::beginning;
use crate::error::Result;
use crate::report::scale::{Scale, label, smooth, stretches, ticks};

/// Of the picture, in pixels: as wide as half a screen, and its letters still letters on a telephone.
const WIDTH: u32 = 960;
const HEIGHT: u32 = 600;
/// What the axes and the legend take of it.
const LEFT: i32 = 96;
const RIGHT: i32 = 24;
const TOP: i32 = 120;
const BOTTOM: i32 = 70;
/// Height of letters.
const LETTERS: i32 = 23;
/// Tables that the legend names, and characters of a name.
const MAX_NAMES: usize = 8;
const MAX_NAME: usize = 18;

const INK: RGBColor = RGBColor(28, 28, 26);
const SOFT: RGBColor = RGBColor(92, 91, 85);
const RULE: RGBColor = RGBColor(226, 224, 218);
/// Colours that stand out against white: at least 4.5 to 1, none of them yellow.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x25, 0x63, 0xc9),
    RGBColor(0xb4, 0x4f, 0x06),
    RGBColor(0x14, 0x75, 0x58),
    RGBColor(0x8b, 0x3f, 0xb5),
    RGBColor(0xb0, 0x2a, 0x4c),
    RGBColor(0x0b, 0x70, 0x85),
    RGBColor(0x7d, 0x5a, 0x0c),
    RGBColor(0x55, 0x54, 0x4e),
];

/// One line of the plot.
#[derive(Debug, Clone, Default)]
pub(super) struct Curve {
    /// What it shows.
    pub name: String,
    /// Step and loss of training.
    pub points: Vec<(f64, f64)>,
    /// Step and loss of evaluation.
    pub evals: Vec<(f64, f64)>,
}

/// Draws the curves into a PNG file, with a line at the step of the adapter where steps came after it.
///
/// # Errors
/// The plot cannot be drawn or written.
pub(super) fn loss_plot(curves: &[Curve], adapter_step: u64, folder: &Directory, name: &str) -> Result<()> {
    let pixels = draw(curves, adapter_step).map_err(|reason| TrainError::Plot { reason })?;
    let image = image::RgbImage::from_raw(WIDTH, HEIGHT, pixels)
        .ok_or_else(|| TrainError::Plot { reason: "the picture has another size than asked for".into() })?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| TrainError::Plot { reason: e.to_string() })?;
    Ok(write_below(folder, name, |file| file.write_all(bytes.get_ref()))?)
}

fn draw(curves: &[Curve], adapter_step: u64) -> std::result::Result<Vec<u8>, String> {
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font cannot be read".to_string())?;
    let lines: Vec<_> = curves.iter().map(|curve| smooth(&stretches(&curve.points))).collect();
    let evals = || curves.iter().flat_map(|curve| curve.evals.iter().copied()).filter(|p| p.1.is_finite());
    let shown: Vec<Vec<f64>> = lines.iter().map(|line| line.iter().map(|s| s.mean).collect()).collect();
    let points = curves.iter().flat_map(|curve| curve.points.iter().copied()).filter(|p| p.1.is_finite());
    let all = points.clone().chain(evals());
    let last = all.clone().map(|p| p.0).fold(1.0, f64::max);
    let scale = Scale::fitting(&shown, evals().map(|p| p.1), all.map(|p| p.1), false);
    let scale = scale.or_else(|| Scale::linear([0.0, 1.0].into_iter(), true)).ok_or("there is no scale")?;

    let (right, bottom) = (WIDTH as i32 - RIGHT, HEIGHT as i32 - BOTTOM);
    let x = |step: f64| LEFT + ((step / last).clamp(0.0, 1.0) * f64::from(right - LEFT)).round() as i32;
    let y = |loss: f64| bottom - (scale.place(loss) * f64::from(bottom - TOP)).round() as i32;
    let mut pixels = vec![255u8; (WIDTH * HEIGHT * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH, HEIGHT)).into_drawing_area();
        let canvas = Canvas(&area);
        area.fill(&WHITE).map_err(|e| e.to_string())?;
        for tick in scale.ticks() {
            canvas.line(&[(LEFT, y(tick)), (right, y(tick))], RULE.stroke_width(1))?;
            canvas.text(&label(tick), (LEFT - 12, y(tick)), SOFT, (HPos::Right, VPos::Center))?;
        }
        for tick in ticks(0.0, last, 6).into_iter().filter(|tick| tick.fract() == 0.0) {
            // The last one stays within the picture.
            let horizontal = if x(tick) > right - 30 { HPos::Right } else { HPos::Center };
            canvas.text(&label(tick), (x(tick), bottom + 10), SOFT, (horizontal, VPos::Top))?;
        }
        canvas.line(&[(LEFT, bottom), (right, bottom)], SOFT.stroke_width(1))?;
        canvas.text("step", ((LEFT + right) / 2, HEIGHT as i32 - 30), INK, (HPos::Center, VPos::Top))?;
        canvas.text(&scale.named("loss"), (20, TOP - 40), INK, (HPos::Left, VPos::Bottom))?;
        let mark = adapter_step as f64;
        if mark < last {
            for top in (TOP..bottom).step_by(12) {
                canvas.line(&[(x(mark), top), (x(mark), (top + 6).min(bottom))], INK.stroke_width(2))?;
            }
            let (horizontal, aside) = if mark > last / 2.0 { (HPos::Right, 1) } else { (HPos::Left, -1) };
            let name = format!("adapter, step {adapter_step}");
            canvas.text(&name, (x(mark) + aside, TOP - 8), INK, (horizontal, VPos::Bottom))?;
        }
        for (number, (curve, line)) in curves.iter().zip(&lines).enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let raw = curve.points.iter().filter(|p| p.1.is_finite());
            let raw: Vec<(i32, i32)> = raw.map(|p| (x(p.0), y(p.1))).collect();
            canvas.line(&raw, colour.mix(0.22).stroke_width(1))?;
            let line: Vec<(i32, i32)> = line.iter().map(|s| (x(s.step), y(s.mean))).collect();
            canvas.line(&line, colour.stroke_width(3))?;
            for eval in curve.evals.iter().filter(|p| p.1.is_finite()) {
                canvas.dot((x(eval.0), y(eval.1)), colour)?;
            }
        }
        legend(&canvas, curves, right)?;
        area.present().map_err(|e| e.to_string())?;
    }
    Ok(pixels)
}

/// Names with their colours above the curves, from the right, and what dots are.
fn legend(canvas: &Canvas<'_, '_>, curves: &[Curve], right: i32) -> std::result::Result<(), String> {
    let middle = 32;
    let mut end = right;
    if curves.iter().any(|curve| !curve.evals.is_empty()) {
        let name = "held out";
        canvas.text(name, (end, middle), INK, (HPos::Right, VPos::Center))?;
        end -= canvas.width(name)? + 16;
        canvas.dot((end, middle), SOFT)?;
        end -= 30;
    }
    for (number, curve) in curves.iter().enumerate().take(MAX_NAMES).rev() {
        let name = beginning(&curve.name, MAX_NAME);
        let width = canvas.width(&name)?;
        // What finds no room is not named; what is, is named whole.
        if end - width - 44 < 20 {
            continue;
        }
        canvas.text(&name, (end, middle), INK, (HPos::Right, VPos::Center))?;
        end -= width + 10;
        canvas.line(&[(end - 26, middle), (end, middle)], COLOURS[number % COLOURS.len()].stroke_width(4))?;
        end -= 26 + 24;
    }
    Ok(())
}

/// What is drawn on, in pixels.
struct Canvas<'a, 'b>(&'a DrawingArea<BitMapBackend<'b>, plotters::coord::Shift>);

impl Canvas<'_, '_> {
    fn line(&self, points: &[(i32, i32)], style: ShapeStyle) -> std::result::Result<(), String> {
        self.0.draw(&PathElement::new(points.to_vec(), style)).map_err(|e| e.to_string())
    }

    fn dot(&self, place: (i32, i32), colour: RGBColor) -> std::result::Result<(), String> {
        self.0.draw(&Circle::new(place, 8, WHITE.filled())).map_err(|e| e.to_string())?;
        self.0.draw(&Circle::new(place, 6, colour.filled())).map_err(|e| e.to_string())
    }

    fn text(
        &self,
        text: &str,
        place: (i32, i32),
        colour: RGBColor,
        at: (HPos, VPos),
    ) -> std::result::Result<(), String> {
        let style = TextStyle::from(("sans-serif", LETTERS).into_font()).color(&colour).pos(Pos::new(at.0, at.1));
        self.0.draw(&Text::new(text, place, style)).map_err(|e| e.to_string())
    }

    fn width(&self, text: &str) -> std::result::Result<i32, String> {
        let style = TextStyle::from(("sans-serif", LETTERS).into_font());
        self.0.estimate_text_size(text, &style).map(|(width, _)| width as i32).map_err(|e| e.to_string())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Pixels of a colour in the picture, with their places.
    fn places(pixels: &[u8], colour: RGBColor) -> Vec<(u32, u32)> {
        let is_it = |pixel: &[u8]| pixel == [colour.0, colour.1, colour.2];
        let numbers = pixels.chunks(3).enumerate().filter(|(_, pixel)| is_it(pixel)).map(|(number, _)| number as u32);
        numbers.map(|number| (number % WIDTH, number / WIDTH)).collect()
    }

    fn below_the_legend(places: Vec<(u32, u32)>) -> Vec<(u32, u32)> {
        places.into_iter().filter(|(_, y)| *y > TOP as u32).collect()
    }

    #[test]
    fn a_curve_falls_where_its_loss_does() {
        // From 12 to 0.1 within a few steps around the 350th of 700, on a logarithmic scale.
        let loss = |step: f64| 0.1 + 11.9 / (1.0 + ((step - 350.0) / 4.0).exp());
        let points: Vec<(f64, f64)> = (1..=700).map(|step| (f64::from(step), loss(f64::from(step)))).collect();
        let curve = Curve { name: "q".into(), points, evals: Vec::new() };
        let pixels = draw(&[curve], 700).unwrap();
        let line = below_the_legend(places(&pixels, COLOURS[0]));
        let (top, bottom) = (line.iter().map(|p| p.1).min().unwrap(), line.iter().map(|p| p.1).max().unwrap());
        let middle = (top + bottom) / 2;
        let crossed = line.iter().filter(|p| p.1 == middle).map(|p| p.0).min().unwrap();
        // 350 steps are half the width; on this scale the middle, 1.1, comes ten steps later.
        let expected = LEFT as u32 + (WIDTH - (LEFT + RIGHT) as u32) * 360 / 700;
        assert!(crossed.abs_diff(expected) < 12, "{crossed} and {expected}");
        assert!(bottom - top > (HEIGHT - (TOP + BOTTOM) as u32) * 8 / 10, "the whole height is used");
    }

    #[test]
    fn any_losses_can_be_drawn_and_a_step_before_the_last_is_marked() {
        let curve =
            |points: &[(f64, f64)]| Curve { name: "ä".repeat(99), points: points.to_vec(), evals: points.to_vec() };
        let marked = |pixels: &[u8]| below_the_legend(places(pixels, INK)).len();
        for points in
            [&[][..], &[(1.0, f64::NAN)], &[(1.0, 0.0)], &[(1.0, 1e-300), (9.0, 1e300)], &[(1.0, -3.0), (9.0, 3.0)]]
        {
            let curves = vec![curve(points); 12];
            let (last, earlier) = (draw(&curves, 9).unwrap(), draw(&curves, 4).unwrap());
            let has_later = points.len() > 1;
            assert_eq!(marked(&earlier) > marked(&last), has_later, "{points:?}");
        }
    }
}
