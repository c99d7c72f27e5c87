//! Tables of which only the descriptions at the ends of their files are known: for a look at a run before its rows are here.

use super::*;
use crate::data::{ColumnKind, EncodedImage, Message};

/// A table that claims more rows is not planned for.
const MAX_ROWS: u64 = 1 << 28;

/// Longest text that is made up, in bytes.
const MAX_TEXT_BYTES: u64 = 64 << 10;

/// What made-up texts consist of: about as many tokens a byte as prose.
const WORD: &str = "the ";

/// The labels of a table whose own are not here, in their order; made-up rows have the first.
pub(crate) const LABELS: [&str; 2] = ["one", "other"];

/// Width and height of made-up pictures; what a picture costs does not depend on it.
const SIDE: u32 = 16;

impl Table {
    /// Whether rows of it would have to be downloaded.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.files.iter().filter_map(DataFile::shard).any(|shard| !matches!(shard.cached(), Ok(Some(_))))
    }

    /// Takes every row that the files claim for a good one, without reading any. Rows that are asked for later are made up, with
    /// texts as long as those of the files are on average.
    ///
    /// # Errors
    /// A table that claims no row, or too many.
    pub(crate) fn presume(&mut self) -> Result<Index, DataError> {
        let rows = self.claimed_rows();
        if rows == 0 {
            return Err(DataError::NoAcceptedRows { rows: 0, first: Vec::new() });
        }
        if rows > MAX_ROWS {
            let path = self.files.first().map_or_else(PathBuf::new, |file| file.path.to_path_buf());
            return Err(DataError::Unreadable { path, reason: format!("it claims {rows} rows") });
        }
        let mean =
            |number| self.files.iter().fold(0u64, |sum, file| sum.saturating_add(file.claimed_bytes(number))) / rows;
        let lengths: Vec<u64> = (0..self.requests.len()).map(mean).collect();
        let bytes = lengths.iter().fold(0u64, |sum, bytes| sum.saturating_add(*bytes));
        let mut index = Index { files_together: HUB_FILES_TOGETHER, ..Index::default() };
        for (number, file) in self.files.iter().enumerate() {
            for row_group in 0..file.row_groups() {
                let mut block = Block::new(number, row_group, 0);
                for row in 0..file.claimed_rows(row_group) {
                    let id = || RowId { file: Arc::clone(&file.path), row_group, row: row as usize };
                    index.record(&mut block, Ok(bytes), id, 0);
                }
                index.close(block);
            }
        }
        self.presumed = Some(lengths);
        Ok(index)
    }

    /// A row that stands for one that is not here.
    pub(super) fn imagined(&self, id: RowId, lengths: &[u64]) -> Row {
        let mut row = Row {
            id,
            images: Default::default(),
            texts: Default::default(),
            messages: Default::default(),
            boxes: Default::default(),
            lists: Default::default(),
        };
        for (number, (request, bytes)) in self.requests.iter().zip(lengths).enumerate() {
            if !self.files.iter().any(|file| file.has(number)) {
                continue;
            }
            let role = request.role;
            let text =
                || WORD.repeat((bytes.min(&MAX_TEXT_BYTES) / WORD.len() as u64).max(1) as usize).trim().to_owned();
            match request.kind {
                ColumnKind::Image | ColumnKind::ImageList => {
                    row.images.insert(role, vec![EncodedImage::new(picture())]);
                }
                ColumnKind::Text => {
                    row.texts.insert(role, text());
                }
                ColumnKind::Label => {
                    row.texts.insert(role, LABELS[0].to_owned());
                }
                ColumnKind::Messages | ColumnKind::PicturedMessages => {
                    let half = text();
                    let half = half.get(..half.len() / 2).unwrap_or(&half).trim().to_owned();
                    let half = if half.is_empty() { WORD.trim().to_owned() } else { half };
                    let turn = |role: &str| Message { role: role.into(), content: half.clone() };
                    row.messages.insert(role, vec![turn("user"), turn("assistant")]);
                    if request.kind == ColumnKind::PicturedMessages {
                        row.images.insert(role, vec![EncodedImage::new(picture())]);
                    }
                }
                ColumnKind::Boxes => {
                    row.boxes.insert(role, vec![[1.0, 1.0, 9.0, 9.0]]);
                }
                ColumnKind::TextList => {
                    row.lists.insert(role, vec![LABELS[0].to_owned()]);
                }
            }
        }
        row
    }
}

/// A small white picture.
fn picture() -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let white = image::RgbImage::from_pixel(SIDE, SIDE, image::Rgb([u8::MAX; 3]));
    // Written to memory, it cannot fail; an empty one would be told as damaged.
    let _ = white.write_to(&mut bytes, image::ImageFormat::Png);
    bytes.into_inner()
}
