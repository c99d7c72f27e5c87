//! Product pictures in small: a product in a main colour with a part in an accent colour, on a plain, gradient or striped
//! background, and the same picture in a style.
//!
//! Questions ask about the picture in its style. Held out of train: triples of product, colour and style
//! ([`super::is_held_out`]).

use image::{Rgb, RgbImage};

use super::draw::{COLORS, Color, direction, picture_png, rounded};
use super::products::PRODUCTS;
use super::{Cell, ColumnType, combination};
use crate::data::random::Random;

pub(super) const COLUMNS: [(&str, ColumnType); 10] = [
    ("image", ColumnType::Image),
    ("source", ColumnType::Image),
    ("prompt", ColumnType::Text),
    ("instruction", ColumnType::Text),
    ("caption", ColumnType::Text),
    ("copy", ColumnType::Text),
    ("palette", ColumnType::Text),
    ("label", ColumnType::Text),
    ("question", ColumnType::Text),
    ("answer", ColumnType::Text),
];

const ACCENTS: [(&str, Color); 3] =
    [("white", [245.0, 245.0, 240.0]), ("black", [30.0, 30.0, 35.0]), ("pink", [240.0, 150.0, 190.0])];

const BACKGROUNDS: [&str; 3] = ["plain", "gradient", "striped"];

const STYLES: [&str; 4] = ["night", "sepia", "poster", "frame"];

/// How advertising copy opens, by main colour.
const OPENINGS: [&str; 5] = ["Bold taste", "Fresh start", "Cool and calm", "Sunny side up", "A royal touch"];

/// What a row shows: numbers of the tables above.
struct Scene {
    product: usize,
    color: usize,
    accent: usize,
    background: usize,
    style: usize,
}

/// Draws a row.
pub(super) fn draw(eval: bool, size: u32, random: &mut Random) -> Result<Vec<Cell>, String> {
    let scene = Scene::draw(eval, random);
    let source = scene.source(size, random);
    let image = scene.styled(&source);
    let (question, answer) = scene.question(random.below(4));
    Ok(vec![
        Cell::Image(picture_png(&image)?),
        Cell::Image(picture_png(&source)?),
        Cell::text(scene.prompt()),
        Cell::text(scene.instruction()),
        Cell::text(scene.caption()),
        Cell::text(scene.copy()),
        Cell::text(scene.palette()),
        Cell::text(PRODUCTS[scene.product].name),
        Cell::text(question),
        Cell::text(answer),
    ])
}

impl Scene {
    fn draw(eval: bool, random: &mut Random) -> Self {
        let [product, color, style] = combination([PRODUCTS.len(), COLORS.len(), STYLES.len()], eval, random);
        let (accent, background) = (random.below(ACCENTS.len()), random.below(BACKGROUNDS.len()));
        Scene { product, color, accent, background, style }
    }

    /// The picture without its style, in words without a full stop.
    fn words(&self) -> String {
        let (product, part) = (PRODUCTS[self.product].name, PRODUCTS[self.product].part);
        let (color, accent) = (COLORS[self.color].0, ACCENTS[self.accent].0);
        format!("A {color} {product} with a {accent} {part} on a {} background", BACKGROUNDS[self.background])
    }

    fn caption(&self) -> String {
        format!("{}.", self.words())
    }

    fn prompt(&self) -> String {
        format!("{}, {} style.", self.words(), STYLES[self.style])
    }

    fn instruction(&self) -> String {
        format!("Turn it into {} style.", STYLES[self.style])
    }

    fn copy(&self) -> String {
        format!("{}: the {} {}.", OPENINGS[self.color], COLORS[self.color].0, PRODUCTS[self.product].name)
    }

    fn palette(&self) -> String {
        format!("{} and {}", COLORS[self.color].0, ACCENTS[self.accent].0)
    }

    fn question(&self, kind: usize) -> (&'static str, &'static str) {
        match kind {
            0 => ("Which product is shown?", PRODUCTS[self.product].name),
            1 => ("What colour is the product?", COLORS[self.color].0),
            2 => ("What kind of background is it?", BACKGROUNDS[self.background]),
            _ => ("Which style does the picture have?", STYLES[self.style]),
        }
    }

    /// The picture without its style.
    fn source(&self, size: u32, random: &mut Random) -> RgbImage {
        let mut image = background(size, BACKGROUNDS[self.background], random);
        let size = f64::from(size);
        let centre = (size * random.range(0.46, 0.54), size * random.range(0.49, 0.53));
        let (half_height, shade) = (size * random.range(0.33, 0.37), random.range(0.96, 1.04));
        let main = COLORS[self.color].1.map(|channel| (channel * shade).min(255.0));
        PRODUCTS[self.product].paint(&mut image, centre, half_height, main, ACCENTS[self.accent].1);
        image
    }

    /// The picture in its style.
    fn styled(&self, source: &RgbImage) -> RgbImage {
        let frame = COLORS[self.color].1;
        let (width, height) = source.dimensions();
        let border = width / 13;
        let framed = |x: u32, y: u32| {
            !(border..width.saturating_sub(border)).contains(&x)
                || !(border..height.saturating_sub(border)).contains(&y)
        };
        RgbImage::from_fn(width, height, |x, y| {
            let color = source.get_pixel(x, y).0.map(f64::from);
            let [red, green, blue] = color;
            Rgb(match STYLES[self.style] {
                "night" => [0.37 * red, 0.41 * green, 0.6 * blue + 25.0],
                "sepia" => {
                    let light = 0.3 * red + 0.59 * green + 0.11 * blue;
                    let toned = [1.05 * light + 12.0, 0.88 * light + 6.0, 0.62 * light];
                    // Not all of it: the colours can still be told apart.
                    [0.75 * toned[0] + 0.25 * red, 0.75 * toned[1] + 0.25 * green, 0.75 * toned[2] + 0.25 * blue]
                }
                "poster" => poster(color),
                _ if framed(x, y) => frame,
                _ => color,
            }
            .map(rounded))
        })
    }
}

