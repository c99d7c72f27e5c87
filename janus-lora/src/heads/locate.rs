//! Boxes around things: without anchors, on the grid of patches and on finer grids made of it.
//!
//! Classes by focal loss (Lin et al., arXiv:1708.02002), boxes by generalised IoU (Rezatofighi et al., arXiv:1902.09630),
//! places, centre-ness and suppression as in FCOS (Tian et al., arXiv:1904.01355). FCOS' sizes of things per grid are for
//! pictures of 800 pixels: here a grid with a place every `s` pixels has the things that reach from `s` to `2s` from a place
//! to their farthest side, the coarsest also larger, the finest also smaller ones.

use candle_core::{D, Device, Result, Tensor};
use image::RgbImage;
use janus_core::config::JanusConfig;
use janus_core::ops::activation::sigmoid;
use janus_core::processing::Frame;
use serde_json::json;

use super::layers::{channels, doubled, grid, normalised, softplus, with_neighbours};
use super::{Description, Features, Figures, First, Head, HeadAnswer, HeadSample, Target, TaskHead, Value};
use crate::detection::{Detection, LabelledBox};
use crate::metrics::boxes::Detections;
use crate::metrics::row_iou;
use crate::overlay::{Overlay, SHOWN_SCORE, words};

/// Width of the head over large bases.
const MOST_CHANNELS: usize = 64;
/// Grids are doubled until they have so many places a side.
const LEAST_SIDE: usize = 16;
/// Balance and focus of the focal loss, as in its paper.
const ALPHA: f64 = 0.25;
/// Probability of every class at first, as in the same paper: the many places without anything would drown the others.
const PRIOR: f64 = 0.01;
/// Places count as inside where they are so many strides from the centre at most, as in FCOS' later version.
const CENTRE_RADIUS: f32 = 1.5;
/// Scores below this are no boxes; boxes of a class that overlap more than that are one; so many are kept: as in FCOS.
const LEAST_SCORE: f32 = 0.05;
const SAME_IOU: f32 = 0.6;
const MOST_BOXES: usize = 100;

/// Places a side of each grid, the coarsest first.
fn sides(config: &JanusConfig) -> Vec<usize> {
    let mut sides = vec![config.vision.num_patches().isqrt()];
    while sides.last().is_some_and(|side| *side < LEAST_SIDE) {
        sides.extend(sides.last().map(|side| 2 * side));
    }
    sides
}

/// Boxes with these labels.
pub(super) struct Locate<'a> {
    pub(super) labels: &'a [String],
}

