//! What the four numbers of boxes are, judged over a table.

use std::array;

use super::error::{TaskError, split_name};
use crate::data::Split;
use crate::recipe::{BoxFormat, DataSection};

/// How far beyond a picture's edge rounding may lead, in pixels.
const ROUNDING: f64 = 1.0;
/// How far beyond 0 and 1 rounding may lead shares of a picture.
const SHARE_ROUNDING: f32 = 0.01;

/// One box in so many may be wrong, whatever other readings make of it.
const FEW: u64 = 100;

const FORMATS: [BoxFormat; 3] = [BoxFormat::Xyxy, BoxFormat::Xywh, BoxFormat::Cxcywh];

/// How boxes are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BoxReading {
    format: BoxFormat,
    normalised: bool,
}

impl BoxReading {
    pub(super) fn of(section: &DataSection) -> Self {
        Self { format: section.box_format.unwrap_or(BoxFormat::Xyxy), normalised: section.normalised.unwrap_or(false) }
    }

    /// Left, top, right and bottom in pixels.
    fn corners(self, numbers: [f32; 4], width: u32, height: u32) -> [f64; 4] {
        let factors = if self.normalised { [f64::from(width), f64::from(height)] } else { [1.0; 2] };
        let [a, b, c, d] = array::from_fn(|place| f64::from(numbers[place]) * factors[place % 2]);
        match self.format {
            BoxFormat::Xyxy => [a, b, c, d],
            BoxFormat::Xywh => [a, b, a + c, b + d],
            BoxFormat::Cxcywh => [a - c / 2.0, b - d / 2.0, a + c / 2.0, b + d / 2.0],
        }
    }

    /// A box as left, top, right and bottom edge in pixels, within its picture.
    ///
    /// # Errors
    /// No area, or a part beyond the picture that is no rounding.
    pub(super) fn read(self, numbers: [f32; 4], width: u32, height: u32) -> Result<[f32; 4], String> {
        let shown = || {
            let [a, b, c, d] = numbers;
            let kind = if self == Self::default() { String::new() } else { format!(" ({self})") };
            format!("the box {a}, {b}, {c}, {d}{kind}")
        };
        let corners = self.corners(numbers, width, height);
        let [left, top, right, bottom] = corners;
        // Numbers that are none compare as false.
        if !(left < right && top < bottom) {
            let expected = match self.format {
                BoxFormat::Xyxy => "x1 < x2 and y1 < y2",
                BoxFormat::Xywh | BoxFormat::Cxcywh => "a width and a height above 0",
            };
            return Err(format!("{} has no area: expected {expected}", shown()));
        }
        let limits = [f64::from(width), f64::from(height)];
        let beyond = |place: usize| f64::max(-corners[place], corners[place] - limits[place % 2]);
        if (0..4).any(|place| beyond(place) >= ROUNDING) {
            return Err(format!("{} reaches beyond its image of {width} x {height} pixels", shown()));
        }
        if !self.normalised && is_share(numbers) && !is_whole(numbers) {
            return Err(format!("{} lies within 0 and 1: is it a share of its picture?", shown()));
        }
        let clipped: [f64; 4] = array::from_fn(|place| corners[place].clamp(0.0, limits[place % 2]));
        if clipped[0] >= clipped[2] || clipped[1] >= clipped[3] {
            return Err(format!("{} reaches beyond its image of {width} x {height} pixels", shown()));
        }
        Ok(clipped.map(|corner| corner as f32))
    }

    /// How boxes are read, where that is not the usual way.
    pub(super) fn note(self) -> Option<String> {
        (self != Self::default()).then(|| format!("boxes are read as {self}"))
    }

    fn place(self) -> (usize, usize) {
        (usize::from(self.normalised), self.format as usize)
    }

    /// All readings, those first that differ in little.
    fn alternatives(self) -> impl Iterator<Item = Self> {
        let formats =
            move || std::iter::once(self.format).chain(FORMATS.into_iter().filter(move |f| *f != self.format));
        [self.normalised, !self.normalised]
            .into_iter()
            .flat_map(move |normalised| formats().map(move |format| Self { format, normalised }))
    }
}

impl Default for BoxReading {
    fn default() -> Self {
        Self { format: BoxFormat::Xyxy, normalised: false }
    }
}

