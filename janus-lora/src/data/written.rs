//! What people write where the path of an image file is expected.

/// Fewer bytes of base64 are no picture.
const SHORTEST_BASE64: usize = 64;

/// A text of so many bytes is no path on any system.
const LONGEST_PATH_BYTES: usize = 4096;

/// How PNG, JPEG, GIF, WebP, BMP and TIFF begin in base64.
const ENCODED_STARTS: [&str; 7] = ["iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK"];

/// `ftyp`, which AVIF and HEIC have behind four bytes of length, in base64.
const ENCODED_BRAND: (usize, &str) = (5, "GZ0eXB");

/// The same kinds in hexadecimal.
const HEX_STARTS: [&str; 7] = ["89504e470d0a1a0a", "ffd8ff", "47494638", "52494646", "424d", "49492a00", "4d4d002a"];

/// How Python prints bytes and objects that hold some.
const PRINTED: [&str; 9] =
    ["b'", "b\"", "bytearray(", "{'bytes'", "{\"bytes\"", "{'path'", "<PIL.", "<_io.", "<memory at"];

/// Schemes that are none of a folder's name even with one slash, which is left where URLs are joined as paths are.
const SCHEMES: [&str; 12] = ["file", "http", "https", "ftp", "s3", "s3a", "gs", "gcs", "hf", "az", "abfs", "hdfs"];

/// What a text is that can be no path, with what to do about it.
pub(super) fn no_path(text: &str) -> Option<&'static str> {
    no_picture(text).or((text.len() > LONGEST_PATH_BYTES).then_some("a text that is too long for a path"))
}

/// What a text is that stands for a picture and is none, as a value or as the bytes of one.
pub(super) fn no_picture(text: &str) -> Option<&'static str> {
    let text = text.trim();
    if is_of_windows(text) {
        return Some("a path of Windows: write paths that start at the table's folder, with `/` between folders");
    }
    if let Some(scheme) = scheme(text) {
        return Some(match scheme.eq_ignore_ascii_case("file") {
            true => "a `file:` URL: write the path alone",
            false => "a URL, and pictures are not downloaded: fetch them and store their bytes or paths",
        });
    }
    if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("data:")) {
        return Some("a data URI: store the bytes of the picture in a `binary` column");
    }
    let is_encoded = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&b));
    let (place, brand) = ENCODED_BRAND;
    let begins_so = ENCODED_STARTS.iter().any(|start| text.starts_with(start))
        || text.get(place..).is_some_and(|rest| rest.starts_with(brand));
    if is_encoded && text.len() >= SHORTEST_BASE64 && (begins_so || text.len() > LONGEST_PATH_BYTES) {
        return Some("a picture in base64: store its bytes in a `binary` column");
    }
    if PRINTED.iter().any(|start| text.starts_with(start)) {
        return Some(
            "the text that Python prints of bytes or of an object: store the bytes themselves in a `binary` column",
        );
    }
    let digits = text.strip_prefix("\\x").or(text.strip_prefix("0x")).unwrap_or(text);
    let begins_so =
        |start: &&str| digits.get(..start.len()).is_some_and(|beginning| beginning.eq_ignore_ascii_case(start));
    if HEX_STARTS.iter().any(begins_so)
        && digits.len() >= SHORTEST_BASE64
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
    {
        return Some("a picture in hexadecimal: store its bytes in a `binary` column");
    }
    None
}

/// Whether it has a drive or a computer's name before it.
fn is_of_windows(text: &str) -> bool {
    let drive = matches!(text.as_bytes(), [letter, b':', b'\\' | b'/', ..] if letter.is_ascii_alphabetic());
    drive || text.starts_with("\\\\")
}

/// The scheme of a URL.
fn scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once(":/")?;
    let is_known = || SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme));
    (is_known() || rest.starts_with('/') && is_scheme(scheme)).then_some(scheme)
}

/// Whether it can be the beginning of a URL: letters, digits and a few signs, as RFC 3986 has it, section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_path_is_named() {
        let long = "A".repeat(1 << 20);
        for (text, what) in [
            ("https://example.com/a.png", "a URL"),
            ("s3://bucket/a.png", "a URL"),
            ("HTTP://example.com/a.png", "a URL"),
            ("s3a://bucket/a.png", "a URL"),
            ("gs://bucket/a.png", "a URL"),
            ("hf://datasets/owner/name/a.png", "a URL"),
            ("https:/example.com/a.png", "a URL"),
            ("file:///home/a.png", "a `file:` URL"),
            ("file:/home/a.png", "a `file:` URL"),
            ("FILE://localhost/home/a.png", "a `file:` URL"),
            ("File:/C:/a.png", "a `file:` URL"),
            ("C:\\data\\a.png", "a path of Windows"),
            ("d:/data/a.png", "a path of Windows"),
            ("\\\\server\\share\\a.png", "a path of Windows"),
            ("b'\\x89PNG\\r\\n\\x1a\\n'", "Python prints of bytes"),
            ("b\"\\xff\\xd8\\xff\\xe0'\"", "Python prints of bytes"),
            ("b'iVBORw0KGgoAAAANSUhEUg=='", "Python prints of bytes"),
            ("{'bytes': b'\\x89PNG', 'path': None}", "Python prints of bytes"),
            ("<PIL.PngImagePlugin.PngImageFile image mode=RGB size=8x8>", "Python prints of bytes"),
            (&format!("AAAAIGZ0eXBhdmlm{}", &long[..100]), "a picture in base64"),
            (&format!("89504E470D0A1A0A{}", "0".repeat(100)), "a picture in hexadecimal"),
            (&format!("\\xffd8ffe0{}", "0".repeat(100)), "a picture in hexadecimal"),
            ("data:image/png;base64,iVBORw0KGgo=", "a data URI"),
            (&format!("data:image/jpeg;base64,{long}"), "a data URI"),
            (&format!("iVBORw0KGgo{}", &long[..100]), "a picture in base64"),
            (&format!("/9j/4AAQSkZJRg{}==", &long[..100]), "a picture in base64"),
            (&long, "a picture in base64"),
            (&"a picture. ".repeat(1000), "too long for a path"),
        ] {
            let found = no_path(text).unwrap_or_default();
            assert!(found.contains(what), "{}: {found}", &text[..40.min(text.len())]);
        }
        for path in [
            "a.png",
            "/9j/a.png",
            "data/a.png",
            "a\\b.png",
            "iVBORw0KGgo.png",
            "../x/y z.jpg",
            "Qk",
            "b.png",
            "files:/a.png",
            "ffd8ff.jpg",
            "89504e470d0a1a0a",
        ] {
            assert_eq!(no_path(path), None, "{path}");
        }
    }
}