impl TaskHead for Locate<'_> {
    fn task(&self) -> &'static str {
        "locate"
    }

    fn least_labels(&self) -> usize {
        1
    }

    /// `project` from the features, `up.N` to the next finer grid, `near` over each place's neighbourhood, and what a place tells:
    /// `class`, `side` and `centre`, with a factor on the sides for each grid.
    fn values(&self, config: &JanusConfig) -> Vec<Value> {
        let (hidden, channels) = (config.vision.projection_dim, channels(config, MOST_CHANNELS));
        let levels = sides(config).len();
        let mut values = Value::affine("project", hidden, channels);
        (1..levels).for_each(|level| values.extend(Value::affine(&format!("up.{level}"), channels, 4 * channels)));
        values.extend(Value::affine("near", 9 * channels, channels));
        let class_bias = (PRIOR / (1.0 - PRIOR)).ln();
        for (name, outputs, bias) in [("class", self.labels.len(), class_bias), ("side", 4, 0.0), ("centre", 1, 0.0)] {
            values.push(Value::new(&format!("{name}.weight"), &[outputs, channels], First::Normal(0.01)));
            values.push(Value::new(&format!("{name}.bias"), &[outputs], First::Constant(bias)));
        }
        values.push(Value::new("scale", &[levels], First::Constant(1.0)));
        values
    }

    /// Values of all grids with their gradients: each place's neighbourhood, as nine parts and together, what is made of it, and
    /// the four parts that the next finer grid is made of.
    fn activation_values(&self, config: &JanusConfig) -> usize {
        let places: usize = sides(config).iter().map(|side| side * side).sum();
        places * channels(config, MOST_CHANNELS) * (2 * (9 + 9 + 2 + 4) + 9)
    }

    /// The tensors of [`Places`].
    fn output(
        &self,
        head: &Head,
        config: &JanusConfig,
        features: &Features,
        _: Option<&Tensor>,
    ) -> Result<Vec<Tensor>> {
        let Places { classes, sides, centres, .. } = places(head, config, &features.mid)?;
        Ok(vec![classes, sides, centres])
    }

    fn loss(
        &self,
        _: &Head,
        config: &JanusConfig,
        output: &[Tensor],
        targets: &[Target],
        frames: &[Frame],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let in_square = |(target, frame): (&Target, &Frame)| {
            let boxes = target.boxes().iter().map(|own| {
                let [left, top, right, bottom] = own.corners;
                let ((x1, y1), (x2, y2)) = (frame.to_square((left, top)), frame.to_square((right, bottom)));
                LabelledBox { corners: [x1, y1, x2, y2], ..*own }
            });
            boxes.collect::<Vec<_>>()
        };
        let boxes: Vec<Vec<LabelledBox>> = targets.iter().zip(frames).map(in_square).collect();
        Ok((loss(&Places::of(config, output), &boxes)?, None))
    }

    fn answer(&self, config: &JanusConfig, output: &[Tensor], frame: &Frame) -> Result<HeadAnswer> {
        let mut boxes = found(&Places::of(config, output))?.concat();
        let (width, height) = (frame.picture.0 as f32, frame.picture.1 as f32);
        for own in &mut boxes {
            let [left, top, right, bottom] = own.corners;
            let ((x1, y1), (x2, y2)) = (frame.to_picture((left, top)), frame.to_picture((right, bottom)));
            let inside = |at: f32, limit: f32| at.clamp(0.0, limit);
            own.corners = [inside(x1, width), inside(y1, height), inside(x2, width), inside(y2, height)];
        }
        // What lay beside the picture has nothing left.
        boxes.retain(|own| own.corners[0] < own.corners[2] && own.corners[1] < own.corners[3]);
        Ok(HeadAnswer::Boxes(boxes))
    }

    fn truth(&self, target: &Target) -> serde_json::Value {
        let all = target.boxes().iter().map(|own| json!({ "box": own.corners, "label": self.label(own.label) }));
        json!(all.collect::<Vec<_>>())
    }

    fn description(&self, answer: &HeadAnswer, _: &[String]) -> Description {
        let HeadAnswer::Boxes(boxes) = answer else { return Description::default() };
        let all: Vec<serde_json::Value> = boxes
            .iter()
            .map(|own| json!({ "box": own.corners, "label": self.label(own.label), "score": own.score }))
            .collect();
        Description { text: words(boxes, self.labels), json: vec![("boxes".to_owned(), json!(all))] }
    }

    fn draws(&self) -> bool {
        true
    }

    fn overlay(&self, answer: &HeadAnswer, picture: &RgbImage) -> std::result::Result<Option<RgbImage>, String> {
        let HeadAnswer::Boxes(boxes) = answer else { return Ok(None) };
        Ok(Some(Overlay::new(picture).boxes(boxes, self.labels)?.into_picture()))
    }

    fn sample(
        &self,
        answer: HeadAnswer,
        target: &Target,
        picture: &RgbImage,
    ) -> std::result::Result<Option<HeadSample>, String> {
        let HeadAnswer::Boxes(mut boxes) = answer else { return Ok(None) };
        boxes.retain(|own| own.score >= SHOWN_SCORE);
        let truth = target.boxes();
        let mut true_ones = Overlay::new(picture);
        for own in truth {
            true_ones = true_ones.outlined(own.corners, own.label as usize, self.label(own.label))?;
        }
        let described = |own: &LabelledBox| {
            format!("{} at {}", self.label(own.label), own.corners.map(|corner| format!("{corner:.1}")).join(", "))
        };
        let expected: Vec<String> = truth.iter().map(described).collect();
        let (score, answer) = (row_iou(self.labels.len(), truth, &boxes), words(&boxes, self.labels));
        Ok(Some(HeadSample {
            expected: if expected.is_empty() { "nothing".to_owned() } else { expected.join("; ") },
            answer,
            overlay: self.overlay(&HeadAnswer::Boxes(boxes), picture)?,
            truth: Some(true_ones.into_picture()),
            score: Some(score),
        }))
    }

    fn figures(&self) -> Box<dyn Figures + '_> {
        Box::new(Boxes { labels: self.labels, detections: Detections::new(self.labels.len()) })
    }
}

impl Locate<'_> {
    fn label(&self, number: u32) -> &str {
        self.labels.get(number as usize).map_or("", String::as_str)
    }
}

