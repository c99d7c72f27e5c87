//! Inception-v3 as the Fréchet distance of pictures uses it (Heusel and others, arXiv:1706.08500): with the weights that were
//! carried over from TensorFlow, whose average poolings leave the border out, and whose last block takes a maximum.
//!
//! Names are torchvision's. The features are those of the last pooling.

use candle_core::{DType, Tensor};

use super::weights::{Convolution, Weights};
use crate::error::Result;

/// Side of the pictures that it was trained with.
const SIDE: usize = 299;

/// `eps` of its batch norms.
const EPSILON: f64 = 1e-3;

/// What stands beside the convolutions of a mixed block.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pool {
    /// Mean of 3 x 3 values, those beyond the border left out, then a convolution.
    Mean,
    /// Largest of 3 x 3 values, then a convolution.
    Largest,
    /// Largest of 3 x 3 values, every second one, and nothing after it.
    Halving,
}

/// A chain of convolutions, whose last ones may stand side by side.
type Chain = (&'static [&'static str], &'static [&'static str]);

/// Chains of the kinds of block, from torchvision's `InceptionA` to `InceptionE`. A name ends with its kernel: rows by columns,
/// with `/2` where the stride is two.
const A: &[Chain] = &[
    (&["branch1x1 1x1"], &[]),
    (&["branch5x5_1 1x1", "branch5x5_2 5x5"], &[]),
    (&["branch3x3dbl_1 1x1", "branch3x3dbl_2 3x3", "branch3x3dbl_3 3x3"], &[]),
];
const B: &[Chain] =
    &[(&["branch3x3 3x3/2"], &[]), (&["branch3x3dbl_1 1x1", "branch3x3dbl_2 3x3", "branch3x3dbl_3 3x3/2"], &[])];
const C: &[Chain] = &[
    (&["branch1x1 1x1"], &[]),
    (&["branch7x7_1 1x1", "branch7x7_2 1x7", "branch7x7_3 7x1"], &[]),
    (
        &["branch7x7dbl_1 1x1", "branch7x7dbl_2 7x1", "branch7x7dbl_3 1x7", "branch7x7dbl_4 7x1", "branch7x7dbl_5 1x7"],
        &[],
    ),
];
const D: &[Chain] = &[
    (&["branch3x3_1 1x1", "branch3x3_2 3x3/2"], &[]),
    (&["branch7x7x3_1 1x1", "branch7x7x3_2 1x7", "branch7x7x3_3 7x1", "branch7x7x3_4 3x3/2"], &[]),
];
const E: &[Chain] = &[
    (&["branch1x1 1x1"], &[]),
    (&["branch3x3_1 1x1"], &["branch3x3_2a 1x3", "branch3x3_2b 3x1"]),
    (&["branch3x3dbl_1 1x1", "branch3x3dbl_2 3x3"], &["branch3x3dbl_3a 1x3", "branch3x3dbl_3b 3x1"]),
];

/// The mixed blocks in order.
const MIXED: [(&str, &[Chain], Pool); 11] = [
    ("Mixed_5b", A, Pool::Mean),
    ("Mixed_5c", A, Pool::Mean),
    ("Mixed_5d", A, Pool::Mean),
    ("Mixed_6a", B, Pool::Halving),
    ("Mixed_6b", C, Pool::Mean),
    ("Mixed_6c", C, Pool::Mean),
    ("Mixed_6d", C, Pool::Mean),
    ("Mixed_6e", C, Pool::Mean),
    ("Mixed_7a", D, Pool::Halving),
    ("Mixed_7b", E, Pool::Mean),
    ("Mixed_7c", E, Pool::Largest),
];

/// A chain of a block.
#[derive(Debug)]
struct Branch {
    chain: Vec<Convolution>,
    /// Side by side after it, their results one after the other; none: the chain's own result.
    fork: Vec<Convolution>,
}

#[derive(Debug)]
struct Mixed {
    branches: Vec<Branch>,
    pool: Pool,
    /// After the pooling; none for [`Pool::Halving`].
    pooled: Option<Convolution>,
}

/// The network.
#[derive(Debug)]
pub(super) struct Inception {
    /// Before the first and before the second of the poolings that come first.
    stem: [Vec<Convolution>; 2],
    mixed: Vec<Mixed>,
}

