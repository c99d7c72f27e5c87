//! Where the vision part can be cut in two: what lies below a point depends on the picture and the frozen parameters
//! alone wherever nothing below it was changed.

use std::fmt;

/// A place in the vision part, named by what was computed last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VisionPoint {
    /// The first so many blocks of the tower, before `post_layernorm`: `[images, patches, width]`.
    Blocks(usize),
    /// The tower with `post_layernorm`: `[images, patches, width]`.
    Tower,
    /// Tower and aligner: `[images, patches, hidden]`.
    Aligner,
}

/// Where a module stands on the way of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Embeddings,
    Block(usize),
    Norm,
    Aligner,
}

impl Stage {
    /// Of a site's path or a parameter's name; `None` outside the vision part.
    fn of(name: &str) -> Option<Self> {
        if name.starts_with("model.aligner.") {
            return Some(Self::Aligner);
        }
        let rest = name.strip_prefix("model.vision_model.")?;
        Some(match rest.strip_prefix("encoder.layers.") {
            Some(rest) => {
                let number = rest.split('.').next().and_then(|number| number.parse().ok());
                number.map_or(Self::Embeddings, Self::Block)
            }
            None if rest.starts_with("post_layernorm.") => Self::Norm,
            None => Self::Embeddings,
        })
    }
}

impl VisionPoint {
    /// The highest point below which none of `touched` lies (native paths of sites and names of parameters; those of
    /// other parts do not count), in a tower of `layers` blocks. `None` where no block is left below.
    pub fn highest<'a>(layers: usize, touched: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        match touched.into_iter().filter_map(Stage::of).min() {
            None => Some(Self::Aligner),
            Some(Stage::Aligner) => Some(Self::Tower),
            Some(Stage::Norm) => (layers > 0).then_some(Self::Blocks(layers)),
            Some(Stage::Block(0) | Stage::Embeddings) => None,
            Some(Stage::Block(number)) => Some(Self::Blocks(number.min(layers))),
        }
    }

    /// A third of the blocks, at least one: where features are of places and edges more than of things.
    pub fn low(layers: usize) -> Self {
        Self::Blocks((layers / 3).max(1).min(layers))
    }

    /// Whether `other` is computed on the way to here, or is the same place.
    pub fn covers(self, other: Self) -> bool {
        let rank = |point| match point {
            Self::Blocks(count) => (0, count),
            Self::Tower => (1, 0),
            Self::Aligner => (2, 0),
        };
        rank(self) >= rank(other)
    }

    /// Whether what is computed up to here depends on the site or parameter of this native path or name.
    pub fn depends_on(self, name: &str) -> bool {
        let below = |stage| match self {
            Self::Blocks(count) => match stage {
                Stage::Embeddings => true,
                Stage::Block(number) => number < count,
                Stage::Norm | Stage::Aligner => false,
            },
            Self::Tower => stage <= Stage::Norm,
            Self::Aligner => true,
        };
        Stage::of(name).is_some_and(below)
    }
}

impl fmt::Display for VisionPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blocks(1) => f.write_str("the output of the vision tower's first block"),
            Self::Blocks(count) => write!(f, "the output of the vision tower's first {count} blocks"),
            Self::Tower => f.write_str("the vision tower's output"),
            Self::Aligner => f.write_str("the aligner's output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: &str = "model.vision_model.encoder.layers.2.mlp.fc1";
    const NORM: &str = "model.vision_model.post_layernorm.bias";
    const ALIGNER: &str = "model.aligner.hidden_layers.0";
    const PATCHES: &str = "model.vision_model.embeddings.patch_embedding";

    #[test]
    fn the_highest_point_is_below_all_that_was_touched() {
        let elsewhere = "model.language_model.layers.0.self_attn.q_proj";
        for (touched, point) in [
            (&[][..], Some(VisionPoint::Aligner)),
            (&[elsewhere, "model.generation_aligner.fc1"], Some(VisionPoint::Aligner)),
            (&[ALIGNER], Some(VisionPoint::Tower)),
            (&[ALIGNER, NORM], Some(VisionPoint::Blocks(5))),
            (&[ALIGNER, BLOCK, NORM], Some(VisionPoint::Blocks(2))),
            (&[BLOCK, "model.vision_model.encoder.layers.1.layer_norm1.weight"], Some(VisionPoint::Blocks(1))),
            (&[BLOCK, "model.vision_model.encoder.layers.0.self_attn.k_proj"], None),
            (&[PATCHES], None),
            (&["model.vision_model.embeddings.position_embedding.weight"], None),
            (&["model.vision_model.something.new"], None),
        ] {
            assert_eq!(VisionPoint::highest(5, touched.iter().copied()), point, "{touched:?}");
        }
    }

    #[test]
    fn low_features_are_those_of_a_third() {
        assert_eq!([0, 1, 2, 5, 24].map(VisionPoint::low), [0, 1, 1, 1, 8].map(VisionPoint::Blocks));
        assert!(VisionPoint::Blocks(3).covers(VisionPoint::Blocks(3)));
        assert!(!VisionPoint::Blocks(2).covers(VisionPoint::Blocks(3)));
        assert!(VisionPoint::Aligner.covers(VisionPoint::Tower) && VisionPoint::Tower.covers(VisionPoint::Blocks(24)));
        assert!(!VisionPoint::Tower.covers(VisionPoint::Aligner));
    }

    #[test]
    fn a_point_depends_on_what_lies_below() {
        for (point, expected) in [
            (VisionPoint::Blocks(2), [true, false, false, false]),
            (VisionPoint::Blocks(3), [true, true, false, false]),
            (VisionPoint::Tower, [true, true, true, false]),
            (VisionPoint::Aligner, [true, true, true, true]),
        ] {
            assert_eq!([PATCHES, BLOCK, NORM, ALIGNER].map(|name| point.depends_on(name)), expected, "{point}");
            assert!(!point.depends_on("lm_head.weight"));
        }
    }
}
