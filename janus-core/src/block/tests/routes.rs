//! Blocks whose rows have routes, against each row by itself and against the operations.

use super::*;
use crate::model::SlotContents;
use crate::pass::{Mixture, Part, Route, Slot};
use crate::site::Site;

const BATCH: usize = 7;
const SEQUENCE: usize = 3;

/// The correction that a slot holds at a site: pairs, with factors and a bias, factors on the input, a Kronecker product.
fn correction(site: &Site, slot: u32) -> Correction {
    let named =
        |name: &str, shape: &[usize]| check::tensor(shape, noise::key_of(&format!("{name}{slot} of {}", site.path)));
    let pair = |rank: usize| {
        let (a, b) = (named("A", &[rank, site.input]), named("B", &[site.output, rank]));
        Term::LowRank(LowRank { a, b, scale: 0.2, dropout: 0.0 })
    };
    let factors = |name: &str, length: usize| Some(named(name, &[length]).affine(0.3, 1.0).unwrap());
    match slot {
        1 => Correction::of_terms([pair(3)]),
        2 => Correction { output: factors("out", site.output), ..Correction::of_terms([pair(2), pair(1)]) },
        3 => Correction {
            input: factors("in", site.input),
            bias: Some(named("bias", &[site.output])),
            ..Correction::default()
        },
        _ => {
            let (left, right) = (named("left", &[2, site.input / 2]), named("right", &[site.output / 2, 2]));
            Correction::of_terms([Term::Kronecker(Kronecker { left, right, scale: 0.2 })])
        }
    }
}

/// The norms of a vision block as the first slot has them.
fn norms(case: &Case) -> BTreeMap<String, Tensor> {
    let (path, _) = case.kind.names(0);
    let of = |name: &str| {
        let name = format!("{path}.{name}");
        let value = case.model.parameters().get(&name).unwrap().frozen().to_dtype(DType::F32).unwrap();
        let shift = (check::tensor(value.dims(), noise::key_of(&name)) * 0.3).unwrap();
        (name, (value + shift).unwrap())
    };
    match case.kind {
        Decoder => BTreeMap::new(),
        Vision => ["layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight"].map(of).into(),
    }
}

/// A block that holds four slots.
fn holding(kind: Kind, dtype: DType) -> Case {
    let case = Case::new(&odd(), kind, dtype, [BATCH, SEQUENCE]).untracked();
    for slot in 1..=4 {
        let of = |path: String| {
            let site = case.model.projections().get(&path).unwrap().site().clone();
            (path, correction(&site, slot))
        };
        let norms = if slot == 1 { norms(&case) } else { BTreeMap::new() };
        let corrections = kind.paths(0).into_iter().map(of).collect();
        case.model.hold(Slot(slot), &SlotContents { corrections, norms }).unwrap();
    }
    case
}

/// What each row of the batch computes with: the slots, the base, and one with half of its shift.
fn mixtures(row: usize) -> Mixture {
    match row {
        0..4 => Mixture::of(Slot(row as u32 + 1)),
        4 => Mixture::base(),
        5 => Mixture::new([(Slot(1), 0.5), (Slot(2), -1.0)]),
        _ => Mixture::of(Slot(2)),
    }
}

fn routed(kind: Kind, rows: impl Iterator<Item = usize>) -> Pass {
    let part = if kind == Decoder { Part::Decoder } else { Part::Vision };
    let route = |(place, row): (usize, usize)| Route {
        tokens: place * SEQUENCE..(place + 1) * SEQUENCE,
        mixture: mixtures(row),
    };
    Pass::inference().with_routes(part, rows.enumerate().map(route).collect()).unwrap()
}

#[test]
fn every_row_of_a_block_is_what_it_is_alone_and_by_the_operations() {
    for (kind, dtype) in [Decoder, Vision].into_iter().flat_map(|kind| [(kind, DType::F32), (kind, DType::BF16)]) {
        let bound = if dtype == DType::F32 { 2e-5 } else { 0.03 };
        let case = Case { pass: routed(kind, 0..BATCH), ..holding(kind, dtype) };
        let y = case.fused();
        assert!(!y.track_op());
        agree_in("the operations", &with_composed(|| case.layer()), &y, bound);
        let plain = Case { pass: Pass::inference(), ..holding(kind, dtype) }.fused();
        for row in 0..BATCH {
            let x = case.x.narrow(0, row, 1).unwrap();
            let alone = Case { x, pass: routed(kind, [row].into_iter()), ..holding(kind, dtype) };
            let own = y.narrow(0, row, 1).unwrap();
            agree_in(&format!("row {row}"), &own, &alone.fused(), bound);
            let moved = distance(&own, &plain.narrow(0, row, 1).unwrap());
            assert_eq!(moved > 0.01, row != 4, "{kind:?} {dtype:?}, row {row}: {moved}");
        }
    }
}

#[test]
fn an_attached_correction_is_the_same_as_one_in_a_slot() {
    for kind in [Decoder, Vision] {
        let case = Case { pass: routed(kind, [1; BATCH].into_iter()), ..holding(kind, DType::F32) };
        let held = case.fused();
        let attached = Case::new(&odd(), kind, DType::F32, [BATCH, SEQUENCE]).untracked();
        for path in kind.paths(0) {
            let projection = attached.model.projections().get(&path).unwrap();
            projection.attach(Some(Arc::new(correction(projection.site(), 2)))).unwrap();
        }
        agree_in("the slot", &held, &attached.fused(), 1e-5);
    }
}

/// A gradient goes through the operations; sums that are worked out against the base are not left to them, since the other rows
/// of the pass would then compute in another order than alone.
#[test]
fn a_tracked_input_goes_through_the_operations_and_a_sum_against_the_base_does_not() {
    for kind in [Decoder, Vision] {
        let case = Case { pass: routed(kind, 0..BATCH), ..holding(kind, DType::F32) };
        let tracked = Var::from_tensor(&case.x).unwrap();
        let case = Case { x: tracked.as_tensor().clone(), ..case };
        assert!(case.block().is_none());
        let y = case.layer();
        assert!(y.track_op());
        let both = Mixture::new([(Slot(2), 1.0), (Slot(3), 1.0)]);
        let part = if kind == Decoder { Part::Decoder } else { Part::Vision };
        let route = Route { tokens: 0..BATCH * SEQUENCE, mixture: both };
        let pass = Pass::inference().with_routes(part, vec![route]).unwrap();
        let case = Case { pass, ..holding(kind, DType::F32) };
        assert!(case.block().is_some());
        agree_in("the sum", &with_composed(|| case.layer()), &case.layer(), 2e-5);
    }
}
