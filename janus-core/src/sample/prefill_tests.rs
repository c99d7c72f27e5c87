//! Rows that share their beginnings, against every row computed whole.

use std::sync::{Arc, Mutex};

use candle_core::Tensor;

use super::*;
use crate::model::{Janus, SlotContents};
use crate::ops::{check, with_composed};
use crate::pass::{Route, Slot};
use crate::processing::left_pad;
use crate::sample::{CodeOptions, CodePrompts, TextOptions, generate_codes, generate_text};
use crate::site::{BaseView, Correction, Intercept, LowRank, Site, SiteKind, Term};
use crate::testing::{named_tensor, of_low_rank, tiny, tiny_in};

const PAD: u32 = 258;

/// `count` ids that depend on `seed`.
fn text(seed: u64, count: usize) -> Vec<u32> {
    (0..count as u64).map(|i| (crate::noise::uniform(seed, i) * 250.0) as u32).collect()
}

/// Two questions about one image, one about another, the first again and one without an image; `more` tokens longer.
fn questions(more: usize) -> Vec<Vec<u32>> {
    let (image, other) = (text(1, 40), text(2, 40));
    vec![
        [image.clone(), text(3, 5 + more)].concat(),
        [image.clone(), text(4, 3 + more)].concat(),
        [other, text(5, 4 + more)].concat(),
        [image, text(3, 5 + more)].concat(),
        text(6, 9 + more),
    ]
}

struct Batch {
    ids: Vec<u32>,
    mask: Vec<Vec<bool>>,
    rows: usize,
    length: usize,
}

fn batch(rows: &[Vec<u32>]) -> Batch {
    let padded = left_pad(rows, PAD);
    let mask = padded.mask.chunks_exact(padded.len).map(|row| row.iter().map(|token| *token != 0).collect()).collect();
    Batch { ids: padded.ids, mask, rows: padded.rows, length: padded.len }
}

/// The pass of what follows the prompts, one token a row: each is routed as its prompt's last token.
fn following(pass: &Pass, batch: usize, sequence: usize) -> Result<Pass> {
    let last = (1..=batch).map(|row| row * sequence - 1);
    Ok(pass.picked(Part::Decoder, last)?.in_order(SumOrder::Few))
}

/// The last hidden states after the prompts, and after one more token of each row's own.
type States = [Tensor; 2];

fn states(
    model: &Janus,
    pass: &Pass,
    batch: &Batch,
    begin: impl FnOnce(&Tensor, &[Vec<bool>]) -> Result<(Tensor, Cache)>,
) -> States {
    let decoder = model.decoder();
    let embeds = decoder.embed(pass, &batch.ids, batch.rows).unwrap();
    let (last, mut cache) = begin(&embeds, &batch.mask).unwrap();
    assert_eq!(cache.len(), batch.length);
    let pass = following(pass, batch.rows, batch.length).unwrap();
    let mask: Vec<_> = batch.mask.iter().map(|row| [row.as_slice(), &[true]].concat()).collect();
    let ids: Vec<u32> = (0..batch.rows as u32).map(|row| 7 + 11 * row).collect();
    let next = decoder.embed(&pass, &ids, batch.rows).unwrap();
    let next = decoder.forward_last(&pass, &next, &Placement::continued(&mask, 1), &mut cache).unwrap();
    [last, next]
}

fn shared(model: &Janus, pass: &Pass, batch: &Batch) -> States {
    let room = batch.length + 1;
    states(model, pass, batch, |embeds, mask| prefill(model.decoder(), pass, embeds, mask, room))
}

fn whole(model: &Janus, pass: &Pass, batch: &Batch) -> States {
    states(model, pass, batch, |embeds, mask| {
        let mut cache = model.decoder().cache(batch.length + 1);
        let placement = Placement::continued(mask, batch.length);
        let pass = &pass.clone().in_order(SumOrder::Many);
        let last = model.decoder().forward_last(pass, embeds, &placement, &mut cache)?;
        Ok((last, cache))
    })
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Counts the rows of tokens that a site meets.
#[derive(Debug)]
struct Counter(Arc<Mutex<usize>>);

impl Intercept for Counter {
    fn apply(&self, _pass: &Pass, x: &Tensor, base: &BaseView<'_>) -> Result<Tensor> {
        *self.0.lock().unwrap() += x.dim(0)? * x.dim(1)?;
        base.forward(x)
    }
}

fn site(model: &Janus, path: &str) -> Arc<crate::site::Projection> {
    model.projections().get(&format!("model.language_model.{path}")).unwrap().clone()
}

/// Rows of tokens that the decoder computes for the prompts.
fn computed(model: &Janus, pass: &Pass, batch: &Batch) -> usize {
    let (projection, count) = (site(model, "layers.0.mlp.up_proj"), Arc::default());
    projection.intercept(Some(Arc::new(Counter(Arc::clone(&count)))));
    let embeds = model.decoder().embed(pass, &batch.ids, batch.rows).unwrap();
    prefill(model.decoder(), pass, &embeds, &batch.mask, batch.length).unwrap();
    projection.intercept(None);
    *count.lock().unwrap()
}

#[test]
fn shared_beginnings_change_no_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let (model, pass) = (tiny_in(dtype), Pass::inference());
        let pairs = [vec![text(7, 33); 2], vec![text(8, 21); 2]].concat();
        for rows in
            [questions(20), questions(0), vec![text(7, 33); 3], pairs, vec![text(7, 4); 6], vec![text(7, 12); 2]]
        {
            let batch = batch(&rows);
            assert!(computed(&model, &pass, &batch) < batch.ids.len());
            for (shared, whole) in shared(&model, &pass, &batch).iter().zip(&whole(&model, &pass, &batch)) {
                assert_eq!(values(shared), values(whole), "{dtype:?}");
            }
        }
    }
}

