//! Tokens one after another through a cache, against all at once.

use super::*;
use crate::model::decoder::{Cache, Placement};

const FORMS: &[Form] = &[Form(3, 0.7, 0.0), Form(2, -1.3, 0.0)];

/// Continues a cache by `count` tokens of the input from `start` on.
fn step(case: &Case, cache: &mut Cache, start: usize, count: usize) -> Tensor {
    let (batch, _, _) = case.x.dims3().unwrap();
    let x = case.x.narrow(1, start, count).unwrap();
    poison();
    let placement = Placement::plain(batch, start, count);
    let y = case.model.decoder().forward(&case.pass, &x, &placement, Some(&mut *cache)).unwrap();
    assert_eq!(cache.len(), start + count);
    y
}

/// The input in pieces of these lengths.
fn steps(case: &Case, capacity: usize, lengths: &[usize]) -> Tensor {
    let mut cache = case.model.decoder().cache(capacity);
    let mut start = 0;
    let mut parts = Vec::new();
    for length in lengths {
        parts.push(step(case, &mut cache, start, *length));
        start += length;
    }
    Tensor::cat(&parts, 1).unwrap()
}

#[test]
fn token_by_token_is_all_at_once() {
    for batch in [1, 2] {
        let of = |dtype| Case::decoder(dtype, [batch, 21], FORMS).untracked();
        let (exact, narrow) = (of(DType::F32), of(DType::BF16));
        let plain = Placement::plain(batch, 0, 21);
        let truth = with_composed(|| exact.model.decoder().forward(&exact.pass, &exact.x, &plain, None)).unwrap();
        let whole = narrow.model.decoder().forward(&narrow.pass, &narrow.x, &plain, None).unwrap();
        let of_whole = distance(&whole, &truth);
        for lengths in [&[1; 21][..], &[5, 1, 1, 3, 1, 9, 1], &[18, 3], &[21], &[4, 0, 17]] {
            // Room for all, and too little for the first piece already.
            for capacity in [64, 21, 3, 0] {
                agree_in("the output", &steps(&exact, capacity, lengths), &truth, 1e-5);
                let got = distance(&steps(&narrow, capacity, lengths), &truth);
                assert!(got <= 2.0 * of_whole && got < 2e-2, "{got:e} from f32, all at once {of_whole:e}");
            }
        }
        let composed = with_composed(|| steps(&exact, 3, &[5, 1, 15]));
        agree_in("the composed output", &composed, &truth, 1e-5);
    }
}

#[test]
fn room_changes_no_bit() {
    for dtype in [DType::F32, DType::BF16] {
        let case = Case::decoder(dtype, [2, 21], FORMS).untracked();
        let (roomy, grown) = (steps(&case, 64, &[5, 1, 1, 14]), steps(&case, 1, &[5, 1, 1, 14]));
        assert_eq!(wide(&roomy), wide(&grown));
    }
}

#[test]
fn another_continuation_is_that_of_a_fresh_cache() {
    for dtype in [DType::F32, DType::BF16] {
        let case = Case::decoder(dtype, [2, 12], FORMS).untracked();
        let other = Case { x: (&case.x * -0.5).unwrap(), ..Case::decoder(dtype, [2, 12], FORMS).untracked() };
        let mut cache = case.model.decoder().cache(4);
        step(&case, &mut cache, 0, 5);
        step(&other, &mut cache, 5, 7);
        let mut copy = cache.clone();
        cache.truncate(5).unwrap();
        assert_eq!((cache.len(), copy.len()), (5, 12));
        let got = [step(&case, &mut cache, 5, 1), step(&case, &mut cache, 6, 6)];
        let mut fresh = case.model.decoder().cache(16);
        step(&case, &mut fresh, 0, 5);
        let expected = [step(&case, &mut fresh, 5, 1), step(&case, &mut fresh, 6, 6)];
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(wide(got), wide(expected));
        }
        // More than there is: nothing. All: as new, but of the same batch.
        copy.truncate(20).unwrap();
        assert_eq!(copy.len(), 12);
        copy.truncate(0).unwrap();
        let mut fresh = case.model.decoder().cache(16);
        assert_eq!(wide(&step(&case, &mut copy, 0, 3)), wide(&step(&case, &mut fresh, 0, 3)));
    }
}

#[test]
fn another_batch_type_or_head_is_refused_and_nothing_kept() {
    let case = Case::decoder(DType::F32, [2, 4], FORMS).untracked();
    let batch = Case::decoder(DType::F32, [3, 4], FORMS).untracked();
    let narrow = Case::decoder(DType::BF16, [2, 4], FORMS).untracked();
    let mut config = odd();
    // Keys of the same width in one head of 20 instead of two of 10.
    (config.text.num_key_value_heads, config.text.head_dim) = (1, 20);
    let heads = Case::new(&config, Decoder, DType::F32, [2, 4]).untracked();
    let mut cache = case.model.decoder().cache(8);
    step(&case, &mut cache, 0, 2);
    for other in [&batch, &narrow, &heads] {
        let x = other.x.narrow(1, 2, 1).unwrap();
        let placement = Placement::plain(other.x.dim(0).unwrap(), 2, 1);
        let error = other.model.decoder().forward(&other.pass, &x, &placement, Some(&mut cache)).unwrap_err();
        assert!(error.to_string().contains("cache of another"), "{error}");
        assert_eq!(cache.len(), 2);
    }
    step(&case, &mut cache, 2, 2);
}

/// Packed rows may begin a cache, as they may where the pass is composed; they see each other no more than without one.
#[test]
fn segments_stay_segments_with_a_cache() {
    let case = Case::decoder(DType::F32, [1, 7], FORMS).untracked();
    let packed = Placement::packed(&[3, 4]);
    let decoder = case.model.decoder();
    let alone = decoder.forward(&case.pass, &case.x, &packed, None).unwrap();
    let cached = decoder.forward(&case.pass, &case.x, &packed, Some(&mut decoder.cache(7))).unwrap();
    agree_in("the output", &cached, &alone, 1e-5);
}
