//! The world that a base learns from: one to four parts on a ground, in bright or dim light.
//!
//! Kind, colour, material, size, number and places of the parts, the ground and the light are drawn independently. A scene
//! has one group of equal parts, or two single ones side by side or one above the other. Parts are large and grounds faint,
//! so that what an image tokenizer learns first, and a small base sees first, is the parts. Each row has one question; its
//! kind is in `about`. `messages` asks several about the same scene, one after the other, and for the caption. Plain text is
//! asked and answered in `text_question` and `text_answer`. Held out of train: triples of kind, colour and material
//! ([`super::is_held_out`]).

use image::{Rgb, RgbImage};

use super::draw::{Color, OUTWARDS, PLACES, grain, picture_png, rounded};
use super::world_parts::{KINDS, MATERIALS, paint_part};
use super::{Cell, ColumnType, combination};
use crate::data::random::Random;

pub(super) const COLUMNS: [(&str, ColumnType); 9] = [
    ("image", ColumnType::Image),
    ("caption", ColumnType::Text),
    ("label", ColumnType::Text),
    ("about", ColumnType::Text),
    ("question", ColumnType::Text),
    ("answer", ColumnType::Text),
    ("messages", ColumnType::Messages),
    ("text_question", ColumnType::Text),
    ("text_answer", ColumnType::Text),
];

const COLORS: [(&str, Color); 8] = [
    ("red", [205.0, 40.0, 40.0]),
    ("green", [40.0, 150.0, 60.0]),
    ("blue", [45.0, 80.0, 210.0]),
    ("yellow", [235.0, 205.0, 40.0]),
    ("purple", [135.0, 55.0, 170.0]),
    ("orange", [240.0, 130.0, 30.0]),
    ("white", [240.0, 240.0, 240.0]),
    ("black", [45.0, 45.0, 50.0]),
];

const SIZES: [&str; 2] = ["small", "large"];
const COUNTS: [&str; 4] = ["one", "two", "three", "four"];
const GROUNDS: [&str; 4] = ["plain", "striped", "checked", "dotted"];
const LIGHTS: [&str; 2] = ["bright", "dim"];

/// Half the width of a small and of a large part, in cells.
const RADII: [f64; 2] = [0.42, 0.62];

/// How much darker stripes, squares and dots are than the rest of the ground, of 255.
const FAINT: f64 = 30.0;

/// Questions of a conversation beside the last, and how often one is drawn for them.
const TURNS: usize = 5;
const DRAWN_QUESTIONS: usize = 12;

/// The last question of a conversation, which the caption answers.
const DESCRIBE: &str = "Describe the picture.";

/// Places of one to four equal parts, in cells of the grid from its middle.
const GROUPS: [&[(f64, f64)]; 4] = [
    &[(0.0, 0.0)],
    &[(-OUTWARDS, 0.0), (OUTWARDS, 0.0)],
    &[(-OUTWARDS, OUTWARDS), (OUTWARDS, OUTWARDS), (0.0, -OUTWARDS)],
    &[(-OUTWARDS, -OUTWARDS), (OUTWARDS, -OUTWARDS), (-OUTWARDS, OUTWARDS), (OUTWARDS, OUTWARDS)],
];

/// A part of a scene: numbers of the tables above.
#[derive(Clone, Copy)]
struct Part {
    kind: usize,
    color: usize,
    material: usize,
    size: usize,
}

impl Part {
    fn draw(eval: bool, random: &mut Random) -> Self {
        let [kind, color, material] = combination([KINDS.len(), COLORS.len(), MATERIALS.len()], eval, random);
        Part { kind, color, material, size: random.below(SIZES.len()) }
    }

    /// "small red metal gear".
    fn words(self) -> String {
        let Part { kind, color, material, size } = self;
        format!("{} {} {} {}", SIZES[size], COLORS[color].0, MATERIALS[material], KINDS[kind])
    }
}

/// What is in a scene.
enum Content {
    /// Equal parts: how many beside the first, and where the only one stands.
    Group { part: Part, more: usize, place: usize },
    /// Two of different kinds, the first to the left or above.
    Pair { first: Part, second: Part, upright: bool },
}