impl std::fmt::Display for BoxReading {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} in {}", self.format.name(), if self.normalised { "shares of the picture" } else { "pixels" })
    }
}

/// Whether all numbers lie within 0 and 1.
fn is_share(numbers: [f32; 4]) -> bool {
    numbers.iter().all(|number| (-SHARE_ROUNDING..=1.0 + SHARE_ROUNDING).contains(number))
}

fn is_whole(numbers: [f32; 4]) -> bool {
    numbers.iter().all(|number| number.fract() == 0.0)
}

/// What is counted of a table's boxes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct BoxFacts {
    boxes: u64,
    /// Boxes within 0 and 1.
    shares: u64,
    /// Boxes whose second pair is not behind the first.
    turned: u64,
    /// Boxes that lie in their pictures by reading: in pixels and as shares, by format. In pixels without those within 0 and 1.
    fitting: [[u64; 3]; 2],
    /// Those of corners 0 and 1 alone, by format in pixels: where others are larger, they are pixels, too.
    corner_pixels: [u64; 3],
}

impl BoxFacts {
    /// Counts a box of a picture.
    pub(super) fn add(&mut self, numbers: [f32; 4], width: u32, height: u32) {
        self.boxes += 1;
        let [x, y, second_x, second_y] = numbers;
        if !numbers.iter().all(|number| number.is_finite()) || x == second_x || y == second_y {
            // As corners it has no area: a bad row, whatever others are.
            return;
        }
        self.shares += u64::from(is_share(numbers));
        self.turned += u64::from(second_x < x || second_y < y);
        for reading in BoxReading::default().alternatives() {
            let (kind, format) = reading.place();
            // What `read` says of shares in pixels is judged here.
            let fits = reading.read(numbers, width, height).is_ok();
            if fits && !reading.normalised && is_share(numbers) {
                self.corner_pixels[format] += 1;
            } else if fits {
                self.fitting[kind][format] += 1;
            }
        }
    }

    /// Takes those of other rows.
    pub(super) fn extend(&mut self, other: &BoxFacts) {
        self.boxes += other.boxes;
        self.shares += other.shares;
        self.turned += other.turned;
        let counts = self.fitting.iter_mut().flatten().chain(&mut self.corner_pixels);
        counts.zip(other.fitting.iter().flatten().chain(&other.corner_pixels)).for_each(|(own, other)| *own += other);
    }

    fn fitting(&self, reading: BoxReading) -> u64 {
        let (kind, format) = reading.place();
        let corners = if reading.normalised || self.shares == self.boxes { 0 } else { self.corner_pixels[format] };
        self.fitting[kind][format] + corners
    }

