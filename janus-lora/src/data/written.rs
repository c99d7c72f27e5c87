//! What people write where the path of an image file is expected.

/// Fewer bytes of base64 are no picture.
const SHORTEST_BASE64: usize = 64;

/// A text of so many bytes is no path on any system.
const LONGEST_PATH_BYTES: usize = 4096;

/// How PNG, JPEG, GIF, WebP, BMP and TIFF begin in base64.
const ENCODED_STARTS: [&str; 7] = ["iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK"];

/// What a text is that can be no path, with what to do about it.
pub(super) fn no_path(text: &str) -> Option<&'static str> {
    no_picture(text).or((text.len() > LONGEST_PATH_BYTES).then_some("a text that is too long for a path"))
}

/// What a text is that stands for a picture and is none, as a value or as the bytes of one.
pub(super) fn no_picture(text: &str) -> Option<&'static str> {
    let text = text.trim();
    if let Some((scheme, _)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
        return Some(match scheme.to_ascii_lowercase().as_str() {
            "file" => "a `file://` URL: write the path alone",
            _ => "a URL, and pictures are not downloaded: fetch them and store their bytes or paths",
        });
    }
    if text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("data:")) {
        return Some("a data URI: store the bytes of the picture in a `binary` column");
    }
    let is_encoded = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&b));
    let begins_so = ENCODED_STARTS.iter().any(|start| text.starts_with(start));
    if is_encoded && text.len() >= SHORTEST_BASE64 && (begins_so || text.len() > LONGEST_PATH_BYTES) {
        return Some("a picture in base64: store its bytes in a `binary` column");
    }
    None
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
            ("file:///home/a.png", "a `file://` URL"),
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
        for path in ["a.png", "/9j/a.png", "data/a.png", "C:\\a.png", "iVBORw0KGgo.png", "a://b", "../x/y z.jpg", "Qk"]
        {
            let expected = path == "a://b";
            assert_eq!(no_path(path).is_some(), expected, "{path}");
        }
    }
}