struct Scene {
    content: Content,
    ground: usize,
    light: usize,
}

/// Draws a row.
pub(super) fn draw(eval: bool, size: u32, random: &mut Random) -> Result<Vec<Cell>, String> {
    let scene = Scene::draw(eval, random);
    let image = scene.paint(size, random);
    let (about, question, answer) = scene.question(random);
    let (text_question, text_answer) = text(random);
    let conversation = scene.conversation(random);
    Ok(vec![
        Cell::Image(picture_png(&image)?),
        Cell::text(scene.caption()),
        Cell::text(KINDS[scene.first().kind]),
        Cell::text(about),
        Cell::text(question),
        Cell::text(answer),
        Cell::Messages(conversation),
        Cell::text(text_question),
        Cell::text(text_answer),
    ])
}

impl Scene {
    fn draw(eval: bool, random: &mut Random) -> Self {
        let first = Part::draw(eval, random);
        let content = if random.below(3) == 0 {
            let second = loop {
                let second = Part::draw(eval, random);
                if second.kind != first.kind {
                    break second;
                }
            };
            Content::Pair { first, second, upright: random.below(2) == 0 }
        } else {
            let more = if random.below(2) == 0 { 0 } else { 1 + random.below(COUNTS.len() - 1) };
            Content::Group { part: first, more, place: random.below(PLACES.len()) }
        };
        Scene { content, ground: random.below(GROUNDS.len()), light: random.below(LIGHTS.len()) }
    }

    fn first(&self) -> Part {
        match self.content {
            Content::Group { part, .. } => part,
            Content::Pair { first, .. } => first,
        }
    }

    fn caption(&self) -> String {
        let parts = match &self.content {
            Content::Group { part, more: 0, place } => format!("A {}, {}", part.words(), PLACES[*place]),
            Content::Group { part, more, .. } => {
                let count = COUNTS[*more];
                format!("{}{} {}", count[..1].to_uppercase(), &count[1..], plural(&part.words()))
            }
            Content::Pair { first, second, upright } => {
                let between = if *upright { "above" } else { "to the left of" };
                format!("A {} {between} a {}", first.words(), second.words())
            }
        };
        format!("{parts}, on a {} ground in {} light.", GROUNDS[self.ground], LIGHTS[self.light])
    }

    /// Several different questions, each with its answer, and last the caption.
    fn conversation(&self, random: &mut Random) -> Vec<(String, String)> {
        let mut turns: Vec<(String, String)> = Vec::new();
        for _ in 0..DRAWN_QUESTIONS {
            let (_, question, answer) = self.question(random);
            if turns.len() < TURNS && !turns.iter().any(|(known, _)| *known == question) {
                turns.push((question, answer));
            }
        }
        turns.push((DESCRIBE.to_owned(), self.caption()));
        turns
    }

    /// What is asked about, the question, and its answer.
    fn question(&self, random: &mut Random) -> (&'static str, String, String) {
        let asked = |about, question: &str, answer: &str| (about, question.to_owned(), answer.to_owned());
        let everywhere = random.below(8);
        match everywhere {
            0 => return asked("ground", "What is the ground like?", GROUNDS[self.ground]),
            1 => return asked("light", "Is the light bright or dim?", LIGHTS[self.light]),
            _ => {}
        }
        match &self.content {
            Content::Group { part, more, place } => match random.below(6) {
                0 => asked("kind", "What is it?", KINDS[part.kind]),
                1 => asked("colour", "What colour is it?", COLORS[part.color].0),
                2 => asked("material", "What is it made of?", ["metal", "plastic", "wood"][part.material]),
                3 => asked("size", "Is it small or large?", SIZES[part.size]),
                4 if *more == 0 => asked("place", "Where is it?", PLACES[*place]),
                _ => asked("count", "How many parts are there?", COUNTS[*more]),
            },
            Content::Pair { first, second, upright } => {
                let (before, after) = if *upright { ("above", "below") } else { ("left of", "right of") };
                let (one, other) = (KINDS[first.kind], KINDS[second.kind]);
                match random.below(4) {
                    0 => ("relation", format!("What is {before} the {other}?"), one.to_owned()),
                    1 => ("relation", format!("What is {after} the {one}?"), other.to_owned()),
                    2 => ("colour", format!("What colour is the {one}?"), COLORS[first.color].0.to_owned()),
                    _ => ("colour", format!("What colour is the {other}?"), COLORS[second.color].0.to_owned()),
                }
            }
        }
    }