/// Candle's products depend on the number of rows.
#[test]
fn by_operations_shared_beginnings_differ_by_rounding_alone() {
    let (model, pass) = (tiny(), Pass::inference());
    for rows in [questions(0), vec![text(7, 4); 6], vec![text(7, 12); 2]] {
        let batch = batch(&rows);
        let truth = whole(&model, &pass, &batch);
        for (shared, truth) in with_composed(|| shared(&model, &pass, &batch)).iter().zip(&truth) {
            check::close(shared, truth, 2e-5);
        }
    }
}

#[test]
fn what_rows_share_is_computed_once() {
    let (model, pass) = (tiny(), Pass::inference());
    let count = |rows: &[Vec<u32>]| computed(&model, &pass, &batch(rows));
    assert_eq!(count(&vec![text(7, 33); 4]), 33);
    assert_eq!(count(&[text(7, 33), text(8, 33), text(7, 33), text(8, 33)]), 66);
    // Columns 0 to 35 of the first row and the third: the second's are in the first's, and the last one has padding there.
    // Then nine columns of each but the repeated row.
    assert_eq!(count(&questions(0)), 2 * 36 + 4 * 9);
    // Without the last one, columns 0 to 41.
    assert_eq!(count(&questions(0)[..4]), 2 * 42 + 3 * 3);
    // Nothing in common, or too little for a pass of its own.
    assert_eq!(count(&[text(7, 33), text(8, 33)]), 66);
    let (a, b) = ([text(9, 5), text(7, 28)].concat(), [text(9, 5), text(8, 28)].concat());
    assert_eq!(count(&[a, b]), 66);
    // With dropout each row has its own noise.
    let training = Pass::training(crate::pass::NoiseKey::default());
    assert_eq!(computed(&model, &training, &batch(&vec![text(7, 33); 4])), 132);
}

/// Padding between tokens is met as it stands.
#[test]
fn masks_with_holes_share_nothing() {
    let (model, pass) = (tiny(), Pass::inference());
    let mut holes = batch(&[text(7, 20), text(7, 20), text(8, 9)]);
    holes.mask[1][4] = false;
    assert_eq!(computed(&model, &pass, &holes), 60);
    for (shared, whole) in shared(&model, &pass, &holes).iter().zip(&whole(&model, &pass, &holes)) {
        assert_eq!(values(shared), values(whole));
    }
}

/// Factors whose product is of the size of the weight.
fn term(site: &Site, slot: u32) -> LowRank {
    let rank = 3;
    let name = format!("{} {slot}", site.path);
    let tensor = |what: &str, shape: [usize; 2]| named_tensor(&format!("{name} {what}"), &shape);
    LowRank { a: tensor("a", [rank, site.input]), b: tensor("b", [site.output, rank]), scale: 0.3, dropout: 0.0 }
}

/// Every linear site of the decoder and of the generation side's head.
fn corrected_sites(model: &Janus) -> impl Iterator<Item = &Arc<crate::site::Projection>> {
    model.projections().iter().filter(|projection| {
        let site = projection.site();
        site.kind == SiteKind::Linear && matches!(site.part, Part::Decoder | Part::Generation)
    })
}

/// Attaches the term of a slot to these sites, or takes it away.
fn attach(model: &Janus, slot: Option<u32>) {
    for projection in corrected_sites(model) {
        projection.attach(slot.and_then(|slot| of_low_rank([term(projection.site(), slot)]))).unwrap();
    }
}

/// Holds terms at these sites in each of the slots.
fn hold(model: &Janus, slots: &[u32]) {
    for slot in slots {
        let corrections = corrected_sites(model).map(|projection| {
            let term = Term::LowRank(term(projection.site(), *slot));
            (projection.site().path.to_string(), Correction::of_terms([term]))
        });
        let corrections = corrections.collect();
        model.hold(Slot(*slot), &SlotContents { corrections, ..SlotContents::default() }).unwrap();
    }
}