impl Inception {
    pub(super) fn new(weights: &Weights) -> Result<Self> {
        let whole = |names: &[(&str, usize)]| -> Result<Vec<Convolution>> {
            let one = |(name, stride): &(&str, usize)| {
                let (name, padding) = name.split_once(' ').unwrap_or((name, "0"));
                let padding = usize::from(padding == "1");
                convolution(weights, name, None, *stride, Some((padding, padding)))
            };
            names.iter().map(one).collect()
        };
        let stem = [
            whole(&[("Conv2d_1a_3x3", 2), ("Conv2d_2a_3x3", 1), ("Conv2d_2b_3x3 1", 1)])?,
            whole(&[("Conv2d_3b_1x1", 1), ("Conv2d_4a_3x3", 1)])?,
        ];
        let mixed = MIXED.iter().map(|(name, chains, pool)| Mixed::new(weights, name, chains, *pool));
        Ok(Self { stem, mixed: mixed.collect::<Result<_>>()? })
    }

    /// Of a picture, `[1, 3, height, width]` in [-1, 1].
    pub(super) fn features(&self, pixels: &Tensor) -> Result<Vec<f64>> {
        let mut x = pixels.upsample_bilinear2d(SIDE, SIDE, false)?;
        for convolutions in &self.stem {
            for convolution in convolutions {
                x = convolution.forward(&x)?;
            }
            x = x.max_pool2d_with_stride(3, 2)?;
        }
        for block in &self.mixed {
            x = block.forward(&x)?;
        }
        Ok(x.mean((2, 3))?.squeeze(0)?.to_dtype(DType::F64)?.to_vec1()?)
    }
}

impl Mixed {
    fn new(weights: &Weights, name: &str, chains: &[Chain], pool: Pool) -> Result<Self> {
        let named = |part: &&str| -> Result<Convolution> {
            let (part, kernel) = part.split_once(' ').unwrap_or((part, "1x1"));
            let (kernel, stride) = kernel.strip_suffix("/2").map_or((kernel, 1), |kernel| (kernel, 2));
            let sides =
                kernel.split_once('x').and_then(|(rows, columns)| Some((rows.parse().ok()?, columns.parse().ok()?)));
            // Where the stride is two nothing is put around.
            convolution(weights, &format!("{name}.{part}"), sides, stride, (stride == 2).then_some((0, 0)))
        };
        let branch = |(chain, fork): &Chain| -> Result<Branch> {
            Ok(Branch {
                chain: chain.iter().map(named).collect::<Result<_>>()?,
                fork: fork.iter().map(named).collect::<Result<_>>()?,
            })
        };
        Ok(Self {
            branches: chains.iter().map(branch).collect::<Result<_>>()?,
            pool,
            pooled: (pool != Pool::Halving).then(|| named(&"branch_pool 1x1")).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut parts = Vec::new();
        for branch in &self.branches {
            let mut x = x.clone();
            for convolution in &branch.chain {
                x = convolution.forward(&x)?;
            }
            if branch.fork.is_empty() {
                parts.push(x);
            } else {
                for convolution in &branch.fork {
                    parts.push(convolution.forward(&x)?);
                }
            }
        }
        // Every value comes from a ReLU, so that zeros around change no maximum.
        let around = |x: &Tensor| x.pad_with_zeros(2, 1, 1)?.pad_with_zeros(3, 1, 1);
        let pooled = match self.pool {
            Pool::Halving => x.max_pool2d_with_stride(3, 2)?,
            Pool::Largest => around(x)?.max_pool2d_with_stride(3, 1)?,
            Pool::Mean => {
                let inside = around(&x.narrow(1, 0, 1)?.ones_like()?)?.avg_pool2d_with_stride(3, 1)?;
                around(x)?.avg_pool2d_with_stride(3, 1)?.broadcast_div(&inside)?
            }
        };
        parts.push(match &self.pooled {
            Some(convolution) => convolution.forward(&pooled)?,
            None => pooled,
        });
        Ok(Tensor::cat(&parts, 1)?)
    }
}

/// A convolution with its batch norm folded into it; without `padding` as much as keeps the size.
fn convolution(
    weights: &Weights,
    name: &str,
    sides: Option<(usize, usize)>,
    stride: usize,
    padding: Option<(usize, usize)>,
) -> Result<Convolution> {
    let shape = [None, None, sides.map(|(rows, _)| rows), sides.map(|(_, columns)| columns)];
    let weight = weights.get(&format!("{name}.conv.weight"), shape)?;
    let (out, _, rows, columns) = weight.dims4()?;
    let norm = |part: &str| weights.get(&format!("{name}.bn.{part}"), [Some(out)]);
    let scale = (norm("weight")? / (norm("running_var")? + EPSILON)?.sqrt()?)?;
    let bias = (norm("bias")? - (norm("running_mean")? * &scale)?)?;
    Ok(Convolution {
        weight: weight.broadcast_mul(&scale.reshape((out, 1, 1, 1))?)?,
        bias: bias.reshape((1, out, 1, 1))?,
        stride,
        padding: padding.unwrap_or((rows / 2, columns / 2)),
    })
}
