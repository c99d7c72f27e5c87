//! All sites and parameters of a small model.

use std::collections::BTreeSet;

use candle_core::{Var, backprop::GradStore};

use super::*;
use crate::config::JanusConfig;
use crate::model::decoder::Placement;
use crate::model::{Janus, SlotContents};
use crate::ops::with_composed;
use crate::pass::{Mixture, Route, Slot};
use crate::testing::{largest_difference, named_tensor, same_bits, tied_tiny, tiny};

/// What the model gives on fixed inputs: text logits of a prompt with a picture, logits over codes, latents, pixels.
pub(super) struct Outputs {
    logits: Tensor,
    image_logits: Tensor,
    latents: Tensor,
    pixels: Tensor,
}

const PICTURE: u32 = 261;

pub(super) fn outputs(model: &Janus) -> Outputs {
    let pass = Pass::inference();
    let (decoder, generation) = (model.decoder(), model.generation().unwrap());
    let picture = named_tensor("picture", &[1, 3, 32, 32]);

    let features = model.vision().unwrap().forward(&pass, &picture).unwrap();
    let placeholders = features.dim(1).unwrap();
    let ids: Vec<u32> = [7, 8].into_iter().chain(vec![PICTURE; placeholders]).chain([9, 10, 11]).collect();
    let embeds = model.embed_with_images(&pass, &ids, 1, PICTURE, Some(&features)).unwrap();
    let hidden = decoder.forward(&pass, &embeds, &Placement::plain(1, 0, ids.len()), None).unwrap();
    let logits = decoder.text_logits(&pass, &hidden).unwrap();

    let codes = [3u32, 60, 3, 17];
    let embeds = generation.embed(&pass, &codes, 1).unwrap();
    let hidden = decoder.forward(&pass, &embeds, &Placement::plain(1, 0, codes.len()), None).unwrap();
    let image_logits = generation.logits(&pass, &hidden).unwrap();

    let tokenizer = model.image_tokenizer().unwrap();
    let latents = tokenizer.latents(&pass, &picture).unwrap();
    let pixels = tokenizer.decode(&pass, &[codes.to_vec()]).unwrap();
    Outputs { logits, image_logits, latents, pixels }
}

impl Outputs {
    pub(super) fn named(&self) -> [(&'static str, &Tensor); 4] {
        [
            ("logits", &self.logits),
            ("image logits", &self.image_logits),
            ("latents", &self.latents),
            ("pixels", &self.pixels),
        ]
    }
}

/// Which of the outputs a site has a part in.
fn reached(path: &str) -> Vec<&'static str> {
    match path {
        "lm_head" | "model.language_model.embed_tokens" => vec!["logits"],
        _ if path.starts_with("model.language_model.") => vec!["logits", "image logits"],
        _ if path.starts_with("model.vision_model.") || path.starts_with("model.aligner.") => vec!["logits"],
        _ if path.starts_with("model.generation_") => vec!["image logits"],
        _ if path.contains(".vqmodel.encoder.") || path.ends_with(".quant_conv") => vec!["latents"],
        _ => vec!["pixels"],
    }
}

/// A term with factors of the site's name, large enough to see and small enough to keep the model's outputs in size.
pub(super) fn term_of(site: &Site) -> LowRank {
    let (a, b) = factor_shapes(site, 2);
    let (a, b) = (named_tensor(&format!("{}.a", site.path), &a), named_tensor(&format!("{}.b", site.path), &b));
    let fan_in: usize = if site.kind == SiteKind::Embedding { 1 } else { a.dims()[1..].iter().product() };
    LowRank { a, b, scale: 0.5 / (fan_in as f64).sqrt(), dropout: 0.0 }
}