/// True and detected boxes of a table.
struct Boxes<'a> {
    labels: &'a [String],
    detections: Detections,
}

impl Figures for Boxes<'_> {
    fn add(&mut self, target: &Target, _: &[Tensor], answer: &HeadAnswer) -> Result<()> {
        if let HeadAnswer::Boxes(boxes) = answer {
            self.detections.add(target.boxes(), boxes);
        }
        Ok(())
    }

    fn metrics(self: Box<Self>, loss_sum: f64) -> Result<serde_json::Value> {
        Ok(json!(self.detections.metrics(self.labels, loss_sum)))
    }
}

impl Places {
    /// Of a head's outputs.
    fn of(config: &JanusConfig, output: &[Tensor]) -> Self {
        let [classes, all_sides, centres] = [0, 1, 2].map(|number| output[number].clone());
        Self { classes, sides: all_sides, centres, grids: sides(config), image_size: config.vision.image_size }
    }
}

/// What every place of every grid says.
#[derive(Debug)]
struct Places {
    /// Logits of the classes, `[images, places, labels]`.
    classes: Tensor,
    /// Pixels of the square from the place to the left, top, right and bottom side, `[images, places, 4]`.
    sides: Tensor,
    /// Logits of the centre-ness, `[images, places]`.
    centres: Tensor,
    /// Places a side of each grid.
    grids: Vec<usize>,
    /// Pixels a side of the square.
    image_size: usize,
}

/// Features of some pictures, `[images, patches, hidden]`, to what their places say.
///
/// # Errors
/// Shapes that do not fit.
fn places(head: &Head, config: &JanusConfig, features: &Tensor) -> Result<Places> {
    let (grids, image_size) = (sides(config), config.vision.image_size);
    let linear = |x: &Tensor, name: &str| head.affine(x, name);
    let mut level = linear(&grid(&normalised(features)?)?, "project")?.relu()?;
    let (mut classes, mut all_sides, mut centres) = (Vec::new(), Vec::new(), Vec::new());
    for (number, places) in grids.iter().enumerate() {
        if number > 0 {
            level = doubled(&linear(&level, &format!("up.{number}"))?)?.relu()?;
        }
        let near = linear(&with_neighbours(&level)?, "near")?.relu()?.flatten(1, 2)?;
        let stride = image_size as f64 / *places as f64;
        let scale = head.value("scale").narrow(0, number, 1)?;
        classes.push(linear(&near, "class")?);
        all_sides.push((linear(&near, "side")?.broadcast_mul(&scale)?.clamp(-8f32, 8f32)?.exp()? * stride)?);
        centres.push(linear(&near, "centre")?.squeeze(D::Minus1)?);
    }
    Ok(Places {
        classes: Tensor::cat(&classes, 1)?,
        sides: Tensor::cat(&all_sides, 1)?,
        centres: Tensor::cat(&centres, 1)?,
        grids,
        image_size,
    })
}

/// Where each place stands, in pixels of the square, with the stride of its grid.
fn points(grids: &[usize], image_size: usize) -> impl Iterator<Item = (f32, f32, f32)> + '_ {
    grids.iter().flat_map(move |side| {
        let stride = image_size as f32 / *side as f32;
        (0..side * side).map(move |place| {
            let middle = |number: usize| (number as f32 + 0.5) * stride;
            (middle(place % side), middle(place / side), stride)
        })
    })
}

/// What a place has to say.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Goal {
    place: usize,
    label: u32,
    sides: [f32; 4],
}

impl Goal {
    /// `sqrt(min(l, r) / max(l, r) · min(t, b) / max(t, b))`.
    fn centreness(&self) -> f32 {
        let [left, top, right, bottom] = self.sides;
        (left.min(right) / left.max(right) * (top.min(bottom) / top.max(bottom))).max(0.0).sqrt()
    }
}

fn area([left, top, right, bottom]: [f32; 4]) -> f32 {
    (right - left).max(0.0) * (bottom - top).max(0.0)
}

