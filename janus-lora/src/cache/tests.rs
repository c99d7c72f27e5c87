use std::path::Path;

use candle_core::{DType, Device, Tensor, Var};
use fs_err as fs;
use janus_core::checkpoint::init_checkpoint;
use janus_core::config::{JanusConfig, Layout};
use janus_core::model::vision::VisionPoint;
use janus_core::ops::with_composed;
use janus_core::pass::{Mixture, NoiseKey, Part, Pass, Route};
use janus_core::processing::{Decoding, Orientation};
use janus_core::site::{Correction, LowRank, Term};
use janus_core::{Janus, Parts};

use super::*;
use crate::base::Base;
use crate::data::EncodedImage;
use crate::status::Silent;

/// Patches of a tiny model's image and the width of its tower.
const PATCHES: usize = 16;
const WIDTH: usize = 32;

struct Place {
    base: tempfile::TempDir,
    cache: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { base: tempfile::tempdir().unwrap(), cache: tempfile::tempdir().unwrap() };
        let config = JanusConfig::shape("janus-tiny").unwrap();
        init_checkpoint(&config, 5, DType::F32, place.base.path(), Layout::Native, &mut |_, _| {}).unwrap();
        place
    }

    fn settings(&self) -> CacheSettings {
        CacheSettings::new(self.cache.path().to_path_buf(), Some(1 << 24))
    }

    /// As a new process would open it, with its cache on disk.
    fn base(&self) -> Base {
        let base = self.base_without_cache();
        base.cache().keep("fingerprint", &self.settings());
        base
    }

    fn base_without_cache(&self) -> Base {
        Base::open_folder("tiny", self.base.path()).unwrap()
    }

    fn entries(&self) -> Vec<std::path::PathBuf> {
        let list = |folder: &Path| -> Vec<_> {
            fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
        };
        ["features", "codes"]
            .iter()
            .flat_map(|kind| list(&self.cache.path().join(kind)))
            .flat_map(|s| list(&s))
            .collect()
    }
}

fn model(base: &Base, dtype: DType) -> Janus {
    base.model(dtype, &Device::Cpu, Parts { vision: true, ..Parts::default() }, &Silent).unwrap()
}