#[test]
fn the_sites_are_all_maps_of_the_model_each_once() {
    let config = JanusConfig::shape("janus-tiny").unwrap();
    let all = sites(&config);
    let paths: BTreeSet<&str> = all.iter().map(|site| &*site.path).collect();
    assert_eq!(paths.len(), all.len());
    let loaded = tiny();
    let loaded: BTreeSet<String> = loaded.projections().iter().map(|p| p.site().path.to_string()).collect();
    assert_eq!(paths, loaded.iter().map(String::as_str).collect());

    let count = |kind: fn(SiteKind) -> bool| all.iter().filter(|site| kind(site.kind)).count();
    // Tower 2·6, its aligner 2, decoder 2·7, its head 1, generation aligner 2 and head 2.
    assert_eq!(count(|kind| kind == SiteKind::Linear), 33);
    assert_eq!(count(|kind| kind == SiteKind::Embedding), 2);
    // Patches 1; encoder: in and out 2, levels 3·3 + 7, middle 8; around the codes 2; decoder: in and out 2, middle 8,
    // levels 13 + 6 + 5 + 4.
    assert_eq!(count(|kind| matches!(kind, SiteKind::Conv2d { .. })), 67);
    let of = |part| all.iter().filter(|site| site.part == part).count();
    assert_eq!((of(Part::Decoder), of(Part::Vision), of(Part::Generation)), (16, 15, 71));
}

#[test]
fn sites_have_the_kind_part_and_shape_of_their_maps() {
    let all = sites(&JanusConfig::shape("janus-tiny").unwrap());
    let conv = |kernel, stride, padding| SiteKind::Conv2d { kernel, stride, padding };
    for (path, part, kind, input, output) in [
        ("model.vision_model.embeddings.patch_embedding", Part::Vision, conv(8, 8, 0), 3, 32),
        ("model.vision_model.encoder.layers.1.self_attn.projection_layer", Part::Vision, SiteKind::Linear, 32, 32),
        ("model.vision_model.encoder.layers.0.mlp.fc1", Part::Vision, SiteKind::Linear, 32, 56),
        ("model.vision_model.encoder.layers.0.mlp.fc2", Part::Vision, SiteKind::Linear, 56, 32),
        ("model.aligner.fc1", Part::Vision, SiteKind::Linear, 32, 48),
        ("model.language_model.embed_tokens", Part::Decoder, SiteKind::Embedding, 400, 48),
        ("model.language_model.layers.1.mlp.down_proj", Part::Decoder, SiteKind::Linear, 80, 48),
        ("lm_head", Part::Decoder, SiteKind::Linear, 48, 400),
        ("model.generation_embeddings", Part::Generation, SiteKind::Embedding, 64, 8),
        ("model.generation_aligner.fc1", Part::Generation, SiteKind::Linear, 8, 48),
        ("model.generation_head.vision_head", Part::Generation, SiteKind::Linear, 48, 64),
        ("model.vqmodel.encoder.conv_in", Part::Generation, conv(3, 1, 1), 3, 32),
        ("model.vqmodel.encoder.down.2.downsample.conv", Part::Generation, conv(3, 2, 0), 32, 32),
        ("model.vqmodel.encoder.down.3.block.0.nin_shortcut", Part::Generation, conv(1, 1, 0), 32, 64),
        ("model.vqmodel.quant_conv", Part::Generation, conv(1, 1, 0), 16, 8),
        ("model.vqmodel.post_quant_conv", Part::Generation, conv(1, 1, 0), 8, 16),
        ("model.vqmodel.decoder.up.0.upsample.conv", Part::Generation, conv(3, 1, 1), 64, 64),
        ("model.vqmodel.decoder.up.1.block.0.conv1", Part::Generation, conv(3, 1, 1), 64, 32),
        ("model.vqmodel.decoder.conv_out", Part::Generation, conv(3, 1, 1), 32, 3),
    ] {
        let expected = Site { path: path.into(), part, kind, input, output };
        assert_eq!(all.iter().find(|site| &*site.path == path), Some(&expected));
    }
    // Read as a whole, never multiplied with an input.
    for table in ["model.vqmodel.quantize.embedding", "model.vision_model.embeddings.position_embedding"] {
        assert!(all.iter().all(|site| &*site.path != table), "{table}");
    }
}