/// The routes of rows of `length` tokens, each of one slot.
fn table(slots: &[u32], length: usize) -> Pass {
    let route = |(row, slot): (usize, &u32)| {
        let mixture = Mixture::of(Slot(*slot));
        Route { tokens: row * length..(row + 1) * length, mixture }
    };
    Pass::inference().with_routes(Part::Decoder, slots.iter().enumerate().map(route).collect()).unwrap()
}

#[test]
fn corrections_of_all_rows_change_nothing_of_the_sharing() {
    let (model, pass) = (tiny(), Pass::inference());
    let batch = batch(&questions(20));
    let plain = whole(&model, &pass, &batch);
    attach(&model, Some(1));
    let (shared, whole) = (shared(&model, &pass, &batch), whole(&model, &pass, &batch));
    for ((shared, whole), plain) in shared.iter().zip(&whole).zip(&plain) {
        assert_eq!(values(shared), values(whole));
        assert_ne!(values(shared), values(plain));
    }
}

#[test]
fn rows_of_other_slots_share_nothing() {
    let model = tiny();
    hold(&model, &[1, 2, 3]);
    let prompts = questions(0);
    // The first, second and fourth row share an image; the first and the fourth are equal.
    // The last one has nothing but padding in the columns up to 35.
    let cases =
        [([1, 1, 1, 1, 1], 2 * 36 + 4 * 9), ([1, 1, 2, 2, 2], 3 * 36 + 5 * 9), ([1, 2, 1, 3, 1], 4 * 36 + 5 * 9)];
    for (slots, count) in cases {
        let batch = batch(&prompts);
        let pass = table(&slots, batch.length);
        assert_eq!(computed(&model, &pass, &batch), count, "{slots:?}");
        let (shared, whole) = (shared(&model, &pass, &batch), whole(&model, &pass, &batch));
        for (shared, whole) in shared.iter().zip(&whole) {
            check::close(shared, whole, 1e-4);
        }
        for (row, (prompt, slot)) in prompts.iter().zip(slots).enumerate() {
            // Alone, with the correction attached and no routes.
            attach(&model, Some(slot));
            let alone = self::batch(std::slice::from_ref(prompt));
            let alone = self::whole(&model, &Pass::inference(), &alone);
            attach(&model, None);
            check::close(&shared[0].narrow(0, row, 1).unwrap(), &alone[0], 1e-4);
        }
        if slots[0] != slots[3] {
            assert_ne!(values(&shared[0].get(0).unwrap()), values(&shared[0].get(3).unwrap()));
        }
    }
}

#[test]
fn slots_may_change_within_a_row_and_a_token_may_have_several() {
    let model = tiny();
    hold(&model, &[1, 2]);
    let batch = batch(&vec![text(7, 40); 3]);
    let both = Mixture::new([(Slot(1), 1.0), (Slot(2), 0.5)]);
    let route = |tokens, mixture| Route { tokens, mixture };
    // Row 0: all of 1. Row 1: 2 from place 30 on as well. Row 2: as row 1.
    let one = || Mixture::of(Slot(1));
    let routes =
        vec![route(0..70, one()), route(70..80, both.clone()), route(80..110, one()), route(110..120, both.clone())];
    let pass = Pass::inference().with_routes(Part::Decoder, routes).unwrap();
    assert_eq!(computed(&model, &pass, &batch), 30 + 2 * 10);
    for (shared, whole) in shared(&model, &pass, &batch).iter().zip(&whole(&model, &pass, &batch)) {
        check::close(shared, whole, 1e-4);
        let rows: Vec<Vec<f32>> = (0..3).map(|row| values(&shared.get(row).unwrap())).collect();
        assert_ne!(rows[0], rows[1]);
    }
}

#[test]
fn routes_of_other_rows_than_the_prompts_are_an_error() {
    let model = tiny();
    hold(&model, &[1]);
    let batch = batch(&vec![text(7, 20); 2]);
    let embeds = model.decoder().embed(&Pass::inference(), &batch.ids, 2).unwrap();
    for rows in [2, 39, 41, 80] {
        let error = prefill(model.decoder(), &table(&[1], rows), &embeds, &batch.mask, 40).unwrap_err();
        assert!(matches!(error, crate::Error::Model(ModelError::Unrouted { .. })), "{rows}: {error}");
    }
}

