//! Rows that join and leave, against each of them alone.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::session::{Kind, RowId, RowOptions, Session};
use crate::error::{Error, ModelError};
use crate::kernel::level::{Level, at_level, levels};
use crate::model::{Janus, SlotContents};
use crate::noise;
use crate::pass::{Mixture, Part, Pass, Route, Slot};
use crate::processing::left_pad;
use crate::site::{Correction, Kronecker, LowRank, Site, SiteKind, Term};
use crate::testing::{named_tensor, tiny_in};

const PAD: u32 = 258;

/// The base, a slot of each form, and several at once.
fn mixtures() -> Vec<Mixture> {
    let one = |slot| Mixture::of(Slot(slot));
    vec![Mixture::base(), one(1), one(2), one(3), Mixture::new([(Slot(1), 0.5), (Slot(3), -1.0)])]
}

/// Low-rank pairs, Kronecker products, or pairs between factors with a bias; the first ones at tables and convolutions, too.
fn correction(site: &Site, slot: u32) -> Option<Correction> {
    let tensor = |what: &str, shape: &[usize]| named_tensor(&format!("{} {slot} {what}", site.path), shape);
    let near_one = |what: &str, width| tensor(what, &[width]).affine(0.1, 1.0).unwrap();
    let pair = |rank| {
        let (a, b) = match site.kind {
            SiteKind::Conv2d { kernel, .. } => {
                ([rank, site.input, kernel, kernel].to_vec(), vec![site.output, rank, 1, 1])
            }
            SiteKind::Linear | SiteKind::Embedding => (vec![rank, site.input], vec![site.output, rank]),
        };
        Term::LowRank(LowRank { a: tensor("a", &a), b: tensor("b", &b), scale: 0.3, dropout: 0.0 })
    };
    match (slot, site.kind) {
        (1, _) => Some(Correction::of_terms([pair(5)])),
        (2, SiteKind::Linear) => {
            let (o, i) = (2, 4);
            let left = tensor("left", &[o, i]);
            let right = tensor("right", &[site.output / o, site.input / i]);
            let fits = site.output.is_multiple_of(o) && site.input.is_multiple_of(i);
            fits.then(|| Correction::of_terms([Term::Kronecker(Kronecker { left, right, scale: 0.4 })]))
        }
        (3, SiteKind::Linear) => Some(Correction {
            input: Some(near_one("input", site.input)),
            output: Some(near_one("output", site.output)),
            bias: Some(tensor("bias", &[site.output])),
            terms: vec![pair(3)],
        }),
        _ => None,
    }
}

fn model(dtype: DType) -> Janus {
    let model = tiny_in(dtype);
    for slot in 1..=3 {
        let sites = model.projections().iter().map(|projection| projection.site());
        let corrections = sites.filter_map(|site| Some((site.path.to_string(), correction(site, slot)?))).collect();
        model.hold(Slot(slot), &SlotContents { corrections, ..SlotContents::default() }).unwrap();
    }
    model
}

/// A request: prompts of its branches, how it answers, what it computes with.
#[derive(Debug, Clone)]
struct Request {
    prompts: Vec<Vec<u32>>,
    options: RowOptions,
    mixture: Mixture,
}

/// Texts and pictures of many lengths, some of which begin alike.
fn requests() -> Vec<Request> {
    let text = |seed: u64, count: usize| -> Vec<u32> {
        (0..count as u64).map(|i| (noise::uniform(seed, i) * 250.0) as u32).collect()
    };
    let draw = |row: usize, place: u64, bound: usize| (noise::uniform(77 + row as u64, place) * bound as f64) as usize;
    let request = |row: usize| {
        let prompt =
            [text(draw(row, 0, 2) as u64, 7 * draw(row, 1, 5)), text(50 + row as u64, 1 + draw(row, 2, 9))].concat();
        let guidance = [1.0, 3.0][row % 2];
        let kind = match row % 3 {
            0 => Kind::Codes { guidance },
            _ => Kind::Text { stop: vec![draw(row, 3, 300) as u32], vocabulary: 300 },
        };
        let is_guided = matches!(kind, Kind::Codes { guidance } if guidance != 1.0);
        let nothing = vec![PAD; prompt.len()];
        let prompts = if is_guided { vec![prompt, nothing] } else { vec![prompt] };
        let options =
            RowOptions { kind, most: 1 + draw(row, 4, 6), temperature: [0.0, 1.0][draw(row, 5, 2)], seed: row as u64 };
        Request { prompts, options, mixture: mixtures()[row % mixtures().len()].clone() }
    };
    (0..24).map(request).collect()
}

