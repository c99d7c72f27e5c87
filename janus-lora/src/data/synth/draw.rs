//! A little painting on images, in arithmetic that is the same on every platform: only + - * / and square roots, which
//! IEEE 754 defines to the last bit.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, GrayImage, ImageEncoder, Luma, Rgb, RgbImage};

use crate::data::random::Random;

/// Red, green, blue from 0 to 255.
pub(super) type Color = [f64; 3];

/// A point in pixels, or a distance by which to go.
pub(super) type Point = (f64, f64);

/// Colours that are told apart at any size.
pub(super) const COLORS: [(&str, Color); 5] = [
    ("red", [200.0, 35.0, 40.0]),
    ("green", [40.0, 150.0, 60.0]),
    ("blue", [40.0, 70.0, 200.0]),
    ("yellow", [235.0, 205.0, 40.0]),
    ("purple", [130.0, 50.0, 160.0]),
];

/// How far from the middle things stand that do not stand there, in thirds of the picture: a quarter of the picture. Any is
/// then whole, and in pictures of 64 pixels lies in patches of 8 in the same way wherever it stands, so that a small tower
/// that knows it in one place knows it in all.
pub(super) const OUTWARDS: f64 = 0.75;

/// Names of the cells of a 3 x 3 grid, row by row.
pub(super) const PLACES: [&str; 9] = [
    "top left",
    "top centre",
    "top right",
    "middle left",
    "centre",
    "middle right",
    "bottom left",
    "bottom centre",
    "bottom right",
];

/// A column and a row of pixels, and the way to its middle from a centre.
type Reached = ((u32, u32), Point);

/// The pixels within reach of `centre`, of an image so wide and high.
fn within_reach((width, height): (u32, u32), centre: Point, reach: f64) -> impl Iterator<Item = Reached> {
    let span = move |middle: f64, length: u32| {
        let first = (middle - reach).floor().clamp(0.0, f64::from(length)) as u32;
        let last = (middle + reach).ceil().clamp(0.0, f64::from(length)) as u32;
        first..last
    };
    let way = move |x: u32, y: u32| (f64::from(x) + 0.5 - centre.0, f64::from(y) + 0.5 - centre.1);
    span(centre.1, height).flat_map(move |y| span(centre.0, width).map(move |x| ((x, y), way(x, y))))
}

/// Mixes `color` into every pixel within reach of `centre` by what `cover` says of the way from the centre, from 0 (not)
/// to 1 (fully).
pub(super) fn paint(image: &mut RgbImage, centre: Point, reach: f64, color: Color, cover: impl Fn(Point) -> f64) {
    for ((x, y), way) in within_reach(image.dimensions(), centre, reach) {
        let share = cover(way).clamp(0.0, 1.0);
        if share > 0.0 {
            let Rgb(pixel) = image.get_pixel_mut(x, y);
            for (channel, target) in pixel.iter_mut().zip(color) {
                *channel = rounded(f64::from(*channel) * (1.0 - share) + target * share);
            }
        }
    }
}

/// Marks in a mask the pixels within reach of `centre` of which `covered` says so; the box around them, if there are any:
/// left, top, right, bottom, the latter two exclusive.
pub(super) fn mark(
    mask: &mut GrayImage,
    centre: Point,
    reach: f64,
    covered: impl Fn(Point) -> bool,
) -> Option<[f32; 4]> {
    let mut around: Option<[u32; 4]> = None;
    for ((x, y), way) in within_reach(mask.dimensions(), centre, reach) {
        if covered(way) {
            mask.put_pixel(x, y, Luma([255]));
            let [left, top, right, bottom] = around.unwrap_or([x, y, x, y]);
            around = Some([left.min(x), top.min(y), right.max(x + 1), bottom.max(y + 1)]);
        }
    }
    around.map(|edges| edges.map(|edge| edge as f32))
}

/// Makes each pixel lighter or darker by up to `strength`.
pub(super) fn grain(image: &mut RgbImage, strength: f64, random: &mut Random) {
    for Rgb(pixel) in image.pixels_mut() {
        let light = random.range(-strength, strength);
        *pixel = pixel.map(|channel| rounded(f64::from(channel) + light));
    }
}

/// The nearest value of a channel.
pub(super) fn rounded(value: f64) -> u8 {
    (value + 0.5).floor().clamp(0.0, 255.0) as u8
}

/// How far inside an edge is, as coverage: half at the edge, full half a pixel within.
pub(super) fn inside(distance: f64) -> f64 {
    (distance + 0.5).clamp(0.0, 1.0)
}

pub(super) fn length((x, y): Point) -> f64 {
    (x * x + y * y).sqrt()
}

/// A direction, of length 1.
pub(super) fn direction(random: &mut Random) -> Point {
    let (x, y) = (random.range(-1.0, 1.0), random.range(-1.0, 1.0));
    let far = length((x, y)).max(1e-9);
    (x / far, y / far)
}

/// Distance from a point to the stretch between `a` and `b`.
pub(super) fn distance_to_stretch(point: Point, a: Point, b: Point) -> f64 {
    let (along, to) = ((b.0 - a.0, b.1 - a.1), (point.0 - a.0, point.1 - a.1));
    let square = along.0 * along.0 + along.1 * along.1;
    let share = if square > 0.0 { ((to.0 * along.0 + to.1 * along.1) / square).clamp(0.0, 1.0) } else { 0.0 };
    length((to.0 - share * along.0, to.1 - share * along.1))
}

/// How far within an ellipse about the origin a point is: exact at the ends of its shorter axis, near enough elsewhere.
pub(super) fn depth_in_ellipse((x, y): Point, (across, down): Point) -> f64 {
    (1.0 - length((x / across, y / down))) * across.min(down)
}

/// How far within a rectangle with rounded corners a point is; the edges are left, top, right, bottom.
pub(super) fn depth_in_rectangle((x, y): Point, [left, top, right, bottom]: [f64; 4], corner: f64) -> f64 {
    let beyond = |at: f64, low: f64, high: f64| (at - (low + high) / 2.0).abs() - (high - low) / 2.0 + corner;
    let (across, down) = (beyond(x, left, right), beyond(y, top, bottom));
    corner - length((across.max(0.0), down.max(0.0))) - across.max(down).min(0.0)
}

/// A picture as a PNG file.
pub(super) fn picture_png(image: &RgbImage) -> Result<Vec<u8>, String> {
    png(image.as_raw(), image.dimensions(), ExtendedColorType::Rgb8)
}

/// A mask as a PNG file of one channel.
pub(super) fn mask_png(mask: &GrayImage) -> Result<Vec<u8>, String> {
    png(mask.as_raw(), mask.dimensions(), ExtendedColorType::L8)
}

fn png(pixels: &[u8], (width, height): (u32, u32), kind: ExtendedColorType) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(pixels, width, height, kind)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}
