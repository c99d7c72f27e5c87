//! The parts of the world's scenes: ten kinds in three materials, painted about a middle. Lengths are in parts of the radius.

use image::RgbImage;

use super::draw::{Color, Point, distance_to_stretch, inside, length, paint};

/// Kinds of parts.
pub(super) const KINDS: [&str; 10] =
    ["ball", "bolt", "bracket", "cross", "gear", "nut", "plate", "ring", "rod", "wedge"];

/// What parts are made of: metal shines, wood has a grain, plastic neither.
pub(super) const MATERIALS: [&str; 3] = ["metal", "plastic", "wooden"];

/// The way to where the light comes from: from above, from the left.
const LIGHT: Point = (-0.6, -0.8);

/// Outward directions of three of a hexagon's sides; the others lie opposite.
const HEXAGON: [Point; 3] = [(1.0, 0.0), (0.5, 0.8660), (-0.5, 0.8660)];

fn hexagon((x, y): Point, half: f64) -> f64 {
    HEXAGON.iter().map(|(across, down)| half - (x * across + y * down).abs()).fold(f64::MAX, f64::min)
}

fn square((x, y): Point, half: f64) -> f64 {
    half - x.abs().max(y.abs())
}

/// How far within a part of this kind a point is, both in parts of the radius.
fn depth(kind: usize, point: Point) -> f64 {
    let (x, y) = point;
    let far = length(point);
    match KINDS[kind % KINDS.len()] {
        "ball" => 0.9 - far,
        "bolt" => {
            let head = hexagon((x, y + 0.5), 0.45);
            head.max((0.22 - x.abs()).min(1.0 - (y - 0.1).abs() - 0.1))
        }
        "bracket" => {
            let upright = (0.22 - (x + 0.6).abs()).min(0.85 - y.abs());
            upright.max((0.22 - (y - 0.62).abs()).min(0.82 - x.abs()))
        }
        "cross" => (0.26 - x.abs().min(y.abs())).min(0.9 - x.abs().max(y.abs())),
        // Six teeth, as wide as the gaps between them: narrower ones are lost in an image tokenizer.
        "gear" => {
            let tooth = HEXAGON.iter().map(|(across, down)| {
                let (across, down) = (0.8 * across, 0.8 * down);
                0.2 - distance_to_stretch(point, (-across, -down), (across, down))
            });
            (0.62 - far).max(tooth.fold(f64::MIN, f64::max)).min(far - 0.26)
        }
        "nut" => hexagon(point, 0.8).min(far - 0.38),
        "plate" => square(point, 0.8),
        "ring" => 0.2 - (far - 0.68).abs(),
        "rod" => 0.2 - distance_to_stretch(point, (-0.62, 0.62), (0.62, -0.62)),
        _ => (0.75 - y).min((y + 0.85) * 0.55 - x.abs()),
    }
}

/// Paints a part, in light from [`LIGHT`].
pub(super) fn paint_part(
    image: &mut RgbImage,
    (kind, material): (usize, usize),
    centre: Point,
    radius: f64,
    color: Color,
) {
    let reach = 1.3 * radius + 1.0;
    let cover = |(x, y): Point| inside(radius * depth(kind, (x / radius, y / radius)));
    let shadow = (centre.0 - 0.14 * radius * LIGHT.0, centre.1 - 0.14 * radius * LIGHT.1 + 0.06 * radius);
    paint(image, shadow, reach, [0.0; 3], |way| 0.35 * cover(way));
    paint(image, centre, reach, color, cover);
    // What lies towards the light is lighter, what lies away from it darker.
    let towards = |(x, y): Point| (x * LIGHT.0 + y * LIGHT.1) / radius;
    match MATERIALS[material % MATERIALS.len()] {
        "metal" => {
            paint(image, centre, reach, [255.0; 3], |way| 0.9 * towards(way).max(0.0) * cover(way));
            paint(image, centre, reach, [0.0; 3], |way| 0.7 * (-towards(way)).max(0.0) * cover(way));
        }
        "plastic" => {}
        _ => paint(image, centre, reach, [120.0, 75.0, 35.0], |way| {
            // Grain: lines as wide as the gaps between them.
            let line = way.1 / (0.45 * radius);
            let within = line - line.floor();
            (if within < 0.5 { 0.6 } else { 0.0 }) * cover(way)
        }),
    }
}

#[cfg(test)]
mod tests {
    use image::Rgb;

    use super::*;

    #[test]
    fn every_kind_has_a_form_of_its_own() {
        let forms: Vec<Vec<bool>> = (0..KINDS.len())
            .map(|kind| {
                let at = |place: usize| ((place % 21) as f64 / 10.0 - 1.0, (place / 21) as f64 / 10.0 - 1.0);
                (0..21 * 21).map(|place| depth(kind, at(place)) > 0.0).collect()
            })
            .collect();
        for (one, form) in forms.iter().enumerate() {
            let share = form.iter().filter(|inside| **inside).count();
            assert!((40..350).contains(&share), "{}: {share}", KINDS[one]);
            for (other, against) in forms.iter().enumerate().skip(one + 1) {
                let differ = form.iter().zip(against).filter(|(a, b)| a != b).count();
                assert!(differ > 40, "{} and {} differ in {differ} places", KINDS[one], KINDS[other]);
            }
        }
    }

    #[test]
    fn materials_are_told_apart() {
        let painted: Vec<RgbImage> = (0..MATERIALS.len())
            .map(|material| {
                let mut image = RgbImage::from_pixel(32, 32, Rgb([128; 3]));
                paint_part(&mut image, (6, material), (16.0, 16.0), 12.0, [200.0, 35.0, 40.0]);
                image
            })
            .collect();
        for (one, image) in painted.iter().enumerate() {
            for other in painted.iter().skip(one + 1) {
                assert!(image.pixels().zip(other.pixels()).filter(|(a, b)| a != b).count() > 60);
            }
        }
    }
}
