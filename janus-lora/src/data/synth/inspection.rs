//! Inspection photos in small: a brushed metal plate under uneven light, a coloured part on it, and a scratch, a pit, a
//! stain or nothing wrong, each in one of nine places of its own.
//!
//! What a question asks for can be seen in the image and nowhere else: kind and place of the defect, colour, shape and
//! place of the part are drawn independently, but for the triples of colour, shape and label that are held out
//! ([`super::is_held_out`]).

use image::{GrayImage, Rgb, RgbImage};

use super::draw::{
    COLORS, Color, OUTWARDS, PLACES, Point, direction, distance_to_stretch, inside, length, mark, mask_png, paint,
    picture_png, rounded,
};
use super::{Cell, ColumnType, combination};
use crate::data::random::Random;

pub(super) const COLUMNS: [(&str, ColumnType); 10] = [
    ("image", ColumnType::Image),
    ("mask", ColumnType::Image),
    ("boxes", ColumnType::Boxes),
    ("box_labels", ColumnType::Texts),
    ("label", ColumnType::Text),
    ("severity", ColumnType::Text),
    ("advice", ColumnType::Text),
    ("question", ColumnType::Text),
    ("answer", ColumnType::Text),
    ("caption", ColumnType::Text),
];

const SHAPES: [&str; 5] = ["circle", "square", "triangle", "ring", "cross"];

/// The last one is the absence of a defect.
const LABELS: [&str; 4] = ["scratch", "pit", "stain", "clean"];

/// What a row shows.
struct Scene {
    /// The part's, as numbers of [`COLORS`], [`SHAPES`] and [`PLACES`].
    color: usize,
    shape: usize,
    part_place: usize,
    /// The defect's, as numbers of [`LABELS`] and [`PLACES`].
    label: usize,
    defect_place: usize,
    heavy: bool,
}

/// Draws a row.
pub(super) fn draw(eval: bool, size: u32, random: &mut Random) -> Result<Vec<Cell>, String> {
    let scene = Scene::draw(eval, random);
    let (image, mask, boxes) = scene.picture(size, random);
    let (question, answer) = scene.question(random.below(5));
    let label = LABELS[scene.label];
    let box_labels = boxes.iter().map(|_| label.into()).collect();
    Ok(vec![
        Cell::Image(picture_png(&image)?),
        Cell::Image(mask_png(&mask)?),
        Cell::Boxes(boxes),
        Cell::Texts(box_labels),
        Cell::text(label),
        Cell::text(scene.severity()),
        Cell::text(scene.advice()),
        Cell::text(question),
        Cell::text(answer),
        Cell::text(scene.caption()),
    ])
}

impl Scene {
    fn draw(eval: bool, random: &mut Random) -> Self {
        let [color, shape, label] = combination([COLORS.len(), SHAPES.len(), LABELS.len()], eval, random);
        let part_place = random.below(PLACES.len());
        // Any place but the part's, each as likely.
        let defect_place = (part_place + 1 + random.below(PLACES.len() - 1)) % PLACES.len();
        Scene { color, shape, part_place, label, defect_place, heavy: random.below(2) == 0 }
    }

    fn is_clean(&self) -> bool {
        LABELS[self.label] == "clean"
    }

