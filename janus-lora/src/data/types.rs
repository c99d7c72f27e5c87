//! Types of Arrow: what means the same under other names, how pyarrow spells them, and what lies below a column.

use arrow::array::{Array, ArrayRef, AsArray, ListArray, make_array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, FieldRef, Fields, IntervalUnit, Schema, TimeUnit};
use arrow::error::ArrowError;
use serde_json::Value;

/// The key of a schema's metadata under which the Hugging Face `datasets` library describes columns.
const FEATURES_KEY: &str = "huggingface";

/// Longest description that is read: a hundred thousand labels take two megabytes, and a byte up to twenty in memory.
const MAX_FEATURES_BYTES: usize = 8 << 20;

/// Longest type that a message shows, in characters.
const MAX_SHOWN_CHARS: usize = 200;

/// The type itself, of a dictionary that of its values.
fn plain(data_type: &DataType) -> &DataType {
    match data_type {
        DataType::Dictionary(_, values) => values,
        other => other,
    }
}

/// A column of nothing but nulls, which fits wherever a value may be null.
pub(super) fn is_null(data_type: &DataType) -> bool {
    matches!(plain(data_type), DataType::Null)
}

pub(super) fn is_text(data_type: &DataType) -> bool {
    is_null(data_type) || matches!(plain(data_type), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// Whether values are numbers: integers and floats of any width, decimals.
pub(super) fn is_number(data_type: &DataType) -> bool {
    let plain = plain(data_type);
    is_null(plain) || plain.is_numeric()
}

pub(super) fn is_binary(data_type: &DataType) -> bool {
    is_null(data_type)
        || matches!(
            plain(data_type),
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_)
        )
}

pub(super) fn is_image(data_type: &DataType) -> bool {
    match data_type {
        DataType::Struct(fields) => match (field(fields, "bytes"), field(fields, "path")) {
            (None, None) => false,
            (bytes, path) => bytes.is_none_or(is_binary) && path.is_none_or(is_text),
        },
        other => is_binary(other) || is_text(other),
    }
}

/// The type of a struct's field.
pub(super) fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a DataType> {
    fields.find(name).map(|(_, field)| field.data_type())
}

/// The type of a list's elements; of a column of nulls, nulls.
pub(super) fn list_item(data_type: &DataType) -> Option<&DataType> {
    list_field(data_type).map(|item| item.data_type()).or(is_null(data_type).then_some(&DataType::Null))
}

fn list_field(data_type: &DataType) -> Option<&FieldRef> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::FixedSizeList(item, _)
        | DataType::ListView(item)
        | DataType::LargeListView(item) => Some(item),
        _ => None,
    }
}

/// The field as it is to be read, so that what means the same comes as the same: texts and bytes as views into their pages
/// (a dictionary's values would otherwise be copied for every row that names them: a page of a few bytes could unpack to
/// gigabytes), lists of any kind as lists.
pub(super) fn as_read(field: &FieldRef) -> FieldRef {
    let data_type = match plain(field.data_type()) {
        DataType::Utf8 | DataType::LargeUtf8 => DataType::Utf8View,
        DataType::Binary | DataType::LargeBinary => DataType::BinaryView,
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(as_read).collect()),
        DataType::Map(entries, ordered) => DataType::Map(as_read(entries), *ordered),
        other => match list_field(other) {
            Some(item) => DataType::List(as_read(item)),
            None => other.clone(),
        },
    };
    Field::clone(field).with_data_type(data_type).into()
}

/// A column, or what lies below one: a field of a struct, or of every struct of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The column's number.
    pub(super) root: usize,
    /// Numbers of fields on the way down.
    pub(super) path: Vec<usize>,
    /// What lies there: of a struct's field in a list, a list.
    pub(super) data_type: DataType,
    /// Names of the values, where `datasets` knows the column as labels.
    pub(super) names: Option<Vec<String>>,
}

