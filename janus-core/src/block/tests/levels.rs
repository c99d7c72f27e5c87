//! Whole blocks as on processors of every level.

use super::*;
use crate::kernel::level::{at_level, level, levels};

const FORMS: &[Form] = &[Form(3, 0.7, 0.4), Form(2, -1.3, 0.0)];

/// More tokens than a product of few rows has, and fewer.
const SHAPES: [[usize; 2]; 2] = [[2, 19], [1, 3]];

fn case(kind: Kind, dtype: DType, shape: [usize; 2]) -> Case {
    let case = Case::new(&odd(), kind, dtype, shape).with_terms_everywhere(FORMS);
    Case { pass: training(), ..case }
}

#[test]
fn every_level_computes_the_same_block() {
    for kind in [Decoder, Vision] {
        for shape in SHAPES {
            let (exact, narrow) = (case(kind, DType::F32, shape), case(kind, DType::BF16, shape));
            let (truth, composed) = (exact.run_composed(), narrow.run_composed());
            for lowered in levels() {
                let (wide_run, narrow_run) = at_level(lowered, || {
                    assert_eq!(level(), lowered);
                    (exact.run_fused(), narrow.run_fused())
                });
                agree(&wide_run, &truth, 1e-5);
                no_farther(&narrow_run, &composed, &truth);
            }
        }
    }
}
