//! Which columns are asked for, and whether a file has them with a type that can be read as such.

use arrow::datatypes::{DataType, Schema};

use super::conversations::fits_turns;
pub use super::types::type_name;
use super::types::{Place, find, is_image, is_number, is_text, list_item};

/// What a column is read as. Types of Arrow that mean the same are the same: large ones, views, dictionaries, lists of any
/// kind, numbers of any width; a column of type null holds nothing but nulls of any type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnKind {
    /// One image a row: `struct<bytes: binary, path: string>` as the Hugging Face `datasets` library writes it, plain
    /// binary, or a string that is the path of an image file.
    Image,
    /// Any number of images a row: a list of what [`ColumnKind::Image`] reads, or one such image.
    ImageList,
    /// Text: a string, or labels whose names `datasets` keeps with the file.
    Text,
    /// A label: text, or a number or truth value, which is read as its text.
    Label,
    /// A conversation: `list<struct<role: string, content: string>>`, with `from` and `value` as well, `content` perhaps in
    /// parts of text and pictures; a struct of lists that means the same; or all of it as JSON in a string.
    Messages,
    /// A conversation whose parts hold their pictures themselves. Of several files, one has to show it by its type.
    PicturedMessages,
    /// Any number of boxes a row, four numbers each: `list<list<float>>`.
    Boxes,
    /// Any number of labels a row: `list<string>`, or a list of what else [`ColumnKind::Label`] reads.
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
            ColumnKind::Label => "`string`, an integer or `bool`",
            ColumnKind::Messages => {
                "`list<struct<role: string, content: string>>`, `list<struct<from: string, value: string>>`, or the same as JSON in a `string`"
            }
            ColumnKind::PicturedMessages => {
                "`list<struct<role: string, content: list<struct<type: string, text: string, image: struct<bytes: binary, path: string>>>>>`"
            }
            ColumnKind::Boxes => "`list<list<float>>` (x1, y1, x2, y2)",
            ColumnKind::TextList => "`list<string>`, or a list of integers or `bool`",
        }
    }

    /// Whether a type fits; `named`: whether the file has names for its numbers.
    pub(super) fn fits(self, data_type: &DataType, named: bool) -> bool {
        let is_label = |of: &DataType| is_text(of) || is_number(of) || matches!(of, DataType::Boolean);
        match self {
            ColumnKind::Image => is_image(data_type),
            ColumnKind::ImageList => is_image(data_type) || list_item(data_type).is_some_and(is_image),
            ColumnKind::Text => is_text(data_type) || (named && is_number(data_type)),
            ColumnKind::Label => is_label(data_type),
            ColumnKind::Messages => is_text(data_type) || fits_turns(data_type, false),
            ColumnKind::PicturedMessages => fits_turns(data_type, true),
            ColumnKind::Boxes => list_item(data_type).and_then(list_item).is_some_and(is_number),
            ColumnKind::TextList => list_item(data_type).is_some_and(is_label),
        }
    }
}