/// Where `name` lies: a column of this name, or `column.field`.
pub(super) fn find(schema: &Schema, name: &str) -> Option<Place> {
    let number = |name: &str| schema.fields().iter().position(|field| field.name() == name);
    let (root, rest) = match number(name) {
        Some(root) => (root, None),
        None => {
            let mut dots = name.match_indices('.');
            dots.find_map(|(dot, _)| Some((number(&name[..dot])?, Some(&name[dot + 1..]))))?
        }
    };
    let mut names = vec![schema.field(root).name().as_str()];
    names.extend(rest.into_iter().flat_map(|rest| rest.split('.')));
    let mut path = Vec::new();
    let data_type = descend(schema.field(root).data_type(), &names[1..], &mut path)?;
    // The description may have megabytes: it is parsed for columns of numbers alone.
    let names = if is_of_numbers(&data_type) { label_names(schema, &names) } else { None };
    Some(Place { root, path, data_type, names })
}

/// Whether these are numbers, or lists of them at any depth.
fn is_of_numbers(data_type: &DataType) -> bool {
    let mut inner = plain(data_type);
    while let Some(item) = list_field(inner) {
        inner = plain(item.data_type());
    }
    inner.is_numeric()
}

fn descend(data_type: &DataType, names: &[&str], path: &mut Vec<usize>) -> Option<DataType> {
    let Some((first, rest)) = names.split_first() else { return Some(data_type.clone()) };
    // Whatever lies below nulls is null.
    if is_null(data_type) {
        return Some(DataType::Null);
    }
    if let DataType::Struct(fields) = data_type {
        let (number, field) = fields.find(first)?;
        path.push(number);
        return descend(field.data_type(), rest, path);
    }
    let item = descend(list_field(data_type)?.data_type(), names, path)?;
    Some(DataType::List(Field::new_list_field(item, true).into()))
}

/// The values at the end of a path of numbers of fields; `array` came as [`as_read`] asks.
pub(super) fn reach(array: &ArrayRef, path: &[usize]) -> Result<ArrayRef, ArrowError> {
    let Some((first, rest)) = path.split_first() else { return Ok(array.clone()) };
    if let Some(parts) = array.as_struct_opt() {
        let missing = || ArrowError::SchemaError(format!("a struct has no field {first}"));
        let field = parts.columns().get(*first).ok_or_else(missing)?;
        return reach(&with_nulls(field, parts.nulls())?, rest);
    }
    let Some(list) = array.as_list_opt::<i32>() else {
        return Err(ArrowError::SchemaError(format!("`{}` has no fields", type_name(array.data_type()))));
    };
    let items = reach(list.values(), path)?;
    let field = Field::new_list_field(items.data_type().clone(), true);
    Ok(std::sync::Arc::new(ListArray::try_new(field.into(), list.offsets().clone(), items, list.nulls().cloned())?))
}

/// The array with a null wherever the struct around it is one.
fn with_nulls(array: &ArrayRef, around: Option<&NullBuffer>) -> Result<ArrayRef, ArrowError> {
    if around.is_none() || array.data_type() == &DataType::Null {
        return Ok(array.clone());
    }
    let nulls = NullBuffer::union(array.nulls(), around);
    Ok(make_array(array.to_data().into_builder().nulls(nulls).build()?))
}

/// The names of a `ClassLabel`, from what `datasets` keeps in the schema's metadata.
fn label_names(schema: &Schema, path: &[&str]) -> Option<Vec<String>> {
    let text = schema.metadata().get(FEATURES_KEY).filter(|text| text.len() <= MAX_FEATURES_BYTES)?;
    let features: Value = serde_json::from_str(text).ok()?;
    let mut feature = features.get("info")?.get("features")?;
    for name in path {
        feature = element(feature).get(name)?;
    }
    let feature = element(feature);
    if feature.get("_type")? != "ClassLabel" {
        return None;
    }
    let text = |name: &Value| name.as_str().map(str::to_owned);
    match feature.get("names")? {
        Value::Array(names) => names.iter().map(text).collect(),
        // As the card of a data set has them: by number.
        Value::Object(names) => (0..names.len()).map(|number| text(names.get(&number.to_string())?)).collect(),
        _ => None,
    }
}