/// The goals of a picture's places; `boxes` in pixels of the square. Of several boxes a place belongs to the smallest. A box
/// that no place belongs to has the place of its grid that is nearest to its centre.
fn goals(grids: &[usize], image_size: usize, boxes: &[LabelledBox]) -> Vec<Goal> {
    let all: Vec<(f32, f32, f32)> = points(grids, image_size).collect();
    let finest = all.last().map_or(1.0, |(_, _, stride)| *stride);
    let coarsest = all.first().map_or(1.0, |(_, _, stride)| *stride);
    let belongs =
        |reach: f32, stride: f32| (reach > stride || stride == finest) && (reach <= 2.0 * stride || stride == coarsest);
    let sides_at =
        |(x, y, _): (f32, f32, f32), [left, top, right, bottom]: [f32; 4]| [x - left, y - top, right - x, bottom - y];
    let mut owner: Vec<Option<usize>> = vec![None; all.len()];
    let mut owned = vec![false; boxes.len()];
    for (place, point) in all.iter().enumerate() {
        let (x, y, stride) = *point;
        let holds = |marked: &LabelledBox| {
            let sides = sides_at(*point, marked.corners);
            let [left, top, right, bottom] = marked.corners;
            let from_centre = (x - (left + right) / 2.0).abs().max((y - (top + bottom) / 2.0).abs());
            let inside = sides.iter().all(|side| *side > 0.0);
            inside
                && from_centre <= CENTRE_RADIUS * stride
                && belongs(sides.iter().copied().fold(0.0, f32::max), stride)
        };
        let mine = boxes.iter().enumerate().filter(|(_, marked)| holds(marked));
        owner[place] =
            mine.min_by(|(_, a), (_, b)| area(a.corners).total_cmp(&area(b.corners))).map(|(number, _)| number);
        if let Some(number) = owner[place] {
            owned[number] = true;
        }
    }
    for (number, marked) in boxes.iter().enumerate().filter(|(number, _)| !owned[*number]) {
        let [left, top, right, bottom] = marked.corners;
        let reach = (right - left).max(bottom - top) / 2.0;
        let (x, y) = ((left + right) / 2.0, (top + bottom) / 2.0);
        let distance = |(px, py, _): (f32, f32, f32)| (px - x).powi(2) + (py - y).powi(2);
        let free = all.iter().enumerate().filter(|(place, point)| owner[*place].is_none() && belongs(reach, point.2));
        if let Some((place, _)) = free.min_by(|(_, a), (_, b)| distance(**a).total_cmp(&distance(**b))) {
            owner[place] = Some(number);
        }
    }
    let goal = |(place, owner): (usize, &Option<usize>)| {
        let marked = boxes.get((*owner)?)?;
        let point = all.get(place)?;
        // The place of a box that holds none stands beside it: what it says cannot be negative.
        let sides = sides_at(*point, marked.corners).map(|side| side.max(point.2 / 8.0));
        Some(Goal { place, label: marked.label, sides })
    };
    owner.iter().enumerate().filter_map(goal).collect()
}

/// The summed loss of some pictures: of each its focal loss and its centre-ness' cross-entropy over the number of places that
/// belong to a box, and the generalised IoU losses weighted by centre-ness over the weights' sum. `boxes` of each picture in
/// pixels of the square.
///
/// # Errors
/// Another number of pictures, or a label that the head does not have.
fn loss(places: &Places, boxes: &[Vec<LabelledBox>]) -> Result<Tensor> {
    let (images, count, labels) = places.classes.dims3()?;
    let device = places.classes.device();
    let mut is_class = vec![0f32; images * count * labels];
    let mut shares = vec![1f32; images];
    let (mut rows, mut goal_sides, mut goal_centres) = (Vec::new(), Vec::new(), Vec::new());
    let (mut side_weights, mut centre_weights) = (Vec::new(), Vec::new());
    for (image, boxes) in boxes.iter().enumerate().take(images) {
        let own = goals(&places.grids, places.image_size, boxes);
        let share = 1.0 / own.len().max(1) as f32;
        let weight: f32 = own.iter().map(Goal::centreness).sum();
        shares[image] = share;
        for goal in own {
            let row = image * count + goal.place;
            if let Some(is) = is_class.get_mut(row * labels + (goal.label as usize).min(labels - 1)) {
                *is = 1.0;
            }
            rows.push(row as u32);
            goal_sides.extend(goal.sides);
            goal_centres.push(goal.centreness());
            side_weights.push(goal.centreness() / weight.max(f32::MIN_POSITIVE));
            centre_weights.push(share);
        }
    }
    let is_class = Tensor::from_vec(is_class, (images, count, labels), device)?;
    let shares = Tensor::from_vec(shares, (images, 1, 1), device)?;
    let mut sum = focal(&places.classes, &is_class)?.broadcast_mul(&shares)?.sum_all()?;
    if !rows.is_empty() {
        let found = rows.len();
        let vector = |values: Vec<f32>| Tensor::from_vec(values, found, device);
        let rows = Tensor::from_vec(rows, found, device)?;
        let sides = places.sides.flatten(0, 1)?.index_select(&rows, 0)?;
        let goal_sides = Tensor::from_vec(goal_sides, (found, 4), device)?;
        let apart = generalised_iou(&sides, &goal_sides)?.affine(-1.0, 1.0)?;
        sum = (sum + (apart * vector(side_weights)?)?.sum_all()?)?;
        let centres = places.centres.flatten_all()?.index_select(&rows, 0)?;
        let cross_entropy = (softplus(&centres)? - (&centres * vector(goal_centres)?)?)?;
        sum = (sum + (cross_entropy * vector(centre_weights)?)?.sum_all()?)?;
    }
    Ok(sum)
}