fn picture(seed: u32) -> EncodedImage {
    let pixel = |x: u32, y: u32| {
        ::image::Rgb([x * 7 + seed * 41, y * 13 + seed * 97, (x + y) * 5 + seed * 23].map(|v| v as u8))
    };
    let mut bytes = std::io::Cursor::new(Vec::new());
    ::image::RgbImage::from_fn(40, 28, pixel).write_to(&mut bytes, ::image::ImageFormat::Png).unwrap();
    EncodedImage::new(bytes.into_inner())
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

/// Features of three pictures, and how many of them were computed and read.
fn run(base: &Base, model: &Janus) -> (Vec<u32>, u64, u64) {
    let before = base.cache().counts();
    let images: Vec<Image> = (0..3).map(|seed| base.image(&picture(seed))).collect();
    for image in &images {
        image.prepare(model).unwrap();
    }
    let features = features(model, &Pass::inference(), &images).unwrap().unwrap();
    assert_eq!(features.dims(), [3, PATCHES, 48]);
    let now = base.cache().counts();
    let (computed, read) = (now.features_computed - before.features_computed, now.features_read - before.features_read);
    for image in &images {
        assert_eq!(image.is_decoded(), read != 3, "decoded exactly where nothing was read");
    }
    (bits(&features), computed, read)
}

const BLOCK_1: &str = "model.vision_model.encoder.layers.1.mlp.fc1";
const BLOCK_0: &str = "model.vision_model.encoder.layers.0.mlp.fc2";
const ALIGNER: &str = "model.aligner.hidden_layers.0";

/// A low-rank correction of rank 3 with variables; returns them.
fn adapt(model: &Janus, path: &str) -> [Var; 2] {
    let site = model.projections().get(path).unwrap();
    let (input, output) = (site.site().input, site.site().output);
    let var = |rows, columns, seed: u64| {
        let values: Vec<f32> =
            (0..(rows * columns) as u64).map(|i| 0.1 * janus_core::noise::normal(seed, i) as f32).collect();
        Var::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
    };
    let [a, b] = [var(3, input, 1), var(output, 3, 2)];
    let term = LowRank { a: a.as_tensor().clone(), b: b.as_tensor().clone(), scale: 1.5, dropout: 0.25 };
    site.attach(Some(Arc::new(Correction::of_terms([Term::LowRank(term)])))).unwrap();
    [a, b]
}

#[test]
fn cold_warm_and_off_give_the_same_bits() {
    let place = Place::new();
    for dtype in [DType::F32, DType::BF16] {
        let base = place.base();
        let model = model(&base, dtype);
        let (cold, computed, read) = run(&base, &model);
        assert_eq!((computed, read), (3, 0));
        assert_eq!(run(&base, &model), (cold.clone(), 0, 3), "the same process");
        assert_eq!(run(&place.base(), &model), (cold.clone(), 0, 3), "another process");
        let off = place.base_without_cache();
        assert_eq!(run(&off, &model), (cold, 3, 0));
        assert_eq!(run(&off, &model).1, 3);
    }
    assert_eq!(place.entries().len(), 6, "another type has entries of its own");
}

#[test]
fn a_picture_that_comes_again_is_computed_once() {
    let place = Place::new();
    for trained in [false, true] {
        let base = place.base_without_cache();
        let model = model(&base, DType::F32);
        if trained {
            // Above the point up to which features are kept: here they are computed together.
            adapt(&model, BLOCK_1);
        }
        let images: Vec<Image> = [0, 1, 0, 0, 1].map(|seed| base.image(&picture(seed))).into();
        let counted = |pass: &Pass, images: &[Image]| {
            let before = base.cache().counts().features_computed;
            let features = features(&model, pass, images).unwrap().unwrap();
            (features, base.cache().counts().features_computed - before)
        };
        let (together, count) = counted(&Pass::inference(), &images);
        assert_eq!((together.dims(), count), (&[5, PATCHES, 48][..], 2));
        for (number, image) in images.iter().enumerate() {
            let (alone, _) = counted(&Pass::inference(), std::slice::from_ref(image));
            let difference = (together.get(number).unwrap() - alone.get(0).unwrap()).unwrap().abs().unwrap();
            // Sixteen rows of patches are multiplied by another kernel than more of them are.
            let bound = if trained { 1e-5 } else { 0.0 };
            assert!(difference.max_all().unwrap().to_scalar::<f32>().unwrap() <= bound, "{difference}");
        }
        assert_ne!(bits(&together.get(0).unwrap()), bits(&together.get(1).unwrap()));
        // Each time with noise, and with corrections, of its own.
        let (trained_features, count) = counted(&Pass::training(NoiseKey::default()), &images);
        assert_eq!(count, 5);
        let same = bits(&trained_features.get(0).unwrap()) == bits(&trained_features.get(2).unwrap());
        assert_eq!(same, !trained);
        if !trained {
            let route = Route { tokens: 0..5 * PATCHES, mixture: Mixture::base() };
            let routed = Pass::inference().with_routes(Part::Vision, vec![route]).unwrap();
            let (features, count) = counted(&routed, &images);
            let difference = (features - &together).unwrap().abs().unwrap().max_all().unwrap();
            let difference = difference.to_scalar::<f32>().unwrap();
            // All together, from the pixels on: none by itself, which could be kept.
            assert!(count == 0 && difference < 1e-5, "{count}, {difference}");
        }
    }
}

#[test]
fn a_composed_pass_has_entries_of_its_own() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    assert_eq!(run(&base, &model).1, 3);
    let composed = || with_composed(|| run(&place.base(), &model));
    let (cold, computed, read) = composed();
    assert_eq!((computed, read), (3, 0));
    assert_eq!(composed(), (cold, 0, 3));
    assert_eq!(place.entries().len(), 6);
}