/// Lets requests join together.
fn join(session: &mut Session<'_>, model: &Janus, requests: &[&Request]) -> crate::Result<Option<Vec<RowId>>> {
    let first = requests.iter().map(|request| (&request.prompts[0], *request));
    let second = requests.iter().filter_map(|request| Some((request.prompts.get(1)?, *request)));
    let branches: Vec<(&Vec<u32>, &Request)> = first.chain(second).collect();
    let prompts: Vec<&[u32]> = branches.iter().map(|(prompt, _)| prompt.as_slice()).collect();
    let padded = left_pad(&prompts, PAD);
    // What stands for a prompt in an unconditional branch is padding that is seen.
    let mask: Vec<Vec<bool>> = prompts
        .iter()
        .map(|prompt| (0..padded.len).map(|place| place + prompt.len() >= padded.len).collect())
        .collect();
    let routes = branches.iter().enumerate().map(|(row, (_, request))| Route {
        tokens: row * padded.len..(row + 1) * padded.len,
        mixture: request.mixture.clone(),
    });
    let pass = Pass::answering().with_routes(Part::Decoder, routes.collect())?;
    let embeds = model.decoder().embed(&pass, &padded.ids, branches.len())?;
    session.join(&pass, &embeds, &mask, requests.iter().map(|request| request.options.clone()).collect())
}

/// Bits of all logits that a row drew from, and what it drew.
#[derive(Debug, Default, Clone, PartialEq)]
struct Told {
    logits: Vec<Vec<u32>>,
    drawn: Vec<u32>,
}

