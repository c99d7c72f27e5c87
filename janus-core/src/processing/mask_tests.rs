use image::{ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};

use super::*;

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG with a palette whose colours say nothing of their numbers, at `depth` bits.
fn palette_png(width: u32, indices: &[u8], depth: png::BitDepth) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, indices.len() as u32 / width);
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(depth);
    encoder.set_palette((0..1u32 << depth as u32).flat_map(|i| [200 - i as u8 / 2, 90, i as u8]).collect::<Vec<u8>>());
    let bits = depth as usize;
    let packed: Vec<u8> = indices
        .chunks(width as usize)
        .flat_map(|line| {
            line.chunks(8 / bits).map(|group| {
                group.iter().enumerate().fold(0, |byte, (place, index)| byte | index << (8 - bits * (place + 1)))
            })
        })
        .collect();
    encoder.write_header().unwrap().write_image_data(&packed).unwrap();
    bytes
}

fn read(bytes: &[u8]) -> Result<StoredMask> {
    decode_mask(bytes, Decoding::default())
}

#[test]
fn palettes_are_numbers_at_every_depth() {
    for (depth, most) in [(png::BitDepth::One, 1), (png::BitDepth::Two, 3), (png::BitDepth::Four, 15)] {
        let indices: Vec<u8> = (0..7 * 3).map(|place| place % (most + 1)).collect();
        let mask = read(&palette_png(7, &indices, depth)).unwrap();
        assert_eq!((mask.width, mask.height, mask.is_lossy), (7, 3, false));
        assert_eq!(mask.values, indices.iter().map(|index| u16::from(*index)).collect::<Vec<_>>(), "{depth:?}");
    }
    let indices = [0, 1, 255, 1, 15, 0];
    assert_eq!(read(&palette_png(3, &indices, png::BitDepth::Eight)).unwrap().values, [0, 1, 255, 1, 15, 0]);
    // A cut one is refused.
    let whole = palette_png(3, &indices, png::BitDepth::Eight);
    assert!(read(&whole[..whole.len() - 20]).is_err());
}

/// An uncompressed BMP with a palette, its rows upwards.
fn palette_bmp(width: u32, indices: &[u8], bits: usize, palette: &[[u8; 3]], compression: u32) -> Vec<u8> {
    let height = indices.len() as u32 / width;
    let mut bytes = b"BM\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend((54 + 4 * palette.len() as u32).to_le_bytes());
    for number in [40, width, height, 1 | (bits as u32) << 16, compression, 0, 0, 0, palette.len() as u32, 0] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(palette.iter().flat_map(|[r, g, b]| [*b, *g, *r, 0]));
    for line in indices.chunks(width as usize).rev() {
        let mut packed: Vec<u8> = line
            .chunks(8 / bits)
            .map(|group| group.iter().enumerate().fold(0, |byte, (at, index)| byte | index << (8 - bits * (at + 1))))
            .collect();
        packed.resize(packed.len().next_multiple_of(4), 0);
        bytes.extend(packed);
    }
    bytes
}

#[test]
fn palettes_of_bmp_are_numbers_and_greys_are_greys() {
    let (white, black) = ([255; 3], [0; 3]);
    for (bits, palette) in [
        (1, vec![white, black]),
        (1, vec![black, [128, 0, 0]]),
        (4, vec![black, [1; 3], [2; 3], [128, 0, 0]]),
        (8, vec![white, [1; 3], [2; 3], black]),
    ] {
        let most = palette.len() as u8;
        let indices: Vec<u8> = (0..7 * 3).map(|place| place % most).collect();
        let bytes = palette_bmp(7, &indices, bits, &palette, 0);
        let mask = read(&bytes).unwrap();
        assert_eq!(mask.values, indices.iter().map(|index| u16::from(*index)).collect::<Vec<_>>(), "{bits}");
        assert_eq!((mask.width, mask.height, mask.palette), (7, 3, Some(palette.clone())));
        for cut in [20, 30, 54, bytes.len() - 1] {
            assert!(read(&bytes[..cut]).is_err(), "{bits} cut to {cut}");
        }
        let packed = read(&palette_bmp(7, &indices, bits, &palette, 1)).unwrap_err();
        assert!(bits != 8 || matches!(packed, ProcessingError::PaletteMask { form: "compressed BMP" }), "{packed}");
    }
    // As Pillow reads them: grey of eight bits, and black and white.
    let ramp: Vec<[u8; 3]> = (0..=255).map(|grey| [grey; 3]).collect();
    let grey = read(&palette_bmp(2, &[0, 7, 255, 1], 8, &ramp, 0)).unwrap();
    assert_eq!((grey.values, grey.palette), (vec![0, 7, 255, 1], None));
    let two = read(&palette_bmp(2, &[0, 1, 1, 0], 1, &[black, white], 0)).unwrap();
    assert_eq!((two.values, two.palette), (vec![0, 255, 255, 0], None));
}