#[test]
fn given_features_stand_for_an_image_while_the_vision_part_is_frozen() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let pass = Pass::inference();
    let images: Vec<Image> = (0..3).map(|seed| base.image(&picture(seed))).collect();
    let truth = features(&model, &pass, &images).unwrap().unwrap();
    let given = Image::each_of_features(&truth).unwrap();
    for image in &given {
        image.prepare(&model).unwrap();
    }
    let of = |order: [usize; 2]| features(&model, &pass, &order.map(|i| given[i].clone()));
    let expected = Tensor::cat(&[truth.get(2).unwrap(), truth.get(0).unwrap()], 0).unwrap();
    assert_eq!(bits(&of([2, 0]).unwrap().unwrap()), bits(&expected));

    adapt(&model, ALIGNER);
    assert!(given[0].prepare(&model).is_err());
    let error = of([0, 1]).unwrap_err();
    assert!(error.to_string().contains("pixels"), "{error}");
}

#[test]
fn another_base_or_preprocessing_misses() {
    let place = Place::new();
    let first = place.base();
    let model = model(&first, DType::F32);
    let (plain, ..) = run(&first, &model);
    let other = place.base_without_cache();
    other.cache().keep("another fingerprint", &place.settings());
    assert_eq!(run(&other, &model), (plain.clone(), 3, 0));
    let settings = place.base.path().join("preprocessor_config.json");
    let processors: Vec<_> = ["preprocessor_config.json", "processor_config.json"]
        .iter()
        .map(|name| place.base.path().join(name))
        .filter(|path| path.exists())
        .collect();
    for path in processors {
        fs::remove_file(path).unwrap();
    }
    fs::write(settings, r#"{"image_mean": [0.5, 0.4, 0.5]}"#).unwrap();
    let (changed, computed, read) = run(&place.base(), &model);
    assert_eq!((computed, read), (3, 0));
    assert!(changed != plain);
    assert_eq!(run(&place.base(), &model), (changed, 0, 3));
}

#[test]
fn a_damaged_entry_is_computed_again() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let (plain, ..) = run(&base, &model);
    let entries = place.entries();
    let whole: Vec<Vec<u8>> = entries.iter().map(|path| fs::read(path).unwrap()).collect();
    fs::write(&entries[0], &whole[0][..100]).unwrap();
    let mut flipped = whole[1].clone();
    flipped[500] ^= 4;
    fs::write(&entries[1], flipped).unwrap();
    let (again, computed, read) = run_mixed(&place.base(), &model);
    assert_eq!((again, computed, read), (plain.clone(), 2, 1));
    for (path, whole) in entries.iter().zip(whole) {
        assert_eq!(fs::read(path).unwrap(), whole);
    }
    assert_eq!(run(&place.base(), &model), (plain, 0, 3));
}

/// [`run`] where some are read and some computed.
fn run_mixed(base: &Base, model: &Janus) -> (Vec<u32>, u64, u64) {
    let images: Vec<Image> = (0..3).map(|seed| base.image(&picture(seed))).collect();
    let features = features(model, &Pass::inference(), &images).unwrap().unwrap();
    let counts = base.cache().counts();
    (bits(&features), counts.features_computed, counts.features_read)
}

