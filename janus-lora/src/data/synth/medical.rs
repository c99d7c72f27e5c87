//! Chest pictures in small: two dark lungs in a grey body, crossed by faint ribs, with no, one or two bright nodules. Left is
//! the left side of the picture.
//!
//! A second nodule is always the smaller one and lies elsewhere, so that "the largest" is one of them. Held out of train:
//! small nodules in the upper left lung, large ones in the lower right lung.

use image::{GrayImage, Rgb, RgbImage};

use super::draw::{Point, depth_in_ellipse, grain, inside, length, mark, mask_png, paint, picture_png, rounded};
use super::{Cell, ColumnType};
use crate::data::random::Random;

pub(super) const COLUMNS: [(&str, ColumnType); 9] = [
    ("image", ColumnType::Image),
    ("mask", ColumnType::Image),
    ("boxes", ColumnType::Boxes),
    ("box_labels", ColumnType::Texts),
    ("label", ColumnType::Text),
    ("report", ColumnType::Text),
    ("question", ColumnType::Text),
    ("answer", ColumnType::Text),
    ("caption", ColumnType::Text),
];

/// Left and right by turns, upper before lower.
const PLACES: [&str; 4] = ["upper left lung", "upper right lung", "lower left lung", "lower right lung"];

const SIZES: [&str; 2] = ["small", "large"];

/// By number of nodules.
const LABELS: [&str; 3] = ["clear", "single", "multiple"];
const COUNTS: [&str; 3] = ["none", "one", "two"];

/// Half the width and the height of a lung, and how far its middle is from the body's, in parts of the picture's size.
const LUNG: Point = (0.16, 0.35);
const LUNG_OFFSET: f64 = 0.205;

/// Numbers of [`SIZES`] and [`PLACES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Nodule {
    size: usize,
    place: usize,
}

impl Nodule {
    fn is_held_out(self) -> bool {
        [("small", "upper left lung"), ("large", "lower right lung")].contains(&(self.size(), self.place()))
    }

    fn size(self) -> &'static str {
        SIZES[self.size]
    }

    fn place(self) -> &'static str {
        PLACES[self.place]
    }
}

/// What a row shows: the nodules, the largest first.
struct Scene(Vec<Nodule>);

/// Draws a row.
pub(super) fn draw(eval: bool, size: u32, random: &mut Random) -> Result<Vec<Cell>, String> {
    let scene = Scene::draw(eval, random);
    let (image, mask, boxes) = scene.picture(size, random);
    let (question, answer) = scene.question(random.below(4));
    let box_labels = boxes.iter().map(|_| "nodule".into()).collect();
    Ok(vec![
        Cell::Image(picture_png(&image)?),
        Cell::Image(mask_png(&mask)?),
        Cell::Boxes(boxes),
        Cell::Texts(box_labels),
        Cell::text(scene.label()),
        Cell::text(scene.report()),
        Cell::text(question),
        Cell::text(answer),
        Cell::text(scene.caption()),
    ])
}

impl Scene {
    fn draw(eval: bool, random: &mut Random) -> Self {
        let count = random.below(LABELS.len());
        loop {
            let first = Nodule { size: random.below(SIZES.len()), place: random.below(PLACES.len()) };
            // Any place but the first one's, each as likely.
            let elsewhere = (first.place + 1 + random.below(PLACES.len() - 1)) % PLACES.len();
            let nodules = match count {
                0 => Vec::new(),
                1 => vec![first],
                _ => vec![Nodule { size: 1, ..first }, Nodule { size: 0, place: elsewhere }],
            };
            if eval || !nodules.iter().any(|nodule| nodule.is_held_out()) {
                return Scene(nodules);
            }
        }
    }

