//! The columns of a batch, taken apart so that rows can be read from them: texts, images, conversations, boxes.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{ArrowPrimitiveType, DataType, Float16Type, Float32Type, Float64Type};
use arrow::error::ArrowError;
use janus_core::input::{self, InputError};

use super::conversations::Conversations;
use super::reader::{Asker, MAX_IMAGE_BYTES};
use super::rejected::{RowFault, cut};
use super::row::EncodedImage;
use super::schema::ColumnKind;
use super::types::{Place, is_null, is_text, reach, type_name};
use super::written;

/// Most boxes of a row, and most labels of them.
pub(super) const MAX_BOXES: usize = 4096;

/// A column taken apart once a batch, so that rows are read from it without further looking at types.
pub(super) enum Values {
    /// A column of nothing but nulls.
    Null,
    Text(Texts),
    Image(Images),
    ImageList(Lists, Images),
    Messages(Conversations),
    Boxes(Boxes),
    TextList(Lists, Texts),
}

impl Values {
    /// The values of a column of the file, `root`, or of what lies below it.
    pub(super) fn new(root: &ArrayRef, place: &Place, kind: ColumnKind) -> Result<Self, ArrowError> {
        let array = &reach(root, &place.path)?;
        let texts = |array: &ArrayRef| Texts::new(array, place.names.as_deref());
        if is_null(array.data_type()) {
            return Ok(Values::Null);
        }
        Ok(match kind {
            ColumnKind::Text | ColumnKind::Label => Values::Text(texts(array)?),
            ColumnKind::Image => Values::Image(Images::new(array)),
            ColumnKind::ImageList => match Lists::new(array) {
                Some((list, items)) => Values::ImageList(list, Images::new(&items)),
                None => Values::Image(Images::new(array)),
            },
            ColumnKind::Boxes => Values::Boxes(Boxes::new(array)?),
            ColumnKind::TextList => {
                let (list, items) = Lists::new(array).ok_or_else(|| unexpected(array))?;
                Values::TextList(list, texts(&items)?)
            }
            ColumnKind::Messages | ColumnKind::PicturedMessages => Values::Messages(Conversations::new(array)?),
        })
    }
}

impl Values {
    /// Whether there is no value in any row; not of every kind is it known without reading them.
    pub(super) fn is_null_throughout(&self) -> bool {
        match self {
            Values::Null => true,
            Values::Text(texts) => texts.values.logical_null_count() == texts.values.len(),
            Values::Image(images) => {
                let all_null = |array: &ArrayRef| array.logical_null_count() == array.len();
                images.bytes.as_ref().is_none_or(all_null) && images.path.as_ref().is_none_or(all_null)
            }
            Values::ImageList(list, _) | Values::TextList(list, _) => {
                list.nulls.as_ref().is_some_and(|nulls| nulls.null_count() == nulls.len())
            }
            Values::Messages(_) | Values::Boxes(_) => false,
        }
    }
}

impl Values {
    /// Whether there may be pictures in files that it names.
    pub(super) fn names_files(&self) -> bool {
        match self {
            Values::Image(images) | Values::ImageList(_, images) => images.names_files(),
            Values::Messages(conversations) => conversations.names_files(),
            Values::Null | Values::Text(_) | Values::Boxes(_) | Values::TextList(..) => false,
        }
    }
}

/// The schema was checked, so a batch of another type than the schema says is the reader's fault or the file's.
pub(super) fn unexpected(array: &dyn Array) -> ArrowError {
    ArrowError::SchemaError(format!("a batch came as `{}`, unlike the file's schema", type_name(array.data_type())))
}

/// The elements of a row, if they are no more than `limit`.
pub(super) fn few(
    range: Range<usize>,
    column: &str,
    what: &'static str,
    limit: usize,
) -> Result<Range<usize>, RowFault> {
    match range.len() {
        count if count > limit => Err(RowFault::TooMany { column: column.into(), what, count, limit }),
        _ => Ok(range),
    }
}

/// Where each row's elements lie among all elements.
pub(super) struct Lists {
    nulls: Option<NullBuffer>,
    offsets: Vec<usize>,
}

impl Lists {
    /// A list's rows and its elements; nulls alone are lists that are null.
    pub(super) fn new(array: &ArrayRef) -> Option<(Self, ArrayRef)> {
        if is_null(array.data_type()) {
            let nulls = Some(NullBuffer::new_null(array.len()));
            return Some((Lists { nulls, offsets: vec![0; array.len() + 1] }, array.slice(0, 0)));
        }
        let list = array.as_list_opt::<i32>()?;
        let offsets = list.value_offsets().iter().map(|offset| usize::try_from(*offset).unwrap_or(0)).collect();
        Some((Lists { nulls: list.nulls().cloned(), offsets }, list.values().clone()))
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// Elements of a row; none for a null list.
    pub(super) fn range(&self, row: usize) -> Range<usize> {
        if self.is_null(row) {
            return 0..0;
        }
        self.offsets[row]..self.offsets[row + 1]
    }
}

/// Lists of boxes.
pub(super) struct Boxes {
    rows: Lists,
    corners: Lists,
    numbers: Float32Array,
}

impl Boxes {
    fn new(array: &ArrayRef) -> Result<Self, ArrowError> {
        let (rows, items) = Lists::new(array).ok_or_else(|| unexpected(array))?;
        let (corners, numbers) = Lists::new(&items).ok_or_else(|| unexpected(&items))?;
        let numbers = cast(&numbers, &DataType::Float32)?;
        let numbers = numbers.as_primitive_opt::<Float32Type>().ok_or_else(|| unexpected(&numbers))?.clone();
        Ok(Self { rows, corners, numbers })
    }

