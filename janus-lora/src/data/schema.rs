//! Which columns are asked for, and whether a file has them with a type that can be read as such.

use arrow::datatypes::{DataType, Field, Schema};

/// What a column is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// One image a row: `struct<bytes: binary, path: string>` as the Hugging Face `datasets` library writes it, plain
    /// binary, or a string that is the path of an image file, relative to the Parquet file's folder.
    Image,
    /// Any number of images a row: a list of what [`ColumnKind::Image`] reads, or one such image.
    ImageList,
    /// Text: a string, dictionary-encoded ones included.
    Text,
    /// A conversation: `list<struct<role: string, content: string>>`.
    Messages,
    /// Any number of boxes a row, four numbers each: `list<list<float>>`.
    Boxes,
    /// Any number of texts a row: `list<string>`.
    TextList,
}

impl ColumnKind {
    /// The types that fit, for messages.
    pub fn expected(self) -> &'static str {
        match self {
            ColumnKind::Image => {
                "`struct<bytes: binary, path: string>`, `binary`, or `string` (the path of an image file)"
            }
            ColumnKind::ImageList => {
                "a list of, or one, `struct<bytes: binary, path: string>`, `binary`, or `string` (the path of an image file)"
            }
            ColumnKind::Text => "`string`",
            ColumnKind::Messages => "`list<struct<role: string, content: string>>`",
            ColumnKind::Boxes => "`list<list<float>>` (x1, y1, x2, y2)",
            ColumnKind::TextList => "`list<string>`",
        }
    }

    fn fits(self, data_type: &DataType) -> bool {
        match self {
            ColumnKind::Image => is_image(data_type),
            ColumnKind::ImageList => is_image(data_type) || list_item(data_type).is_some_and(is_image),
            ColumnKind::Text => is_text(data_type),
            ColumnKind::Messages => match list_item(data_type) {
                Some(DataType::Struct(fields)) => ["role", "content"]
                    .iter()
                    .all(|name| fields.find(name).is_some_and(|(_, field)| is_text(field.data_type()))),
                _ => false,
            },
            ColumnKind::Boxes => list_item(data_type).and_then(list_item).is_some_and(is_number),
            ColumnKind::TextList => list_item(data_type).is_some_and(is_text),
        }
    }
}

/// A column that a task reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRequest {
    /// What the task calls it (`image`, `question`, ...).
    pub role: &'static str,
    /// What the file calls it.
    pub column: String,
    /// What it is read as.
    pub kind: ColumnKind,
    /// Whether the file must have it and every row a value in it. Without, a missing column or value is simply absent.
    pub required: bool,
}

impl ColumnRequest {
    /// A column that every row must have a value in.
    pub fn required(role: &'static str, column: impl Into<String>, kind: ColumnKind) -> Self {
        Self { role, column: column.into(), kind, required: true }
    }

    /// A column that may be missing, or null in places.
    pub fn optional(role: &'static str, column: impl Into<String>, kind: ColumnKind) -> Self {
        Self { role, column: column.into(), kind, required: false }
    }
}

/// What is wrong with a requested column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ColumnFault {
    /// The file has no such column.
    Missing {
        /// The task's name for it.
        role: &'static str,
        /// The name looked for.
        column: String,
        /// The columns there are.
        columns: Vec<String>,
    },
    /// The column is of a type that cannot be read as asked.
    Type {
        /// The task's name for it.
        role: &'static str,
        /// The column.
        column: String,
        /// Types that fit.
        expected: &'static str,
        /// Its type.
        got: String,
    },
}

