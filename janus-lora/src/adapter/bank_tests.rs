//! Rows of one pass under adapters of every method, against each row alone with its adapter attached.

use candle_core::{DType, Device, Tensor};
use janus_core::model::decoder::Placement;
use janus_core::pass::{Part, Pass, Route};
use janus_core::sample::{CodeOptions, CodePrompts, generate_first_codes};

use super::super::method::tests::{config, methods, model, trained};
use super::super::{Adapter, AdapterSpec, attach, detach, testing};
use super::*;
use crate::dynamic::Paths;

const TOKENS: usize = 4;

/// An adapter of every method and form, each with sites of every part and kind that the method takes, and one with the dynamic
/// encoder on both paths.
fn adapters() -> Vec<Adapter> {
    let more = ["lm_head", "model.generation_head.proj_out", "model.generation_aligner.fc1"];
    let specs = methods().into_iter().map(|spec| {
        let linear_only = spec.sites.iter().all(|path| !path.ends_with("embed_tokens"));
        let table = (!linear_only).then_some("model.generation_embeddings");
        let sites = spec.sites.iter().cloned().chain(more.into_iter().chain(table).map(Into::into)).collect();
        AdapterSpec { sites, ..spec }
    });
    let mut adapters: Vec<Adapter> = specs.map(|spec| trained(&spec)).collect();
    let both = Paths { vision: true, generation: true };
    let mut dynamic = trained(&AdapterSpec { dynamic: Some(both), ..methods().remove(0) });
    dynamic.dynamic = dynamic.dynamic.map(|own| {
        let moved = |name: &str| (own.values()[name].affine(1.0, 0.05)).unwrap();
        own.with_values(moved)
    });
    adapters.push(dynamic);
    adapters
}

/// What rows give: features of a picture, logits of a prompt, logits over codes on both branches of guidance at each of three
/// steps. `mixtures` has one of each row; absent, what is attached.
fn outputs(model: &Janus, rows: usize, mixtures: Option<&[Mixture]>) -> Vec<Tensor> {
    let pass = |part: Part, length: usize| match mixtures {
        None => Pass::inference(),
        Some(mixtures) => {
            let route = |(row, mixture): (usize, &Mixture)| Route {
                tokens: row * length..(row + 1) * length,
                mixture: mixture.clone(),
            };
            Pass::inference().with_routes(part, mixtures.iter().enumerate().map(route).collect()).unwrap()
        }
    };
    let side = config().vision.image_size;
    let pixels: Vec<f32> = (0..3 * side * side).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
    let pixels = Tensor::from_vec(pixels.repeat(rows), (rows, 3, side, side), &Device::Cpu).unwrap();
    let features =
        model.vision().unwrap().forward(&pass(Part::Vision, config().vision.num_patches()), &pixels).unwrap();

    let ids: Vec<u32> = [256, 7, 9, 300].repeat(rows);
    let decoder = model.decoder();
    let routed = pass(Part::Decoder, TOKENS);
    let embeds = decoder.embed(&routed, &ids, rows).unwrap();
    let hidden = decoder.forward(&routed, &embeds, &Placement::plain(rows, 0, TOKENS), None).unwrap();
    let logits = decoder.text_logits(&routed, &hidden).unwrap();

    let unconditional: Vec<u32> = [256, 258, 258, 300].repeat(rows);
    let prompts = CodePrompts { conditional: ids, unconditional, mask: vec![true; rows * TOKENS], rows, images: None };
    let options = CodeOptions { guidance: 3.0, temperature: 0.0, seed: 1 };
    let mut outputs = vec![features, logits];
    generate_first_codes(model, &routed, &prompts, &options, 3, &mut |step| {
        outputs.extend([step.conditional.clone(), step.unconditional.unwrap().clone()]);
    })
    .unwrap();
    outputs
}