    fn paint(&self, size: u32, random: &mut Random) -> RgbImage {
        let mut image = ground(size, self.ground, random);
        let cell = f64::from(size) / 3.0;
        let middle = f64::from(size) / 2.0;
        let mut put = |part: Part, (x, y): (f64, f64), random: &mut Random| {
            let mut moved = |at: f64| middle + cell * (at + random.range(-0.02, 0.02));
            let centre = (moved(x), moved(y));
            let radius = cell * RADII[part.size] * random.range(0.97, 1.03);
            let shade = random.range(0.97, 1.03);
            let color = COLORS[part.color].1.map(|channel| (channel * shade).min(255.0));
            paint_part(&mut image, (part.kind, part.material), centre, radius, color);
        };
        match &self.content {
            Content::Group { part, more: 0, place } => {
                let outwards = |step: usize| (step as f64 - 1.0) * OUTWARDS;
                put(*part, (outwards(place % 3), outwards(place / 3)), random);
            }
            Content::Group { part, more, .. } => GROUPS[*more].iter().for_each(|place| put(*part, *place, random)),
            Content::Pair { first, second, upright } => {
                let place = |at: f64| if *upright { (0.0, at) } else { (at, 0.0) };
                put(*first, place(-OUTWARDS), random);
                put(*second, place(OUTWARDS), random);
            }
        }
        // All but the same in either light: dim takes from every pixel and leaves the colours apart.
        let factor = [1.0, 0.55][self.light];
        image.pixels_mut().for_each(|Rgb(pixel)| *pixel = pixel.map(|channel| rounded(f64::from(channel) * factor)));
        grain(&mut image, 1.0, random);
        image
    }
}

/// A grey or tinted ground, lighter than black parts and darker than white ones. In pictures of 64 pixels a pattern comes
/// again after 8 of them, so that it can be seen within any patch of that size, and looks the same in all.
fn ground(size: u32, kind: usize, random: &mut Random) -> RgbImage {
    let tone = random.range(156.0, 168.0);
    let tint = [random.range(-3.0, 3.0), random.range(-2.0, 2.0), random.range(-3.0, 3.0)];
    let width = (f64::from(size) / 16.0).max(2.0);
    RgbImage::from_fn(size, size, |x, y| {
        let (across, down) = ((f64::from(x) + 0.5) / width, (f64::from(y) + 0.5) / width);
        let is_odd = |at: f64| at.floor() as u32 % 2 == 1;
        let is_dot = |at: f64| (at - at.floor() - 0.5).abs() < 0.26;
        let is_dark = match GROUNDS[kind] {
            "plain" => false,
            "striped" => is_odd(down),
            "checked" => is_odd(across) != is_odd(down),
            _ => is_dot(across) && is_dot(down),
        };
        Rgb(tint.map(|tint| rounded(tone + tint - if is_dark { FAINT } else { 0.0 })))
    })
}

/// "small red metal gears".
fn plural(words: &str) -> String {
    if words.ends_with("cross") { format!("{words}es") } else { format!("{words}s") }
}