/// A column that a task reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnRequest {
    /// What the task calls it (`image`, `question`, ...).
    pub role: &'static str,
    /// What the file calls it; `column.field` reaches into a struct or a list of structs.
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

    /// As it is asked of a further file of a table: one without a picture need not say by its types that there may be some.
    pub(super) fn of_a_further_file(&self) -> Self {
        let kind = match self.kind {
            ColumnKind::PicturedMessages => ColumnKind::Messages,
            other => other,
        };
        Self { kind, ..self.clone() }
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
    /// The file has several columns of the name.
    Repeated {
        /// The task's name for it.
        role: &'static str,
        /// The name.
        column: String,
        /// How many there are.
        count: usize,
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

/// Where each requested column lies (`None`: optional and not there), or everything that is wrong.
pub(crate) fn bind(schema: &Schema, requests: &[ColumnRequest]) -> Result<Vec<Option<Place>>, Vec<ColumnFault>> {
    let mut bound = Vec::with_capacity(requests.len());
    let mut faults = Vec::new();
    for request in requests {
        match bind_one(schema, request) {
            Ok(place) => bound.push(place),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(bound) } else { Err(faults) }
}

/// [`bind`] for one request.
pub(super) fn bind_one(schema: &Schema, request: &ColumnRequest) -> Result<Option<Place>, ColumnFault> {
    let ColumnRequest { role, column, kind, required } = request;
    let names = || schema.fields().iter().map(|field| field.name());
    let Some(place) = find(schema, column) else {
        return match required {
            true => Err(ColumnFault::Missing { role, column: column.clone(), columns: names().cloned().collect() }),
            false => Ok(None),
        };
    };
    let root = schema.field(place.root).name();
    let count = names().filter(|name| *name == root).count();
    if count > 1 {
        return Err(ColumnFault::Repeated { role, column: root.clone(), count });
    }
    if !kind.fits(&place.data_type, place.names.is_some()) {
        let got = type_name(&place.data_type);
        return Err(ColumnFault::Type { role, column: column.clone(), expected: kind.expected(), got });
    }
    Ok(Some(place))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{Field, Fields};

    fn image_struct(bytes: DataType, path: DataType) -> DataType {
        DataType::Struct(Fields::from(vec![Field::new("bytes", bytes, true), Field::new("path", path, true)]))
    }

    fn list_of(item: DataType) -> DataType {
        DataType::List(Field::new("item", item, true).into())
    }

    /// Every kind of list.
    fn lists_of(item: DataType) -> [DataType; 5] {
        let field = || Field::new("item", item.clone(), true).into();
        [
            DataType::List(field()),
            DataType::LargeList(field()),
            DataType::FixedSizeList(field(), 4),
            DataType::ListView(field()),
            DataType::LargeListView(field()),
        ]
    }

    fn dictionary(values: DataType) -> DataType {
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(values))
    }

    fn fits(kind: ColumnKind, data_type: &DataType) -> bool {
        kind.fits(data_type, false)
    }

    #[test]
    fn kinds_take_their_types_and_no_others() {
        let message = Fields::from(vec![
            Field::new("role", DataType::Utf8, true),
            Field::new("content", dictionary(DataType::Utf8), true),
        ]);
        let (image, list) = (ColumnKind::Image, ColumnKind::ImageList);
        for good in [
            DataType::Binary,
            DataType::LargeBinary,
            DataType::BinaryView,
            dictionary(DataType::Binary),
            DataType::Utf8,
            image_struct(DataType::LargeBinary, DataType::Utf8),
            image_struct(DataType::Binary, DataType::Null),
            image_struct(DataType::Null, DataType::LargeUtf8),
        ] {
            assert!(fits(image, &good) && fits(list, &good), "{good:?}");
            for listed in lists_of(good) {
                assert!(fits(list, &listed) && !fits(image, &listed), "{listed:?}");
            }
        }
        for bad in [
            DataType::Int64,
            DataType::Struct(message.clone()),
            image_struct(DataType::Int64, DataType::Utf8),
            DataType::Boolean,
        ] {
            assert!(!fits(image, &bad), "{bad:?}");
        }
        for good in [DataType::Utf8, DataType::LargeUtf8, DataType::Utf8View, dictionary(DataType::LargeUtf8)] {
            assert!(fits(ColumnKind::Text, &good) && fits(ColumnKind::Label, &good), "{good:?}");
        }
        for bad in [DataType::Int64, DataType::Binary, list_of(DataType::Utf8), dictionary(DataType::Int64)] {
            assert!(!fits(ColumnKind::Text, &bad), "{bad:?}");
        }
        assert!(ColumnKind::Text.fits(&DataType::Int64, true), "a number with a name is text");
        for listed in lists_of(DataType::Struct(message.clone())) {
            assert!(fits(ColumnKind::Messages, &listed), "{listed:?}");
        }
        assert!(!fits(ColumnKind::Messages, &DataType::Struct(message)));
        assert!(!fits(ColumnKind::Messages, &list_of(DataType::Utf8)));
        for number in [
            DataType::Float16,
            DataType::Float32,
            DataType::Float64,
            DataType::UInt8,
            DataType::Int64,
            DataType::Decimal128(8, 2),
            dictionary(DataType::Int16),
        ] {
            for (inner, outer) in lists_of(number.clone()).into_iter().zip(lists_of(list_of(number.clone()))) {
                assert!(
                    fits(ColumnKind::Boxes, &list_of(inner.clone())) && fits(ColumnKind::Boxes, &outer),
                    "{inner:?}"
                );
                assert!(!fits(ColumnKind::Boxes, &inner));
                assert!(fits(ColumnKind::TextList, &inner) && fits(ColumnKind::Label, &number));
            }
        }
        assert!(!fits(ColumnKind::Boxes, &list_of(list_of(DataType::Utf8))));
        assert!(fits(ColumnKind::TextList, &list_of(dictionary(DataType::Utf8))));
        assert!(
            !fits(ColumnKind::TextList, &DataType::Utf8) && !fits(ColumnKind::TextList, &list_of(DataType::Binary))
        );
    }

    #[test]
    fn a_type_of_nulls_fits_at_any_depth() {
        for kind in [
            ColumnKind::Image,
            ColumnKind::ImageList,
            ColumnKind::Text,
            ColumnKind::Label,
            ColumnKind::Messages,
            ColumnKind::Boxes,
            ColumnKind::TextList,
        ] {
            assert!(fits(kind, &DataType::Null), "{kind:?}");
        }
        for kind in [ColumnKind::ImageList, ColumnKind::Messages, ColumnKind::Boxes, ColumnKind::TextList] {
            assert!(fits(kind, &list_of(DataType::Null)), "{kind:?}");
        }
        assert!(fits(ColumnKind::Boxes, &list_of(list_of(DataType::Null))));
        assert!(fits(ColumnKind::Image, &image_struct(DataType::Null, DataType::Null)));
    }

    #[test]
    fn every_fault_is_told_at_once() {
        let schema = Schema::new(vec![
            Field::new("picture", DataType::Int64, true),
            Field::new("Question", DataType::Utf8, true),
            Field::new("answer", DataType::Utf8, true),
            Field::new("answer", DataType::Utf8, true),
        ]);
        let faults = bind(
            &schema,
            &[
                ColumnRequest::required("image", "picture", ColumnKind::Image),
                ColumnRequest::required("question", "question", ColumnKind::Text),
                ColumnRequest::optional("answer", "answer", ColumnKind::Text),
                ColumnRequest::optional("hint", "hint", ColumnKind::Text),
            ],
        )
        .unwrap_err();
        let text: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "column `picture` (for image) has type `int64`, expected `struct<bytes: binary, path: string>`, `binary`, or \
                 `string` (the path of an image file)",
                "no column `question` (for question), there are `picture`, `Question`, `answer`, `answer`",
                "there are 2 columns `answer` (for answer), expected one",
            ]
        );
    }
}