    /// Whether the numbers are what the recipe says.
    ///
    /// # Errors
    /// [`TaskError::Boxes`] where more boxes lie in their pictures when they are read in another way.
    pub(super) fn judge(&self, given: BoxReading, table: &str, split: Split) -> Result<(), TaskError> {
        let better = given.alternatives().max_by_key(|reading| {
            // Of equal ones the first.
            let place = given.alternatives().position(|other| other == *reading);
            (self.fitting(*reading), std::cmp::Reverse(place))
        });
        let Some(better) = better.filter(|better| self.fitting(*better) > self.fitting(given)) else { return Ok(()) };
        // A few boxes are wrong on their own: their rows are rejected one by one.
        if (self.boxes - self.fitting(given)) * FEW <= self.boxes {
            return Ok(());
        }
        let keys_of = |reading: BoxReading| {
            let mut keys = Vec::new();
            if reading.normalised != given.normalised {
                keys.push(format!("`normalised = {}`", reading.normalised));
            }
            if reading.format != given.format {
                keys.push(format!("`box_format = \"{}\"`", reading.format.name()));
            }
            keys.join(" and ")
        };
        // Where the format may stay, it is what is meant.
        let is_best = |reading: &BoxReading| match better.format == given.format {
            true => *reading == better,
            false => self.fitting(*reading) == self.fitting(better),
        };
        let best = given.alternatives().filter(is_best);
        let keys: Vec<String> = best.map(keys_of).collect();
        let seen = if self.shares == self.boxes {
            "; all coordinates lie within 0 and 1"
        } else if given.format == BoxFormat::Xyxy && self.turned > 0 {
            "; the second pair is below the first in some"
        } else {
            ""
        };
        Err(TaskError::Boxes {
            table: table.into(),
            split: split_name(split),
            given: given.to_string().into(),
            boxes: self.boxes,
            fitting: self.fitting(given),
            better: self.fitting(better),
            keys: keys.join(", or as ").into(),
            seen,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(format: BoxFormat, normalised: bool) -> BoxReading {
        BoxReading { format, normalised }
    }

    #[test]
    fn boxes_have_an_area_inside_their_picture() {
        let read = |numbers| BoxReading::default().read(numbers, 10, 8);
        assert_eq!(read([0.0, 1.5, 10.0, 8.0]), Ok([0.0, 1.5, 10.0, 8.0]));
        for (numbers, reason) in [
            ([3.0, 3.0, 3.0, 5.0], "has no area"),
            ([5.0, 3.0, 2.0, 1.0], "has no area"),
            ([f32::NAN, 0.0, 1.0, 1.0], "has no area"),
            ([0.0, 0.0, 11.0, 2.0], "beyond its image of 10 x 8"),
            ([-1.0, 0.0, 1.0, 2.0], "beyond its image"),
            ([0.0, 0.0, f32::INFINITY, 2.0], "beyond its image"),
            ([10.2, 0.0, 10.8, 2.0], "beyond its image"),
            ([0.1, 0.2, 0.5, 0.9], "within 0 and 1"),
        ] {
            let message = read(numbers).unwrap_err();
            assert!(message.contains(reason), "{message}");
        }
    }

    #[test]
    fn rounding_beyond_the_edge_is_clipped() {
        let read = |numbers| BoxReading::default().read(numbers, 10, 8);
        assert_eq!(read([-0.4, 0.0, 10.5, 2.0]), Ok([0.0, 0.0, 10.0, 2.0]));
        assert_eq!(read([2.0, -0.99, 9.0, 8.99]), Ok([2.0, 0.0, 9.0, 8.0]));
        let shares = reading(BoxFormat::Xyxy, true);
        assert_eq!(shares.read([0.5, 0.0, 1.0001, 1.0], 64, 32), Ok([32.0, 0.0, 64.0, 32.0]));
        assert!(shares.read([0.5, 0.0, 1.2, 1.0], 64, 32).unwrap_err().contains("xyxy in shares of the picture"));
    }

    #[test]
    fn every_format_becomes_corners_in_pixels() {
        let corners = [8.0, 4.0, 24.0, 12.0];
        for (format, normalised, numbers) in [
            (BoxFormat::Xyxy, false, [8.0, 4.0, 24.0, 12.0]),
            (BoxFormat::Xywh, false, [8.0, 4.0, 16.0, 8.0]),
            (BoxFormat::Cxcywh, false, [16.0, 8.0, 16.0, 8.0]),
            (BoxFormat::Xyxy, true, [0.125, 0.125, 0.375, 0.375]),
            (BoxFormat::Xywh, true, [0.125, 0.125, 0.25, 0.25]),
            (BoxFormat::Cxcywh, true, [0.25, 0.25, 0.25, 0.25]),
        ] {
            assert_eq!(reading(format, normalised).read(numbers, 64, 32), Ok(corners), "{format:?} {normalised}");
        }
        let [left, top, right, bottom] = reading(BoxFormat::Xyxy, true).read([0.1, 0.2, 0.5, 0.9], 64, 32).unwrap();
        assert!((right - left - 25.6).abs() < 1e-4 && (bottom - top - 22.4).abs() < 1e-4);
    }

    fn facts(boxes: &[[f32; 4]]) -> BoxFacts {
        let mut facts = BoxFacts::default();
        boxes.iter().for_each(|numbers| facts.add(*numbers, 64, 32));
        facts
    }

    fn refusal(boxes: &[[f32; 4]], given: BoxReading) -> Option<String> {
        facts(boxes).judge(given, "own", Split::Train).err().map(|error| error.to_string())
    }

    #[test]
    fn a_table_that_is_something_else_is_refused_by_the_key() {
        let pixels = [[4.0, 6.0, 60.0, 30.0], [30.0, 2.0, 50.0, 28.0], [0.0, 0.0, 1.0, 1.0]];
        let widths = [[20.0, 10.0, 40.0, 20.0], [40.0, 20.0, 10.0, 8.0], [50.0, 3.0, 12.0, 4.0]];
        let centres = [[32.0, 16.0, 60.0, 30.0], [60.0, 28.0, 6.0, 6.0], [4.0, 4.0, 7.0, 7.0]];
        let share = |boxes: [[f32; 4]; 3]| boxes.map(|[a, b, c, d]| [a / 64.0, b / 32.0, c / 64.0, d / 32.0]);
        let xyxy = reading(BoxFormat::Xyxy, false);
        for (boxes, given, keys) in [
            (share(pixels), xyxy, &["`normalised = true`"][..]),
            (widths, xyxy, &["`box_format = \"xywh\"`", "below the first in some"]),
            (centres, xyxy, &["`box_format = \"cxcywh\"`"]),
            (centres, reading(BoxFormat::Xywh, false), &["`box_format = \"cxcywh\"`"]),
            (pixels, reading(BoxFormat::Xywh, false), &["`box_format = \"xyxy\"`"]),
            (pixels, reading(BoxFormat::Xyxy, true), &["`normalised = false`", "1 of 3", "3 of 3"]),
            (share(widths), xyxy, &["`normalised = true` and `box_format = \"xywh\"`", "within 0 and 1"]),
            (share(widths), reading(BoxFormat::Xyxy, true), &["`box_format = \"xywh\"`"]),
            ([[0.0, 0.0, 1.0, 1.0]; 3], xyxy, &["`normalised = true`"]),
        ] {
            let said = refusal(&boxes, given).unwrap_or_else(|| panic!("{boxes:?} as {given} was accepted"));
            assert!(keys.iter().all(|key| said.contains(key)), "{said}");
        }
        for (boxes, given) in [
            (pixels, xyxy),
            (widths, reading(BoxFormat::Xywh, false)),
            (centres, reading(BoxFormat::Cxcywh, false)),
            (share(pixels), reading(BoxFormat::Xyxy, true)),
            (share(centres), reading(BoxFormat::Cxcywh, true)),
        ] {
            assert_eq!(refusal(&boxes, given), None, "{boxes:?} as {given}");
        }
    }

    #[test]
    fn readings_that_fit_equally_are_all_named() {
        let tie = [[30.0, 16.0, 10.0, 8.0], [28.0, 14.0, 12.0, 6.0], [32.0, 15.0, 9.0, 9.0]];
        let said = refusal(&tie, BoxReading::default()).unwrap();
        assert!(said.contains("`box_format = \"xywh\"`, or as `box_format = \"cxcywh\"`"), "{said}");
        let shares = [[0.5, 0.5, 0.2, 0.2], [0.4, 0.6, 0.3, 0.3]];
        let said = refusal(&shares, BoxReading::default()).unwrap();
        let both =
            ["`normalised = true` and `box_format = \"xywh\"`", "`normalised = true` and `box_format = \"cxcywh\"`"];
        assert!(both.iter().all(|keys| said.contains(keys)), "{said}");
    }

    #[test]
    fn a_few_bad_boxes_are_rows_and_no_other_format() {
        let mut boxes = vec![[4.0, 6.0, 60.0, 30.0], [30.0, 2.0, 50.0, 28.0], [10.0, 3.0, 44.0, 30.0]];
        for bad in
            [[5.0, 3.0, 2.0, 1.0], [3.0, 3.0, 3.0, 5.0], [f32::NAN; 4], [0.0, 0.0, 80.0, 90.0], [0.1, 0.1, 0.2, 0.2]]
        {
            boxes.push(bad);
            assert_eq!(refusal(&boxes, BoxReading::default()), None, "{bad:?}");
        }
        assert_eq!(refusal(&[], BoxReading::default()), None);
        // One in a hundred contradicts nothing, more do, and so does a single one of a few.
        let mut many = [[4.0, 4.0, 10.0, 10.0], [2.0, 3.0, 20.0, 12.0]].repeat(250);
        many.push([20.0, 12.0, 2.0, 3.0]);
        assert_eq!(refusal(&many, BoxReading::default()), None);
        many.extend([[20.0, 12.0, 2.0, 3.0]; 6]);
        assert!(refusal(&many, BoxReading::default()).is_some_and(|said| said.contains("500 of 507")));
        assert!(refusal(&many[495..], BoxReading::default()).is_some());
    }
}