/// Plain text: what words mean, and little sums.
fn text(random: &mut Random) -> (String, String) {
    let kind = random.below(KINDS.len());
    match random.below(4) {
        0 => {
            let (one, other) = (1 + random.below(2), 1 + random.below(2));
            let (first, second, sum) = (COUNTS[one - 1], COUNTS[other - 1], COUNTS[one + other - 1]);
            (format!("How many are {first} and {second}?"), sum.to_owned())
        }
        1 => (format!("What is the plural of {}?", KINDS[kind]), plural(KINDS[kind])),
        2 => {
            let (word, other) =
                [("small", "large"), ("bright", "dim"), ("left", "right"), ("top", "bottom")][random.below(4)];
            (format!("What is the opposite of {word}?"), other.to_owned())
        }
        _ => {
            let material = random.below(MATERIALS.len());
            let color = COLORS[random.below(COLORS.len())].0;
            let what = format!("{color} {} {}", MATERIALS[material], KINDS[kind]);
            (format!("Name the part: a {what}."), KINDS[kind].to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::is_held_out;
    use super::*;

    #[test]
    fn answers_are_in_the_caption_and_every_one_comes() {
        let mut answers: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for row in 0..4000 {
            let mut random = Random::new(2, &[row]);
            let scene = Scene::draw(false, &mut random);
            let (about, _, answer) = scene.question(&mut random);
            let caption = scene.caption().to_lowercase();
            let told = if answer == "wood" { "wooden" } else { answer.as_str() };
            assert!(caption.contains(told) || answer == "one", "{answer}: {caption}");
            answers.entry(about).or_default().insert(answer);
        }
        let counts: BTreeMap<&str, usize> = answers.iter().map(|(about, all)| (*about, all.len())).collect();
        let expected =
            [("colour", 8), ("count", 4), ("ground", 4), ("kind", 10), ("light", 2), ("material", 3), ("place", 9)];
        let expected = expected.into_iter().chain([("relation", 10), ("size", 2)]);
        assert_eq!(counts, expected.collect());
    }

    #[test]
    fn a_conversation_asks_different_questions_and_ends_with_the_caption() {
        let mut lengths = BTreeSet::new();
        for row in 0..300 {
            let mut random = Random::new(4, &[row]);
            let scene = Scene::draw(true, &mut random);
            let turns = scene.conversation(&mut random);
            let questions: BTreeSet<&str> = turns.iter().map(|(question, _)| question.as_str()).collect();
            assert_eq!(questions.len(), turns.len(), "{turns:?}");
            assert_eq!(turns.last(), Some(&(DESCRIBE.to_owned(), scene.caption())));
            lengths.insert(turns.len());
        }
        assert!(lengths.iter().all(|length| (3..=TURNS + 1).contains(length)), "{lengths:?}");
    }

    #[test]
    fn held_out_parts_come_in_eval_alone() {
        let held_out = |eval: bool| {
            let is = |row: &u64| {
                let part = Scene::draw(eval, &mut Random::new(3, &[*row])).first();
                is_held_out([part.kind, part.color, part.material])
            };
            (0..500).filter(is).count()
        };
        assert_eq!(held_out(false), 0);
        assert!(held_out(true) > 30);
    }

    /// Light and ground can be seen, and parts stand where the caption says.
    #[test]
    fn scenes_show_what_they_say() {
        for row in 0..200 {
            let mut random = Random::new(5, &[row]);
            let scene = Scene::draw(true, &mut random);
            let image = scene.paint(64, &mut random);
            let corners = [(0, 0), (63, 0), (0, 63), (63, 63)].map(|(x, y)| image.get_pixel(x, y).0[1]);
            let brightest = corners.into_iter().max().unwrap();
            assert_eq!(brightest < 118, LIGHTS[scene.light] == "dim", "{corners:?}: {}", scene.caption());
            let Content::Group { part, more: 0, place } = scene.content else { continue };
            if GROUNDS[scene.ground] != "plain" || COLORS[part.color].0 == "white" {
                continue;
            }
            // The cell that differs most from the rest of the picture is the part's.
            let (tone, spread) =
                (image.get_pixel(if place % 3 == 0 { 60 } else { 3 }, if place < 3 { 60 } else { 3 }).0, 30);
            let differs = |cell: usize| {
                let (left, top) = ((cell % 3 * 21) as u32, (cell / 3 * 21) as u32);
                let all = (0..21).flat_map(|y| (0..21).map(move |x| (left + x, top + y)));
                all.filter(|(x, y)| image.get_pixel(*x, *y).0.iter().zip(tone).any(|(a, b)| a.abs_diff(b) > spread))
                    .count()
            };
            let most = (0..9).max_by_key(|cell| differs(*cell)).unwrap();
            assert_eq!(most, place, "{}", scene.caption());
        }
    }
}