/// Three levels a channel: the main colours, in any shade that is drawn, keep apart.
fn poster(color: Color) -> Color {
    color.map(|channel| (channel / 127.5 + 0.5).floor() * 127.5)
}

/// Bright and of any hue; what is darker in it is so by enough to stay so in every style.
fn background(size: u32, kind: &str, random: &mut Random) -> RgbImage {
    let bright = [0; 3].map(|_| random.range(205.0, 240.0));
    let (towards, half) = (direction(random), f64::from(size) / 2.0);
    RgbImage::from_fn(size, size, |x, y| {
        let way = ((f64::from(x) - half) * towards.0 + (f64::from(y) - half) * towards.1) / half;
        let light = match kind {
            "plain" => 1.0,
            "gradient" => 0.75 - 0.25 * way,
            _ if (4.0 * way).floor() / 2.0 == (2.0 * way).floor() => 1.0,
            _ => 0.72,
        };
        Rgb(bright.map(|channel| rounded(light * channel)))
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::is_held_out;
    use super::*;

    fn mean(image: &RgbImage) -> [f64; 3] {
        let count = f64::from(image.width() * image.height());
        [0, 1, 2].map(|channel| image.pixels().map(|pixel| f64::from(pixel.0[channel])).sum::<f64>() / count)
    }

    #[test]
    fn every_style_does_what_its_name_says() {
        let mut seen = BTreeSet::new();
        for (row, size) in (0..200).zip([32, 64, 65].into_iter().cycle()) {
            let mut random = Random::new(4, &[row]);
            let scene = Scene::draw(true, &mut random);
            let source = scene.source(size, &mut random);
            let image = scene.styled(&source);
            let ([red, green, blue], before) = (mean(&image), mean(&source));
            let same = image.pixels().zip(source.pixels()).filter(|(a, b)| a == b).count();
            match STYLES[scene.style] {
                "night" => assert!(red < 0.5 * before[0] && green < 0.5 * before[1] && blue > red && same < 50),
                "sepia" => assert!(red > green && green > blue && same < 50),
                "poster" => {
                    assert!(image.pixels().all(|pixel| pixel.0.iter().all(|channel| [0, 128, 255].contains(channel))));
                    let main = poster(COLORS[scene.color].1).map(rounded);
                    assert!(image.pixels().filter(|pixel| pixel.0 == main).count() > 20, "{}", scene.prompt());
                }
                _ => {
                    let border = size / 13;
                    let within = (size - 2 * border).pow(2) as usize;
                    assert_eq!(same, within, "inside of the frame nothing changes");
                }
            }
            seen.insert(scene.style);
        }
        assert_eq!(seen.len(), STYLES.len());
        let posters: BTreeSet<[u8; 3]> = COLORS.iter().map(|(_, color)| poster(*color).map(rounded)).collect();
        assert_eq!(posters.len(), COLORS.len());
    }

    #[test]
    fn the_product_has_its_colours() {
        for row in 0..100 {
            let mut random = Random::new(6, &[row]);
            let scene = Scene::draw(true, &mut random);
            let source = scene.source(64, &mut random);
            for color in [COLORS[scene.color].1, ACCENTS[scene.accent].1] {
                let near = |pixel: &Rgb<u8>| pixel.0.iter().zip(color).all(|(a, b)| (f64::from(*a) - b).abs() < 22.0);
                let pixels = source.pixels().filter(|pixel| near(pixel)).count();
                assert!(pixels > 60, "row {row}: {pixels} pixels, {}", scene.caption());
            }
        }
    }

    #[test]
    fn answers_are_found_in_the_prompt() {
        let mut answers = BTreeMap::<&str, usize>::new();
        for row in 0..1000 {
            let mut random = Random::new(1, &[row]);
            let scene = Scene::draw(true, &mut random);
            let (question, answer) = scene.question(random.below(4));
            assert!(scene.prompt().contains(answer), "{question} {answer}: {}", scene.prompt());
            assert!(scene.prompt().starts_with(&scene.words()) && scene.caption().starts_with(&scene.words()));
            assert!(!scene.caption().contains("style") && scene.instruction().contains(STYLES[scene.style]));
            assert!(scene.copy().contains(PRODUCTS[scene.product].name));
            *answers.entry(answer).or_default() += 1;
        }
        assert_eq!(answers.len(), 5 + 5 + 3 + 4, "{answers:?}");
    }

    #[test]
    fn held_out_triples_are_drawn_for_eval_alone() {
        let triples = |eval: bool| -> BTreeSet<[usize; 3]> {
            let scenes = (0..3000).map(|row| Scene::draw(eval, &mut Random::new(2, &[row])));
            scenes.map(|scene| [scene.product, scene.color, scene.style]).collect()
        };
        let (train, eval) = (triples(false), triples(true));
        assert!(train.iter().all(|&triple| !is_held_out(triple)));
        assert_eq!(eval.len(), PRODUCTS.len() * COLORS.len() * STYLES.len());
        for (attribute, count) in [PRODUCTS.len(), COLORS.len(), STYLES.len()].into_iter().enumerate() {
            let values: BTreeSet<usize> = train.iter().map(|triple| triple[attribute]).collect();
            assert_eq!(values.len(), count, "every value is drawn for train");
        }
    }
}
