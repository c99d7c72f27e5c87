//! Pictures as cameras and instruments store them: turned with a note of it, 16 bits of grey, and what is no picture.
#![allow(clippy::unwrap_used)]

use std::io::Cursor;
use std::path::Path;

use candle_core::{DType, Device};
use image::metadata::Orientation as Turn;
use image::{DynamicImage, ImageFormat, RgbImage};
use janus_core::Parts;
use janus_core::processing::{Decoding, Orientation};
use janus_lora::base::Base;
use janus_lora::data::synth::SynthSpec;
use janus_lora::data::{ColumnKind, ColumnRequest, EncodedImage, ImageChecks, RowStream, ScanOptions, Table};
use janus_lora::heads::Heads;
use janus_lora::infer::{Answer, Engine, Kind, Limits, Request, TextRequest};
use janus_lora::recipe;
use janus_lora::status::Silent;
use janus_lora::tasks::Question;
use janus_tests::rows::{boxes, images, text_lists, texts, write_table};
use janus_tests::tiny::Workplace;
use serde_json::json;

/// What EXIF's numbers undo.
const UNDOING: [Turn; 8] = [
    Turn::NoTransforms,
    Turn::FlipHorizontal,
    Turn::Rotate180,
    Turn::FlipVertical,
    Turn::Rotate90FlipH,
    Turn::Rotate270,
    Turn::Rotate270FlipH,
    Turn::Rotate90,
];

/// CRC-32 of ISO 3309, bit by bit.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    })
}

/// A TIFF directory with an orientation and nothing else.
fn exif(number: u8) -> Vec<u8> {
    [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[number, 0, 0, 0, 0, 0, 0, 0]].concat()
}

