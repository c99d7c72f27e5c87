//! Whole fused blocks against central differences.

use super::*;

/// As small as a block can be with every part of it.
fn small() -> JanusConfig {
    let mut config = odd();
    let text = &mut config.text;
    (text.hidden_size, text.intermediate_size, text.head_dim) = (8, 7, 4);
    (text.num_attention_heads, text.num_key_value_heads) = (4, 2);
    (config.vision.hidden_size, config.vision.intermediate_size) = (6, 9);
    config.vision.projection_dim = 8;
    (config.vq.projection_dim, config.vq.image_token_embed_dim) = (8, 8);
    config
}

#[test]
fn all_gradients_agree_with_differences() {
    for (kind, pass) in [(Decoder, Pass::inference()), (Vision, Pass::inference()), (Decoder, training())] {
        let dropout = if pass.train { 0.4 } else { 0.0 };
        let empty = Case { pass, ..Case::new(&small(), kind, DType::F32, [1, 5]) };
        let case = Case {
            mask: AttentionMask { segments: (kind == Decoder).then(|| [0, 2, 5].into()), ..empty.mask.clone() },
            ..empty
        };
        let projections: Vec<_> =
            case.kind.paths(0).iter().map(|path| case.model.projections().get(path).unwrap().clone()).collect();
        let width = kind.width(case.model.config());
        let mut shapes = vec![vec![1, 5, width]];
        for projection in &projections {
            shapes.extend([vec![2, projection.site().input], vec![projection.site().output, 2]]);
        }
        let factors = 1 + 2 * projections.len();
        let (path, _) = kind.names(0);
        let norms: &[&str] = match kind {
            Decoder => &["input_layernorm.weight", "post_attention_layernorm.weight"],
            Vision => &["layer_norm1.weight", "layer_norm1.bias", "layer_norm2.weight", "layer_norm2.bias"],
        };
        shapes.extend(norms.iter().map(|_| vec![width]));
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        let mut case = case;
        let cell = std::cell::RefCell::new(&mut case);
        check::gradients(&shapes, |tensors| {
            let case = &mut *cell.borrow_mut();
            case.x = tensors[0].clone();
            for (name, value) in norms.iter().zip(&tensors[factors..]) {
                // Near one, so that the sums stay of a size.
                let value = value.affine(0.5, 1.0)?;
                case.model.parameters().substitute(&format!("{path}.{name}"), Some(value)).unwrap();
            }
            for (projection, factors) in projections.iter().zip(tensors[1..factors].chunks(2)) {
                let [a, b] = factors else { unreachable!() };
                let (a, b) = ((a * 0.5)?, (b * 0.5)?);
                let term = LowRank { a, b, scale: 0.6, dropout };
                projection.attach(of_low_rank(vec![term])).unwrap();
            }
            Ok(case.fused())
        });
    }
}
