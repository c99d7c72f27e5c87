//! `loss.png`: the loss of every table over the steps, with its running mean and the evaluations.

use std::path::Path;

use janus_core::output::write_file;
use plotters::prelude::*;
use plotters::style::register_font;

use super::TrainError;
use crate::error::Result;

const WIDTH: u32 = 960;
const HEIGHT: u32 = 540;

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

/// Draws the curves into a PNG file.
///
/// # Errors
/// The plot cannot be drawn or written.
pub(super) fn loss_plot(curves: &[Curve], path: &Path) -> Result<()> {
    let pixels = draw(curves).map_err(|reason| TrainError::Plot { reason })?;
    let image = image::RgbImage::from_raw(WIDTH, HEIGHT, pixels)
        .ok_or_else(|| TrainError::Plot { reason: "the picture has another size than asked for".into() })?;
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).map_err(|e| TrainError::Plot { reason: e.to_string() })?;
    Ok(write_file(path, |file| file.write_all(bytes.get_ref()))?)
}

fn draw(curves: &[Curve]) -> std::result::Result<Vec<u8>, String> {
    let failed = |e: &dyn std::fmt::Display| e.to_string();
    register_font("sans-serif", FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| "the font cannot be read".to_string())?;
    let all = || curves.iter().flat_map(|c| c.points.iter().chain(&c.evals)).filter(|p| p.1.is_finite());
    let last = all().map(|p| p.0).fold(1.0, f64::max);
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), p| (l.min(p.1), h.max(p.1)));
    let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
    let margin = ((high - low) * 0.06).max(1e-3);

    let mut pixels = vec![255u8; (WIDTH * HEIGHT * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH, HEIGHT)).into_drawing_area();
        area.fill(&WHITE).map_err(|e| failed(&e))?;
        let mut chart = ChartBuilder::on(&area)
            .margin(18)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..last * 1.02, (low - margin).max(0.0)..high + margin)
            .map_err(|e| failed(&e))?;
        chart
            .configure_mesh()
            .light_line_style(RGBColor(238, 238, 238))
            .bold_line_style(RGBColor(214, 214, 214))
            .label_style(("sans-serif", 17))
            .axis_desc_style(("sans-serif", 19))
            .max_light_lines(1)
            .x_desc("step")
            .y_desc("loss")
            .x_label_formatter(&|x| format!("{x:.0}"))
            .draw()
            .map_err(|e| failed(&e))?;
        for (number, curve) in curves.iter().enumerate() {
            let colour = Palette99::pick(number).to_rgba();
            let points = curve.points.iter().copied().filter(|p| p.1.is_finite());
            chart.draw_series(LineSeries::new(points, colour.mix(0.3).stroke_width(1))).map_err(|e| failed(&e))?;
            chart
                .draw_series(LineSeries::new(smooth(&curve.points), colour.stroke_width(2)))
                .map_err(|e| failed(&e))?
                .label(curve.name.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], colour.stroke_width(2)));
            if !curve.evals.is_empty() {
                chart
                    .draw_series(curve.evals.iter().map(|p| Circle::new(*p, 5, colour.filled())))
                    .map_err(|e| failed(&e))?
                    .label(format!("{}, eval", curve.name))
                    .legend(move |(x, y)| Circle::new((x + 11, y), 5, colour.filled()));
            }
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(("sans-serif", 17))
            .background_style(WHITE.mix(0.9))
            .border_style(RGBColor(200, 200, 200))
            .draw()
            .map_err(|e| failed(&e))?;
        area.present().map_err(|e| failed(&e))?;
    }
    Ok(pixels)
}

/// Running mean with a span of about a thirtieth of the run.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let weight = 1.0 / (points.len() as f64 / 30.0).max(1.0);
    let mut mean: Option<f64> = None;
    points
        .iter()
        .filter(|p| p.1.is_finite())
        .map(|(step, loss)| {
            let next = mean.map_or(*loss, |mean| mean + weight * (loss - mean));
            mean = Some(next);
            (*step, next)
        })
        .collect()
}
