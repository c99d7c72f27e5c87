//! Inspection photos in small: a brushed metal plate, a coloured part on it, and a scratch, a pit, a stain or nothing
//! wrong, each in a cell of a 3 x 3 grid of its own.
//!
//! What a question asks for can be seen in the image and nowhere else: kind and place of the defect, colour, shape and
//! place of the part are drawn independently.

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};

use super::Drawn;
use super::draw::{Color, distance_to_stretch, inside, length, paint};
use crate::data::random::Random;

const PLACES: [&str; 9] = [
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

const COLORS: [(&str, Color); 5] = [
    ("red", [200.0, 35.0, 40.0]),
    ("green", [40.0, 150.0, 60.0]),
    ("blue", [40.0, 70.0, 200.0]),
    ("yellow", [235.0, 205.0, 40.0]),
    ("purple", [130.0, 50.0, 160.0]),
];

const SHAPES: [&str; 5] = ["circle", "square", "triangle", "ring", "cross"];

/// The last one is the absence of a defect.
const LABELS: [&str; 4] = ["scratch", "pit", "stain", "clean"];

/// Numbers of streams: rows of the two splits never share one.
const TRAIN_STREAM: u64 = 0x0074_7261_696E;
const EVAL_STREAM: u64 = 0x6576_616C;

/// Draws a row.
pub(super) fn draw(seed: u64, eval: bool, row: u32, size: u32) -> Result<Drawn, String> {
    let stream = if eval { EVAL_STREAM } else { TRAIN_STREAM };
    let mut random = Random::new(seed, &[stream, u64::from(row)]);
    let label = LABELS[random.below(LABELS.len())];
    let (color_name, color) = COLORS[random.below(COLORS.len())];
    let shape = SHAPES[random.below(SHAPES.len())];
    let part_place = random.below(PLACES.len());
    // Any place but the part's, each as likely.
    let defect_place = (part_place + 1 + random.below(PLACES.len() - 1)) % PLACES.len();

    let mut image = plate(size, &mut random);
    draw_part(&mut image, part_place, shape, color, &mut random);
    draw_defect(&mut image, defect_place, label, &mut random);

    let clean = label == "clean";
    let (part_at, defect_at) = (PLACES[part_place], PLACES[defect_place]);
    let (question, answer) = match random.below(5) {
        0 => ("Which defect does the plate have?", if clean { "none" } else { label }),
        1 => ("Where is the defect?", if clean { "nowhere" } else { defect_at }),
        2 => ("What colour is the part?", color_name),
        3 => ("What shape is the part?", shape),
        _ => ("Where is the part?", part_at),
    };
    let caption = if clean {
        format!("A clean metal plate with a {color_name} {shape}, {part_at}.")
    } else {
        format!("A metal plate with a {color_name} {shape}, {part_at}, and a {label}, {defect_at}.")
    };
    Ok(Drawn { image: encode(&image)?, question: question.into(), answer: answer.into(), caption, label })
}

/// A grey plate: each line of pixels a little lighter or darker (the brushing), each pixel too (the grain).
fn plate(size: u32, random: &mut Random) -> RgbImage {
    let grey = random.range(140.0, 190.0);
    let tint = [random.range(-6.0, 6.0), random.range(-4.0, 4.0), random.range(-6.0, 6.0)];
    let lines: Vec<f64> = (0..size).map(|_| random.range(-8.0, 8.0)).collect();
    RgbImage::from_fn(size, size, |_, y| {
        let light = grey + lines[y as usize] + random.range(-6.0, 6.0);
        Rgb(tint.map(|tint| (light + tint) as u8))
    })
}

/// Width of a cell, and its middle moved by up to a twentieth of that.
fn cell(image: &RgbImage, place: usize, random: &mut Random) -> (f64, (f64, f64)) {
    let width = f64::from(image.width()) / 3.0;
    let mut middle = |cell: usize| width * (cell as f64 + 0.5 + random.range(-0.05, 0.05));
    (width, (middle(place % 3), middle(place / 3)))
}

fn draw_part(image: &mut RgbImage, place: usize, shape: &str, color: Color, random: &mut Random) {
    let (width, centre) = cell(image, place, random);
    let radius = width * random.range(0.34, 0.42);
    paint(image, centre, radius + 1.0, color, |(x, y)| {
        inside(match shape {
            "circle" => radius - length((x, y)),
            "square" => 0.85 * radius - x.abs().max(y.abs()),
            // Upright, its tip at the top: below the tip it widens by half of what it falls.
            "triangle" => (0.8 * radius - y).min((y + radius) * 0.5 - x.abs()),
            "ring" => 0.22 * radius - (length((x, y)) - 0.75 * radius).abs(),
            _ => (0.25 * radius - x.abs().min(y.abs())).min(radius - x.abs().max(y.abs())),
        })
    });
}

fn draw_defect(image: &mut RgbImage, place: usize, label: &str, random: &mut Random) {
    let (width, centre) = cell(image, place, random);
    match label {
        "scratch" => {
            // From one side of the cell to the other, falling or rising, at any slope up to the diagonal.
            let slope = random.range(-1.0, 1.0);
            let (half, upright) = (0.4 * width, random.below(2) == 0);
            let end = if upright { (slope * half, half) } else { (half, slope * half) };
            let thickness = (0.045 * width).max(0.8);
            let start = (-end.0, -end.1);
            paint(image, centre, width / 2.0, [60.0, 60.0, 65.0], |p| {
                inside(thickness + 0.8 - distance_to_stretch(p, start, end))
            });
            paint(image, centre, width / 2.0, [245.0, 245.0, 245.0], |p| {
                inside(thickness - distance_to_stretch(p, start, end))
            });
        }
        "pit" => {
            let radius = width * random.range(0.15, 0.24);
            paint(image, centre, radius + 2.0, [225.0, 225.0, 225.0], |p| inside(radius + 1.0 - length(p)));
            paint(image, centre, radius + 1.0, [25.0, 22.0, 20.0], |p| inside(radius - length(p)));
        }
        "stain" => {
            let drops: Vec<((f64, f64), f64)> = (0..5)
                .map(|_| {
                    let offset = (random.range(-0.18, 0.18) * width, random.range(-0.18, 0.18) * width);
                    (offset, random.range(0.13, 0.22) * width)
                })
                .collect();
            paint(image, centre, width / 2.0, [105.0, 70.0, 30.0], |(x, y)| {
                let depth = drops.iter().map(|((dx, dy), radius)| radius - length((x - dx, y - dy)));
                0.7 * inside(depth.fold(f64::MIN, f64::max))
            });
        }
        _ => {}
    }
}

fn encode(image: &RgbImage) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Sub)
        .write_image(image.as_raw(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .map_err(|e| e.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Mean distance of a cell's inner pixels from the plate around, by channel.
    fn differs(image: &RgbImage, place: usize) -> bool {
        let cell = image.width() / 3;
        let (x, y) = (place as u32 % 3 * cell, place as u32 / 3 * cell);
        let row = (0..cell).flat_map(|dy| (0..cell).map(move |dx| (x + dx, y + dy)));
        row.filter(|&(x, y)| {
            let Rgb([r, g, b]) = *image.get_pixel(x, y);
            r.abs_diff(g) > 20 || g.abs_diff(b) > 20 || !(100..=215).contains(&g)
        })
        .count()
            > 12
    }

    #[test]
    fn what_the_caption_says_is_where_it_says() {
        for row in 0..200 {
            let drawn = draw(3, false, row, 96).unwrap();
            let image = image::load_from_memory(&drawn.image).unwrap().to_rgb8();
            let told: Vec<bool> = PLACES
                .iter()
                .map(|place| {
                    drawn.caption.contains(&format!(", {place}.")) || drawn.caption.contains(&format!(", {place}, and"))
                })
                .collect();
            let told_count = told.iter().filter(|t| **t).count();
            assert_eq!(told_count, if drawn.label == "clean" { 1 } else { 2 }, "{}", drawn.caption);
            for place in 0..9 {
                assert_eq!(differs(&image, place), told[place], "row {row}, {}: {}", PLACES[place], drawn.caption);
            }
        }
    }

    #[test]
    fn answers_are_found_in_the_caption() {
        let mut answers = std::collections::BTreeMap::<String, usize>::new();
        for row in 0..1000 {
            let drawn = draw(1, true, row, 32).unwrap();
            if !["none", "nowhere"].contains(&drawn.answer.as_str()) {
                assert!(drawn.caption.contains(&drawn.answer), "{drawn:?}");
            } else {
                assert_eq!(drawn.label, "clean");
            }
            *answers.entry(drawn.answer).or_default() += 1;
        }
        assert_eq!(answers.len(), 3 + 1 + 9 + 1 + 5 + 5, "{answers:?}");
        assert!(answers.values().all(|&n| n < 100), "no answer is much more frequent than others: {answers:?}");
    }
}