#[test]
fn a_correction_at_any_site_changes_what_the_site_has_a_part_in_and_nothing_else() {
    let model = tiny();
    let before = outputs(&model);
    for projection in model.projections().iter() {
        let path = &projection.site().path;
        projection.attach(of_low_rank(vec![term_of(projection.site())])).unwrap();
        let after = outputs(&model);
        projection.attach(None).unwrap();
        let reached = reached(path);
        for ((name, after), (_, before)) in after.named().into_iter().zip(before.named()) {
            if reached.contains(&name) {
                assert!(largest_difference(after, before) > 1e-4, "`{path}` does not change the {name}");
            } else {
                same_bits(after, before);
            }
        }
    }
    for ((_, after), (_, before)) in outputs(&model).named().into_iter().zip(before.named()) {
        same_bits(after, before);
    }
}

#[test]
fn corrections_at_all_sites_compute_what_folded_weights_compute() {
    let model = tiny();
    let before = outputs(&model);
    for projection in model.projections().iter() {
        projection.attach(of_low_rank(vec![term_of(projection.site())])).unwrap();
    }
    let attached = outputs(&model);
    for projection in model.projections().iter() {
        let name = format!("{}.weight", projection.site().path);
        let weight = model.parameters().get(&name).unwrap().frozen().values();
        let folded = projection.correction().unwrap().fold(projection.site(), weight).unwrap();
        model.parameters().substitute(&name, Some(folded)).unwrap();
        projection.attach(None).unwrap();
    }
    let folded = outputs(&model);
    for (((name, attached), (_, folded)), (_, before)) in
        attached.named().into_iter().zip(folded.named()).zip(before.named())
    {
        check::close(attached, folded, 1e-4);
        assert!(largest_difference(attached, before) > 0.1, "the {name} hardly move");
    }
}

/// Holds in a slot a term at every site, and values of the vision tower's norms.
fn hold(model: &Janus, slot: u32, factor: f64) {
    let site = |projection: &Arc<Projection>| {
        let term = term_of(projection.site());
        let term = LowRank { scale: factor * term.scale, ..term };
        (projection.site().path.to_string(), Correction::of_terms([Term::LowRank(term)]))
    };
    let norms = model.parameters().iter().filter(|p| p.name().contains("vision_model") && p.name().contains("norm"));
    let norm = |parameter: &Arc<Parameter>| {
        let shift = (named_tensor(parameter.name(), parameter.frozen().dims()) * (0.3 * factor)).unwrap();
        (parameter.name().to_string(), (parameter.frozen().values() + shift).unwrap())
    };
    let (corrections, norms) = (model.projections().iter().map(site).collect(), norms.map(norm).collect());
    assert!(model.hold(Slot(slot), &SlotContents { corrections, norms }).unwrap() > 10_000);
}

/// Hidden states of two rows of three tokens, and features of two pictures, each row with the slot of its own.
#[test]
fn rows_of_two_slots_in_one_pass_through_the_model_equal_two_passes() {
    let model = tiny();
    hold(&model, 1, 1.0);
    hold(&model, 2, -1.0);
    let pass = |part, tokens: usize, slots: &[u32]| {
        let route = |(row, slot): (usize, &u32)| {
            let mixture = Mixture::of(Slot(*slot));
            Route { tokens: row * tokens..(row + 1) * tokens, mixture }
        };
        Pass::inference().with_routes(part, slots.iter().enumerate().map(route).collect()).unwrap()
    };

    let ids = [4u32, 5, 6, 4, 5, 6];
    let decoder = model.decoder();
    let logits = |ids: &[u32], slots: &[u32]| {
        let pass = pass(Part::Decoder, 3, slots);
        let embeds = decoder.embed(&pass, ids, slots.len()).unwrap();
        let hidden = decoder.forward(&pass, &embeds, &Placement::plain(slots.len(), 0, 3), None).unwrap();
        decoder.text_logits(&pass, &hidden).unwrap()
    };
    let picture = named_tensor("picture", &[1, 3, 32, 32]);
    let features = |pictures: &Tensor, slots: &[u32]| {
        let pass = pass(Part::Vision, model.config().vision.num_patches(), slots);
        model.vision().unwrap().forward(&pass, pictures).unwrap()
    };
    let codes: Vec<u32> = (0..model.codes_per_image() as u32).collect();
    let pixels = |slots: &[u32]| {
        let pass = pass(Part::Generation, codes.len(), slots);
        model.image_tokenizer().unwrap().decode(&pass, &vec![codes.clone(); slots.len()]).unwrap()
    };
    let all = |rows: usize, slots: &[u32]| {
        let pictures = Tensor::cat(&vec![&picture; rows], 0).unwrap();
        [logits(&ids[..3 * rows], slots), features(&pictures, slots), pixels(slots)]
    };
    let together = all(2, &[1, 2]);
    let composed = with_composed(|| all(2, &[1, 2]));
    for (row, slot) in [(0, 1), (1, 2)] {
        for ((together, composed), alone) in together.iter().zip(&composed).zip(&all(1, &[slot])) {
            check::close(&together.narrow(0, row, 1).unwrap(), alone, 2e-5);
            check::close(&composed.narrow(0, row, 1).unwrap(), alone, 2e-5);
        }
    }
    for together in &together {
        let (first, second) = (together.get(0).unwrap(), together.get(1).unwrap());
        assert!(largest_difference(&first, &second) > 0.1, "both slots give the same");
    }
    // Emptied, the one is unknown and the other as it was.
    model.release(Slot(1));
    assert!(decoder.embed(&pass(Part::Decoder, 3, &[1]), &ids[..3], 1).is_err());
    same_bits(&all(1, &[2])[0], &all(1, &[2])[0]);
}

