//! What heads are built of, on grids of features `[images, rows, columns, channels]` in f32, all of it differentiable.

use candle_core::{D, DType, Result, Tensor};
use janus_core::config::JanusConfig;
use janus_core::ops::select_rows;

/// Added to the features' variance before its root is taken.
const EPS: f64 = 1e-6;

/// Values of a place's features over which heads have their full width.
const FULL_FEATURES: usize = 256;
/// Width that heads have at least.
const LEAST_CHANNELS: usize = 16;

/// Width of a head that has `most` channels over large bases: over a small one its share of them, so that the head stays
/// small beside it.
pub(super) fn channels(config: &JanusConfig, most: usize) -> usize {
    (config.vision.projection_dim * most / FULL_FEATURES).clamp(LEAST_CHANNELS, most)
}

/// Features of each place brought to mean zero and variance one, in f32: the base's have a scale of their own, which an
/// optimiser's step would have to find.
pub(super) fn normalised(features: &Tensor) -> Result<Tensor> {
    let features = features.to_dtype(DType::F32)?;
    let centred = features.broadcast_sub(&features.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    centred.broadcast_div(&(variance + EPS)?.sqrt()?)
}

/// Patches in raster order, `[images, side · side, channels]`, as a grid.
pub(super) fn grid(features: &Tensor) -> Result<Tensor> {
    let (images, patches, channels) = features.dims3()?;
    let side = patches.isqrt();
    features.reshape((images, side, side, channels))
}

/// `weight · x + bias` of the last dimension; `weight: [output, input]`, `bias: [output]`.
pub(super) fn affine(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (output, input) = weight.dims2()?;
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = output;
    }
    x.reshape(((), input))?.matmul(&weight.t()?)?.broadcast_add(bias)?.reshape(shape)
}

/// Each place with its eight neighbours, zeros beyond the edge: `[images, rows, columns, 9 · channels]`.
pub(super) fn with_neighbours(x: &Tensor) -> Result<Tensor> {
    let (images, rows, columns, channels) = x.dims4()?;
    let count = images * rows * columns;
    let beyond = Tensor::zeros((1, channels), x.dtype(), x.device())?;
    let table = Tensor::cat(&[&x.reshape((count, channels))?, &beyond], 0)?;
    let mut around = Vec::with_capacity(9 * count);
    for (image, row, column) in (0..images)
        .flat_map(|image| (0..rows).flat_map(move |row| (0..columns).map(move |column| (image, row, column))))
    {
        for (down, across) in (0..3).flat_map(|down| (0..3).map(move |across| (down, across))) {
            // One more than the neighbour's own row and column.
            let (row, column) = (row + down, column + across);
            let is_inside = (1..=rows).contains(&row) && (1..=columns).contains(&column);
            let place = if is_inside { (image * rows + row - 1) * columns + column - 1 } else { count };
            around.push(place as u32);
        }
    }
    select_rows(&table, &around)?.reshape((images, rows, columns, 9 * channels))
}

/// Four times the channels to twice the side: `[images, rows, columns, 4 · channels]` to
/// `[images, 2 · rows, 2 · columns, channels]` (Shi et al., arXiv:1609.05158).
pub(super) fn doubled(x: &Tensor) -> Result<Tensor> {
    let (images, rows, columns, channels) = x.dims4()?;
    let channels = channels / 4;
    let parts = x.reshape(&[images, rows, columns, 2, 2, channels][..])?.permute([0, 1, 3, 2, 4, 5])?;
    parts.contiguous()?.reshape((images, 2 * rows, 2 * columns, channels))
}

/// `log(1 + exp(x))`, from which every logistic loss is made without overflow.
pub(super) fn softplus(x: &Tensor) -> Result<Tensor> {
    x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn counted(shape: &[usize]) -> Tensor {
        let count = shape.iter().product::<usize>() as u32;
        Tensor::arange(0u32, count, &Device::Cpu).unwrap().to_dtype(DType::F32).unwrap().reshape(shape).unwrap()
    }

    #[test]
    fn neighbours_stand_around_each_place() {
        let x = counted(&[1, 2, 3, 1]);
        let around = with_neighbours(&x).unwrap().reshape((6, 9)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(around[0], [0., 0., 0., 0., 0., 1., 0., 3., 4.]);
        assert_eq!(around[4], [0., 1., 2., 3., 4., 5., 0., 0., 0.]);
    }

    #[test]
    fn doubling_puts_the_four_parts_of_a_place_side_by_side() {
        let x = counted(&[1, 1, 2, 8]);
        let y = doubled(&x).unwrap();
        assert_eq!(y.dims(), [1, 2, 4, 2]);
        let values: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
        assert_eq!(values, [0., 1., 2., 3., 8., 9., 10., 11., 4., 5., 6., 7., 12., 13., 14., 15.]);
    }

    #[test]
    fn softplus_neither_overflows_nor_vanishes() {
        let x = Tensor::new(&[-100f32, -2.0, 0.0, 3.0, 200.0], &Device::Cpu).unwrap();
        let got: Vec<f32> = softplus(&x).unwrap().to_vec1().unwrap();
        for (got, expected) in got.iter().zip([0.0, 0.126_928, std::f32::consts::LN_2, 3.048_587, 200.0]) {
            assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        }
    }

    #[test]
    fn affine_maps_the_last_dimension() {
        let weight = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [0.0, 1.0]], &Device::Cpu).unwrap();
        let bias = Tensor::new(&[0.5f32, 0.0, -1.0], &Device::Cpu).unwrap();
        let y = affine(&counted(&[1, 2, 1, 2]), &weight, &bias).unwrap();
        assert_eq!(y.dims(), [1, 2, 1, 3]);
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [2.5, 4.0, 0.0, 8.5, 18.0, 2.0]);
    }
}
