//! What the values of masks are, judged over a table: 0 is ground, one other value the object, unless the recipe says more.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use janus_core::processing::{LOSSY_REACH, StoredMask};

use super::error::{TaskError, split_name};
use crate::data::Split;
use crate::recipe::DataSection;

/// Values that a message lists.
const VALUES_SHOWN: usize = 12;
/// Words of a bit for each value.
const WORDS: usize = (u16::MAX as usize + 1) / 64;

/// What helps against lossy masks.
const KEEPING: &str = "write masks as PNG, which keeps their values";

/// What a pixel of a mask is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    Ground,
    Object,
    /// Not counted.
    Ignored,
}

/// A set of values.
#[derive(Debug, Clone, Default)]
struct Values {
    /// One bit a value; empty without any.
    bits: Vec<u64>,
}

impl Values {
    fn add(&mut self, value: u16) {
        if self.bits.is_empty() {
            self.bits = vec![0; WORDS];
        }
        let value = usize::from(value);
        if let Some(word) = self.bits.get_mut(value / 64) {
            *word |= 1 << (value % 64);
        }
    }

    fn extend(&mut self, other: &Values) {
        if self.bits.is_empty() {
            self.bits.clone_from(&other.bits);
            return;
        }
        self.bits.iter_mut().zip(&other.bits).for_each(|(own, other)| *own |= other);
    }

    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let words = self.bits.iter().enumerate().filter(|(_, word)| **word != 0);
        words.flat_map(|(number, word)| {
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| (number * 64 + bit) as u16)
        })
    }

    fn listed(&self) -> String {
        let mut text = String::new();
        for (number, value) in self.iter().take(VALUES_SHOWN).enumerate() {
            let _ = write!(text, "{}{value}", if number == 0 { "" } else { ", " });
        }
        match self.iter().count().saturating_sub(VALUES_SHOWN) {
            0 => text,
            more => format!("{text} and {more} more"),
        }
    }
}

/// What the values of a table's masks look like.
#[derive(Debug, Clone, Default)]
struct Palettes {
    /// The colours of numbers in palettes.
    colours: BTreeMap<u16, [u8; 3]>,
    /// A number that stands for two colours.
    differing: Option<(u16, [u8; 3], [u8; 3])>,
}

impl Palettes {
    fn add(&mut self, value: u16, colour: [u8; 3]) {
        let known = *self.colours.entry(value).or_insert(colour);
        if known != colour && self.differing.is_none() {
            self.differing = Some((value, known, colour));
        }
    }

    fn extend(&mut self, other: &Palettes) {
        other.colours.iter().for_each(|(value, colour)| self.add(*value, *colour));
        self.differing = self.differing.or(other.differing);
    }

    /// What is wrong with them.
    fn problem(&self) -> Option<String> {
        let (value, first, second) = self.differing?;
        Some(format!("{value} is {} in some and {} in others", colour_name(first), colour_name(second)))
    }

    fn hints() -> Vec<String> {
        vec![
            "save all masks with one palette, or as grey pictures, such as with Pillow: `Image.open(f).convert(\"L\").save(\"mask.png\")` keeps how bright they are".into(),
        ]
    }
}

fn colour_name(colour: [u8; 3]) -> String {
    match colour {
        [0, 0, 0] => "black".into(),
        [255, 255, 255] => "white".into(),
        [red, green, blue] => format!("#{red:02x}{green:02x}{blue:02x}"),
    }
}

/// Values of a table's masks.
#[derive(Debug, Clone, Default)]
pub(super) struct MaskFacts {
    /// Of files that keep values.
    exact: Values,
    /// Of files whose compression moves them.
    lossy: Values,
    palettes: Palettes,
    /// Masks that were looked at.
    pub(super) masks: u64,
}

