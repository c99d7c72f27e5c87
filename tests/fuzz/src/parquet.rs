//! Mutations of Parquet files that keep to the grammar of the format: numbers, lists and fields of the description and of page
//! headers change, and all around them still fits.

use crate::thrift::{self, Value};

const MAGIC: &[u8] = b"PAR1";

/// Numbers at which readers break, or nearly.
const NUMBERS: [i64; 24] = [
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    8,
    127,
    128,
    255,
    256,
    65_535,
    65_536,
    1 << 26,
    (1 << 30) + 1,
    i32::MAX as i64,
    i32::MIN as i64,
    u32::MAX as i64,
    1 << 32,
    1 << 40,
    i64::MAX,
    i64::MIN,
    i64::MAX - 1,
];

/// Numbers that depend on nothing but a seed.
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// A file with some changes, at most `most_bytes` long; `None` where it is not one.
pub fn mutated(file: &[u8], most_bytes: usize, seed: u32) -> Option<Vec<u8>> {
    let mut draw = Draw(u64::from(seed));
    let (body, mut footer) = split(file)?;
    let mut body = body.to_vec();
    for _ in 0..=draw.below(3) {
        if draw.below(3) == 0 {
            change_page(&mut body, &mut footer, &mut draw);
        } else {
            change(&mut footer, &mut draw);
        }
    }
    let footer = thrift::write(&footer);
    let length = u32::try_from(footer.len()).ok()?.to_le_bytes();
    let whole = [&body, &footer, &length[..], MAGIC].concat();
    (whole.len() <= most_bytes).then_some(whole)
}

/// All before the description, and the description.
fn split(file: &[u8]) -> Option<(&[u8], Value)> {
    let (rest, magic) = file.split_last_chunk::<4>()?;
    let (rest, length) = rest.split_last_chunk::<4>()?;
    let start = rest.len().checked_sub(u32::from_le_bytes(*length) as usize)?;
    if magic != MAGIC {
        return None;
    }
    let (footer, _) = thrift::read(rest.get(start..)?)?;
    Some((&rest[..start], footer))
}

/// Changes the header of a page, and moves what lies behind it.
fn change_page(body: &mut Vec<u8>, footer: &mut Value, draw: &mut Draw) {
    let mut places = vec![4];
    footer.each(&mut |value| {
        if let Value::Int(_, number) = value
            && let Ok(place) = usize::try_from(*number)
            && (4..body.len()).contains(&place)
        {
            places.push(place);
        }
    });
    let place = places[draw.below(places.len())];
    let Some((mut header, length)) = body.get(place..).and_then(thrift::read) else { return };
    change(&mut header, draw);
    let header = thrift::write(&header);
    let grown = header.len() as i64 - length as i64;
    body.splice(place..place + length, header);
    // Most numbers that lead behind the page are offsets; sizes that no longer fit are a mutation, too.
    footer.each(&mut |value| {
        if let Value::Int(_, number) = value
            && *number > place as i64
            && *number <= body.len() as i64 + length as i64
        {
            *number += grown;
        }
    });
}

/// Changes one place in a value.
fn change(root: &mut Value, draw: &mut Draw) {
    let mut count = 0;
    root.each(&mut |_| count += 1);
    let (chosen, mut number) = (draw.below(count), 0);
    let (how, which, other) = (draw.below(8), draw.next(), draw.next());
    root.each(&mut |value| {
        if number == chosen {
            change_one(value, how, which, other);
        }
        number += 1;
    });
}

fn change_one(value: &mut Value, how: usize, which: u64, other: u64) {
    let at = |length: usize| (which % length.max(1) as u64) as usize;
    match value {
        Value::Bool(truth) => *truth = !*truth,
        Value::Int(kind, number) => match how {
            0..=3 => *number = NUMBERS[at(NUMBERS.len())],
            4 => *number = number.wrapping_add(1),
            5 => *number = number.wrapping_sub(1),
            6 => *number = number.wrapping_mul(1 << (other % 63)),
            _ => *kind = thrift::INTEGERS[at(thrift::INTEGERS.len())],
        },
        Value::Double(bytes) => *bytes = other.to_le_bytes(),
        Value::Binary(bytes) => match how {
            0 | 1 => bytes.clear(),
            2 => bytes.extend(std::iter::repeat_n(b'x', at(5000))),
            3 => bytes.reverse(),
            _ if bytes.is_empty() => bytes.push(other as u8),
            _ => {
                let place = at(bytes.len());
                bytes[place] = other as u8;
            }
        },
        Value::List(_, items) => match (how, items.is_empty()) {
            (0, _) => items.clear(),
            (1 | 2, false) => drop(items.remove(at(items.len()))),
            (3, false) => {
                let again = items[at(items.len())].clone();
                items.extend(std::iter::repeat_n(again, (other % 40) as usize));
            }
            (4, false) => items.reverse(),
            (_, false) => items.push(items[at(items.len())].clone()),
            _ => {}
        },
        Value::Struct(fields) => match (how, fields.is_empty()) {
            (0 | 1, false) => drop(fields.remove(at(fields.len()))),
            (2, false) => fields.push(fields[at(fields.len())].clone()),
            (3, false) => {
                let place = at(fields.len());
                fields[place].0 = (other % 20) as i16;
            }
            (4, false) => {
                let (one, two) = (at(fields.len()), (other % fields.len() as u64) as usize);
                let (first, second) = (fields[one].1.clone(), fields[two].1.clone());
                (fields[one].1, fields[two].1) = (second, first);
            }
            (5, false) => {
                let place = at(fields.len());
                fields[place].1 = Value::Int(thrift::INTEGERS[at(3)], NUMBERS[(other % 24) as usize]);
            }
            // One level deeper, or some hundred.
            (6, _) => {
                for _ in 0..1 + other % 300 {
                    *value = Value::Struct(vec![(1, std::mem::replace(value, Value::Bool(true)))]);
                }
            }
            _ => fields.push(((other % 20) as i16, Value::Binary(vec![b'x'; at(64)]))),
        },
    }
}
