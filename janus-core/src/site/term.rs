//! What a correction adds to a site's output: low-rank pairs and Kronecker products.

use candle_core::{Result, Tensor, bail};

use super::{Site, SiteKind};

/// One summand of a correction.
#[derive(Debug, Clone)]
pub enum Term {
    /// A pair of low-rank factors.
    LowRank(LowRank),
    /// A Kronecker product.
    Kronecker(Kronecker),
}

/// Low-rank factors that shift a site's weight by `scale · B·A`.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Linear `[rank, input]`, convolution `[rank, input, kernel, kernel]`, embedding `[rank, rows]`; f32.
    pub a: Tensor,
    /// Linear and embedding `[output, rank]`, convolution `[output, rank, 1, 1]`; f32.
    pub b: Tensor,
    /// Factor of the product.
    pub scale: f64,
    /// Share of the input's values that training zeroes before A; embeddings have none.
    pub dropout: f64,
}

/// Factors that shift the weight of a linear map or a convolution by `scale · left ⊗ right`: the weight's cell of output
/// `o₁·O₂ + o₂` and input `i₁·I₂ + i₂` by `scale · left[o₁, i₁] · right[o₂, i₂]`.
///
/// With `left = [[1]]` the right factor is a dense shift.
#[derive(Debug, Clone)]
pub struct Kronecker {
    /// `[O₁, I₁]`; f32.
    pub left: Tensor,
    /// Linear `[O₂, I₂]`, convolution `[O₂, I₂, kernel, kernel]`; f32.
    pub right: Tensor,
    /// Factor of the product.
    pub scale: f64,
}

impl Term {
    /// The same with each of its tensors through `f`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map(&self, f: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(match self {
            Term::LowRank(term) => Term::LowRank(LowRank { a: f(&term.a)?, b: f(&term.b)?, ..term.clone() }),
            Term::Kronecker(term) => {
                Term::Kronecker(Kronecker { left: f(&term.left)?, right: f(&term.right)?, ..term.clone() })
            }
        })
    }

    /// The same times a factor.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        match self {
            Term::LowRank(term) => Term::LowRank(LowRank { scale: term.scale * factor, ..term.clone() }),
            Term::Kronecker(term) => Term::Kronecker(Kronecker { scale: term.scale * factor, ..term.clone() }),
        }
    }

    /// The same with factors on what it gives, `[output]`. A Kronecker product becomes a dense shift.
    pub(super) fn behind(&self, factors: &Tensor, site: &Site) -> Result<Self> {
        let along = |rank: usize| -> Result<Tensor> {
            factors.reshape((0..rank).map(|at| if at == 0 { site.output } else { 1 }).collect::<Vec<_>>())
        };
        Ok(match self {
            Term::LowRank(term) => {
                Term::LowRank(LowRank { b: term.b.broadcast_mul(&along(term.b.rank())?)?, ..term.clone() })
            }
            Term::Kronecker(Kronecker { left, right, scale }) => {
                let ((o1, i1), (o2, i2)) = (left.dims2()?, (right.dim(0)?, right.dim(1)?));
                let area = right.elem_count() / (o2 * i2).max(1);
                let product = left
                    .reshape((o1, 1, i1, 1))?
                    .broadcast_mul(&right.reshape((1, o2, 1, i2 * area))?)?
                    .reshape(site.weight_shape())?;
                let right = product.broadcast_mul(&along(product.rank())?)?;
                let left = Tensor::ones((1, 1), right.dtype(), right.device())?;
                Term::Kronecker(Kronecker { left, right, scale: *scale })
            }
        })
    }

    /// Its tensors.
    pub fn tensors(&self) -> [&Tensor; 2] {
        match self {
            Term::LowRank(term) => [&term.a, &term.b],
            Term::Kronecker(term) => [&term.left, &term.right],
        }
    }

    /// Some rows of what it adds to the site's weight, in the weight's own shape but for the number of rows; f32.
    ///
    /// # Errors
    /// Factors that do not fit the site or each other.
    pub fn shift_of_rows(&self, site: &Site, from: usize, count: usize) -> Result<Tensor> {
        match self {
            Term::LowRank(term) => term.shift_of_rows(site, from, count),
            Term::Kronecker(term) => term.shift_of_rows(site, from, count),
        }
    }

    /// Whether its factors have the shapes that the site asks for.
    pub(super) fn fits(&self, site: &Site) -> bool {
        match self {
            Term::LowRank(LowRank { a, b, .. }) => match (site.kind, a.dims(), b.dims()) {
                (SiteKind::Linear | SiteKind::Embedding, [rank, input], [output, own]) => {
                    [*rank, *input, *output] == [*own, site.input, site.output]
                }
                (SiteKind::Conv2d { kernel, .. }, [rank, input, height, width], [output, own, 1, 1]) => {
                    [*rank, *input, *height, *width, *output] == [*own, site.input, kernel, kernel, site.output]
                }
                _ => false,
            },
            Term::Kronecker(Kronecker { left, right, .. }) => match (site.kind, left.dims(), right.dims()) {
                (SiteKind::Linear, [o1, i1], [o2, i2]) => [o1 * o2, i1 * i2] == [site.output, site.input],
                (SiteKind::Conv2d { kernel, .. }, [o1, i1], [o2, i2, height, width]) => {
                    [o1 * o2, i1 * i2, *height, *width] == [site.output, site.input, kernel, kernel]
                }
                _ => false,
            },
        }
    }
}