/// Where each requested column stands in the schema (`None`: optional and not there), or everything that is wrong.
pub(crate) fn bind(schema: &Schema, requests: &[ColumnRequest]) -> Result<Vec<Option<usize>>, Vec<ColumnFault>> {
    let mut bound = Vec::with_capacity(requests.len());
    let mut faults = Vec::new();
    for ColumnRequest { role, column, kind, required } in requests {
        let found = schema.fields().iter().position(|field| field.name() == column);
        match found {
            Some(index) if !kind.fits(schema.field(index).data_type()) => faults.push(ColumnFault::Type {
                role,
                column: column.clone(),
                expected: kind.expected(),
                got: type_name(schema.field(index).data_type()),
            }),
            None if *required => faults.push(ColumnFault::Missing {
                role,
                column: column.clone(),
                columns: schema.fields().iter().map(|field| field.name().clone()).collect(),
            }),
            _ => {}
        }
        bound.push(found);
    }
    if faults.is_empty() { Ok(bound) } else { Err(faults) }
}

fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(plain(data_type), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn is_number(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Float32 | DataType::Float64 | DataType::Int32 | DataType::Int64)
}

fn is_binary(data_type: &DataType) -> bool {
    matches!(plain(data_type), DataType::Binary | DataType::LargeBinary | DataType::BinaryView)
}

fn is_image(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => {
            let field = |name: &str| fields.find(name).map(|(_, field)| field.data_type());
            match (field("bytes"), field("path")) {
                (None, None) => false,
                (bytes, path) => bytes.is_none_or(is_binary) && path.is_none_or(is_text),
            }
        }
        other => is_binary(other) || is_text(other),
    }
}

/// The type of a list's elements, where it is one that is read.
pub(crate) fn list_item(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => Some(item.data_type()),
        _ => None,
    }
}