#[test]
fn what_a_model_cannot_hold_is_an_error_and_changes_nothing() {
    let model = tiny();
    hold(&model, 1, 1.0);
    let vector = named_tensor("a norm", &[48]);
    for norm in ["model.language_model.norm.weight", "model.no_such.weight", "model.vision_model.post_layernorm.bias"] {
        let contents = SlotContents { norms: [(norm.to_owned(), vector.clone())].into(), ..SlotContents::default() };
        assert!(model.hold(Slot(1), &contents).is_err(), "{norm}");
    }
    let site = model.projections().get("lm_head").unwrap().site().clone();
    for path in ["lm_head.none", "model.aligner.fc1"] {
        let corrections = [(path.to_owned(), Correction::of_terms([Term::LowRank(term_of(&site))]))].into();
        assert!(model.hold(Slot(1), &SlotContents { corrections, ..SlotContents::default() }).is_err(), "{path}");
    }
    let route = Route { tokens: 0..3, mixture: Mixture::of(Slot(1)) };
    let pass = Pass::inference().with_routes(Part::Decoder, vec![route]).unwrap();
    let embeds = model.decoder().embed(&pass, &[4, 5, 6], 1).unwrap();
    assert!(largest_difference(&embeds, &model.decoder().embed(&Pass::inference(), &[4, 5, 6], 1).unwrap()) > 0.01);
}

/// `Σ logits·g + Σ image logits·g`, `g` fixed and uneven.
pub(super) fn objective(model: &Janus) -> Tensor {
    let Outputs { logits, image_logits, .. } = outputs(model);
    let weighed = |y: Tensor, name: &str| (&y * named_tensor(name, y.dims())).unwrap().sum_all().unwrap();
    (weighed(logits, "logits") + weighed(image_logits, "image logits")).unwrap()
}

/// Puts trainable copies in for `names`.
fn train(model: &Janus, names: &[&str]) -> Vec<Var> {
    let copy = |name: &&str| {
        let copy = Var::from_tensor(&model.parameters().get(name).unwrap().frozen().values()).unwrap();
        model.parameters().substitute(name, Some(copy.as_tensor().clone())).unwrap();
        copy
    };
    names.iter().map(copy).collect()
}

/// Fails unless the gradient of each copy agrees with the objective's slope along a direction of its own.
fn check_slopes(model: &Janus, names: &[&str], copies: &[Var], gradients: &GradStore) {
    for (name, copy) in names.iter().zip(copies) {
        let gradient = gradients.get(copy).unwrap_or_else(|| panic!("`{name}` has no gradient"));
        let direction = named_tensor(&format!("{name} direction"), copy.dims());
        let along: f32 = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
        let step = 2e-3;
        let shifted = |step: f64| -> f64 {
            let moved = (copy.as_detached_tensor() + (&direction * step).unwrap()).unwrap();
            model.parameters().substitute(name, Some(moved)).unwrap();
            f64::from(objective(model).to_scalar::<f32>().unwrap())
        };
        let slope = (shifted(step) - shifted(-step)) / (2.0 * step);
        model.parameters().substitute(name, Some(copy.as_tensor().clone())).unwrap();
        let difference = (f64::from(along) - slope).abs();
        assert!(difference < 0.02 + 0.02 * slope.abs(), "`{name}`: gradient {along}, slope {slope}");
        assert!(slope.abs() > 0.05, "`{name}`: a slope of {slope} shows nothing");
    }
}