#[test]
fn palettes_of_tiff_are_refused_by_name() {
    let plain = encoded(&GrayImage::from_raw(2, 1, vec![0, 3]).unwrap().into(), ImageFormat::Tiff);
    assert_eq!(read(&plain).unwrap().values, [0, 3]);
    let at = plain.windows(4).position(|tag| tag == [6, 1, 3, 0]).unwrap();
    let mut indexed = plain.clone();
    indexed[at + 8] = 3;
    let refused = read(&indexed).unwrap_err().to_string();
    assert!(refused.contains("a TIFF with a palette") && refused.contains("save it as PNG"), "{refused}");
}

#[test]
fn a_gif_s_picture_lies_on_its_screen() {
    let mut bytes = Vec::new();
    let mut encoder = gif::Encoder::new(&mut bytes, 4, 3, &[0, 0, 0, 9, 200, 9, 200, 9, 9, 1, 1, 1]).unwrap();
    let frame = gif::Frame {
        left: 1,
        top: 1,
        width: 2,
        height: 2,
        buffer: vec![1, 2, 0, 1].into(),
        transparent: Some(3),
        ..gif::Frame::default()
    };
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    let mask = read(&bytes).unwrap();
    assert_eq!((mask.width, mask.height), (4, 3));
    assert_eq!(mask.values, [3, 3, 3, 3, 3, 1, 2, 3, 3, 0, 1, 3]);
}

#[test]
fn grey_of_any_form_keeps_its_values() {
    let values = [0u8, 1, 7, 255];
    let luma = ImageBuffer::<Luma<u8>, _>::from_raw(2, 2, values.to_vec()).unwrap();
    let rgb = RgbImage::from_fn(2, 2, |x, y| Rgb([values[(y * 2 + x) as usize]; 3]));
    let rgba = image::RgbaImage::from_fn(2, 2, |x, y| {
        let value = values[(y * 2 + x) as usize];
        Rgba([value, value, value, if value == 0 { 0 } else { 255 }])
    });
    let with_alpha = ImageBuffer::<LumaA<u8>, _>::from_fn(2, 2, |x, y| LumaA([values[(y * 2 + x) as usize], 255]));
    let expected = values.map(u16::from);
    for image in [DynamicImage::from(luma), rgb.into(), rgba.into(), with_alpha.into()] {
        assert_eq!(read(&encoded(&image, ImageFormat::Png)).unwrap().values, expected, "{:?}", image.color());
    }
    let wide = ImageBuffer::<Luma<u16>, _>::from_raw(2, 2, vec![0u16, 1, 256, 65_535]).unwrap();
    let wide = encoded(&DynamicImage::ImageLuma16(wide), ImageFormat::Png);
    assert_eq!(read(&wide).unwrap().values, [0, 1, 256, 65_535]);
    assert_eq!(read(&encoded(&RgbImage::new(2, 2).into(), ImageFormat::Bmp)).unwrap().values, [0; 4]);
}

#[test]
fn colours_and_transparent_masks_are_refused() {
    let red = RgbImage::from_fn(3, 2, |x, _| if x == 1 { Rgb([255, 0, 0]) } else { Rgb([0; 3]) });
    let refused = read(&encoded(&red.clone().into(), ImageFormat::Png));
    let is_told = |e: &ProcessingError| matches!(e, ProcessingError::ColouredMask { x: 1, y: 0, colour } if colour == &[255, 0, 0]);
    assert!(refused.as_ref().is_err_and(is_told), "{refused:?}");
    assert!(matches!(read(&encoded(&red.into(), ImageFormat::Jpeg)), Err(ProcessingError::ColouredMask { .. })));
    let cut_out = image::RgbaImage::from_fn(3, 2, |x, _| Rgba([0, 0, 0, if x == 1 { 255 } else { 0 }]));
    assert!(matches!(
        read(&encoded(&cut_out.into(), ImageFormat::Png)),
        Err(ProcessingError::TransparentMask { value: 0 })
    ));
    assert!(read(b"no picture").is_err());
}

#[test]
fn lossy_files_are_known_by_their_compression() {
    let grey = image::GrayImage::from_fn(16, 16, |x, _| Luma([if x < 8 { 0 } else { 255 }]));
    let jpeg = read(&encoded(&grey.clone().into(), ImageFormat::Jpeg)).unwrap();
    assert!(jpeg.is_lossy);
    assert!(jpeg.values.iter().all(|value| *value <= LOSSY_REACH || *value >= 255 - LOSSY_REACH), "{:?}", jpeg.values);
    let rgb = DynamicImage::from(DynamicImage::from(grey).to_rgb8());
    assert!(read(&encoded(&rgb, ImageFormat::Jpeg)).unwrap().is_lossy);
    assert!(!read(&encoded(&rgb, ImageFormat::WebP)).unwrap().is_lossy, "this one is without loss");
}