#[test]
fn what_is_trained_moves_the_point() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let (plain, ..) = run(&base, &model);
    assert_eq!(highest_point(&model), Some(VisionPoint::Aligner));

    let aligner = adapt(&model, ALIGNER);
    assert_eq!(highest_point(&model), Some(VisionPoint::Tower));
    let (adapted, computed, _) = run(&base, &model);
    assert!(computed == 3 && adapted != plain);
    // What is trained moves on, what lies below stays.
    let [_, b] = aligner;
    b.set(&(b.as_tensor() * 2.0).unwrap()).unwrap();
    let (moved, computed, read) = run(&base, &model);
    assert!(moved != adapted && moved != plain);
    assert_eq!((computed, read), (0, 3));

    adapt(&model, BLOCK_1);
    assert_eq!(highest_point(&model), Some(VisionPoint::Blocks(1)));
    assert_eq!(run(&base, &model).1, 3);
    assert_eq!(run(&base, &model).2, 3);

    let entries = place.entries().len();
    adapt(&model, BLOCK_0);
    assert_eq!(highest_point(&model), None);
    let (without, computed, read) = run(&base, &model);
    assert_eq!((computed, read, place.entries().len()), (0, 0, entries), "nothing is kept");
    let images: Vec<Image> = (0..3).map(|seed| base.image(&picture(seed))).collect();
    let pixels: Vec<Tensor> = images.iter().map(|image| image.pixels().unwrap()).collect();
    let whole = model.vision().unwrap().forward(&Pass::inference(), &Tensor::stack(&pixels, 0).unwrap()).unwrap();
    assert_eq!(without, bits(&whole));

    crate::adapter::detach(&model);
    assert_eq!(run(&base, &model), (plain, 0, 3), "the base again");
}

#[test]
fn trained_copies_move_the_point_and_frozen_ones_are_in_the_key() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let (plain, ..) = run(&base, &model);
    let norm = "model.vision_model.post_layernorm.weight";
    let value = |by: f64| (Tensor::ones(WIDTH, DType::F32, &Device::Cpu).unwrap() * by).unwrap();
    let substitute = |copy: Option<Tensor>| model.parameters().substitute(norm, copy).unwrap();

    substitute(Some(Var::from_tensor(&value(2.0)).unwrap().as_tensor().clone()));
    assert_eq!(highest_point(&model), Some(VisionPoint::Blocks(2)));
    let (trained, computed, _) = run(&base, &model);
    assert!(computed == 3 && trained != plain);

    substitute(Some(value(2.0)));
    assert_eq!(highest_point(&model), Some(VisionPoint::Aligner));
    let (frozen, computed, read) = run(&base, &model);
    assert_eq!((computed, read), (3, 0), "not the base's entries");
    // One image is few enough rows to be summed in another order than three.
    let near = |(a, b): (&u32, &u32)| (f32::from_bits(*a) - f32::from_bits(*b)).abs() < 1e-5;
    assert!(frozen.len() == trained.len() && frozen.iter().zip(&trained).all(near));
    substitute(Some(value(2.0)));
    assert_eq!(run(&base, &model), (frozen, 0, 3), "by value");
    substitute(Some(value(3.0)));
    let (other, computed, _) = run(&base, &model);
    assert!(computed == 3 && other != trained && other != plain);
    substitute(None);
    assert_eq!(run(&base, &model), (plain.clone(), 0, 3));

    // Of a run that trains it, no value of it will come again.
    base.cache().move_with([norm.into()].into());
    substitute(Some(value(4.0)));
    let kept = place.entries().len();
    for _ in 0..2 {
        let (_, computed, read) = run(&base, &model);
        assert_eq!((computed, read), (3, 0));
    }
    assert_eq!(place.entries().len(), kept);
    substitute(None);
    assert_eq!(run(&base, &model), (plain, 0, 3), "without the copy everything is as it was");
}