#[test]
fn a_trainable_copy_of_any_parameter_gets_its_gradient_and_frozen_ones_get_none() {
    let model = tiny();
    let names = [
        "lm_head.weight",
        "model.aligner.fc1.bias",
        "model.generation_embeddings.weight",
        "model.generation_head.proj_out.weight",
        "model.generation_head.vision_head.bias",
        "model.language_model.embed_tokens.weight",
        "model.language_model.layers.0.input_layernorm.weight",
        "model.language_model.layers.1.self_attn.q_proj.weight",
        "model.language_model.norm.weight",
        "model.vision_model.embeddings.patch_embedding.weight",
        "model.vision_model.embeddings.position_embedding.weight",
        "model.vision_model.encoder.layers.0.layer_norm1.bias",
        "model.vision_model.encoder.layers.1.mlp.fc2.bias",
        "model.vision_model.post_layernorm.weight",
    ];
    let copies = train(&model, &names);
    let gradients = objective(&model).backward().unwrap();
    for parameter in model.parameters().iter() {
        assert!(
            gradients.get(&parameter.frozen().values()).is_none(),
            "`{}` is frozen and has a gradient",
            parameter.name()
        );
    }
    check_slopes(&model, &names, &copies, &gradients);
}

#[test]
fn a_frozen_pass_builds_no_graph() {
    let model = tiny();
    for (name, output) in outputs(&model).named() {
        assert!(!output.track_op(), "the {name} carry a graph");
    }
}

#[test]
fn a_tied_head_adds_its_gradient_to_the_embedding_table() {
    let model = tied_tiny();
    assert!(model.is_tied());
    assert!(model.parameters().get("lm_head.weight").is_none());
    let names = ["model.language_model.embed_tokens.weight"];
    let copies = train(&model, &names);
    let gradients = objective(&model).backward().unwrap();
    check_slopes(&model, &names, &copies, &gradients);
    // Id 300 stands in no prompt: only the head can have reached its row.
    let unseen = gradients.get(&copies[0]).unwrap().get(300).unwrap();
    assert!(unseen.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.01);
}

#[test]
fn a_correction_of_a_tied_head_leaves_the_embedding_alone() {
    let model = tied_tiny();
    let pass = Pass::inference();
    let embed = |model: &Janus| model.decoder().embed(&pass, &[5, 6], 1).unwrap();
    let (before, embedded) = (outputs(&model), embed(&model));
    let head = model.projections().get("lm_head").unwrap();
    head.attach(of_low_rank(vec![term_of(head.site())])).unwrap();
    assert!(largest_difference(&outputs(&model).logits, &before.logits) > 0.01);
    same_bits(&embed(&model), &embedded);
}

#[test]
fn a_copy_must_fit_and_can_be_taken_back() {
    let model = tiny();
    let (parameters, name) = (model.parameters(), "model.language_model.norm.weight");
    let before = outputs(&model).logits;
    let error = parameters.substitute("model.norm.weight", None).unwrap_err();
    assert!(error.to_string().contains("`model.norm.weight`"), "{error}");
    let error = parameters.substitute(name, Some(named_tensor("x", &[47]))).unwrap_err();
    assert!(error.to_string().contains(name) && error.to_string().contains("47"), "{error}");
    assert!(parameters.get(name).unwrap().copy().is_none());
    parameters.substitute(name, Some(named_tensor("x", &[48]))).unwrap();
    assert!(largest_difference(&outputs(&model).logits, &before) > 0.1);
    parameters.substitute(name, None).unwrap();
    same_bits(&outputs(&model).logits, &before);
}