/// What a description of lists says of their elements; any other description itself.
fn element(mut feature: &Value) -> &Value {
    loop {
        feature = match (feature, feature.get("_type").and_then(Value::as_str), feature.get("feature")) {
            (Value::Array(one), ..) if one.len() == 1 => &one[0],
            (_, Some("Sequence" | "List" | "LargeList"), Some(inner)) => inner,
            _ => return feature,
        };
    }
}

/// A type as pyarrow spells it: `list<item: struct<role: string, content: string>>`, `int64`, `double`. What is very long
/// is cut.
pub fn type_name(data_type: &DataType) -> String {
    let name = full_name(data_type);
    match name.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

fn full_name(data_type: &DataType) -> String {
    let unit = |unit: &TimeUnit| match unit {
        TimeUnit::Second => "s",
        TimeUnit::Millisecond => "ms",
        TimeUnit::Microsecond => "us",
        TimeUnit::Nanosecond => "ns",
    };
    match data_type {
        DataType::Utf8 => "string".into(),
        DataType::LargeUtf8 => "large_string".into(),
        DataType::Utf8View => "string_view".into(),
        DataType::LargeBinary => "large_binary".into(),
        DataType::BinaryView => "binary_view".into(),
        DataType::FixedSizeBinary(size) => format!("fixed_size_binary[{size}]"),
        DataType::Boolean => "bool".into(),
        DataType::Float16 => "halffloat".into(),
        DataType::Float32 => "float".into(),
        DataType::Float64 => "double".into(),
        DataType::Date32 => "date32[day]".into(),
        DataType::Date64 => "date64[ms]".into(),
        DataType::Time32(of) => format!("time32[{}]", unit(of)),
        DataType::Time64(of) => format!("time64[{}]", unit(of)),
        DataType::Duration(of) => format!("duration[{}]", unit(of)),
        DataType::Timestamp(of, None) => format!("timestamp[{}]", unit(of)),
        DataType::Timestamp(of, Some(zone)) => format!("timestamp[{}, tz={zone}]", unit(of)),
        DataType::Interval(IntervalUnit::YearMonth) => "month_interval".into(),
        DataType::Interval(IntervalUnit::DayTime) => "day_time_interval".into(),
        DataType::Interval(IntervalUnit::MonthDayNano) => "month_day_nano_interval".into(),
        DataType::Decimal32(precision, scale) => format!("decimal32({precision}, {scale})"),
        DataType::Decimal64(precision, scale) => format!("decimal64({precision}, {scale})"),
        DataType::Decimal128(precision, scale) => format!("decimal128({precision}, {scale})"),
        DataType::Decimal256(precision, scale) => format!("decimal256({precision}, {scale})"),
        DataType::List(item) => format!("list<{}>", field_name(item)),
        DataType::LargeList(item) => format!("large_list<{}>", field_name(item)),
        DataType::ListView(item) => format!("list_view<{}>", field_name(item)),
        DataType::LargeListView(item) => format!("large_list_view<{}>", field_name(item)),
        DataType::FixedSizeList(item, size) => format!("fixed_size_list<{}>[{size}]", field_name(item)),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields.iter().map(|field| field_name(field)).collect();
            format!("struct<{}>", fields.join(", "))
        }
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(pair) => {
                let types: Vec<String> = pair.iter().map(|field| full_name(field.data_type())).collect();
                format!("map<{}>", types.join(", "))
            }
            other => format!("map<{}>", full_name(other)),
        },
        DataType::Dictionary(keys, values) => {
            format!("dictionary<values={}, indices={}, ordered=0>", full_name(values), full_name(keys))
        }
        other => format!("{other:?}").to_lowercase(),
    }
}

