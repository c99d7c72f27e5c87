//! What bytes are that are no picture of a kind that is read, told by how they begin, and how to come to a picture.

/// Bytes at the front that are looked at.
const FRONT_BYTES: usize = 1024;

/// A kind of file that is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Foreign {
    /// What it is, with its article.
    pub(super) found: &'static str,
    /// What to do.
    pub(super) advice: &'static str,
}

/// Kinds with a mark at a fixed place.
///
/// Sources: the formats' own specifications; `file`'s signatures agree.
const MARKS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture", JXL),
    (0, b"\xff\x0a", "a JPEG XL picture", JXL),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture", PILLOW),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", PILLOW),
    (0, b"II\xbc\x01", "a JPEG XR picture", MAGICK),
    (0, b"8BPS", "a Photoshop document (PSD)", "export it as PNG, or convert it with `magick 'in.psd[0]' out.png`"),
    (128, b"DICM", "a DICOM file", DICOM),
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run `git lfs pull` where it was cloned"),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself", "run `git annex get` where it was cloned"),
    (0, b"%PDF-", "a PDF document", "draw its pages, such as with `pdftoppm -png in.pdf out`"),
    (0, b"%!PS", "PostScript", "draw it, such as with `magick -density 150 in.ps out.png`"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript", "draw it, such as with `magick -density 150 in.eps out.png`"),
    (0, b"II+\0", "a BigTIFF picture", PILLOW),
    (0, b"MM\0+", "a BigTIFF picture", PILLOW),
    (0, b"\0\0\x01\0", "a Windows icon", PILLOW),
    (0, b"\0\0\x02\0", "a Targa picture or a Windows cursor", PILLOW),
    (0, b"\n\x05\x01", "a PCX picture", PILLOW),
    (0, b"icns", "a macOS icon", PILLOW),
    (0, b"DDS ", "a DirectDraw surface", PILLOW),
    (0, b"qoif", "a QOI picture", PILLOW),
    (0, b"farbfeld", "a farbfeld picture", MAGICK),
    (0, b"BPG\xfb", "a BPG picture", "convert it with `bpgdec -o out.png in.bpg`"),
    (0, b"FLIF", "a FLIF picture", "convert it with `flif -d in.flif out.png`"),
    (0, b"gimp xcf", "a GIMP document", "export it as PNG"),
    (0, b"v/1\x01", "an OpenEXR picture", TONES),
    (0, b"#?RADIANCE", "a Radiance HDR picture", TONES),
    (0, b"#?RGBE", "a Radiance HDR picture", TONES),
    (0, b"\x01\xda\0", "an SGI picture", PILLOW),
    (0, b"\x01\xda\x01", "an SGI picture", PILLOW),
    (0, b"\x59\xa6\x6a\x95", "a Sun raster picture", PILLOW),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file", RAW),
    (0, b"IIRO", "a camera's raw file", RAW),
    (0, b"IIU\0", "a camera's raw file", RAW),
    (344, b"n+1\0", "a NIfTI volume", SLICES),
    (344, b"ni1\0", "a NIfTI volume", SLICES),
    (0, b"NRRD000", "an NRRD volume", SLICES),
    (0, b"ObjectType", "a MetaImage volume", SLICES),
    (0, b"SIMPLE  =", "a FITS file", SLICES),
    (0, b"\x93NUMPY", "a NumPy array", ARRAY),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", ARRAY),
    (0, b"\x80\x04\x95", "a Python pickle", ARRAY),
    (0, b"\x80\x05\x95", "a Python pickle", ARRAY),
    (0, b"PK\x03\x04", "a ZIP archive", UNPACK),
    (0, b"\x1f\x8b", "gzip data", UNPACK),
    (0, b"BZh", "bzip2 data", UNPACK),
    (0, b"\xfd7zXZ\0", "xz data", UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "zstd data", UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", UNPACK),
    (257, b"ustar", "a tar archive", UNPACK),
    (0, b"PAR1", "a Parquet file", "name it as a table; a column of pictures holds one picture a row"),
    (0, b"ARROW1", "an Arrow file", "write its table as Parquet"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video", VIDEO),
    (0, b"FLV\x01", "a Flash video", VIDEO),
    (0, b"\0\0\x01\xba", "an MPEG video", VIDEO),
    (0, b"/9j/", "a JPEG picture as base64 text", BASE64),
    (0, b"iVBORw0KGgo", "a PNG picture as base64 text", BASE64),
    (0, b"R0lGOD", "a GIF picture as base64 text", BASE64),
    (0, b"UklGR", "a WebP picture as base64 text", BASE64),
    (0, b"data:", "a data URI", BASE64),
    (0, b"http://", "an address, not a picture", ADDRESS),
    (0, b"https://", "an address, not a picture", ADDRESS),
    (0, b"s3://", "an address, not a picture", ADDRESS),
    (0, b"gs://", "an address, not a picture", ADDRESS),
    (0, b"file://", "an address, not a picture", "store the file's bytes, or its path as text"),
];

pub(super) const PILLOW: &str = "convert it, such as with Pillow: `Image.open(f).convert(\"RGB\").save(\"out.png\")`";
const MAGICK: &str = "convert it, such as with ImageMagick: `magick in out.png`";
const AVIF: &str =
    "convert it, such as with `avifdec in.avif out.png`, or Pillow 11.3: `Image.open(f).save(\"out.png\")`";
const HEIC: &str = "convert it, such as with `heif-convert in.heic out.png`, or with the Python package pillow-heif";
const JXL: &str = "convert it, such as with `djxl in.jxl out.png`";
pub(super) const RAW: &str = "develop it, such as with `darktable-cli in out.png`";
const DICOM: &str =
    "write its pixels as PNG, such as with pydicom, its window applied; 16-bit grey is scaled by `grey_bits`";
const TONES: &str = "map its tones to 8 bits and write PNG";
const SLICES: &str = "write its slices as PNG, scaled to 8 bits";
const ARRAY: &str = "write its pictures as PNG, such as with Pillow: `Image.fromarray(a).save(\"out.png\")`";
const UNPACK: &str = "unpack it: a picture is one file";
const VIDEO: &str = "take pictures out of it, such as with `ffmpeg -i in -vf fps=1 out-%04d.png`";
const BASE64: &str = "store the bytes themselves: `base64.b64decode(text)`, of a data URI what follows the comma";
const ADDRESS: &str = "download the picture and store its bytes";
const SAVED_PAGE: &str = "a server's answer was saved in the picture's place: download it again";

/// What bytes are that are no picture that is read; `None` of what is not known.
pub(super) fn foreign(bytes: &[u8]) -> Option<Foreign> {
    let known = |found, advice| Some(Foreign { found, advice });
    let at = |place: usize, mark: &[u8]| bytes.get(place..).is_some_and(|rest| rest.starts_with(mark));
    if at(4, b"ftyp") {
        return media(bytes);
    }
    if at(0, b"RIFF") {
        return match bytes.get(8..12) {
            Some(b"AVI ") => known("an AVI video", VIDEO),
            Some(b"WAVE") => known("sound (WAV)", "a picture is expected here"),
            _ => None,
        };
    }
    if let Some((.., found, advice)) = MARKS.iter().find(|(place, mark, ..)| at(*place, mark)) {
        return known(*found, *advice);
    }
    if is_bare_dicom(bytes) {
        return known("a DICOM file", DICOM);
    }
    // `P1` to `P7` and white space: Netpbm's pictures.
    if let Some([b'P', b'1'..=b'7', b'\n' | b' ' | b'\r' | b'\t' | b'#']) = bytes.get(..3) {
        return known("a Netpbm picture (PBM, PGM, PPM or PAM)", PILLOW);
    }
    text(bytes)
}

/// Whether it begins as a DICOM file without the preamble before its mark: with an element of group 2 or 8, little-endian, and the
/// two letters of what its value is (DICOM PS3.5, section 6.2).
fn is_bare_dicom(bytes: &[u8]) -> bool {
    const VALUES: &[u8] = b"AEASATCSDADSDTFDFLISLOLTOBODOFOLOVOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV";
    let is_value = |letters: &[u8]| VALUES.as_chunks::<2>().0.iter().any(|value| value == letters);
    matches!(bytes.first_chunk::<6>(), Some([2 | 8, 0, _, _, letters @ ..]) if is_value(letters))
}

/// ISO media files, told by their brands.
fn media(bytes: &[u8]) -> Option<Foreign> {
    let length = bytes.get(..4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize);
    let brands = bytes.get(8..length.clamp(12, 256).min(bytes.len())).unwrap_or_default();
    // The major brand, its version, then all compatible ones; the major one may be as general as `mif1`.
    let has = |wanted: &[&[u8; 4]]| brands.as_chunks::<4>().0.iter().any(|brand| wanted.contains(&brand));
    let (found, advice) = if has(&[b"avif", b"avis"]) {
        ("an AVIF picture", AVIF)
    } else if has(&[b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"]) {
        ("a HEIC picture", HEIC)
    } else if has(&[b"mif1", b"mif2", b"msf1"]) {
        ("a HEIF picture", HEIC)
    } else if has(&[b"crx "]) {
        ("a camera's raw file", RAW)
    } else {
        ("a video (MP4, MOV)", VIDEO)
    };
    Some(Foreign { found, advice })
}

/// Text, told by its first words.
fn text(bytes: &[u8]) -> Option<Foreign> {
    let known = |found, advice| Some(Foreign { found, advice });
    let front = &bytes[..bytes.len().min(FRONT_BYTES)];
    let front = front.strip_prefix(b"\xef\xbb\xbf").unwrap_or(front).trim_ascii_start();
    let has = |word: &[u8]| front.windows(word.len()).any(|window| window.eq_ignore_ascii_case(word));
    let begins = |word: &[u8]| front.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    if begins(b"<") {
        return if has(b"<svg") {
            known("an SVG drawing", "draw it at a size, such as with `rsvg-convert -w 512 in.svg -o out.png`")
        } else if has(b"<html") || has(b"<!doctype html") || has(b"<head") || has(b"<body") {
            known("an HTML page", SAVED_PAGE)
        } else {
            known("an XML document", SAVED_PAGE)
        };
    }
    if begins(b"{") || begins(b"[") {
        return known(
            "JSON text",
            "the bytes of a picture are expected; where a server's answer was saved, download it again",
        );
    }
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    let printable = !front.is_empty() && front.iter().all(is_text);
    printable.then_some(Foreign {
        found: "text",
        advice: "the bytes of a picture are expected, or its path in a text column",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        let brands = |major: &[u8], more: &[u8]| {
            let length = (16 + more.len()) as u32;
            [&length.to_be_bytes()[..], b"ftyp", major, b"\0\0\0\0", more, b"\0\0\0\x08mdat"].concat()
        };
        let mut dicom = vec![0; 128];
        dicom.extend(b"DICM\x02\0\0\0UL");
        let mut nifti = vec![0; 352];
        nifti[344..348].copy_from_slice(b"n+1\0");
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (brands(b"avif", b"mif1miaf"), "AVIF"),
            (brands(b"mif1", b"miafavif"), "AVIF"),
            (brands(b"heic", b"mif1heic"), "HEIC"),
            (brands(b"mif1", b"heic"), "HEIC"),
            (brands(b"isom", b"mp42"), "video"),
            (b"\xff\x0a\xfa\x1f".to_vec(), "JPEG XL"),
            (b"\0\0\0\x0cJXL \r\n\x87\n\0\0".to_vec(), "JPEG XL"),
            (b"\0\0\0\x0cjP  \r\n\x87\n".to_vec(), "JPEG 2000"),
            (b"8BPS\0\x01".to_vec(), "Photoshop"),
            (dicom, "DICOM"),
            (b"\x08\0\x05\0CS\x0a\0ISO_IR 100".to_vec(), "DICOM"),
            (b"\x08\0\x16\0UI\x1a\x001.2.840.10008".to_vec(), "DICOM"),
            (b"\x02\0\0\0UL\x04\0\xc2\0\0\0".to_vec(), "DICOM"),
            (b"II+\0\x08\0\0\0\x10\0\0\0".to_vec(), "BigTIFF"),
            (b"MM\0+\0\x08\0\0".to_vec(), "BigTIFF"),
            (nifti, "NIfTI"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:12".to_vec(), "git-lfs pointer"),
            (b"<!DOCTYPE html>\n<html>".to_vec(), "HTML page"),
            (b"\xef\xbb\xbf\n <HTML lang=en>".to_vec(), "HTML page"),
            (b"<?xml version='1.0'?>\n<!-- drawn -->\n<svg width='3'>".to_vec(), "SVG"),
            (b"<svg xmlns='http://www.w3.org/2000/svg'>".to_vec(), "SVG"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>".to_vec(), "XML"),
            (b"{\"error\": \"rate limit\"}".to_vec(), "JSON"),
            (b"%PDF-1.7\n".to_vec(), "PDF"),
            (b"P6\n3 2\n255\n".to_vec(), "Netpbm"),
            (b"/9j/4AAQSkZJRg".to_vec(), "base64"),
            (b"data:image/png;base64,iVBOR".to_vec(), "data URI"),
            (b"https://example.org/a.png".to_vec(), "address"),
            (b"pictures/one.png".to_vec(), "text"),
        ];
        for (bytes, name) in cases {
            let told = foreign(&bytes).unwrap_or_else(|| panic!("{name}"));
            assert!(told.found.contains(name), "{name}: {told:?}");
            assert!(!told.advice.is_empty(), "{name}");
        }
        for unknown in [
            &b""[..],
            b"\x08\0\x05\0cs\x0a\0",
            b"\x02\0\0\0",
            b"\x00\x01\x02\x03",
            b"RIFF\0\0\0\0WEBPVP8 ",
            b"\x89PNG\r\n",
        ] {
            assert_eq!(foreign(unknown), None);
        }
    }
}
