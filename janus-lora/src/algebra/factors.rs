//! The factors of one site, as adapter files have them, and as lines to compute with.

use candle_core::Tensor;
use janus_core::noise;

use super::error::AlgebraError;
use crate::adapter::KEY_PREFIX;
use crate::svd::{Lines, Svd, lines_of, tensor_of};

/// What the factors belong to, as far as shapes and names show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A linear map.
    Linear,
    /// A convolution.
    Convolution,
    /// Rows of a table, which B·A has for columns.
    Embedding,
}

impl Kind {
    /// Names of A and B of a site in `adapter_model.safetensors`.
    pub(super) fn keys(self, site: &str) -> [String; 2] {
        match self {
            Kind::Linear | Kind::Convolution => {
                ["lora_A", "lora_B"].map(|factor| format!("{KEY_PREFIX}{site}.{factor}.weight"))
            }
            Kind::Embedding => {
                ["lora_embedding_A", "lora_embedding_B"].map(|factor| format!("{KEY_PREFIX}{site}.{factor}"))
            }
        }
    }
}

/// Factors that shift a site's weight by `scale · B·A`.
#[derive(Debug, Clone)]
pub struct Factors {
    /// What they belong to.
    pub kind: Kind,
    /// Linear `[rank, input]`, convolution `[rank, input, kernel, kernel]`, embedding `[rank, rows]`; f32.
    pub a: Tensor,
    /// Linear and embedding `[output, rank]`, convolution `[output, rank, 1, 1]`; f32.
    pub b: Tensor,
    /// Factor of the product.
    pub scale: f64,
}

/// leftᵀ · right, of lines of equal number.
#[derive(Debug, Clone, Default)]
pub(super) struct Product {
    /// `[rank, rows]`
    pub(super) left: Lines,
    /// `[rank, columns]`
    pub(super) right: Lines,
}

impl Product {
    /// `factor · B·A`; of a convolution its kernels' values lie beside each other.
    pub(super) fn of(a: &Tensor, b: &Tensor, factor: f64) -> candle_core::Result<Self> {
        let mut left = lines_of(&b.flatten_from(1)?.t()?)?;
        left.iter_mut().flatten().for_each(|value| *value *= factor);
        Ok(Self { left, right: lines_of(&a.flatten_from(1)?)? })
    }

    /// The sum of both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.left.extend(other.left);
        self.right.extend(other.right);
        self
    }
}

impl Factors {
    /// Columns of A and rows of B.
    pub fn rank(&self) -> usize {
        self.a.dims().first().copied().unwrap_or(0)
    }

    /// Numerator of the scale `alpha / rank`; a whole number where it is one but for rounding.
    pub fn alpha(&self) -> f64 {
        let alpha = self.scale * self.rank() as f64;
        let whole = alpha.round();
        if (alpha - whole).abs() <= 1e-12 * alpha.abs() { whole } else { alpha }
    }

    /// Shape of the shift: that of A with B's rows for its first side.
    pub fn shape(&self) -> Vec<usize> {
        let rows = self.b.dims().iter().take(1);
        rows.chain(self.a.dims().iter().skip(1)).copied().collect()
    }

    /// Rows and columns of B·A.
    pub(super) fn sides(&self) -> (usize, usize) {
        (self.b.dims().first().copied().unwrap_or(0), self.a.dims().iter().skip(1).product())
    }

    /// `factor · scale · B·A`.
    pub(super) fn product(&self, factor: f64) -> candle_core::Result<Product> {
        Product::of(&self.a, &self.b, factor * self.scale)
    }

    /// Factors of this rank out of the first triples, `shape` that of the shift. Each side gets `split` of a singular value as
    /// its share: B the value to the power of `split`, A the rest. What is left of the rank holds `rest`.
    pub(super) fn from_svd(
        kind: Kind,
        shape: &[usize],
        svd: &Svd,
        rank: usize,
        split: f64,
        rest: Rest<'_>,
    ) -> candle_core::Result<Self> {
        let (rows, columns) = (shape.first().copied().unwrap_or(0), shape.iter().skip(1).product());
        let share = |lines: &Lines, power: f64, length: usize| -> Lines {
            let scaled = lines.iter().zip(&svd.values).take(rank).map(|(line, value)| {
                let factor = value.powf(power);
                line.iter().map(|part| part * factor).collect()
            });
            scaled.chain(std::iter::repeat(vec![0.0; length])).take(rank).collect()
        };
        let (mut left, mut right) = (share(&svd.left, split, rows), share(&svd.right, 1.0 - split, columns));
        if let Rest::Fresh { site } = rest {
            let [a_key, b_key] = kind.keys(site).map(|key| noise::combine(0, noise::key_of(&key)));
            let bound = 1.0 / (columns as f64).sqrt();
            for place in svd.values.len().min(rank)..rank {
                // As a new adapter begins: one of the two is drawn, the other is zero.
                let (line, key) = if kind == Kind::Embedding { (&mut left, b_key) } else { (&mut right, a_key) };
                let Some(line) = line.get_mut(place) else { continue };
                let first = place * line.len();
                for (index, value) in line.iter_mut().enumerate() {
                    let index = (first + index) as u64;
                    *value = match kind {
                        Kind::Embedding => noise::normal(key, index),
                        _ => bound * (2.0 * noise::uniform(key, index) - 1.0),
                    };
                }
            }
        }
        let mut a_shape = vec![rank];
        a_shape.extend(shape.iter().skip(1));
        let a = tensor_of(&right, columns)?.reshape(a_shape)?;
        let b = tensor_of(&left, rows)?.t()?.contiguous()?;
        let b = if kind == Kind::Convolution { b.reshape((rows, rank, 1, 1))? } else { b };
        Ok(Self { kind, a, b, scale: 1.0 })
    }
}

/// Refuses a rank that none of these matrices, rows and columns of each, can have use for.
pub(super) fn check_rank(rank: usize, sides: impl Iterator<Item = (usize, usize)>) -> Result<(), AlgebraError> {
    let largest = sides.map(|(rows, columns)| rows.max(columns)).max().unwrap_or(0);
    if rank == 0 || rank > largest {
        let (value, expected) = (rank.to_string(), "at least 1 and at most the longest side of a matrix");
        return Err(AlgebraError::Range { option: "--rank", value, expected });
    }
    Ok(())
}

/// What stands in the part of the rank that no singular value needs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rest<'a> {
    /// Nothing: the product has that rank, and no more.
    Zero,
    /// What a new adapter has there, so that training can use it: the product is the same.
    Fresh {
        /// Path of the site.
        site: &'a str,
    },
}