#[test]
fn gradients_above_the_point_are_those_of_the_whole() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let vars = adapt(&model, BLOCK_1);
    let pass = Pass::training(NoiseKey { seed: 3, step: 1, micro_batch: 0 });
    let gradients = |features: Tensor| -> Vec<Vec<u32>> {
        let store = features.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        vars.iter().map(|var| bits(store.get(var).unwrap())).collect()
    };
    let of = |base: &Base| {
        let image = base.image(&picture(1));
        gradients(features(&model, &pass, &[image]).unwrap().unwrap())
    };
    let pixels = base.image(&picture(1)).pixels().unwrap().unsqueeze(0).unwrap();
    let whole = gradients(model.vision().unwrap().forward(&pass, &pixels).unwrap());
    assert!(whole.iter().flatten().any(|value| *value != 0));
    assert_eq!(of(&base), whole, "computed");
    assert_eq!(of(&place.base()), whole, "read");
    assert_eq!(of(&place.base_without_cache()), whole, "without a cache");
    assert_eq!(place.entries().len(), 1);
}

#[test]
fn codes_are_computed_once_and_the_tokenizer_is_opened_for_them_only() {
    let place = Place::new();
    let of = |base: &Base, seed| codes(base, &Device::Cpu, &base.image(&picture(seed))).unwrap();
    let counts = |base: &Base| (base.cache().counts().codes_computed, base.cache().counts().codes_read);
    let opened = |base: &Base| base.cache().tokenizer.lock().unwrap().is_some();

    let cold = place.base();
    assert!(!opened(&cold));
    let (first, second) = (of(&cold, 1), of(&cold, 2));
    assert!(first.len() == 16 && first != second);
    assert_eq!((of(&cold, 1), counts(&cold), opened(&cold)), (first.clone(), (2, 0), true));

    let model = cold.model(DType::F32, &Device::Cpu, Parts::all(), &Silent).unwrap();
    let pixels = picture(1).decode().unwrap();
    let pixels = cold.images().generation_target(&pixels).unwrap().unsqueeze(0).unwrap();
    let truth = model.image_tokenizer().unwrap().encode(&Pass::inference(), &pixels).unwrap().concat();
    assert_eq!(*first, *truth);

    let warm = place.base();
    assert_eq!((of(&warm, 1), of(&warm, 2)), (first.clone(), second));
    assert_eq!((of(&warm, 1), counts(&warm), opened(&warm)), (first.clone(), (0, 2), false));

    for entry in place.entries() {
        fs::write(entry, b"damaged").unwrap();
    }
    let damaged = place.base();
    assert_eq!((of(&damaged, 1), counts(&damaged)), (first.clone(), (1, 0)));

    let off = place.base_without_cache();
    assert_eq!((of(&off, 1), of(&off, 1)), (first.clone(), first));
    assert_eq!(counts(&off), (1, 0), "in memory");
}

#[test]
fn what_is_kept_is_of_a_picture_and_how_it_is_read() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let ways = [
        Decoding::default(),
        Decoding { orientation: Orientation::Stored, ..Decoding::default() },
        Decoding { grey_bits: Some(12), ..Decoding::default() },
    ];
    for times in 1..=2 {
        let images = ways.map(|decoding| base.image(&EncodedImage { decoding, ..picture(1) }));
        features(&model, &Pass::inference(), &images).unwrap().unwrap();
        for image in &images {
            codes(&base, &Device::Cpu, image).unwrap();
        }
        let counts = base.cache().counts();
        assert_eq!((counts.features_computed, counts.codes_computed), (3, 3), "time {times}");
    }
    assert_eq!(place.entries().len(), 6);
}

#[test]
fn two_runs_share_a_folder() {
    let place = Place::new();
    let truth = run(&place.base_without_cache(), &model(&place.base(), DType::F32)).0;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let base = place.base();
                assert_eq!(run_mixed(&base, &model(&base, DType::F32)).0, truth);
            });
        }
    });
    assert_eq!(place.entries().len(), 3);
}

#[test]
fn damaged_pictures_are_told_before_anything_is_computed() {
    let place = Place::new();
    let base = place.base();
    let model = model(&base, DType::F32);
    let image = base.image(&EncodedImage::new(b"no picture".to_vec()));
    assert!(image.prepare(&model).is_err());
    assert!(features(&model, &Pass::inference(), &[image]).is_err());
    assert!(place.entries().is_empty());
}