fn largest(tensor: &Tensor) -> f32 {
    tensor.abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Fails unless a row of all outputs is what the model gives alone.
fn row_agrees(together: &[Tensor], row: usize, alone: &[Tensor], what: &str) {
    for (number, (together, alone)) in together.iter().zip(alone).enumerate() {
        let own = together.narrow(0, row, 1).unwrap();
        let difference = largest(&(&own - alone).unwrap());
        assert!(difference <= 2e-5 * largest(alone).max(1.0), "{what}, output {number}: {difference:e}");
    }
}

/// A bank with all of some adapters, and their slots.
fn holding<'m>(model: &'m Janus, adapters: &[Adapter]) -> (Bank<'m>, Vec<Slot>) {
    let mut bank = Bank::new(model);
    let slots = adapters.iter().map(|adapter| bank.insert(adapter).unwrap()).collect();
    (bank, slots)
}

#[test]
fn each_row_of_a_pass_is_the_row_alone_with_its_adapter_attached() {
    let model = model(DType::F32);
    let adapters = adapters();
    let (bank, slots) = holding(&model, &adapters);
    assert!(slots.iter().all(|slot| bank.bytes(*slot).unwrap() > 500));
    let rows = adapters.len() + 1;
    let mixtures: Vec<Mixture> = slots.iter().map(|slot| Mixture::of(*slot)).chain([Mixture::base()]).collect();
    let together = outputs(&model, rows, Some(&mixtures));
    let plain = outputs(&model, 1, None);
    row_agrees(&together, rows - 1, &plain, "the base");
    for (row, adapter) in adapters.iter().enumerate() {
        attach(&model, &[(adapter, 1.0)]).unwrap();
        let alone = outputs(&model, 1, None);
        detach(&model);
        let what = format!("{:?}", adapter.config.method);
        row_agrees(&together, row, &alone, &what);
        for (number, (alone, plain)) in alone.iter().zip(&plain).enumerate() {
            assert!(largest(&(alone - plain).unwrap()) > 1e-3, "{what} leaves output {number} alone");
        }
    }
}

#[test]
fn a_mixture_is_the_adapters_attached_together() {
    let model = model(DType::F32);
    let adapters = adapters();
    let (_bank, slots) = holding(&model, &adapters);
    let last = adapters.len() - 1;
    // One with another factor; pairs, factors on the output and products; those and factors on the input; the encoder halved.
    let chosen: [&[(usize, f64)]; 4] = [
        &[(0, -1.5)],
        &[(1, 0.5), (3, 2.0), (8, -1.0)],
        &[(4, 0.5), (last - 1, 2.0), (0, 1.0)],
        &[(last, 0.5), (5, 1.0)],
    ];
    let mixtures = chosen.map(|parts| Mixture::new(parts.iter().map(|(which, factor)| (slots[*which], *factor))));
    let together = outputs(&model, chosen.len(), Some(&mixtures));
    for (row, parts) in chosen.iter().enumerate() {
        let parts: Vec<(&Adapter, f64)> = parts.iter().map(|(which, factor)| (&adapters[*which], *factor)).collect();
        attach(&model, &parts).unwrap();
        let alone = outputs(&model, 1, None);
        detach(&model);
        row_agrees(&together, row, &alone, &format!("mixture {row}"));
    }
}