impl LowRank {
    /// `scale · B·A` in the weight's own shape, in f32.
    ///
    /// # Errors
    /// Factors that do not fit each other.
    pub fn weight_shift(&self, site: &Site) -> Result<Tensor> {
        self.shift_of_rows(site, 0, site.weight_rows())
    }

    fn shift_of_rows(&self, site: &Site, from: usize, count: usize) -> Result<Tensor> {
        let (a, b) = (self.a.detach().flatten_from(1)?, self.b.detach().flatten_from(1)?);
        Ok(match site.kind {
            SiteKind::Linear => (b.narrow(0, from, count)?.contiguous()?.matmul(&a)? * self.scale)?,
            SiteKind::Embedding => {
                let product = (b.matmul(&a.narrow(1, from, count)?.contiguous()?)? * self.scale)?;
                product.t()?.contiguous()?
            }
            SiteKind::Conv2d { kernel, .. } => {
                let product = (b.narrow(0, from, count)?.contiguous()?.matmul(&a)? * self.scale)?;
                product.reshape((count, site.input, kernel, kernel))?
            }
        })
    }
}

impl Kronecker {
    fn shift_of_rows(&self, site: &Site, from: usize, count: usize) -> Result<Tensor> {
        let (left, right) = (self.left.detach(), self.right.detach());
        let (_, i1) = left.dims2()?;
        let (o2, i2) = (right.dim(0)?, right.dim(1)?);
        let rows = from..from + count;
        let picked = |of: &Tensor, place: &dyn Fn(usize) -> usize| -> Result<Tensor> {
            let places: Vec<u32> = rows.clone().map(|row| place(row) as u32).collect();
            of.contiguous()?.index_select(&Tensor::from_vec(places, count, of.device())?, 0)
        };
        let left = (picked(&left, &|row| row / o2)? * self.scale)?;
        let right = picked(&right, &|row| row % o2)?;
        match site.kind {
            SiteKind::Linear => {
                left.reshape((count, i1, 1))?.broadcast_mul(&right.reshape((count, 1, i2))?)?.reshape((count, i1 * i2))
            }
            SiteKind::Conv2d { kernel, .. } => {
                let area = kernel * kernel;
                let product = left.reshape((count, i1, 1, 1))?.broadcast_mul(&right.reshape((count, 1, i2, area))?)?;
                product.reshape((count, i1 * i2, kernel, kernel))
            }
            SiteKind::Embedding => bail!("`{}` is a table: no Kronecker product is added to it", site.path),
        }
    }
}
