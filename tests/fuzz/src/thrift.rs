//! Thrift's compact protocol, read into a tree and written from one, so that a mutation changes a value and not a byte.

/// Types of integers: byte, i16, i32, i64.
pub const INTEGERS: [u8; 4] = [3, 4, 5, 6];

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Deeper files are left to mutations of bytes.
const DEEPEST: usize = 64;

/// A value of any type that Parquet's own headers have.
#[derive(Debug, Clone)]
pub enum Value {
    Bool(bool),
    /// Of one of [`INTEGERS`].
    Int(u8, i64),
    Double([u8; 8]),
    Binary(Vec<u8>),
    /// The type of its items.
    List(u8, Vec<Value>),
    /// Fields by their numbers, in any order.
    Struct(Vec<(i16, Value)>),
}

impl Value {
    /// Shows this value and all in it, outer ones first.
    pub fn each(&mut self, look: &mut dyn FnMut(&mut Value)) {
        look(self);
        match self {
            Value::List(_, items) => items.iter_mut().for_each(|item| item.each(look)),
            Value::Struct(fields) => fields.iter_mut().for_each(|(_, value)| value.each(look)),
            _ => {}
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Value::Bool(true) => TRUE,
            Value::Bool(false) => FALSE,
            Value::Int(kind, _) => *kind,
            Value::Double(_) => DOUBLE,
            Value::Binary(_) => BINARY,
            Value::List(..) => LIST,
            Value::Struct(_) => STRUCT,
        }
    }
}

/// A struct and how many bytes it has; `None` where there is none.
pub fn read(bytes: &[u8]) -> Option<(Value, usize)> {
    let mut reader = Reader { bytes, at: 0 };
    let value = reader.value(STRUCT, 0)?;
    Some((value, reader.at))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn byte(&mut self) -> Option<u8> {
        self.at += 1;
        self.bytes.get(self.at - 1).copied()
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn integer(&mut self) -> Option<i64> {
        let raw = self.varint()?;
        Some((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        Some(match kind {
            TRUE => Value::Bool(true),
            FALSE => Value::Bool(false),
            3 => Value::Int(3, i64::from(self.byte()? as i8)),
            4..=6 => Value::Int(kind, self.integer()?),
            DOUBLE => {
                let bytes = self.bytes.get(self.at..self.at + 8)?.try_into().ok()?;
                self.at += 8;
                Value::Double(bytes)
            }
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?.to_vec();
                self.at += length;
                Value::Binary(bytes)
            }
            LIST => {
                let head = self.byte()?;
                let count =
                    if head >> 4 == 15 { usize::try_from(self.varint()?).ok()? } else { usize::from(head >> 4) };
                let kind = head & 15;
                let mut items = Vec::new();
                for _ in 0..count {
                    items.push(match kind {
                        // In a list truth values have a byte each.
                        TRUE | FALSE => Value::Bool(self.byte()? == TRUE),
                        _ => self.value(kind, depth + 1)?,
                    });
                }
                Value::List(kind, items)
            }
            STRUCT => {
                let (mut fields, mut last) = (Vec::new(), 0i16);
                loop {
                    let head = self.byte()?;
                    if head == 0 {
                        break Value::Struct(fields);
                    }
                    last = match head >> 4 {
                        0 => i16::try_from(self.integer()?).ok()?,
                        delta => last.checked_add(i16::from(delta))?,
                    };
                    fields.push((last, self.value(head & 15, depth + 1)?));
                }
            }
            _ => return None,
        })
    }
}

/// The bytes of a value.
pub fn write(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    put(value, &mut out);
    out
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn integer(value: i64, out: &mut Vec<u8>) {
    varint((value << 1 ^ value >> 63) as u64, out);
}

fn put(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Bool(_) => {}
        Value::Int(3, number) => out.push(*number as u8),
        Value::Int(_, number) => integer(*number, out),
        Value::Double(bytes) => out.extend(bytes),
        Value::Binary(bytes) => {
            varint(bytes.len() as u64, out);
            out.extend(bytes);
        }
        Value::List(kind, items) => {
            match items.len() {
                count @ 0..15 => out.push((count as u8) << 4 | kind),
                count => {
                    out.push(0xf0 | kind);
                    varint(count as u64, out);
                }
            }
            for item in items {
                match item {
                    Value::Bool(truth) => out.push(if *truth { TRUE } else { FALSE }),
                    item => put(item, out),
                }
            }
        }
        Value::Struct(fields) => {
            let mut last = 0i16;
            for (number, value) in fields {
                match number.checked_sub(last) {
                    Some(delta @ 1..=15) => out.push((delta as u8) << 4 | value.kind()),
                    _ => {
                        out.push(value.kind());
                        integer(i64::from(*number), out);
                    }
                }
                last = *number;
                put(value, out);
            }
            out.push(0);
        }
    }
}