    pub(super) fn read(&self, index: usize, column: &str) -> Result<Option<Vec<[f32; 4]>>, RowFault> {
        if self.rows.is_null(index) {
            return Ok(None);
        }
        let items = few(self.rows.range(index), column, "boxes", MAX_BOXES)?;
        let corners = |item: usize| {
            let range = self.corners.range(item);
            let count = range.len();
            let numbers: Option<Vec<f32>> =
                range.map(|place| self.numbers.is_valid(place).then(|| self.numbers.value(place))).collect();
            let corners = numbers.and_then(|numbers| <[f32; 4]>::try_from(numbers).ok());
            corners.ok_or_else(|| RowFault::BoxNumbers { column: column.into(), numbers: count })
        };
        items.map(corners).collect::<Result<_, _>>().map(Some)
    }
}

/// Texts, labels that are numbers among them.
pub(super) struct Texts {
    values: ArrayRef,
    /// What numbers stand for.
    names: Option<Box<[String]>>,
}

impl Texts {
    fn new(array: &ArrayRef, names: Option<&[String]>) -> Result<Self, ArrowError> {
        let is_number = !is_text(array.data_type());
        let names = names.filter(|_| is_number).map(Into::into);
        let values = match array.data_type() {
            _ if !is_number => array.clone(),
            // Whole numbers without a fraction, however wide the column: `Display` of an f64 has it so.
            of if of.is_floating() || of.is_decimal() => {
                let numbers = cast(array, &DataType::Float64)?;
                let numbers = numbers.as_primitive_opt::<Float64Type>().ok_or_else(|| unexpected(&numbers))?;
                // pandas stores a missing value as NaN.
                let text = |number: f64| shortest(number, of);
                let texts = numbers.iter().map(|number| number.filter(|n| !n.is_nan()).map(text));
                std::sync::Arc::new(texts.collect::<arrow::array::StringViewArray>())
            }
            _ => cast(array, &DataType::Utf8View)?,
        };
        Ok(Self { values, names })
    }

    pub(super) fn read(&self, index: usize, column: &str) -> Result<Option<Cow<'_, str>>, RowFault> {
        let (Some(text), Some(names)) = (text_at(&self.values, index), &self.names) else {
            return Ok(text_at(&self.values, index).map(Cow::Borrowed));
        };
        let name = text.parse().ok().and_then(|number: usize| names.get(number));
        let unnamed = || RowFault::Unnamed { column: column.into(), value: cut(text), names: names.len() };
        Ok(Some(Cow::Borrowed(name.ok_or_else(unnamed)?)))
    }
}

/// The shortest text that is the number at the width in which it is stored.
fn shortest(number: f64, stored: &DataType) -> String {
    type Half = <Float16Type as ArrowPrimitiveType>::Native;
    match stored {
        DataType::Float32 => (number as f32).to_string(),
        DataType::Float16 => {
            // Five digits tell all numbers of this width apart.
            let mut texts = (0..5).map(|digits| format!("{number:.digits$e}"));
            let near =
                texts.find_map(|text| text.parse::<f64>().ok().filter(|near| Half::from_f64(*near).to_f64() == number));
            near.unwrap_or(number).to_string()
        }
        _ => number.to_string(),
    }
}

/// Where paths of images may lead.
#[derive(Clone, Copy)]
pub(super) struct ImagePlaces<'a> {
    /// The table's folder; there is none for a table on a hub.
    pub(super) folder: Option<&'a Path>,
    /// Another folder that is named for it.
    pub(super) root: Option<&'a Path>,
    /// What would name one.
    pub(super) asker: Asker,
}

/// Images, each as bytes or as the path of a file.
pub(super) struct Images {
    nulls: Option<NullBuffer>,
    bytes: Option<ArrayRef>,
    path: Option<ArrayRef>,
}

impl Images {
    pub(super) fn new(array: &ArrayRef) -> Self {
        if let Some(parts) = array.as_struct_opt() {
            let field = |name| parts.column_by_name(name).cloned();
            return Self { nulls: parts.nulls().cloned(), bytes: field("bytes"), path: field("path") };
        }
        let values = array.clone();
        let is_path = matches!(values.data_type(), DataType::Utf8View);
        let (bytes, path) = if is_path { (None, Some(values)) } else { (Some(values), None) };
        Self { nulls: None, bytes, path }
    }