#[test]
fn answers_of_several_slots_are_those_of_each_alone() {
    let model = tiny();
    hold(&model, &[1, 2]);
    let options =
        TextOptions { max_new_tokens: 5, temperature: 0.0, seed: 0, stop: Vec::new(), pad: PAD, vocabulary: 400 };
    let answers = |prompts: &[Vec<u32>], slots: &[u32]| {
        let batch = batch(prompts);
        let pass = table(slots, batch.length);
        let embeds = model.decoder().embed(&pass, &batch.ids, batch.rows).unwrap();
        generate_text(&model, &pass, &embeds, &batch.mask.concat(), &options, &mut |_| {}).unwrap()
    };
    let (prompts, slots) = (questions(0), [1, 2, 2, 2, 1]);
    let together = answers(&prompts, &slots);
    for (row, prompt) in prompts.iter().enumerate() {
        assert_eq!(together[row], answers(std::slice::from_ref(prompt), &slots[row..=row])[0], "row {row}");
    }
    assert_ne!(together[0], together[3], "the slots tell nothing apart");
}

#[test]
fn pictures_of_one_prompt_are_those_of_each_alone() {
    let model = tiny();
    hold(&model, &[1, 2]);
    let (prompt, length) = (text(7, 24), 24);
    let nothing = [&prompt[..1], &[PAD; 22], &prompt[23..]].concat();
    let drawn = |slots: &[u32], seed| {
        let rows = slots.len();
        let prompts = CodePrompts {
            conditional: prompt.repeat(rows),
            unconditional: nothing.repeat(rows),
            mask: vec![true; rows * length],
            rows,
            images: None,
        };
        let pass = table(slots, length);
        let options = CodeOptions { guidance: 3.0, temperature: 1.0, seed };
        generate_codes(&model, &pass, &prompts, &options, &mut |_| {}).unwrap()
    };
    let slots = [1, 2, 1];
    let together = drawn(&slots, 5);
    for (row, codes) in together.iter().enumerate() {
        assert_eq!(*codes, drawn(&slots[row..=row], 5 + row as u64)[0], "row {row}");
    }
    assert_ne!(together[0], drawn(&[2], 5)[0], "the slots tell nothing apart");
}

/// Rows of random prompts made of a few beginnings and ends.
fn random_prompts(seed: u64) -> (Vec<Prompt>, usize) {
    let draw = |index: u64, bound: usize| (crate::noise::uniform(seed, index) * bound as f64) as usize;
    let rows = 1 + draw(0, 7);
    let parts = |row: u64, place: u64| text(draw(10 * row + place, 3) as u64, draw(10 * row + place + 1, 40));
    let rows: Vec<Vec<u32>> = (1..=rows as u64)
        .map(|row| [parts(row, 0), parts(row, 2), vec![draw(10 * row + 5, 3) as u32]].concat())
        .collect();
    let longest = rows.iter().map(Vec::len).max().unwrap();
    (rows.into_iter().map(|tokens| Prompt { pad: longest - tokens.len(), tokens }).collect(), longest)
}

#[test]
fn every_token_is_found_where_the_plan_says_and_no_cut_is_cheaper() {
    let mut shared = 0;
    for seed in 0..300 {
        let (prompts, sequence) = random_prompts(seed);
        // The tokens of a beginning, for each cut: as many heads as none of which is the beginning of another.
        let distinct: BTreeSet<&Vec<u32>> = prompts.iter().map(|prompt| &prompt.tokens).collect();
        let cost = |cut: usize| {
            let begun: BTreeSet<&[u32]> =
                distinct.iter().map(|tokens| &tokens[..(tokens.len() + cut).saturating_sub(sequence)]).collect();
            let alone = |tokens: &&&[u32]| !begun.iter().any(|other| other != *tokens && other.starts_with(tokens));
            begun.iter().filter(alone).count() * cut + distinct.len() * (sequence - cut)
        };
        let cheapest = (0..sequence).map(cost).min().unwrap();
        let saved = cheapest + PASS_TOKENS < distinct.len() * sequence;
        let Some(plan) = Sharing::of(&prompts, sequence) else {
            assert!(!saved && distinct.len() == prompts.len(), "seed {seed}");
            continue;
        };
        assert_eq!(plan.distinct.len(), distinct.len());
        for (prompt, place) in prompts.iter().zip(&plan.row_of) {
            assert_eq!(prompt, &prompts[plan.distinct[*place]]);
        }
        assert_eq!(plan.cut > 0, saved, "seed {seed}");
        if plan.cut > 0 {
            shared += 1;
            assert_eq!(plan.heads.len() * plan.cut + distinct.len() * (sequence - plan.cut), cheapest);
            for (row, Held { row: head, tokens }) in plan.distinct.iter().zip(&plan.beginnings) {
                let (own, head) = (&prompts[*row], &prompts[plan.heads[*head]]);
                let begun = &own.tokens[..plan.cut.saturating_sub(own.pad)];
                assert_eq!(tokens.len(), begun.len());
                if !begun.is_empty() {
                    assert_eq!(begun, &head.tokens[tokens.start - head.pad..tokens.end - head.pad]);
                }
            }
        }
    }
    assert!(shared > 50, "{shared}");
}