fn field_name(field: &Field) -> String {
    let required = if field.is_nullable() { "" } else { " not null" };
    format!("{}: {}{required}", field.name(), full_name(field.data_type()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn list(item: DataType) -> DataType {
        DataType::List(Field::new("item", item, true).into())
    }

    /// As `print` of pyarrow 26 has them.
    #[test]
    fn types_are_spelt_as_pyarrow_spells_them() {
        let nullable = |name: &str, of: DataType| Field::new(name, of, true);
        let image = Fields::from(vec![nullable("bytes", DataType::Binary), nullable("path", DataType::Utf8)]);
        let pair = Fields::from(vec![nullable("key", DataType::Utf8), nullable("value", DataType::Int64)]);
        let boxes = DataType::FixedSizeList(nullable("item", DataType::Float32).into(), 4);
        for (data_type, expected) in [
            (list(DataType::Float64), "list<item: double>"),
            (list(boxes), "list<item: fixed_size_list<item: float>[4]>"),
            (DataType::Struct(image), "struct<bytes: binary, path: string>"),
            (DataType::List(Field::new("element", DataType::Int32, false).into()), "list<element: int32 not null>"),
            (DataType::ListView(nullable("item", DataType::Int8).into()), "list_view<item: int8>"),
            (
                DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
                "dictionary<values=string, indices=int32, ordered=0>",
            ),
            (DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())), "timestamp[ns, tz=UTC]"),
            (DataType::Decimal128(10, 2), "decimal128(10, 2)"),
            (DataType::Map(nullable("entries", DataType::Struct(pair)).into(), false), "map<string, int64>"),
            (DataType::Float16, "halffloat"),
            (DataType::Date32, "date32[day]"),
            (DataType::FixedSizeBinary(16), "fixed_size_binary[16]"),
            (DataType::Null, "null"),
            (DataType::UInt8, "uint8"),
        ] {
            assert_eq!(type_name(&data_type), expected);
        }
        let wide = Fields::from_iter((0..500).map(|n| nullable(&format!("f{n}"), DataType::Int8)));
        assert!(type_name(&DataType::Struct(wide)).chars().count() <= MAX_SHOWN_CHARS + 1);
    }

    #[test]
    fn names_of_labels_are_found_however_deep_they_lie() {
        let label = r#"{"names": ["bolt", "nut"], "_type": "ClassLabel"}"#;
        let features = format!(
            r#"{{"info": {{"features": {{
                "label": {label},
                "by number": {{"names": {{"0": "a", "1": "b"}}, "_type": "ClassLabel"}},
                "many": {{"feature": {label}, "length": -1, "_type": "Sequence"}},
                "listed": {{"feature": {label}, "_type": "List"}},
                "bracketed": [{label}],
                "objects": {{"feature": {{"kind": {label}, "n": {{"dtype": "int8", "_type": "Value"}}}}, "_type": "Sequence"}},
                "deep": {{"a": {{"b": {label}}}}}
            }}}}}}"#
        );
        let metadata = std::collections::HashMap::from([(FEATURES_KEY.to_owned(), features)]);
        let schema = Schema::new(Fields::empty()).with_metadata(metadata);
        let names = |path: &[&str]| label_names(&schema, path);
        for path in [&["label"][..], &["many"], &["listed"], &["bracketed"], &["objects", "kind"], &["deep", "a", "b"]]
        {
            assert_eq!(names(path).unwrap(), ["bolt", "nut"], "{path:?}");
        }
        assert_eq!(names(&["by number"]).unwrap(), ["a", "b"]);
        for path in [&["objects"][..], &["objects", "n"], &["other"], &["deep", "a"]] {
            assert_eq!(names(path), None, "{path:?}");
        }
    }
}