fn bits(logits: &Tensor) -> Vec<u32> {
    logits.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

/// Runs one step, records what each row drew, and returns the rows that have finished.
fn step(session: &mut Session<'_>, told: &mut BTreeMap<RowId, Told>) -> Vec<RowId> {
    let mut seen = Vec::new();
    let drawn = session.step(&mut |logits| {
        let all = [Some(logits.conditional), logits.unconditional, Some(logits.guided)];
        seen.push((logits.row, logits.step, all.into_iter().flatten().flat_map(bits).collect::<Vec<u32>>()));
    });
    for (row, step, logits) in seen {
        let told = told.entry(row).or_default();
        assert_eq!(told.logits.len(), step);
        told.logits.push(logits);
    }
    let drawn = drawn.unwrap().into_iter();
    drawn
        .filter_map(|drawn| {
            told.entry(drawn.row).or_default().drawn.push(drawn.token.unwrap());
            drawn.is_over.then_some(drawn.row)
        })
        .collect()
}

fn alone(model: &Janus, request: &Request) -> Told {
    let mut session = Session::new(model, usize::MAX);
    let row = join(&mut session, model, &[request]).unwrap().unwrap()[0];
    let mut told = BTreeMap::new();
    while !session.is_idle() {
        step(&mut session, &mut told);
    }
    let told = told.remove(&row).unwrap();
    assert_eq!(session.leave(row).unwrap(), told.drawn);
    told
}

/// Requests join by ones, twos and threes, when there is room; rows leave when they are over and some before.
fn schedule(model: &Janus, requests: &[Request], alone: &[Told], seed: u64) -> usize {
    const BUDGET: usize = 150;
    let mut count = 0;
    let mut random = |bound: usize| {
        count += 1;
        (noise::uniform(seed, count) * bound as f64) as usize
    };
    let mut session = Session::new(model, BUDGET);
    let mut waiting: Vec<usize> = (0..20).map(|_| random(requests.len())).collect();
    let (mut of, mut told, mut refused) = (BTreeMap::new(), BTreeMap::new(), 0);
    while !waiting.is_empty() || !session.is_idle() {
        let group: Vec<usize> = waiting.iter().copied().take(random(4)).collect();
        if !group.is_empty() {
            let own: Vec<&Request> = group.iter().map(|place| &requests[*place]).collect();
            match join(&mut session, model, &own) {
                Ok(Some(rows)) => {
                    of.extend(rows.into_iter().zip(group.iter().copied()));
                    waiting.drain(..group.len());
                }
                Ok(None) => refused += 1,
                Err(Error::Model(ModelError::NoRoom { .. })) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(session.reserved_tokens() <= BUDGET);
        for row in step(&mut session, &mut told) {
            session.leave(row).unwrap();
        }
        let living: Vec<RowId> = of.keys().copied().collect();
        if random(6) == 0 && !living.is_empty() {
            session.leave(living[random(living.len())]);
        }
    }
    assert_eq!((session.reserved_tokens(), of.len()), (0, 20));
    for (row, place) in &of {
        let (Some(told), expected) = (told.get(row), &alone[*place]) else { continue };
        let count = told.drawn.len();
        assert!(
            told.drawn == expected.drawn[..count] && told.logits == expected.logits[..count],
            "{seed}: {:?}",
            requests[*place]
        );
    }
    refused
}

#[test]
fn what_rows_draw_does_not_depend_on_who_joins_and_leaves() {
    for (dtype, schedules) in [(DType::F32, 12), (DType::BF16, 12)] {
        let (model, requests) = (model(dtype), requests());
        let alone: Vec<Told> = requests.iter().map(|request| alone(&model, request)).collect();
        let lengths: Vec<usize> = alone.iter().map(|told| told.drawn.len()).collect();
        assert!(lengths.contains(&1) && lengths.iter().any(|length| *length > 3), "{lengths:?}");
        let refused: usize = (0..schedules).map(|seed| schedule(&model, &requests, &alone, seed)).sum();
        assert!(refused > 0, "the budget bounds nothing");
    }
}

/// All at once: more rows than a product of few has.
#[test]
fn a_batch_draws_what_each_row_draws_alone_on_every_processor() {
    for level in levels() {
        for dtype in [DType::F32, DType::BF16] {
            at_level(level, || {
                let (model, requests) = (model(dtype), requests());
                let mut session = Session::new(&model, usize::MAX);
                let rows = join(&mut session, &model, &requests.iter().collect::<Vec<_>>()).unwrap().unwrap();
                let mut told = BTreeMap::new();
                while !session.is_idle() {
                    step(&mut session, &mut told);
                }
                for (request, row) in requests.iter().zip(&rows).step_by(if level == Level::Plain { 5 } else { 2 }) {
                    assert!(told[row] == alone(&model, request), "{level:?} {dtype:?}: {request:?}");
                }
            });
        }
    }
}

#[test]
fn pictures_have_the_bits_that_they_have_alone() {
    for dtype in [DType::F32, DType::BF16] {
        let (model, pass) = (model(dtype), Pass::answering());
        let (vision, tokenizer) = (model.vision().unwrap(), model.image_tokenizer().unwrap());
        let side = model.config().vision.image_size;
        let count = 5;
        let pixels = named_tensor("pixels", &[count, 3, side, side]);
        let codes: Vec<Vec<u32>> = (0..count)
            .map(|image| (0..model.codes_per_image()).map(|code| (31 * image + 7 * code) as u32 % 16).collect())
            .collect();
        let flat = |tensor: &Tensor| -> Vec<Vec<u32>> {
            let rows = tensor.flatten_from(1).unwrap().to_dtype(DType::F32).unwrap();
            (0..rows.dim(0).unwrap()).map(|row| bits(&rows.get(row).unwrap())).collect()
        };
        let (features, drawn) =
            (flat(&vision.forward(&pass, &pixels).unwrap()), flat(&tokenizer.decode(&pass, &codes).unwrap()));
        for image in 0..count {
            let one = pixels.narrow(0, image, 1).unwrap();
            assert!(flat(&vision.forward(&pass, &one).unwrap())[0] == features[image], "{dtype:?}, picture {image}");
            let own = tokenizer.decode(&pass, &codes[image..=image]).unwrap();
            assert!(flat(&own)[0] == drawn[image], "{dtype:?}, codes {image}");
        }
        assert!(features[0] != features[1] && pixels.device().same_device(&Device::Cpu));
    }
}

#[test]
fn rows_join_when_there_is_room_and_never_beyond() {
    let model = model(DType::F32);
    let all = requests();
    let mut session = Session::new(&model, 60);
    let large = Request { options: RowOptions { most: 100, ..all[1].options.clone() }, ..all[1].clone() };
    let error = join(&mut session, &model, &[&large]).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::NoRoom { budget: 60, .. })), "{error}");
    let half = Request {
        options: RowOptions { most: 36 - all[1].prompts[0].len(), ..all[1].options.clone() },
        ..all[1].clone()
    };
    let first = join(&mut session, &model, &[&half]).unwrap().unwrap();
    assert_eq!(session.reserved_tokens(), 35);
    assert!(join(&mut session, &model, &[&half]).unwrap().is_none());
    assert_eq!(session.reserved_tokens(), 35);
    session.step(&mut |_| {}).unwrap();
    assert_eq!(session.leave(first[0]).unwrap().len(), 1);
    assert!(session.leave(first[0]).is_none());
    assert!(join(&mut session, &model, &[&half]).unwrap().is_some());
}

