//! Tables in other formats than Parquet: what they are, and a line that converts them.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::DataError;

/// So many bytes show what a file is.
const LOOKED_AT_BYTES: u64 = 4096;

/// Most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 1000;

/// What a file is that is not Parquet, where that can be seen.
pub(super) fn named(path: &Path) -> Option<DataError> {
    let mut start = Vec::new();
    File::open(path).ok()?.take(LOOKED_AT_BYTES).read_to_end(&mut start).ok()?;
    let (what, convert) = recognise(&start, path)?;
    Some(DataError::NotParquet { path: path.to_path_buf(), what, convert })
}

/// What a folder without Parquet files holds, where that can be seen.
pub(super) fn folder(path: &Path) -> Option<DataError> {
    let found = |what, convert| Some(DataError::NotParquet { path: path.to_path_buf(), what, convert });
    if path.join("config.json").exists() {
        // A checkpoint, whose JSON is no table.
        return None;
    }
    let target = written_beside(path);
    if path.join("dataset_dict.json").is_file() {
        let line = format!(
            "from datasets import load_from_disk; load_from_disk({})['train'].to_parquet({target})",
            quoted(path)
        );
        return found("a folder of `save_to_disk` with several splits", Some(line));
    }
    if path.join("dataset_info.json").is_file() && path.join("state.json").is_file() {
        let line =
            format!("from datasets import load_from_disk; load_from_disk({}).to_parquet({target})", quoted(path));
        return found("a folder of `save_to_disk`", Some(line));
    }
    let entries = std::fs::read_dir(path).ok()?.take(MAX_ENTRIES);
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let file = paths.iter().filter(|path| path.is_file() && !is_side_file(path)).find_map(|path| named(path));
    let is_picture = |path: &&std::path::PathBuf| {
        ["png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff"].contains(&extension(path).as_str())
    };
    if file.is_none() && paths.iter().any(|path| is_picture(&path)) {
        let load = format!("load_dataset('imagefolder', data_dir={}, split='train')", quoted(path));
        return found(
            "a folder of pictures",
            Some(format!("from datasets import load_dataset; {load}.to_parquet({target})")),
        );
    }
    file
}

/// Files that lie beside a table's own.
fn is_side_file(path: &Path) -> bool {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default().to_lowercase();
    name.starts_with('.') || ["dataset_info.json", "dataset_infos.json", "state.json"].contains(&name.as_str())
}

/// What the beginning and the name of a file say, and Python that converts it.
fn recognise(start: &[u8], path: &Path) -> Option<(&'static str, Option<String>)> {
    let (from, target) = (quoted(path), written_beside(path));
    let load = |kind: &str| {
        format!(
            "from datasets import load_dataset; load_dataset('{kind}', data_files={from}, split='train').to_parquet({target})"
        )
    };
    let pandas = |read: &str| format!("import pandas; pandas.{read}.to_parquet({target})");
    let arrow = |open: &str| {
        format!(
            "import pyarrow as pa, pyarrow.parquet as pq; pq.write_table(pa.ipc.{open}(pa.memory_map({from})).read_all(), {target})"
        )
    };
    let stem = path.file_stem().map(|stem| extension(Path::new(stem))).unwrap_or_default();
    let extension = extension(path);
    let packed = ["gz", "bz2", "xz", "zst"].contains(&extension.as_str());
    let kind = if packed { stem.as_str() } else { extension.as_str() };
    let text =
        || std::str::from_utf8(start).or_else(|e| std::str::from_utf8(&start[..e.valid_up_to()])).unwrap_or_default();
    let begins = |with: &[u8]| start.starts_with(with);
    Some(match () {
        () if begins(b"PK\x03\x04") && ["xlsx", "xlsm"].contains(&kind) => {
            ("an Excel workbook", Some(pandas(&format!("read_excel({from})"))))
        }
        () if begins(b"PK\x03\x04") => ("a zip archive: unpack it, and name the Parquet files in it", None),
        () if begins(b"ARROW1") => ("an Arrow IPC file", Some(arrow("open_file"))),
        () if begins(&[0xFF, 0xFF, 0xFF, 0xFF]) => {
            ("an Arrow IPC stream, as `datasets` keeps its caches", Some(arrow("open_stream")))
        }
        () if begins(b"SQLite format 3") => ("an SQLite database", None),
        () if begins(b"ORC") => ("an ORC file", Some(pandas(&format!("read_orc({from})")))),
        () if begins(b"Obj\x01") => ("an Avro file", None),
        () if start.get(257..262) == Some(b"ustar") => ("a tar archive", Some(load("webdataset"))),
        () if (begins(&[0x1F, 0x8B]) || begins(b"BZh") || begins(b"\xFD7zXZ") || begins(&[0x28, 0xB5, 0x2F, 0xFD]))
            && packed =>
        {
            match kind {
                "json" | "jsonl" | "ndjson" => ("packed JSON", Some(load("json"))),
                "csv" => ("packed CSV", Some(load("csv"))),
                _ => ("a packed file: unpack it first", None),
            }
        }
        () if text()
            .trim_start_matches('\u{feff}')
            .trim_start()
            .get(..9)
            .is_some_and(|start| start.eq_ignore_ascii_case("<!doctype"))
            || text().trim_start().get(..5).is_some_and(|start| start.eq_ignore_ascii_case("<html")) =>
        {
            ("an HTML page, not the file: download it again", None)
        }
        () if text().trim_start_matches('\u{feff}').trim_start().starts_with(['[', '{']) => match kind {
            "jsonl" | "ndjson" => ("JSON Lines", Some(load("json"))),
            _ => ("JSON", Some(load("json"))),
        },
        () if kind == "csv" => ("CSV", Some(pandas(&format!("read_csv({from})")))),
        () if kind == "tsv" => ("CSV with tabs", Some(pandas(&format!("read_csv({from}, sep='\\t')")))),
        () => return None,
    })
}

fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// The Parquet file to be written beside a file or folder, as Python has it.
fn written_beside(path: &Path) -> String {
    let stem = path.file_name().map(OsStr::to_string_lossy).unwrap_or("rows".into());
    let stem = stem.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or("rows");
    quoted(&path.with_file_name(format!("{stem}.parquet")))
}

/// A path as Python has it, between single quotes, for the shell has double ones around.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\\', "\\\\").replace('\'', "\\'"))
}