impl MaskFacts {
    /// Of one mask.
    pub(super) fn of(mask: &StoredMask) -> Self {
        let mut facts = Self { masks: 1, ..Self::default() };
        let values = if mask.is_lossy { &mut facts.lossy } else { &mut facts.exact };
        let mut last = None;
        for value in &mask.values {
            // Masks are made of runs.
            if last != Some(value) {
                values.add(*value);
                last = Some(value);
            }
        }
        let colour = |value: u16| match &mask.palette {
            Some(palette) => palette.get(usize::from(value)).copied(),
            // Ground is black where nothing else is said; other greys are numbers, too.
            None => (value == 0).then_some([0; 3]),
        };
        let shown: Vec<_> = values.iter().filter_map(|value| Some((value, colour(value)?))).collect();
        shown.into_iter().for_each(|(value, colour)| facts.palettes.add(value, colour));
        facts
    }

    pub(super) fn add(&mut self, other: &MaskFacts) {
        self.exact.extend(&other.exact);
        self.lossy.extend(&other.lossy);
        self.palettes.extend(&other.palettes);
        self.masks += other.masks;
    }

    /// How many values there are beside 0.
    pub(super) fn objects(&self) -> usize {
        self.all().iter().filter(|value| *value != 0).count()
    }

    fn all(&self) -> Values {
        let mut all = self.exact.clone();
        all.extend(&self.lossy);
        all
    }
}

/// What the recipe says of values.
#[derive(Debug, Clone, Default)]
pub(super) struct MaskKeys {
    object: Vec<u16>,
    ignored: Option<u16>,
}

impl MaskKeys {
    pub(super) fn of(section: &DataSection) -> Self {
        let value = |value: &u64| u16::try_from(*value).ok();
        Self {
            object: section.mask_values.iter().flatten().filter_map(value).collect(),
            ignored: section.ignore_value.as_ref().and_then(value),
        }
    }

    /// That no value is said to be two things.
    ///
    /// # Errors
    /// [`TaskError::IgnoredObject`].
    pub(super) fn check(&self, table: &str) -> Result<(), TaskError> {
        match self.ignored.filter(|value| self.object.contains(value)) {
            Some(value) => Err(TaskError::IgnoredObject { table: table.to_owned(), value }),
            None => Ok(()),
        }
    }

    /// What values are, by those of the rows to train on. `is_whole`: all masks of the table were looked at.
    ///
    /// # Errors
    /// [`TaskError::Masks`] where they do not tell, or are not those that the recipe names.
    pub(super) fn decide(&self, facts: &MaskFacts, is_whole: bool, table: &str) -> Result<MaskRule, TaskError> {
        let is_ignored = |value: u16| self.ignored == Some(value);
        // What lossy compression made of a value that is not counted says nothing of the largest one.
        let named = || self.object.iter().copied().chain(self.ignored);
        let is_near_named = |value: u16| named().any(|named| named.abs_diff(value) <= LOSSY_REACH);
        let exact = facts.exact.iter().filter(|value| !is_ignored(*value));
        let largest = exact.chain(facts.lossy.iter().filter(|value| !is_near_named(*value))).max().unwrap_or(0);
        let mut rule = MaskRule {
            object: self.object.clone(),
            ignored: self.ignored,
            largest,
            is_named: !self.object.is_empty(),
            has_ground: false,
            palettes: facts.palettes.clone(),
        };
        let refused = |problem: String, hints: Vec<String>| TaskError::Masks {
            table: table.to_owned(),
            split: split_name(Split::Train),
            values: facts.all().listed(),
            problem,
            hints,
        };
        if let Some(problem) = facts.palettes.problem() {
            return Err(refused(problem, Palettes::hints()));
        }
        if let Some(problem) = rule.confused(facts) {
            return Err(refused(problem, vec![KEEPING.into()]));
        }
        let mut different = Values::default();
        facts.exact.iter().for_each(|value| different.add(value));
        for value in facts.lossy.iter() {
            let Some(near) = rule.nearest(value) else {
                let problem = format!("in a JPEG, {value} is neither near 0 nor near {largest}");
                return Err(refused(problem, vec![KEEPING.into()]));
            };
            different.add(near);
        }
        rule.has_ground = different.iter().any(|value| value == 0);
        let others: Vec<u16> = different.iter().filter(|value| *value != 0 && !is_ignored(*value)).collect();
        if rule.is_named {
            if is_whole && facts.masks > 0 && !different.iter().any(|value| self.object.contains(&value)) {
                let problem = format!("none is of `mask_values` = {:?}", self.object);
                return Err(refused(problem, vec!["`mask_values` names the values that are the object".into()]));
            }
            return Ok(rule);
        }
        match others.as_slice() {
            [] => {}
            [object] => rule.object = vec![*object],
            [first, ..] => {
                let mut hints = vec![format!(
                    "name those that are the object, as `mask_values = [{first}]`: all others are ground then"
                )];
                if let Some(last) = others.last().filter(|_| self.ignored.is_none()) {
                    hints.push(format!("`ignore_value = {last}` leaves pixels of a value out of loss and figures"));
                }
                return Err(refused("0 is ground, but which of the others is the object?".into(), hints));
            }
        }
        Ok(rule)
    }
}