#[test]
fn copies_of_parameters_form_groups_of_their_own() {
    let model = model(DType::F32);
    let of = |spec: AdapterSpec, copies: &[&str]| {
        let modules_to_save = copies.iter().map(ToString::to_string).collect();
        let mut adapter = trained(&AdapterSpec { modules_to_save, ..spec });
        for (name, copy) in &mut adapter.saved {
            *copy = ((testing::drawn(copy, name) * 0.05).unwrap() + &*copy).unwrap();
        }
        adapter
    };
    let [lora, .., ia3] = &methods()[..] else { unreachable!() };
    let with_norm = of(lora.clone(), &["language_model.norm", "post_layernorm"]);
    let query = AdapterSpec { sites: lora.sites[..1].to_vec(), ..lora.clone() };
    let (with_site, plain) = (of(query, &["model.aligner.fc1"]), trained(ia3));
    let mut bank = Bank::new(&model);
    let [first, second, third] = [&with_norm, &with_site, &plain].map(|adapter| bank.insert(adapter).unwrap());
    let base = outputs(&model, 1, Some(&[Mixture::base()]));
    let both = Mixture::new([(first, 0.5), (third, 1.0)]);
    for (mixture, parts) in [
        (Mixture::of(first), vec![(&with_norm, 1.0)]),
        (both, vec![(&with_norm, 0.5), (&plain, 1.0)]),
        (Mixture::of(third), vec![(&plain, 1.0)]),
        (Mixture::of(second), vec![(&with_site, 1.0)]),
    ] {
        bank.enter(&bank.group(&mixture).unwrap()).unwrap();
        let own = outputs(&model, 2, Some(&[mixture, Mixture::base()]));
        bank.enter(&Group::default()).unwrap();
        attach(&model, &parts).unwrap();
        row_agrees(&own, 0, &outputs(&model, 1, None), "a group");
        detach(&model);
    }
    assert_eq!(bank.group(&Mixture::of(third)).unwrap(), bank.group(&Mixture::base()).unwrap());
    assert_ne!(bank.group(&Mixture::of(first)).unwrap(), bank.group(&Mixture::of(second)).unwrap());
    assert_ne!(bank.group(&Mixture::of(first)).unwrap(), bank.group(&Mixture::new([(first, 0.5)])).unwrap());
    let refused = |parts: &[(Slot, f64)]| bank.group(&Mixture::new(parts.iter().copied())).unwrap_err();
    assert!(matches!(refused(&[(first, 1.0), (second, 1.0)]), AdapterError::SeveralCopies { first: 1, second: 2 }));
    // The factors of the third are of the base's own bias and weight, not of the second's copy of it.
    let error = refused(&[(second, 1.0), (third, 1.0)]);
    assert!(matches!(&error, AdapterError::CopyUnderFactors { path } if path == "model.aligner.fc1.bias"), "{error}");
    row_agrees(&base, 0, &outputs(&model, 1, None), "nothing stays behind");
}

#[test]
fn what_cannot_be_held_leaves_the_bank_as_it_was() {
    let model = model(DType::F32);
    let adapters = adapters();
    let mut bank = Bank::new(&model);
    let slot = bank.insert(&adapters[0]).unwrap();
    let before = outputs(&model, 1, Some(&[Mixture::of(slot)]));
    let mut foreign = trained(&methods()[0]);
    let site = foreign.sites.values_mut().next().unwrap();
    let value = site.values.values_mut().next().unwrap();
    *value = Tensor::zeros((3, 5), DType::F32, &Device::Cpu).unwrap();
    assert!(bank.insert(&foreign).is_err());
    row_agrees(&outputs(&model, 1, Some(&[Mixture::of(slot)])), 0, &before, "as before");
    assert!(bank.remove(slot) && !bank.remove(slot));
    assert!(bank.bytes(slot).is_none() && bank.heads(slot).is_none());
    let route = Route { tokens: 0..1, mixture: Mixture::of(slot) };
    let pass = Pass::inference().with_routes(Part::Decoder, vec![route]).unwrap();
    let error = model.decoder().embed(&pass, &[7], 1).unwrap_err();
    assert!(error.to_string().contains("slot"), "{error}");
}

#[test]
fn a_bank_that_goes_leaves_the_model_as_it_was() {
    let model = model(DType::F32);
    let before = outputs(&model, 1, None);
    let name = "model.language_model.norm.weight";
    {
        let spec = AdapterSpec { modules_to_save: vec!["language_model.norm".into()], ..methods().remove(0) };
        let mut adapter = trained(&spec);
        let copy = (&adapter.saved[name] * 2.0).unwrap();
        adapter.saved.insert(name.into(), copy);
        let (mut bank, slots) = holding(&model, &[adapter]);
        let group = bank.group(&Mixture::of(slots[0])).unwrap();
        bank.enter(&group).unwrap();
        assert!(model.parameters().get(name).unwrap().copy().is_some());
    }
    assert!(model.parameters().get(name).unwrap().copy().is_none());
    for (one, other) in before.iter().zip(outputs(&model, 1, None)) {
        assert_eq!(testing::bits(one), testing::bits(&other));
    }
    let mixture = Mixture::of(Slot(0));
    let pass = Pass::inference().with_routes(Part::Decoder, vec![Route { tokens: 0..1, mixture }]).unwrap();
    assert!(model.decoder().embed(&pass, &[7], 1).is_err(), "its slots are empty");
}