    fn label(&self) -> &'static str {
        LABELS[self.0.len()]
    }

    fn report(&self) -> String {
        let place = |nodule: &Nodule| nodule.place();
        match self.0.as_slice() {
            [] => "No nodule. Both lungs are clear.".into(),
            [one] if one.size() == "small" => format!("One nodule. Small nodule in the {}.", place(one)),
            [one] => format!("One nodule. Large nodule in the {}.", place(one)),
            [large, small, ..] => {
                format!("Two nodules. Large nodule in the {}; small nodule in the {}.", place(large), place(small))
            }
        }
    }

    fn caption(&self) -> String {
        let told: Vec<String> =
            self.0.iter().map(|nodule| format!("a {} nodule in the {}", nodule.size(), nodule.place())).collect();
        if told.is_empty() {
            "A chest picture with clear lungs.".into()
        } else {
            format!("A chest picture with {}.", told.join(" and "))
        }
    }

    fn question(&self, kind: usize) -> (&'static str, &'static str) {
        let largest = self.0.first();
        match kind {
            0 => ("How many nodules are there?", COUNTS[self.0.len()]),
            1 => ("Where is the largest nodule?", largest.map_or("nowhere", |nodule| nodule.place())),
            2 => ("How large is the largest nodule?", largest.map_or("none", |nodule| nodule.size())),
            _ => ("Is there a nodule?", if largest.is_some() { "yes" } else { "no" }),
        }
    }

    /// The picture, the mask of its nodules, and a box around each.
    fn picture(&self, size: u32, random: &mut Random) -> (RgbImage, GrayImage, Vec<[f32; 4]>) {
        let middle = (random.range(0.48, 0.52), random.range(0.48, 0.52));
        let (mut image, mut mask) = (chest(size, middle, random), GrayImage::new(size, size));
        let size = f64::from(size);
        let mut boxes = Vec::new();
        for nodule in &self.0 {
            let mut within = |least: f64, most: f64| random.range(least, most);
            let radius = size * if nodule.size() == "small" { within(0.032, 0.042) } else { within(0.062, 0.076) };
            let (across, down) = (within(-0.3, 0.3), within(0.25, 0.55));
            let (side, level) = (side(nodule.place), if nodule.place < 2 { -1.0 } else { 1.0 });
            let x = middle.0 + side * LUNG_OFFSET + across * LUNG.0;
            let centre = (size * x, size * (middle.1 + level * down * LUNG.1));
            // Soft: from all to nothing over a good part of the radius, and half at the radius.
            let cover = |p: Point| inside((radius - length(p)) / (0.6 * radius).max(1.0));
            let light = within(195.0, 220.0);
            paint(&mut image, centre, 2.0 * radius, [light; 3], |p| 0.9 * cover(p));
            boxes.extend(mark(&mut mask, centre, 2.0 * radius, |p| cover(p) > 0.5));
        }
        grain(&mut image, 7.0, random);
        (image, mask, boxes)
    }
}

/// On which side of the middle a place is.
fn side(place: usize) -> f64 {
    if place.is_multiple_of(2) { -1.0 } else { 1.0 }
}

