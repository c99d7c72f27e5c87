//! A little painting on RGB images, in arithmetic that is the same on every platform: only + - * / and square roots,
//! which IEEE 754 defines to the last bit.

use image::{Rgb, RgbImage};

/// Red, green, blue from 0 to 255.
pub(super) type Color = [f64; 3];

/// A point in pixels, or a distance by which to go.
pub(super) type Point = (f64, f64);

/// Mixes `color` into every pixel within reach of `centre` by what `cover` says of the way from the centre, from 0 (not)
/// to 1 (fully).
pub(super) fn paint(image: &mut RgbImage, centre: Point, reach: f64, color: Color, cover: impl Fn(Point) -> f64) {
    let span = |middle: f64, length: u32| {
        let first = (middle - reach).floor().clamp(0.0, f64::from(length)) as u32;
        let last = (middle + reach).ceil().clamp(0.0, f64::from(length)) as u32;
        first..last
    };
    for y in span(centre.1, image.height()) {
        for x in span(centre.0, image.width()) {
            let share = cover((f64::from(x) + 0.5 - centre.0, f64::from(y) + 0.5 - centre.1)).clamp(0.0, 1.0);
            if share > 0.0 {
                let Rgb(pixel) = image.get_pixel_mut(x, y);
                for (channel, target) in pixel.iter_mut().zip(color) {
                    let mixed = f64::from(*channel) * (1.0 - share) + target * share;
                    *channel = (mixed + 0.5).floor() as u8;
                }
            }
        }
    }
}

/// How far inside an edge is, as coverage: half at the edge, full half a pixel within.
pub(super) fn inside(distance: f64) -> f64 {
    (distance + 0.5).clamp(0.0, 1.0)
}

pub(super) fn length((x, y): Point) -> f64 {
    (x * x + y * y).sqrt()
}

/// Distance from a point to the stretch between `a` and `b`.
pub(super) fn distance_to_stretch(point: Point, a: Point, b: Point) -> f64 {
    let (along, to) = ((b.0 - a.0, b.1 - a.1), (point.0 - a.0, point.1 - a.1));
    let square = along.0 * along.0 + along.1 * along.1;
    let share = if square > 0.0 { ((to.0 * along.0 + to.1 * along.1) / square).clamp(0.0, 1.0) } else { 0.0 };
    length((to.0 - share * along.0, to.1 - share * along.1))
}