    fn severity(&self) -> &'static str {
        match (self.is_clean(), self.heavy) {
            (true, _) => "none",
            (false, true) => "heavy",
            (false, false) => "light",
        }
    }

    fn advice(&self) -> &'static str {
        match (LABELS[self.label], self.heavy) {
            ("scratch", false) => "Polish the light scratch out with fine grit.",
            ("scratch", true) => "Grind the heavy scratch down and brush the plate again.",
            ("pit", false) => "Fill the light pit with solder and sand it flush.",
            ("pit", true) => "Scrap the plate: the heavy pit goes too deep to be filled.",
            ("stain", false) => "Wipe the light stain off with alcohol.",
            ("stain", true) => "Pickle the plate in acid to lift the heavy stain.",
            _ => "Pass the plate on: nothing needs repair.",
        }
    }

    fn question(&self, kind: usize) -> (&'static str, &'static str) {
        let told = |defect, absence| if self.is_clean() { absence } else { defect };
        match kind {
            0 => ("Which defect does the plate have?", told(LABELS[self.label], "none")),
            1 => ("Where is the defect?", told(PLACES[self.defect_place], "nowhere")),
            2 => ("What colour is the part?", COLORS[self.color].0),
            3 => ("What shape is the part?", SHAPES[self.shape]),
            _ => ("Where is the part?", PLACES[self.part_place]),
        }
    }

    fn caption(&self) -> String {
        let (color, shape, part_at) = (COLORS[self.color].0, SHAPES[self.shape], PLACES[self.part_place]);
        if self.is_clean() {
            format!("A clean metal plate with a {color} {shape}, {part_at}.")
        } else {
            let (label, defect_at) = (LABELS[self.label], PLACES[self.defect_place]);
            format!("A metal plate with a {color} {shape}, {part_at}, and a {label}, {defect_at}.")
        }
    }

    /// The picture, the mask of its defect, and the box around that.
    fn picture(&self, size: u32, random: &mut Random) -> (RgbImage, GrayImage, Vec<[f32; 4]>) {
        let (mut image, mut mask) = (plate(size, random), GrayImage::new(size, size));
        draw_part(&mut image, self.part_place, SHAPES[self.shape], COLORS[self.color].1, random);
        let around = self.draw_defect(&mut image, &mut mask, random);
        (image, mask, around.into_iter().collect())
    }

    fn draw_defect(&self, image: &mut RgbImage, mask: &mut GrayImage, random: &mut Random) -> Option<[f32; 4]> {
        let (width, centre) = middle_of(image, self.defect_place, random);
        let level = |light: f64, heavy: f64| if self.heavy { heavy } else { light };
        let mut draw = |strength: f64, layers: &[(f64, Color)], depth: &dyn Fn(Point) -> f64| {
            for &(within, color) in layers {
                paint(image, centre, width / 2.0, color, |p| strength * inside(depth(p) - within));
            }
            mark(mask, centre, width / 2.0, |p| inside(depth(p)) > 0.5)
        };
        match LABELS[self.label] {
            "scratch" => {
                // From one side of the place towards the other, falling or rising, at any slope up to the diagonal.
                let slope = random.range(-1.0, 1.0);
                let (half, upright) = (level(0.22, 0.3) * width, random.below(2) == 0);
                let end = if upright { (slope * half, half) } else { (half, slope * half) };
                let (start, thickness) = ((-end.0, -end.1), (level(0.072, 0.095) * width).max(1.3));
                let layers = [(0.0, [40.0, 40.0, 45.0]), (0.45 * thickness, [255.0, 255.0, 255.0])];
                draw(level(0.85, 1.0), &layers, &|p| thickness - distance_to_stretch(p, start, end))
            }
            "pit" => {
                let radius = width * level(random.range(0.12, 0.15), random.range(0.21, 0.27));
                let layers = [(0.0, [225.0, 225.0, 225.0]), (0.2 * radius, [25.0, 22.0, 20.0])];
                draw(level(0.8, 1.0), &layers, &|p| radius - length(p))
            }
            "stain" => {
                let spread = level(0.1, 0.18) * width;
                let drops: Vec<(Point, f64)> = (0..5)
                    .map(|_| {
                        let offset = (random.range(-spread, spread), random.range(-spread, spread));
                        (offset, level(random.range(0.09, 0.14), random.range(0.14, 0.22)) * width)
                    })
                    .collect();
                draw(level(0.65, 0.85), &[(0.0, [105.0, 62.0, 20.0])], &|(x, y)| {
                    let depth = drops.iter().map(|((dx, dy), radius)| radius - length((x - dx, y - dy)));
                    depth.fold(f64::MIN, f64::max)
                })
            }
            _ => None,
        }
    }
}

/// A grey plate: each line of pixels a little lighter or darker (the brushing), each pixel too (the grain), and the light
/// falling from one side to the other.
fn plate(size: u32, random: &mut Random) -> RgbImage {
    let grey = random.range(142.0, 174.0);
    let tint = [random.range(-6.0, 6.0), random.range(-4.0, 4.0), random.range(-6.0, 6.0)];
    let (towards, fall) = (direction(random), random.range(0.0, 12.0));
    let lines: Vec<f64> = (0..size).map(|_| random.range(-4.0, 4.0)).collect();
    let half = f64::from(size) / 2.0;
    RgbImage::from_fn(size, size, |x, y| {
        let way = (f64::from(x) - half) * towards.0 + (f64::from(y) - half) * towards.1;
        let light = grey + fall * way / half + lines[y as usize] + random.range(-3.0, 3.0);
        Rgb(tint.map(|tint| rounded(light + tint)))
    })
}

/// A third of the picture, and the middle of a place, moved by up to a fiftieth of that.
fn middle_of(image: &RgbImage, place: usize, random: &mut Random) -> (f64, Point) {
    let width = f64::from(image.width()) / 3.0;
    let mut middle = |step: usize| width * (1.5 + (step as f64 - 1.0) * OUTWARDS + random.range(-0.02, 0.02));
    (width, (middle(place % 3), middle(place / 3)))
}