/// What the values of a table's masks are.
#[derive(Debug, Clone)]
pub(super) struct MaskRule {
    object: Vec<u16>,
    ignored: Option<u16>,
    /// The largest value that is counted.
    largest: u16,
    /// Whether the recipe names the object: everything else is ground then.
    is_named: bool,
    has_ground: bool,
    /// Those of the rows to train on.
    palettes: Palettes,
}

impl MaskRule {
    /// Values whose difference counts.
    fn known(&self) -> impl Iterator<Item = (u16, Class)> + '_ {
        let of = |value: u16| {
            if self.ignored == Some(value) {
                Class::Ignored
            // Before it is decided, the largest value may be the object.
            } else if self.object.contains(&value) || !self.is_named && value != 0 {
                Class::Object
            } else {
                Class::Ground
            }
        };
        let values = [0, self.largest].into_iter().chain(self.object.iter().copied()).chain(self.ignored);
        values.map(move |value| (value, of(value)))
    }

    /// Two values that mean different things, and that lossy compression may make the same of.
    fn confusable(&self) -> Option<(u16, u16)> {
        let pairs = self.known().flat_map(|first| self.known().map(move |second| (first, second)));
        let mut close = pairs.filter(|((first, is), (second, other))| {
            first < second && is != other && second - first <= 2 * LOSSY_REACH
        });
        close.next().map(|((first, _), (second, _))| (first, second))
    }

    /// What is wrong where files are lossy whose values cannot be told apart then.
    fn confused(&self, facts: &MaskFacts) -> Option<String> {
        facts.lossy.iter().next()?;
        let (first, second) = self.confusable()?;
        Some(format!(
            "some masks are JPEG or lossy WebP, which move values by up to {LOSSY_REACH}: {first} and {second} cannot be told apart"
        ))
    }

    /// The value that lossy compression made this one of.
    fn nearest(&self, value: u16) -> Option<u16> {
        let known = [0, self.largest].into_iter().chain(self.object.iter().copied()).chain(self.ignored);
        let near = known.map(|known| (known.abs_diff(value), known)).min();
        near.filter(|(distance, _)| *distance <= LOSSY_REACH).map(|(_, known)| known)
    }

    /// What a pixel is; `None` of a value that the table's rows to train on do not explain.
    fn class(&self, value: u16, is_lossy: bool) -> Option<Class> {
        let value = if is_lossy { self.nearest(value)? } else { value };
        if self.ignored == Some(value) {
            Some(Class::Ignored)
        } else if self.object.contains(&value) {
            Some(Class::Object)
        } else {
            (self.is_named || value == 0).then_some(Class::Ground)
        }
    }

    /// What each pixel of a mask is.
    ///
    /// # Errors
    /// The value that is unknown, and why.
    pub(super) fn classes(&self, mask: &StoredMask) -> Result<Vec<Class>, String> {
        let facts = MaskFacts::of(mask);
        let mut palettes = self.palettes.clone();
        palettes.extend(&facts.palettes);
        if let Some(problem) = palettes.problem().or_else(|| self.confused(&facts)) {
            return Err(format!("the palettes of masks differ or their compression hides values: {problem}"));
        }
        let mut last: Option<(u16, Class)> = None;
        let class = |value: &u16| match last {
            Some((known, class)) if known == *value => Ok(class),
            _ => {
                let class = self.class(*value, mask.is_lossy);
                let class = class.ok_or_else(|| format!("its mask has the value {value}"))?;
                last = Some((*value, class));
                Ok(class)
            }
        };
        mask.values.iter().map(class).collect()
    }

    /// Whether the values of other rows of the table are known.
    ///
    /// # Errors
    /// [`TaskError::Masks`] with these values.
    pub(super) fn judge(&self, facts: &MaskFacts, table: &str, split: Split) -> Result<(), TaskError> {
        let unknown = |values: &Values, is_lossy| values.iter().find(|value| self.class(*value, is_lossy).is_none());
        let refused = |problem: String, hints: Vec<String>| TaskError::Masks {
            table: table.to_owned(),
            split: split_name(split),
            values: facts.all().listed(),
            problem,
            hints,
        };
        let mut palettes = self.palettes.clone();
        palettes.extend(&facts.palettes);
        if let Some(problem) = palettes.problem() {
            return Err(refused(problem, Palettes::hints()));
        }
        if let Some(problem) = self.confused(facts) {
            return Err(refused(problem, vec![KEEPING.into()]));
        }
        let Some(value) = unknown(&facts.exact, false).or_else(|| unknown(&facts.lossy, true)) else { return Ok(()) };
        Err(refused(
            format!("{value} is none of those to train on: {self}"),
            vec!["`mask_values` and `ignore_value` say what the values of both are".into()],
        ))
    }

    /// Whether no mask had an object.
    pub(super) fn is_empty(&self) -> bool {
        self.object.is_empty()
    }
}