    /// Whether there may be pictures in files that it names.
    pub(super) fn names_files(&self) -> bool {
        let lacks_bytes = self.bytes.as_ref().is_none_or(|bytes| bytes.logical_null_count() > 0);
        lacks_bytes && self.path.as_ref().is_some_and(|paths| paths.logical_null_count() < paths.len())
    }

    pub(super) fn read(
        &self,
        index: usize,
        column: &str,
        places: ImagePlaces<'_>,
    ) -> Result<Option<EncodedImage>, RowFault> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(index)) {
            return Ok(None);
        }
        if let Some(bytes) = self.bytes.as_ref().and_then(|bytes| binary_at(bytes, index)) {
            if bytes.len() as u64 > MAX_IMAGE_BYTES {
                return Err(RowFault::ImageBytes { column: column.into(), bytes: bytes.len() as u64 });
            }
            // The bytes of no format of pictures are a text; most are none at their first byte.
            if let Some((text, what)) =
                std::str::from_utf8(bytes).ok().and_then(|text| Some((text, written::no_picture(text)?)))
            {
                return Err(RowFault::NotAPath { column: column.into(), value: cut(text), what });
            }
            return Ok(Some(EncodedImage::new(bytes.to_vec())));
        }
        match self.path.as_ref().and_then(|path| text_at(path, index)) {
            Some(path) if !path.trim().is_empty() => read_image_file(path, column, places).map(Some),
            _ => Ok(None),
        }
    }
}

fn read_image_file(path: &str, column: &str, places: ImagePlaces<'_>) -> Result<EncodedImage, RowFault> {
    let failed = |reason: String| RowFault::NoImageFile { column: column.into(), path: cut(path), reason };
    if let Some(what) = written::no_path(path) {
        return Err(RowFault::NotAPath { column: column.into(), value: cut(path), what });
    }
    let folders: Vec<&Path> = [places.folder, places.root].into_iter().flatten().collect();
    let setting = places.asker.image_root();
    if folders.is_empty() {
        return Err(failed(format!(
            "of a table on a hub, only images inside the table are read, and those below {setting}"
        )));
    }
    match input::read_among(&folders, path, MAX_IMAGE_BYTES) {
        Ok(Some(bytes)) => Ok(EncodedImage::new(bytes)),
        Ok(None) => Err(failed(match (places.root, Path::new(path).is_absolute()) {
            (None, false) => {
                format!(
                    "there is no such file in the table's folder; {setting} names another folder that paths start at"
                )
            }
            (Some(root), false) => {
                format!(
                    "there is no such file in the table's folder, nor in `{}`, which {setting} names",
                    root.display()
                )
            }
            (_, true) => "there is no such file".into(),
        })),
        Err(InputError::TooLarge { bytes, .. }) => Err(RowFault::ImageBytes { column: column.into(), bytes }),
        Err(InputError::Io { source, .. }) => Err(failed(source.to_string())),
        Err(InputError::NotAFile { .. }) => Err(failed("it is not a regular file".into())),
        Err(InputError::Name { .. }) if path.contains('\0') => Err(failed("there is a zero byte in it".into())),
        Err(InputError::Name { .. }) => Err(failed("folders in it are to be parted by `/`, not by a backslash".into())),
        Err(InputError::Outside { .. }) => Err(failed(match places.root {
            None => format!(
                "it does not lie in the table's folder; {setting} names another folder that paths may lead into"
            ),
            Some(root) => {
                format!("it lies neither in the table's folder nor below {setting}, `{}`", root.display())
            }
        })),
        Err(error) => Err(failed(error.to_string())),
    }
}

pub(super) fn text_at(array: &dyn Array, index: usize) -> Option<&str> {
    array.as_string_view_opt().filter(|array| array.is_valid(index)).map(|array| array.value(index))
}

fn binary_at(array: &dyn Array, index: usize) -> Option<&[u8]> {
    if let Some(array) = array.as_fixed_size_binary_opt() {
        return array.is_valid(index).then(|| array.value(index));
    }
    array.as_binary_view_opt().filter(|array| array.is_valid(index)).map(|array| array.value(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_shortest_text_of_their_width() {
        for (number, stored, text) in [
            (f64::from(0.1f32), DataType::Float32, "0.1"),
            (f64::from(16_777_216f32), DataType::Float32, "16777216"),
            (f64::from(-2.5e-7f32), DataType::Float32, "-0.00000025"),
            // The half nearest to 0.1.
            (0.099_975_585_937_5, DataType::Float16, "0.1"),
            (1.0, DataType::Float16, "1"),
            (0.1, DataType::Float64, "0.1"),
            (f64::from(0.1f32), DataType::Float64, "0.10000000149011612"),
        ] {
            assert_eq!(shortest(number, &stored), text, "{stored}");
        }
    }
}