#[test]
fn a_row_of_which_nothing_can_be_drawn_ends_alone() {
    let model = model(DType::F32);
    let path = "model.language_model.layers.0.mlp.up_proj";
    let site = model.projections().get(path).unwrap().site().clone();
    let a = Tensor::new(vec![vec![f32::NAN; site.input]], &Device::Cpu).unwrap();
    let b = Tensor::ones((site.output, 1), DType::F32, &Device::Cpu).unwrap();
    let term = Term::LowRank(LowRank { a, b, scale: 1.0, dropout: 0.0 });
    let corrections = [(path.to_owned(), Correction::of_terms([term]))].into();
    model.hold(Slot(9), &SlotContents { corrections, ..SlotContents::default() }).unwrap();
    let good = requests()[4].clone();
    let bad = Request { mixture: Mixture::of(Slot(9)), ..requests()[1].clone() };
    let expected = alone(&model, &good);
    let mut session = Session::new(&model, usize::MAX);
    let rows = join(&mut session, &model, &[&bad, &good]).unwrap().unwrap();
    let mut drawn = Vec::new();
    while !session.is_idle() {
        for own in session.step(&mut |_| {}).unwrap() {
            match own.token {
                Ok(token) => {
                    assert_eq!(own.row, rows[1]);
                    drawn.push(token);
                }
                Err(error) => {
                    assert!(own.row == rows[0] && own.is_over);
                    assert!(matches!(error, Error::Model(ModelError::NotFinite { .. })), "{error}");
                }
            }
        }
    }
    assert_eq!((session.leave(rows[0]).unwrap(), drawn), (Vec::new(), expected.drawn));
}

#[test]
fn what_does_not_fit_does_not_join() {
    let (model, request) = (model(DType::F32), &requests()[1]);
    let mut session = Session::new(&model, usize::MAX);
    let pass = Pass::answering();
    let embeds = model.decoder().embed(&pass, &request.prompts[0], 1).unwrap();
    let length = request.prompts[0].len();
    let options = || vec![request.options.clone()];
    let mut hollow = vec![true; length + 1];
    hollow[1] = false;
    for mask in
        [vec![], vec![vec![true; length + 1]], vec![vec![false; length]], vec![vec![true; length]; 2], vec![hollow]]
    {
        assert!(session.join(&pass, &embeds, &mask, options()).is_err(), "{mask:?}");
    }
    let mask = vec![vec![true; length]];
    assert!(session.join(&pass, &embeds, &mask, [options(), options()].concat()).is_err());
    session.join(&pass, &embeds, &mask, options()).unwrap().unwrap();
    // Rows with routes beside one without.
    join(&mut session, &model, &[request]).unwrap().unwrap();
    let error = session.step(&mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::Model(ModelError::Unrouted { rows: 2, routed: 1 })), "{error}");
}