fn draw_part(image: &mut RgbImage, place: usize, shape: &str, color: Color, random: &mut Random) {
    let (width, centre) = middle_of(image, place, random);
    let radius = width * random.range(0.31, 0.37);
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::is_held_out;
    use super::*;

    /// Whether a good part of what lies about a place is not as the plate is.
    fn differs(image: &RgbImage, place: usize) -> bool {
        let reach = image.width() / 8;
        let (x, y) = ((1 + place as u32 % 3) * 2 * reach, (1 + place as u32 / 3) * 2 * reach);
        let around = (y - reach..y + reach).flat_map(|y| (x - reach..x + reach).map(move |x| (x, y)));
        around
            .filter(|&(x, y)| {
                let Rgb([r, g, b]) = *image.get_pixel(x, y);
                r.abs_diff(g) > 20 || g.abs_diff(b) > 20 || !(94..=219).contains(&g)
            })
            .count()
            > 12
    }

    #[test]
    fn what_the_caption_says_is_where_it_says() {
        for row in 0..400 {
            let mut random = Random::new(3, &[row]);
            let scene = Scene::draw(false, &mut random);
            let (image, mask, boxes) = scene.picture(96, &mut random);
            let caption = scene.caption();
            let told: Vec<bool> = PLACES
                .iter()
                .map(|place| caption.contains(&format!(", {place}.")) || caption.contains(&format!(", {place}, and")))
                .collect();
            let told_count = told.iter().filter(|t| **t).count();
            assert_eq!(told_count, if scene.is_clean() { 1 } else { 2 }, "{caption}");
            for place in 0..9 {
                assert_eq!(differs(&image, place), told[place], "row {row}, {}: {caption}", PLACES[place]);
            }
            assert_eq!(boxes.len(), usize::from(!scene.is_clean()));
            let [left, top, right, bottom] = boxes.first().copied().unwrap_or_default().map(|edge| edge as u32);
            for (x, y, pixel) in mask.enumerate_pixels() {
                let boxed = (left..right).contains(&x) && (top..bottom).contains(&y);
                assert!(boxed || pixel.0 == [0], "row {row}: marked outside of the box");
            }
            let middle = ((left + right) / 2 / 32 + (top + bottom) / 2 / 32 * 3) as usize;
            assert!(scene.is_clean() || middle == scene.defect_place, "row {row}: {caption} {boxes:?}");
        }
    }

    #[test]
    fn heavy_defects_are_larger_and_light_ones_large_enough() {
        let mut areas = BTreeMap::<(usize, bool), Vec<usize>>::new();
        for row in 0..400 {
            let mut random = Random::new(5, &[row]);
            let scene = Scene::draw(true, &mut random);
            let (_, mask, boxes) = scene.picture(64, &mut random);
            let marked = mask.pixels().filter(|pixel| pixel.0 == [255]).count();
            for [left, top, right, bottom] in boxes {
                assert!(right - left >= 3.0 && bottom - top >= 3.0, "{}", scene.caption());
            }
            areas.entry((scene.label, scene.heavy)).or_default().push(marked);
        }
        let mean = |label: usize, heavy: bool| {
            let all = &areas[&(label, heavy)];
            all.iter().sum::<usize>() / all.len()
        };
        for (label, name) in LABELS.iter().enumerate() {
            let (heavy, light) = (mean(label, true), mean(label, false));
            assert!(if *name == "clean" { heavy + light == 0 } else { heavy > light * 3 / 2 }, "{name}: {areas:?}");
        }
    }

    #[test]
    fn answers_are_found_in_the_caption() {
        let (mut answers, mut advice) = (BTreeMap::<&str, usize>::new(), BTreeSet::new());
        for row in 0..1000 {
            let mut random = Random::new(1, &[row]);
            let scene = Scene::draw(true, &mut random);
            let (_, answer) = scene.question(random.below(5));
            if ["none", "nowhere"].contains(&answer) {
                assert!(scene.is_clean());
            } else {
                assert!(scene.caption().contains(answer), "{answer}: {}", scene.caption());
            }
            if !scene.is_clean() {
                assert!(scene.advice().contains(LABELS[scene.label]) && scene.advice().contains(scene.severity()));
            }
            *answers.entry(answer).or_default() += 1;
            advice.insert(scene.advice());
        }
        assert_eq!((answers.len(), advice.len()), (3 + 1 + 9 + 1 + 5 + 5, 7), "{answers:?}");
        assert!(answers.values().all(|&n| n < 100), "no answer is much more frequent than others: {answers:?}");
    }

    #[test]
    fn held_out_triples_are_drawn_for_eval_alone() {
        let triples = |eval: bool| -> BTreeSet<[usize; 3]> {
            let scenes = (0..3000).map(|row| Scene::draw(eval, &mut Random::new(2, &[row])));
            scenes.map(|scene| [scene.color, scene.shape, scene.label]).collect()
        };
        let (train, eval) = (triples(false), triples(true));
        assert!(train.iter().all(|&triple| !is_held_out(triple)));
        assert_eq!(eval.len(), COLORS.len() * SHAPES.len() * LABELS.len());
        for (attribute, count) in [COLORS.len(), SHAPES.len(), LABELS.len()].into_iter().enumerate() {
            let values: BTreeSet<usize> = train.iter().map(|triple| triple[attribute]).collect();
            assert_eq!(values.len(), count, "every value is drawn for train");
        }
    }
}