impl std::fmt::Display for MaskRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let listed: Vec<String> = self.object.iter().take(VALUES_SHOWN).map(u16::to_string).collect();
        match (listed.is_empty(), self.is_named) {
            (true, _) => f.write_str("all pixels are ground")?,
            (false, true) => write!(f, "{} is the object, other values are ground", listed.join(", "))?,
            (false, false) if self.has_ground => write!(f, "0 is ground, {} the object", listed.join(", "))?,
            (false, false) => write!(f, "{} is the object, no pixel is ground", listed.join(", "))?,
        }
        match self.ignored {
            Some(value) => write!(f, ", {value} is not counted"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(values: &[u16], is_lossy: bool) -> StoredMask {
        StoredMask { width: values.len() as u32, height: 1, values: values.to_vec(), palette: None, is_lossy }
    }

    fn facts(masks: &[StoredMask]) -> MaskFacts {
        let mut facts = MaskFacts::default();
        masks.iter().for_each(|mask| facts.add(&MaskFacts::of(mask)));
        facts
    }

    fn keys(object: &[u16], ignored: Option<u16>) -> MaskKeys {
        MaskKeys { object: object.to_vec(), ignored }
    }

    fn objects(keys: &MaskKeys, masks: &[StoredMask]) -> Result<Vec<usize>, String> {
        let rule = keys.decide(&facts(masks), true, "own").map_err(|error| error.to_string())?;
        let count =
            |mask: &StoredMask| rule.classes(mask).unwrap().iter().filter(|class| **class == Class::Object).count();
        Ok(masks.iter().map(count).collect())
    }

    #[test]
    fn one_value_beside_ground_is_the_object() {
        let none = MaskKeys::default();
        for object in [1, 7, 128, 255, 256, 65_535] {
            let masks = [mask(&[0, object, object, 0], false), mask(&[0; 4], false)];
            assert_eq!(objects(&none, &masks), Ok(vec![2, 0]), "{object}");
        }
        assert_eq!(objects(&none, &[mask(&[0; 3], false)]), Ok(vec![0]));
        assert_eq!(objects(&none, &[mask(&[255; 3], false)]), Ok(vec![3]));
        // Judged over the table: a mask of its own would have 3 as its object.
        let masks = [mask(&[0, 1], false), mask(&[0, 3], false)];
        assert!(objects(&none, &masks).unwrap_err().contains("the values 0, 1, 3"));
    }

    #[test]
    fn more_values_are_named_or_refused() {
        let masks = [mask(&[0, 1, 1, 255], false), mask(&[0, 0, 1, 0], false)];
        let none = MaskKeys::default();
        let refused = none.decide(&facts(&masks), true, "own").unwrap_err();
        assert!(refused.to_string().contains("0, 1, 255"), "{refused}");
        use janus_core::Diagnose;
        let hints = refused.hints().join("\n");
        assert!(hints.contains("`mask_values = [1]`") && hints.contains("`ignore_value = 255`"), "{hints}");
        assert_eq!(objects(&keys(&[], Some(255)), &masks), Ok(vec![2, 1]));
        assert_eq!(objects(&keys(&[1], Some(255)), &masks), Ok(vec![2, 1]));
        assert_eq!(objects(&keys(&[1], None), &masks), Ok(vec![2, 1]));
        assert_eq!(objects(&keys(&[1, 255], None), &masks), Ok(vec![3, 1]));
        let rule = keys(&[], Some(255)).decide(&facts(&masks), true, "own").unwrap();
        assert_eq!(rule.class(255, false), Some(Class::Ignored));
        assert_eq!(rule.to_string(), "0 is ground, 1 the object, 255 is not counted");

        let classes = [mask(&[0, 1, 2, 3], false)];
        assert!(objects(&none, &classes).unwrap_err().contains("0, 1, 2, 3"));
        assert!(objects(&keys(&[], Some(3)), &classes).unwrap_err().contains("which of the others"));
        assert_eq!(objects(&keys(&[1, 3], None), &classes), Ok(vec![2]));
        assert!(objects(&keys(&[7], None), &classes).unwrap_err().contains("none is of `mask_values` = [7]"));
        assert!(keys(&[7], None).decide(&facts(&classes), false, "own").is_ok(), "others may come");
        assert!(matches!(keys(&[3], Some(3)).check("own"), Err(TaskError::IgnoredObject { value: 3, .. })));

        let many: Vec<u16> = (0..300).collect();
        let said = objects(&none, &[mask(&many, false)]).unwrap_err();
        assert!(said.contains("0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 288 more"), "{said}");
    }

    #[test]
    fn lossy_values_are_near_what_they_were() {
        let none = MaskKeys::default();
        let masks = [mask(&[0, 3, 16, 255, 240, 239], true), mask(&[5, 0, 1, 2, 0, 0], true)];
        assert_eq!(objects(&none, &masks), Ok(vec![3, 0]));
        // Beside files that keep their values.
        assert_eq!(objects(&none, &[mask(&[2, 250, 244], true), mask(&[0, 255, 0], false)]), Ok(vec![2, 1]));
        for between in [17, 60, 128, 238] {
            let said = objects(&none, &[mask(&[0, between, 255], true)]).unwrap_err();
            assert!(said.contains(&format!("the values 0, {between}, 255")), "{said}");
        }
        let ignoring = keys(&[], Some(255));
        assert_eq!(objects(&ignoring, &[mask(&[0, 2, 120, 131, 250, 255], true)]), Ok(vec![2]));
    }

    #[test]
    fn small_values_are_not_guessed_from_lossy_files() {
        for masks in [
            vec![mask(&[0, 1, 0], true)],
            vec![mask(&[0, 3, 20, 24, 2], true)],
            vec![mask(&[0, 32], true)],
            vec![mask(&[0, 5], false), mask(&[0, 0], true)],
        ] {
            let said = objects(&MaskKeys::default(), &masks).unwrap_err();
            assert!(said.contains("cannot be told apart") && said.contains("the values 0, "), "{said}");
        }
        let near = keys(&[10], None).decide(&facts(&[mask(&[0, 9, 255], true)]), true, "own").unwrap_err().to_string();
        assert!(near.contains("0 and 10 cannot"), "{near}");
        assert!(objects(&keys(&[120], Some(140)), &[mask(&[0, 121, 139], true)]).unwrap_err().contains("120 and 140"));
        assert_eq!(objects(&MaskKeys::default(), &[mask(&[0, 33, 30], true)]), Ok(vec![2]));
        assert_eq!(objects(&MaskKeys::default(), &[mask(&[0, 0], true)]), Ok(vec![0]));
        // What compression added to a named value is that value.
        assert_eq!(objects(&keys(&[250], None), &[mask(&[0, 250, 255, 240], true)]), Ok(vec![3]));
        let exact = MaskKeys::default().decide(&facts(&[mask(&[0, 1], false)]), true, "own").unwrap();
        let eval = exact.judge(&facts(&[mask(&[0, 1], true)]), "own", Split::Eval).unwrap_err().to_string();
        assert!(eval.contains("0 and 1 cannot be told apart"), "{eval}");
        assert!(exact.classes(&mask(&[0, 1], true)).is_err());
    }

    #[test]
    fn a_number_has_one_colour_in_all_palettes() {
        let (white, black, red) = ([255; 3], [0; 3], [128, 0, 0]);
        let coloured =
            |values: &[u16], palette: &[[u8; 3]]| StoredMask { palette: Some(palette.to_vec()), ..mask(values, false) };
        let none = MaskKeys::default();
        for (masks, said) in [
            (vec![coloured(&[0, 1], &[black, white]), coloured(&[0, 0], &[white])], "0 is black in some and white in"),
            (vec![coloured(&[0, 1], &[white, black]), mask(&[0, 1], false)], "0 is white in some and black in others"),
            (vec![coloured(&[0, 1], &[black, red]), coloured(&[0, 1], &[black, white])], "1 is #800000 in some"),
        ] {
            for named in [&none, &keys(&[1], None)] {
                let refused = named.decide(&facts(&masks), true, "own").unwrap_err();
                assert!(refused.to_string().contains(said), "{refused}");
                use janus_core::Diagnose;
                assert!(refused.hints()[0].contains("convert(\"L\")"));
            }
        }
        // Numbers that no pixel has may be anything.
        let masks = [coloured(&[0, 1], &[black, red, white]), coloured(&[0, 1], &[black, red]), mask(&[0, 1], false)];
        assert_eq!(objects(&none, &masks), Ok(vec![1, 1, 1]));
        assert_eq!(objects(&none, &[coloured(&[0, 1], &[white, black])]), Ok(vec![1]));
        let rule = none.decide(&facts(&masks), true, "own").unwrap();
        let other = coloured(&[0, 1], &[white, black]);
        assert!(rule.judge(&facts(std::slice::from_ref(&other)), "own", Split::Eval).is_err());
        assert!(rule.classes(&other).is_err());
    }

    #[test]
    fn other_rows_are_judged_by_those_to_train_on() {
        let rule = MaskKeys::default().decide(&facts(&[mask(&[0, 255], false)]), true, "own").unwrap();
        rule.judge(&facts(&[mask(&[0, 0], false)]), "own", Split::Eval).unwrap();
        let said = rule.judge(&facts(&[mask(&[0, 1], false)]), "own", Split::Eval).unwrap_err().to_string();
        assert!(
            said.contains("(eval)") && said.contains("the values 0, 1") && said.contains("255 the object"),
            "{said}"
        );
        assert_eq!(rule.classes(&mask(&[0, 9], false)), Err("its mask has the value 9".to_owned()));
        let empty = MaskKeys::default().decide(&facts(&[mask(&[0, 0], false)]), true, "own").unwrap();
        assert!(empty.is_empty() && empty.judge(&facts(&[mask(&[0, 1], false)]), "own", Split::Eval).is_err());
    }
}