/// A PNG or JPEG that has to be turned, as EXIF's `number` says, to be `upright`.
fn turned(upright: &RgbImage, number: u8, format: ImageFormat) -> Vec<u8> {
    let mut stored = DynamicImage::from(upright.clone());
    stored.apply_orientation(UNDOING[usize::from(number) - 1]);
    noted(&encoded(&stored, format), number, format)
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// The file with a note of its orientation.
fn noted(file: &[u8], number: u8, format: ImageFormat) -> Vec<u8> {
    match format {
        ImageFormat::Png => {
            let chunk = [b"eXIf", &exif(number)[..]].concat();
            let length = (chunk.len() as u32 - 4).to_be_bytes();
            // Behind the signature and the header.
            [&file[..33], &length, &chunk, &crc32(&chunk).to_be_bytes(), &file[33..]].concat()
        }
        _ => {
            let body = [b"Exif\0\0", &exif(number)[..]].concat();
            let length = (body.len() as u16 + 2).to_be_bytes();
            [&file[..2], &[0xff, 0xe1], &length, &body, &file[2..]].concat()
        }
    }
}

/// Pictures and questions that the built-in base was made for.
fn drawn(folder: &Path, rows: usize) -> Vec<(RgbImage, String)> {
    let file = folder.join("drawn.parquet");
    let spec: SynthSpec = format!("synth:world?rows={rows}&seed=5&split=eval").parse().unwrap();
    spec.write(&file).unwrap();
    let requests = [
        ColumnRequest::required("image", "image", ColumnKind::Image),
        ColumnRequest::required("question", "question", ColumnKind::Text),
    ];
    let table = Table::open(&[file], &requests).unwrap();
    let checks = ImageChecks { dimensions: |_| Ok((1, 1)), decode: |_| Ok(()), clipped_grey: |_| None };
    let options = ScanOptions { images: checks, check: &|_| Ok(()), limit: None, decode_rows: 0 };
    let index = table.scan(&options, &mut |_| {}).unwrap();
    let stream = RowStream::new(table.into(), index.into(), 0, false).unwrap();
    let read = stream.take(rows).map(|row| {
        let row = row.unwrap();
        (row.image("image").unwrap().decode().unwrap().into_image(), row.text("question").unwrap().to_owned())
    });
    read.collect()
}

#[test]
fn questions_are_answered_alike_whichever_way_up_a_picture_is_stored() {
    const QUESTIONS: usize = 20;
    let place = Workplace::empty();
    let drawn = drawn(place.folder(), QUESTIONS);
    let base = Base::open("janus-nano", &Silent).unwrap();
    let parts = Parts { text_head: true, vision: true, ..Parts::default() };
    let model = base.model(DType::F32, &Device::Cpu, parts, &Silent).unwrap();
    let ask = |picture: &dyn Fn(&RgbImage) -> Vec<u8>, orientation| -> Vec<String> {
        let request = |(image, question): &(RgbImage, String)| {
            let question = Question {
                prompt: base.prompts().understanding_prompt(question, 1, true).unwrap(),
                images: vec![base.image(&EncodedImage {
                    bytes: picture(image),
                    decoding: Decoding { orientation, grey_bits: None },
                })],
                answer: String::new(),
            };
            Request::plain(Kind::Text(TextRequest::greedy(&question, 16)))
        };
        let heads = Heads::new();
        let mut engine = Engine::new(&model, &base, &heads, Limits::of(&model).unwrap());
        let answers = engine.answer_all(drawn.iter().map(request), &mut |_| {}).unwrap();
        answers.into_iter().filter_map(Answer::into_text).map(|answer| answer.text).collect()
    };
    let png = |image: &RgbImage| encoded(&image.clone().into(), ImageFormat::Png);
    let upright = ask(&png, Orientation::Upright);
    assert_eq!(upright.len(), QUESTIONS);
    assert!(upright.iter().collect::<std::collections::BTreeSet<_>>().len() > 3, "{upright:?}");
    for number in 1..=8 {
        let png = |image: &RgbImage| turned(image, number, ImageFormat::Png);
        assert_eq!(ask(&png, Orientation::Upright), upright, "orientation {number}");
        // A JPEG is not what it was made of: what is upright is that of its own values.
        let jpeg = |image: &RgbImage| turned(image, number, ImageFormat::Jpeg);
        let as_png = |image: &RgbImage| {
            let mut stored = image::load_from_memory(&jpeg(image)).unwrap();
            stored.apply_orientation(Turn::from_exif(number).unwrap());
            encoded(&stored, ImageFormat::Png)
        };
        assert_eq!(ask(&jpeg, Orientation::Upright), ask(&as_png, Orientation::Upright), "orientation {number}");
    }
    let lying = |image: &RgbImage| turned(image, 6, ImageFormat::Png);
    let stored = ask(&lying, Orientation::Stored);
    let alike = stored.iter().zip(&upright).filter(|(stored, upright)| stored == upright).count();
    assert!(alike < QUESTIONS, "the base sees how a picture lies");
}

/// A picture of 24 x 40 pixels, upright.
fn upright() -> RgbImage {
    RgbImage::from_fn(24, 40, |x, y| image::Rgb([(x * 10) as u8, (y * 6) as u8, if y < 20 { 200 } else { 30 }]))
}

/// A recipe of one table over the tiny base.
fn recipe_of(place: &Workplace, task: &str, more: &str) {
    place.write(
        "recipe.toml",
        format!(
            "[base]\npath = \"base\"\ndtype = \"f32\"\n[adapter]\nrank = 2\ntargets = [\"vision\"]\n\
             [[data]]\nname = \"own\"\ntask = \"{task}\"\ntrain = \"rows.parquet\"\n{more}\
             [train]\nsteps = 2\nbatch_size = 2\nschedule = \"constant\"\ncheckpoint_every = 1\n[output]\ndir = \"run\"\n"
        ),
    );
}

#[test]
fn boxes_and_masks_are_of_the_upright_picture_everywhere() {
    let place = Workplace::with_base();
    let numbers: Vec<u8> = (5..=8).collect();
    let pictures: Vec<_> = numbers.iter().map(|number| Some(turned(&upright(), *number, ImageFormat::Jpeg))).collect();
    let mut mask = RgbImage::new(24, 40);
    (5..20).for_each(|x| (22..38).for_each(|y| mask.put_pixel(x, y, image::Rgb([255; 3]))));
    // One mask lies as its picture does, the others are stored upright.
    let turned_mask = turned(&mask, 6, ImageFormat::Png);
    let masks = [turned_mask, encoded(&mask.into(), ImageFormat::Png)];
    let masks: Vec<_> = (0..4).map(|row| Some(masks[row.min(1)].clone())).collect();
    let columns = vec![
        ("image", images(&pictures)),
        ("mask", images(&masks)),
        ("boxes", boxes(&vec![vec![[2.0, 25.0, 20.0, 39.0]]; 4])),
        ("labels", text_lists(&vec![vec!["part"]; 4])),
    ];
    write_table(&place.path("rows.parquet"), columns, 4);
    for (task, wrong) in [("locate", "reaches beyond its image of 40 x 24"), ("segment", "its image 40 x 24")] {
        recipe_of(&place, task, "");
        let check = |more: &[&str]| place.janus(&[&["data", "check", "recipe.toml", "--json"], more].concat());
        let good = check(&[]).expect_success().json();
        assert_eq!(good["own train"]["accepted"], 4, "{good}");
        let stored = check(&["data.0.orientation=stored", "data_limits.max_bad_rows=4"]);
        assert!(stored.stdout.contains(wrong), "{}", stored.stdout);
    }
    // Boxes of pictures as they are stored do not fit the upright ones, and what is said leads on.
    let lying = vec![("image", images(&pictures)), ("boxes", boxes(&vec![vec![[25.0, 2.0, 39.0, 20.0]]; 4]))];
    let labels = ("labels", text_lists(&vec![vec!["part"]; 4]));
    write_table(&place.path("lying.parquet"), lying.into_iter().chain([labels]).collect(), 4);
    recipe_of(&place, "locate", "");
    let check = |more: &[&str]| {
        place.janus(&[&["data", "check", "recipe.toml", "data.0.train=lying.parquet"], more].concat()).stdout
    };
    assert!(check(&[]).contains("24 x 40 pixels, turned upright as its EXIF says (`orientation = \"stored\"`"));
    assert!(check(&["data.0.orientation=stored"]).contains("4 rows, 4 good"));
    recipe_of(&place, "segment", "");
    let stats = place.janus(&["data", "stats", "recipe.toml", "--json"]).expect_success().json();
    // Pictures and masks.
    assert_eq!([&stats["own train"]["image_width"]["max"], &stats["own train"]["image_height"]["min"]], [24, 40]);
    let table = ["--base", "base", "--task", "locate", "--json"];
    let width = |words: &[&str]| {
        let stats = place.janus(&[&["data", "stats"], words, &table[..]].concat()).expect_success().json();
        stats["rows"]["image_width"]["max"].clone()
    };
    let widths = (width(&["rows.parquet"]), width(&["lying.parquet", "--orientation", "stored"]));
    assert_eq!(widths, (json!(24), json!(40)));
    place
        .refuses(&["data", "stats", "recipe.toml", "--orientation", "stored"], &["`--orientation` belongs to a table"]);
}

#[test]
fn commands_read_pictures_upright_or_as_they_are_stored() {
    let place = Workplace::with_base();
    let upright = upright();
    place.write("upright.png", encoded(&upright.clone().into(), ImageFormat::Png));
    let mut stored = DynamicImage::from(upright.clone());
    stored.apply_orientation(UNDOING[5]);
    place.write("stored.png", encoded(&stored, ImageFormat::Png));
    place.write("turned.png", turned(&upright, 6, ImageFormat::Png));
    for command in [
        &["understand", "--base", "base", "What is it?", "--max-new-tokens", "4", "--json", "--image"][..],
        &["generate", "--base", "base", "x", "--out", "drawn.png", "--json", "--source"],
        &["base", "features", "--base", "base", "--level", "mid", "--out", "f.safetensors", "--image"],
    ] {
        let run = |more: &[&str]| {
            let done = place.janus(&[command, more].concat()).expect_success();
            let file = |name: &str| fs_err::read(place.path(name)).unwrap_or_default();
            (done.stdout, file("drawn.png"), file("f.safetensors"))
        };
        let way = ["--orientation", "stored"];
        let turned = run(&["turned.png"]);
        assert!(turned == run(&["upright.png"]), "{command:?}");
        assert!(run(&["turned.png", way[0], way[1]]) == run(&["stored.png"]), "{command:?}");
        if command[0] == "base" {
            assert!(turned != run(&["stored.png"]), "features are of what is seen");
        }
    }
    let refused = place.janus(&["understand", "--base", "base", "--image", "turned.png", "--orientation", "up", "x"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn a_run_goes_on_as_it_began() {
    let place = Workplace::with_base();
    let pictures: Vec<_> = (5..=8).map(|number| Some(turned(&upright(), number, ImageFormat::Png))).collect();
    let labels = ["one", "two", "one", "two"];
    write_table(&place.path("rows.parquet"), vec![("image", images(&pictures)), ("label", texts(labels))], 4);
    recipe_of(&place, "classify", "");
    let train = |more: &[&str]| place.janus(&[&["train", "recipe.toml"], more].concat());
    train(&[]).expect_success();
    let written = String::from_utf8(place.read("run/recipe.toml")).unwrap();
    assert!(written.contains("orientation = \"upright\"\n"), "{written}");
    // As a run of before left it: nothing is said, and its pictures were read as stored.
    train(&["output.dir=old", "data.0.orientation=stored"]).expect_success();
    let unsaid = |name: &str| {
        let text = String::from_utf8(place.read(name)).unwrap().replace("orientation = \"stored\"\n", "");
        assert!(!text.contains("orientation"), "{text}");
        place.write(name, text);
    };
    unsaid("old/recipe.toml");
    place.edit_json("old/janus_adapter.json", |note| {
        let recipe = note["recipe"].as_str().unwrap().replace("orientation = \"stored\"\n", "");
        note["recipe"] = recipe.into();
    });
    let stored = recipe::load(&place.path("old/recipe.toml"), &[], place.folder()).unwrap();
    assert_eq!(stored.data[0].orientation, Some(recipe::Orientation::Stored));
    let again = train(&["--resume", "output.dir=old"]).expect_success();
    assert!(again.stderr.contains("reads pictures as they are stored and continues to"), "{}", again.stderr);
    let other = train(&["--resume", "output.dir=old", "data.0.orientation=upright"]);
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    let said = "`data.0.orientation` was \"stored\" and is \"upright\"";
    assert!(other.stderr.contains(said), "{}", other.stderr);
    // An adapter of before is used with pictures as they are meant, and that is said.
    place.write("turned.png", turned(&upright(), 6, ImageFormat::Png));
    let ask = |more: &[&str]| {
        let command =
            ["understand", "--base", "base", "--adapter", "old", "--task", "classify", "--image", "turned.png"];
        place.janus(&[&command[..], more].concat()).expect_success().stderr
    };
    assert!(ask(&[]).contains("an adapter was trained on pictures as they are stored"));
    for way in ["stored", "upright"] {
        assert!(!ask(&["--orientation", way]).contains("as they are stored"), "{way}");
    }
}

/// A PNG of 16-bit grey.
fn grey_16(greatest: u16) -> Vec<u8> {
    let shade = |x: u32, y: u32| image::Luma([(u32::from(greatest) * (x + y) / 58) as u16]);
    let grey = image::ImageBuffer::<image::Luma<u16>, Vec<u16>>::from_fn(30, 30, shade);
    encoded(&grey.into(), ImageFormat::Png)
}

#[test]
fn shades_that_are_lost_in_white_are_told_once_with_what_keeps_them() {
    let place = Workplace::with_base();
    let pictures: Vec<_> = [200, 4000, 300, 255].map(|greatest| Some(grey_16(greatest))).into();
    let columns = vec![("image", images(&pictures)), ("label", texts(["one", "two", "one", "two"]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    recipe_of(&place, "classify", "eval = \"rows.parquet\"\n");
    let plan = |more: &[&str]| place.janus(&[&["train", "recipe.toml", "--dry-run"], more].concat()).expect_success();
    let told = plan(&[]).stderr;
    assert_eq!(told.matches("warning:").count(), 1, "{told}");
    for part in ["2 pictures", "values up to 4000", "`grey_bits = 12`"] {
        assert!(told.contains(part), "{told}");
    }
    assert!(!plan(&["data.0.grey_bits=12"]).stderr.contains("grey"), "they are scaled");
    let check = place.janus(&["data", "check", "recipe.toml"]).expect_success().stdout;
    assert!(check.contains("2 pictures are 16-bit grey"), "{check}");
    let check = place.janus(&["data", "check", "recipe.toml", "--json"]).expect_success().json();
    assert_eq!(check["own train"]["clipped_greys"], json!({ "pictures": 2, "greatest": 4000 }));
    place.write("xray.png", grey_16(4000));
    let ask = |more: &[&str]| {
        let command = ["understand", "--base", "base", "--max-new-tokens", "1", "What?", "--image", "xray.png"];
        place.janus(&[&command[..], more].concat()).expect_success().stderr
    };
    assert!(ask(&[]).contains("`--grey-bits 12`"));
    assert!(!ask(&["--grey-bits", "12"]).contains("white"));
}

#[test]
fn grey_is_read_as_the_adapter_was_trained() {
    let place = Workplace::with_base();
    let pictures: Vec<_> = [4000, 3000, 2000, 1000].map(|greatest| Some(grey_16(greatest))).into();
    let columns = vec![("image", images(&pictures)), ("label", texts(["one", "two", "one", "two"]))];
    write_table(&place.path("rows.parquet"), columns, 2);
    recipe_of(&place, "classify", "eval = \"rows.parquet\"\n");
    let train = |out: &str, more: &[&str]| {
        let out = format!("output.dir={out}");
        place.janus(&[&["train", "recipe.toml", "train.steps=1", &out], more].concat()).expect_success()
    };
    train("scaled", &["data.0.grey_bits=12"]);
    train("deeper", &["data.0.grey_bits=16"]);
    train("clipped", &[]);
    // Whatever the picture itself would need.
    place.write("xray.png", grey_16(600));
    let ask = |more: &[&str]| {
        let command =
            ["understand", "--base", "base", "--task", "classify", "--image", "xray.png", "--json", "--adapter"];
        let done = place.janus(&[&command[..], more].concat()).expect_success();
        (done.stdout, done.stderr)
    };
    let (answer, said) = ask(&["scaled"]);
    assert!(said.contains("`--grey-bits 12`") && !said.contains("--grey-bits 10"), "{said}");
    assert_eq!(answer, ask(&["scaled", "--grey-bits", "12"]).0);
    let (other, said) = ask(&["scaled", "--grey-bits", "10"]);
    assert!(answer != other && !said.contains("grey"), "{said}");
    // Clipped in training, clipped here; and that is said, with nothing that would read it otherwise.
    let (_, said) = ask(&["clipped"]);
    assert!(said.contains("becomes white, as in the training of the adapter") && !said.contains("10"), "{said}");
    // Two of different minds.
    let both = ["understand", "--base", "base", "--image", "xray.png", "What?", "--max-new-tokens", "1"];
    let said = place.janus(&[&both[..], &["--adapter", "scaled", "--adapter", "clipped"]].concat());
    assert!(said.stderr.contains("`--grey-bits 12`"), "one of them says it: {}", said.stderr);
    let said = place.janus(&[&both[..], &["--adapter", "scaled", "--adapter", "deeper"]].concat()).stderr;
    assert!(said.contains("`--grey-bits 12`") && said.contains("`--grey-bits 16`"), "{said}");
    // Evaluation of tables that are read otherwise, whatever they are called.
    let eval = |more: &[&str]| place.janus(&[&["eval", "recipe.toml", "--adapter"], more].concat()).expect_success();
    for name in ["own", "another"] {
        let name_key = format!("data.0.name={name}");
        let told = eval(&["scaled", &name_key]).stderr;
        let said = format!("`{name}`: an adapter was trained with `grey_bits` 12, and the recipe has none");
        assert!(told.contains(&said), "{told}");
        let told = eval(&["scaled", &name_key, "data.0.orientation=stored", "data.0.grey_bits=12"]).stderr;
        let said = "trained with `orientation = \"upright\"`, and the recipe has \"stored\"";
        assert!(told.contains(said) && !told.contains("grey_bits"), "{told}");
        assert!(!eval(&["scaled", &name_key, "data.0.grey_bits=12"]).stderr.contains("trained with"));
    }
}

#[test]
fn what_is_no_picture_is_named_with_what_to_do() {
    let place = Workplace::with_base();
    let mut dicom = vec![0u8; 128];
    dicom.extend(b"DICM\x02\0\0\0UL\x04\0");
    let cases: Vec<(Vec<u8>, &str, &str)> = vec![
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B".to_vec(), "an AVIF picture", "avifdec"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(), "a HEIC picture", "heif-convert"),
        (b"\xff\x0a\xfa\x1f\x41\x91".to_vec(), "a JPEG XL picture", "djxl"),
        (b"8BPS\0\x01\0\0".to_vec(), "a Photoshop document", "export it"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>".to_vec(), "an SVG drawing", "rsvg-convert"),
        (dicom, "a DICOM file", "pydicom"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), "a git-lfs pointer", "git lfs pull"),
        (b"<!doctype html><title>404</title>".to_vec(), "an HTML page", "download it again"),
    ];
    let pictures: Vec<_> = cases.iter().map(|(bytes, ..)| Some(bytes)).collect();
    let labels = (0..cases.len()).map(|row| format!("label {}", row % 2));
    write_table(&place.path("rows.parquet"), vec![("image", images(&pictures)), ("label", texts(labels))], 3);
    recipe_of(&place, "classify", "");
    let check = place.janus(&["data", "check", "recipe.toml", "--json"]);
    assert_eq!(check.code, Some(2));
    let check: serde_json::Value = serde_json::from_str(&check.stdout).unwrap();
    let rejected = check["own train"]["rejected_rows"].as_array().unwrap();
    assert_eq!(rejected.len(), cases.len());
    for (row, (bytes, found, advice)) in rejected.iter().zip(&cases) {
        let reason = row["reason"].as_str().unwrap();
        assert!(reason.contains(found) && reason.contains(advice), "{found}: {reason}");
        place.write("given", bytes);
        let said = [*found, *advice];
        place.refuses(&["understand", "--base", "base", "--image", "given", "What?"], &said);
    }
}
