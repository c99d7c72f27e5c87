//! The columns of a batch, taken apart so that rows can be read from them: texts, images, conversations, boxes.

use std::ops::Range;
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, Float32Array, OffsetSizeTrait};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type};
use arrow::error::ArrowError;
use janus_core::input::{self, InputError};

use super::reader::MAX_IMAGE_BYTES;
use super::rejected::RowFault;
use super::row::EncodedImage;
use super::schema::{ColumnKind, type_name};

/// Most boxes of a row, and most labels of them.
pub(super) const MAX_BOXES: usize = 4096;

/// A column taken apart once a batch, so that rows are read from it without further looking at types.
pub(super) enum Values {
    Text(ArrayRef),
    Image(Images),
    ImageList(Lists, Images),
    Messages { list: Lists, nulls: Option<NullBuffer>, role: ArrayRef, content: ArrayRef },
    Boxes(Boxes),
    TextList(Lists, ArrayRef),
}

impl Values {
    pub(super) fn new(array: &ArrayRef, kind: ColumnKind) -> Result<Self, ArrowError> {
        Ok(match kind {
            ColumnKind::Text => Values::Text(array.clone()),
            ColumnKind::Image => Values::Image(Images::new(array)),
            ColumnKind::ImageList => match Lists::new(array) {
                Some((list, items)) => Values::ImageList(list, Images::new(&items)),
                None => Values::Image(Images::new(array)),
            },
            ColumnKind::Boxes => Values::Boxes(Boxes::new(array)?),
            ColumnKind::TextList => {
                let (list, items) = Lists::new(array).ok_or_else(|| unexpected(array))?;
                Values::TextList(list, items)
            }
            ColumnKind::Messages => {
                let (list, items) = Lists::new(array).ok_or_else(|| unexpected(array))?;
                let turns = items.as_struct_opt().ok_or_else(|| unexpected(&items))?;
                let field = |name| turns.column_by_name(name).cloned().ok_or_else(|| unexpected(&items));
                Values::Messages {
                    list,
                    nulls: turns.nulls().cloned(),
                    role: field("role")?,
                    content: field("content")?,
                }
            }
        })
    }
}

/// The schema was checked, so a batch of another type than the schema says is the reader's fault or the file's.
fn unexpected(array: &dyn Array) -> ArrowError {
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
    fn new(array: &ArrayRef) -> Option<(Self, ArrayRef)> {
        fn parts<O: OffsetSizeTrait>(array: &ArrayRef) -> Option<(Lists, ArrayRef)> {
            let list = array.as_list_opt::<O>()?;
            let offsets = list.value_offsets().iter().map(|offset| offset.as_usize()).collect();
            Some((Lists { nulls: list.nulls().cloned(), offsets }, list.values().clone()))
        }
        fn fixed(array: &ArrayRef) -> Option<(Lists, ArrayRef)> {
            let list = array.as_fixed_size_list_opt()?;
            let size = usize::try_from(list.value_length()).ok()?;
            let offsets = (0..=list.len()).map(|row| row * size).collect();
            Some((Lists { nulls: list.nulls().cloned(), offsets }, list.values().clone()))
        }
        parts::<i32>(array).or_else(|| parts::<i64>(array)).or_else(|| fixed(array))
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

/// Images, each as bytes or as the path of a file.
pub(super) struct Images {
    nulls: Option<NullBuffer>,
    bytes: Option<ArrayRef>,
    path: Option<ArrayRef>,
}

impl Images {
    fn new(array: &ArrayRef) -> Self {
        if let Some(parts) = array.as_struct_opt() {
            let field = |name| parts.column_by_name(name).cloned();
            return Self { nulls: parts.nulls().cloned(), bytes: field("bytes"), path: field("path") };
        }
        let values = array.clone();
        let is_path = matches!(values.data_type(), DataType::Utf8View);
        let (bytes, path) = if is_path { (None, Some(values)) } else { (Some(values), None) };
        Self { nulls: None, bytes, path }
    }

    pub(super) fn read(
        &self,
        index: usize,
        column: &str,
        folder: Option<&Path>,
    ) -> Result<Option<EncodedImage>, RowFault> {
        if self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(index)) {
            return Ok(None);
        }
        if let Some(bytes) = self.bytes.as_ref().and_then(|bytes| binary_at(bytes, index)) {
            if bytes.len() as u64 > MAX_IMAGE_BYTES {
                return Err(RowFault::ImageBytes { column: column.into(), bytes: bytes.len() as u64 });
            }
            return Ok(Some(EncodedImage::new(bytes.to_vec())));
        }
        match self.path.as_ref().and_then(|path| text_at(path, index)) {
            Some(path) if !path.trim().is_empty() => read_image_file(path, column, folder).map(Some),
            _ => Ok(None),
        }
    }
}

fn read_image_file(path: &str, column: &str, folder: Option<&Path>) -> Result<EncodedImage, RowFault> {
    let failed = |reason: String| RowFault::NoImageFile { column: column.into(), path: path.into(), reason };
    let Some(folder) = folder else {
        return Err(failed("of a table on a hub, only images inside the table are read".into()));
    };
    match input::read(folder, path, MAX_IMAGE_BYTES) {
        Ok(Some(bytes)) => Ok(EncodedImage::new(bytes)),
        Ok(None) => Err(failed("there is no such file".into())),
        Err(InputError::TooLarge { bytes, .. }) => Err(RowFault::ImageBytes { column: column.into(), bytes }),
        Err(InputError::Io { source, .. }) => Err(failed(source.to_string())),
        Err(InputError::NotAFile { .. }) => Err(failed("it is not a regular file".into())),
        Err(InputError::Name { .. } | InputError::Outside { .. }) => {
            Err(failed("it does not lie in the table's folder".into()))
        }
        Err(error) => Err(failed(error.to_string())),
    }
}

pub(super) fn text_at(array: &dyn Array, index: usize) -> Option<&str> {
    array.as_string_view_opt().filter(|array| array.is_valid(index)).map(|array| array.value(index))
}

fn binary_at(array: &dyn Array, index: usize) -> Option<&[u8]> {
    array.as_binary_view_opt().filter(|array| array.is_valid(index)).map(|array| array.value(index))
}