/// A type as `datasets` and pyarrow spell it: `list<struct<role: string, content: string>>`, `int64`, `double`.
pub fn type_name(data_type: &DataType) -> String {
    let join = |fields: &mut dyn Iterator<Item = &Field>| {
        fields.map(|f| format!("{}: {}", f.name(), type_name(f.data_type()))).collect::<Vec<_>>().join(", ")
    };
    match data_type {
        DataType::Utf8 => "string".into(),
        DataType::LargeUtf8 => "large_string".into(),
        DataType::Utf8View => "string_view".into(),
        DataType::LargeBinary => "large_binary".into(),
        DataType::BinaryView => "binary_view".into(),
        DataType::Boolean => "bool".into(),
        DataType::Float16 => "halffloat".into(),
        DataType::Float32 => "float".into(),
        DataType::Float64 => "double".into(),
        DataType::List(item) => format!("list<{}>", type_name(item.data_type())),
        DataType::LargeList(item) => format!("large_list<{}>", type_name(item.data_type())),
        DataType::FixedSizeList(item, size) => format!("fixed_size_list<{}>[{size}]", type_name(item.data_type())),
        DataType::Struct(fields) => format!("struct<{}>", join(&mut fields.iter().map(AsRef::as_ref))),
        DataType::Dictionary(keys, values) => {
            format!("dictionary<values={}, indices={}>", type_name(values), type_name(keys))
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

/// The name nearest to one that does not exist, if any is near: at most a third of its letters differ, or only the case does.
pub(crate) fn nearest<'a>(name: &str, candidates: &'a [String]) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let best = candidates.iter().map(|c| (distance(&lower, &c.to_lowercase()), c)).min_by_key(|(d, _)| *d)?;
    (best.0 <= ((name.chars().count() + 1) / 3).max(1)).then_some(best.1.as_str())
}

/// Levenshtein's: insertions, deletions and replacements that lead from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::Fields;

    fn image_struct(bytes: DataType) -> DataType {
        DataType::Struct(Fields::from(vec![Field::new("bytes", bytes, true), Field::new("path", DataType::Utf8, true)]))
    }

    fn list_of(item: DataType) -> DataType {
        DataType::List(Field::new("item", item, true).into())
    }

    fn dictionary(values: DataType) -> DataType {
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(values))
    }

    #[test]
    fn kinds_take_their_types_and_no_others() {
        let message = Fields::from(vec![
            Field::new("role", DataType::Utf8, true),
            Field::new("content", dictionary(DataType::Utf8), true),
        ]);
        let (image, list) = (ColumnKind::Image, ColumnKind::ImageList);
        for good in [DataType::Binary, DataType::LargeBinary, DataType::Utf8, image_struct(DataType::LargeBinary)] {
            assert!(image.fits(&good), "{good:?}");
            assert!(list.fits(&good) && list.fits(&list_of(good.clone())), "{good:?}");
            assert!(!image.fits(&list_of(good)));
        }
        for bad in
            [DataType::Int64, DataType::Struct(message.clone()), image_struct(DataType::Int64), DataType::Boolean]
        {
            assert!(!image.fits(&bad), "{bad:?}");
        }
        for good in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View, dictionary(DataType::LargeUtf8)] {
            assert!(ColumnKind::Text.fits(&good), "{good:?}");
        }
        for bad in [DataType::Int64, DataType::Binary, list_of(DataType::Utf8), dictionary(DataType::Int64)] {
            assert!(!ColumnKind::Text.fits(&bad), "{bad:?}");
        }
        assert!(ColumnKind::Messages.fits(&list_of(DataType::Struct(message.clone()))));
        assert!(!ColumnKind::Messages.fits(&DataType::Struct(message)));
        assert!(!ColumnKind::Messages.fits(&list_of(DataType::Utf8)));
        for number in [DataType::Float32, DataType::Float64, DataType::Int64] {
            assert!(ColumnKind::Boxes.fits(&list_of(list_of(number.clone()))), "{number:?}");
            assert!(!ColumnKind::Boxes.fits(&list_of(number)));
        }
        let four = DataType::FixedSizeList(Field::new("item", DataType::Float32, true).into(), 4);
        assert!(ColumnKind::Boxes.fits(&list_of(four)));
        assert!(!ColumnKind::Boxes.fits(&list_of(list_of(DataType::Utf8))));
        assert!(ColumnKind::TextList.fits(&list_of(dictionary(DataType::Utf8))));
        assert!(!ColumnKind::TextList.fits(&DataType::Utf8) && !ColumnKind::TextList.fits(&list_of(DataType::Int64)));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let schema = Schema::new(vec![
            Field::new("picture", DataType::Int64, true),
            Field::new("Question", DataType::Utf8, true),
        ]);
        let faults = bind(
            &schema,
            &[
                ColumnRequest::required("image", "picture", ColumnKind::Image),
                ColumnRequest::required("question", "question", ColumnKind::Text),
                ColumnRequest::optional("answer", "answer", ColumnKind::Text),
            ],
        )
        .unwrap_err();
        let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "column `picture` (for image) has type `int64`, expected `struct<bytes: binary, path: string>`, `binary`, or \
                 `string` (the path of an image file)",
                "no column `question` (for question), there are `picture`, `Question`",
            ]
        );
    }

    #[test]
    fn types_are_spelt_as_their_writers_know_them() {
        assert_eq!(type_name(&image_struct(DataType::Binary)), "struct<bytes: binary, path: string>");
        assert_eq!(type_name(&list_of(list_of(DataType::Float32))), "list<list<float>>");
        assert_eq!(type_name(&dictionary(DataType::Utf8)), "dictionary<values=string, indices=int32>");
        assert_eq!(type_name(&DataType::Int64), "int64");
    }

    #[test]
    fn only_near_names_are_proposed() {
        let names = ["image".to_string(), "question".into(), "answer".into()];
        assert_eq!(nearest("imgae", &names), Some("image"));
        assert_eq!(nearest("images", &names), Some("image"));
        assert_eq!(nearest("Answer", &names), Some("answer"));
        assert_eq!(nearest("qestion", &names), Some("question"));
        assert_eq!(nearest("caption", &names), None);
        assert_eq!(nearest("x", &[]), None);
    }
}
