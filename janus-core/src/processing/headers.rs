//! Checks of a file's structure that the decoders do not make themselves.

/// Whether a JPEG file reaches its end marker.
///
/// The decoder fills what is missing of a cut file with grey; PIL refuses every file without the marker. Markers
/// inside of segments (an embedded thumbnail's) are passed over by the segments' lengths.
pub(super) fn jpeg_is_complete(bytes: &[u8]) -> bool {
    const RESTART: std::ops::RangeInclusive<u8> = 0xd0..=0xd7;
    let mut at = 2;
    while let Some(step) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xff)) {
        at += step;
        match bytes.get(at + 1) {
            None => return false,
            Some(0xd9) => return true,
            // Fill bytes may stand before a marker.
            Some(0xff) => at += 1,
            // A stuffed byte of the data, or a marker without a segment.
            Some(0x00 | 0x01 | 0xd8) => at += 2,
            Some(marker) if RESTART.contains(marker) => at += 2,
            Some(_) => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                at += 2 + usize::from(u16::from_be_bytes([high, low])).max(2);
            }
        }
    }
    false
}

/// Width and height of every lossy picture in a WebP file, as its own header tells them.
///
/// The decoder makes room by these, and only then compares them with the size of the canvas.
pub(super) fn webp_lossy_sizes(bytes: &[u8]) -> Vec<(u32, u32)> {
    let mut sizes = Vec::new();
    // After `RIFF`, its length, and `WEBP`.
    collect_lossy_sizes(bytes.get(12..).unwrap_or_default(), 1, &mut sizes);
    sizes
}

fn collect_lossy_sizes(mut chunks: &[u8], nested: usize, sizes: &mut Vec<(u32, u32)>) {
    while let Some((header, rest)) = chunks.split_first_chunk::<8>() {
        let length = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
        let body = &rest[..length.min(rest.len())];
        match &header[..4] {
            // Three bytes of frame tag and three of start code come before the two sizes of 14 bits.
            b"VP8 " => {
                if let Some(&[w0, w1, h0, h1]) = body.get(6..10) {
                    let side = |low, high| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
                    sizes.push((side(w0, w1), side(h0, h1)));
                }
            }
            // Place, size, duration and flags of a frame take 16 bytes, its chunks follow.
            b"ANMF" if nested > 0 => collect_lossy_sizes(body.get(16..).unwrap_or_default(), nested - 1, sizes),
            _ => {}
        }
        chunks = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_ends_at_its_own_end_marker() {
        let whole =
            [0xff, 0xd8, 0xff, 0xe0, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2, 1, 0xff, 0, 2, 0xff, 0xd3, 3, 0xff, 0xd9];
        assert!(jpeg_is_complete(&whole));
        for end in 0..whole.len() {
            assert!(!jpeg_is_complete(&whole[..end]), "cut to {end} bytes");
        }
    }

    #[test]
    fn lossy_pictures_are_found_inside_frames() {
        let picture = |w: u16, h: u16| {
            let mut body = vec![0x10, 0, 0, 0x9d, 1, 0x2a];
            body.extend(w.to_le_bytes());
            body.extend(h.to_le_bytes());
            let mut chunk = b"VP8 ".to_vec();
            chunk.extend((body.len() as u32).to_le_bytes());
            chunk.extend(body);
            chunk
        };
        let mut frame = vec![0; 16];
        frame.extend(picture(16000, 15000));
        let mut file = b"RIFF\0\0\0\0WEBPJUNK\x01\0\0\0?\0ANMF".to_vec();
        file.extend((frame.len() as u32).to_le_bytes());
        file.extend(frame);
        file.extend(picture(3, 4));
        assert_eq!(webp_lossy_sizes(&file), [(16000, 15000), (3, 4)]);
        for end in 0..file.len() {
            assert!(webp_lossy_sizes(&file[..end]).len() < 2);
        }
    }
}