/// `-α·(1-p)²·log p` where the class is there, `-(1-α)·p²·log(1-p)` where it is not.
fn focal(logits: &Tensor, is: &Tensor) -> Result<Tensor> {
    let p = sigmoid(logits)?;
    let there = (softplus(&logits.neg()?)? * p.affine(-1.0, 1.0)?.sqr()?)?;
    let absent = (softplus(logits)? * p.sqr()?)?;
    (there * (is * ALPHA)?)? + (absent * (is.affine(-1.0, 1.0)? * (1.0 - ALPHA))?)?
}

/// Of boxes given by the distances from one point to their sides, `[boxes, 4]` each: `[boxes]`.
fn generalised_iou(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let extent = |sides: &Tensor, from: usize| -> Result<Tensor> {
        (sides.narrow(1, from, 1)? + sides.narrow(1, from + 2, 1)?)?.squeeze(1)
    };
    let area = |sides: &Tensor| -> Result<Tensor> { extent(sides, 0)? * extent(sides, 1)? };
    let common = area(&a.minimum(b)?)?;
    let hull = area(&a.maximum(b)?)?;
    let union = ((area(a)? + area(b)?)? - &common)?;
    (common / &union)? - ((&hull - union)? / hull)?
}

/// Boxes of each picture, the surest first, in pixels of the square.
///
/// # Errors
/// The tensor engine's.
fn found(places: &Places) -> Result<Vec<Vec<Detection>>> {
    let (images, count, labels) = places.classes.dims3()?;
    let cpu = |tensor: &Tensor| tensor.detach().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>();
    let (classes, centres) = (cpu(&sigmoid(&places.classes)?)?, cpu(&sigmoid(&places.centres)?)?);
    let sides = cpu(&places.sides)?;
    let all: Vec<(f32, f32, f32)> = points(&places.grids, places.image_size).collect();
    let limit = places.image_size as f32;
    let mut pictures = Vec::with_capacity(images);
    for image in 0..images {
        let mut candidates = Vec::new();
        for (place, (x, y, _)) in all.iter().enumerate().take(count) {
            let row = image * count + place;
            let (Some(sides), Some(classes), Some(centre)) =
                (sides.get(4 * row..4 * row + 4), classes.get(labels * row..labels * (row + 1)), centres.get(row))
            else {
                continue;
            };
            let corners = [x - sides[0], y - sides[1], x + sides[2], y + sides[3]].map(|c| c.clamp(0.0, limit));
            candidates.extend(
                classes.iter().enumerate().filter(|(_, p)| **p > LEAST_SCORE).map(|(label, p)| Detection {
                    corners,
                    label: label as u32,
                    score: (p * centre).sqrt(),
                }),
            );
        }
        pictures.push(suppressed(candidates));
    }
    Ok(pictures)
}

/// Without the boxes that a surer one of their class overlaps.
fn suppressed(mut candidates: Vec<Detection>) -> Vec<Detection> {
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    let mut kept: Vec<Detection> = Vec::new();
    for candidate in candidates {
        let is_same =
            |other: &Detection| other.label == candidate.label && overlap(other.corners, candidate.corners) > SAME_IOU;
        if !kept.iter().any(is_same) {
            kept.push(candidate);
        }
        if kept.len() == MOST_BOXES {
            break;
        }
    }
    kept
}

fn overlap(a: [f32; 4], b: [f32; 4]) -> f32 {
    let common = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
    let union = area(a) + area(b) - common;
    if union > 0.0 { common / union } else { 0.0 }
}

#[cfg(test)]
#[path = "locate_tests.rs"]
mod tests;