/// Body, lungs, spine and ribs about `middle`, which is in parts of the picture's size.
fn chest(size: u32, middle: Point, random: &mut Random) -> RgbImage {
    let mut image = RgbImage::from_pixel(size, size, Rgb([rounded(random.range(4.0, 14.0)); 3]));
    let size = f64::from(size);
    let centre = (size * middle.0, size * middle.1);
    let [body, lung] = [random.range(112.0, 138.0), random.range(34.0, 52.0)];
    let ellipse = |p: Point, (across, down): Point| depth_in_ellipse(p, (across * size, down * size));
    let in_body = move |p: Point| inside(ellipse(p, (0.45, 0.53)));
    paint(&mut image, centre, size, [body; 3], in_body);
    paint(&mut image, centre, size, [body + 35.0; 3], |p| 0.7 * inside(0.045 * size - p.0.abs()) * in_body(p));
    let (steep, first) = (random.range(0.25, 0.4), random.range(-0.8, -0.7));
    for side in [-1.0, 1.0] {
        let centre = (centre.0 + side * LUNG_OFFSET * size, centre.1);
        paint(&mut image, centre, size, [lung; 3], |p| inside(ellipse(p, LUNG)));
        for rib in 0..5 {
            // From the spine outwards they fall, ever more.
            let height = (first + 0.37 * f64::from(rib)) * LUNG.1 * size;
            paint(&mut image, centre, 0.6 * size, [body + 25.0; 3], |(x, y)| {
                let outwards = (side * x / size + LUNG.0).max(0.0);
                let line = height + steep * outwards * outwards * size / LUNG.0;
                let thickness = (0.012 * size).max(0.5);
                let along = inside(LUNG.0 * size - x.abs()) * in_body((x + side * LUNG_OFFSET * size, y));
                0.28 * along * inside(thickness - (y - line).abs())
            });
        }
    }
    image
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn nodules_are_bright_and_where_the_report_says() {
        for (row, size) in (0..300).zip([32, 64, 96].into_iter().cycle()) {
            let mut random = Random::new(4, &[row]);
            let scene = Scene::draw(true, &mut random);
            let (image, mask, boxes) = scene.picture(size, &mut random);
            assert_eq!(boxes.len(), scene.0.len());
            for (nodule, [left, top, right, bottom]) in scene.0.iter().zip(boxes) {
                let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
                let place = usize::from(x > size as f32 / 2.0) + 2 * usize::from(y > size as f32 / 2.0);
                assert_eq!(place, nodule.place, "row {row}: {}", scene.report());
                assert!(scene.report().to_lowercase().contains(&format!("{} nodule in the", nodule.size())));
                assert!(scene.report().contains(nodule.place()) && scene.caption().contains(nodule.place()));
            }
            let lights = |value: u8| {
                let marked = mask.enumerate_pixels().filter(move |(_, _, pixel)| pixel.0 == [value]);
                marked.map(|(x, y, _)| image.get_pixel(x, y).0[0]).collect::<Vec<u8>>()
            };
            let marked = lights(255);
            assert_eq!(marked.is_empty(), scene.0.is_empty());
            let mean = marked.iter().map(|&light| usize::from(light)).sum::<usize>() / marked.len().max(1);
            assert!(marked.is_empty() || mean > 140, "row {row}: {mean}");
        }
    }

    #[test]
    fn answers_follow_from_the_report() {
        let mut answers = BTreeMap::<&str, usize>::new();
        for row in 0..1000 {
            let mut random = Random::new(1, &[row]);
            let scene = Scene::draw(true, &mut random);
            let (question, answer) = scene.question(random.below(4));
            let report = scene.report().to_lowercase();
            match answer {
                "none" | "no" | "nowhere" => assert!(report.starts_with("no nodule"), "{question} {report}"),
                "yes" => assert!(!report.starts_with("no nodule"), "{report}"),
                told => assert!(report.contains(told), "{question} {told}: {report}"),
            }
            *answers.entry(answer).or_default() += 1;
        }
        assert_eq!(answers.len(), 3 + 5 + 2 + 2, "{answers:?}");
    }

    #[test]
    fn held_out_nodules_are_drawn_for_eval_alone() {
        let scenes = |eval: bool| (0..1000).map(move |row| Scene::draw(eval, &mut Random::new(2, &[row])));
        let nodules = |eval: bool| scenes(eval).flat_map(|scene| scene.0).collect::<BTreeSet<Nodule>>();
        assert_eq!(nodules(true).len(), SIZES.len() * PLACES.len());
        assert_eq!(nodules(false).len(), SIZES.len() * PLACES.len() - 2);
        assert!(nodules(false).iter().all(|nodule| !nodule.is_held_out()));
        let labels: BTreeSet<&str> = scenes(false).map(|scene| scene.label()).collect();
        assert_eq!(labels.len(), LABELS.len());
        let single: BTreeSet<Nodule> =
            scenes(false).filter(|scene| scene.0.len() == 1).flat_map(|scene| scene.0).collect();
        assert_eq!(single.len(), SIZES.len() * PLACES.len() - 2);
    }
}
