//! LPIPS, version 0.1, over VGG-16 or AlexNet (Zhang and others, arXiv:1801.03924).
//!
//! At five depths both pictures' features are brought to length one, their squared differences weighted by channel, and the
//! means over all places summed. Names are those of the `state_dict` of the authors' package.

use candle_core::Tensor;

use super::NetworkError;
use super::weights::{Convolution, Weights};
use crate::error::Result;

/// Mean and deviation of pixels in [-1, 1] that the networks were trained with, red, green, blue.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to lengths before dividing by them.
const EPSILON: f64 = 1e-10;

/// Convolutions of the five depths, by their numbers among the layers of torchvision's networks.
const VGG: [&[usize]; 5] = [&[0, 2], &[5, 7], &[10, 12, 14], &[17, 19, 21], &[24, 26, 28]];
const ALEXNET: [&[usize]; 5] = [&[0], &[3], &[6], &[8], &[10]];

/// One depth.
#[derive(Debug)]
struct Depth {
    /// Side and stride of the pooling before it.
    pool: Option<(usize, usize)>,
    convolutions: Vec<Convolution>,
    /// Weights of its channels, `[1, channels, 1, 1]`.
    channels: Tensor,
}

/// The network.
#[derive(Debug)]
pub(super) struct Lpips {
    depths: Vec<Depth>,
    /// Shortest side that the poolings leave something of.
    least: usize,
}

impl Lpips {
    pub(super) fn new(weights: &Weights) -> Result<Self> {
        let is_vgg = weights.has("net.slice1.2.weight");
        let layers = if is_vgg { VGG } else { ALEXNET };
        let (mut depths, mut inputs) = (Vec::new(), 3);
        for (depth, layers) in layers.iter().enumerate() {
            let mut convolutions = Vec::new();
            for layer in *layers {
                let stem = format!("net.slice{}.{layer}", depth + 1);
                let (side, stride, padding) = match (is_vgg, depth) {
                    (false, 0) => (11, 4, 2),
                    (false, 1) => (5, 1, 2),
                    _ => (3, 1, 1),
                };
                let shape = [None, Some(inputs), Some(side), Some(side)];
                let weight = weights.get(&format!("{stem}.weight"), shape)?;
                inputs = weight.dim(0)?;
                let bias = weights.get(&format!("{stem}.bias"), [Some(inputs)])?.reshape((1, inputs, 1, 1))?;
                convolutions.push(Convolution { weight, bias, stride, padding: (padding, padding) });
            }
            let pool = match (is_vgg, depth) {
                (true, 1..) => Some((2, 2)),
                (false, 1 | 2) => Some((3, 2)),
                _ => None,
            };
            let channels =
                weights.get(&format!("lin{depth}.model.1.weight"), [Some(1), Some(inputs), Some(1), Some(1)])?;
            depths.push(Depth { pool, convolutions, channels });
        }
        // AlexNet: 35 pixels are 8 after the first convolution, 3 and 1 after the poolings.
        Ok(Self { depths, least: if is_vgg { 16 } else { 35 } })
    }

    /// The distance of two pictures, each `[1, 3, height, width]` in [-1, 1].
    pub(super) fn distance(&self, one: &Tensor, other: &Tensor) -> Result<f64> {
        let (_, _, height, width) = one.dims4()?;
        let side = height.min(width);
        if side < self.least {
            return Err(NetworkError::TooSmall { side, least: self.least }.into());
        }
        let table = |values: [f32; 3]| Tensor::new(&values, one.device())?.reshape((1, 3, 1, 1));
        let mut x = Tensor::cat(&[one, other], 0)?.broadcast_sub(&table(SHIFT)?)?.broadcast_div(&table(SCALE)?)?;
        let mut sum = 0.0;
        for depth in &self.depths {
            if let Some((side, stride)) = depth.pool {
                x = x.max_pool2d_with_stride(side, stride)?;
            }
            for convolution in &depth.convolutions {
                x = convolution.forward(&x)?;
            }
            let unit = x.broadcast_div(&(x.sqr()?.sum_keepdim(1)?.sqrt()? + EPSILON)?)?;
            let squares = (unit.narrow(0, 0, 1)? - unit.narrow(0, 1, 1)?)?.sqr()?;
            let weighted = squares.broadcast_mul(&depth.channels)?.sum(1)?;
            sum += f64::from(weighted.mean_all()?.to_scalar::<f32>()?);
        }
        Ok(sum)
    }
}
