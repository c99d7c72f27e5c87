//! Figures of two pictures that are to be the same.
//!
//! Peak signal-to-noise ratio, and structural similarity (Wang et al., IEEE TIP 13(4), 2004) as torchmetrics has them
//! (`torchmetrics/functional/image/psnr.py` and `ssim.py`) of a range of 255: windows at the border see the picture mirrored,
//! where the paper has none.

/// Colours of a pixel.
const CHANNELS: usize = 3;
/// Pixels a side of a window, and its standard deviation.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// Largest value of a colour.
const RANGE: f64 = 255.0;
/// What keeps the two parts of structural similarity from 0 / 0.
const LUMINANCE: f64 = (0.01 * RANGE) * (0.01 * RANGE);
const CONTRAST: f64 = (0.03 * RANGE) * (0.03 * RANGE);

/// Peak signal-to-noise ratio in decibels of two pictures' values in the same order; infinite where they are equal.
pub(crate) fn psnr(one: &[u8], other: &[u8]) -> f64 {
    let square = |(one, other): (&u8, &u8)| f64::from(one.abs_diff(*other)).powi(2);
    let squares: f64 = one.iter().zip(other).map(square).sum();
    if squares == 0.0 {
        return f64::INFINITY;
    }
    10.0 * (RANGE * RANGE * one.len().min(other.len()) as f64 / squares).log10()
}

/// Mean over pixels and colours of the structural similarity of two pictures, `[height, width, 3]`; `None` of pictures of
/// less than 11 pixels a side and of ones that do not have this shape.
pub(crate) fn ssim(one: &[u8], other: &[u8], width: usize, height: usize) -> Option<f64> {
    let pixels = width.checked_mul(height)?;
    let values = pixels.checked_mul(CHANNELS)?;
    if width.min(height) < WINDOW || one.len() != values || other.len() != values {
        return None;
    }
    let window = window();
    // Over columns, and over the rows that have become columns.
    let local = |plane: Vec<f64>| window_means(&window_means(&plane, width, &window), height, &window);
    let mut sum = 0.0;
    for channel in 0..CHANNELS {
        let of_pixels = |value: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            let pair = |(one, other): (&u8, &u8)| value(f64::from(*one), f64::from(*other));
            one.iter().zip(other).skip(channel).step_by(CHANNELS).map(pair).collect()
        };
        let means = local(of_pixels(&|one, _| one)).into_iter().zip(local(of_pixels(&|_, other| other)));
        let squares = local(of_pixels(&|one, other| one * one + other * other));
        let products = local(of_pixels(&|one, other| one * other));
        for ((means, square), product) in means.zip(squares).zip(products) {
            sum += similarity(means, square, product);
        }
    }
    Some(sum / values as f64)
}

/// Of one window: both means, the mean sum of both squares and the mean product.
fn similarity((one, other): (f64, f64), square: f64, product: f64) -> f64 {
    let both_means = one * one + other * other;
    // Rounding may leave less than nothing.
    let variances = (square - both_means).max(0.0);
    let covariance = product - one * other;
    (2.0 * one * other + LUMINANCE) * (2.0 * covariance + CONTRAST)
        / ((both_means + LUMINANCE) * (variances + CONTRAST))
}

/// Weights of a line of pixels.
fn window() -> [f64; WINDOW] {
    let weights: [f64; WINDOW] = std::array::from_fn(|place| {
        let distance = place as f64 - (WINDOW / 2) as f64;
        (-0.5 * (distance / SIGMA).powi(2)).exp()
    });
    let sum: f64 = weights.iter().sum();
    weights.map(|weight| weight / sum)
}

/// Weighted means along each line around each of its pixels, `[height, width]` to `[width, height]`.
fn window_means(plane: &[f64], width: usize, window: &[f64; WINDOW]) -> Vec<f64> {
    let height = plane.len() / width;
    let reach = WINDOW / 2;
    let mut means = vec![0.0; plane.len()];
    for (row, line) in plane.chunks_exact(width).enumerate() {
        // The outermost pixels are the mirrors.
        let left = line[1..=reach].iter().rev();
        let right = line[width - 1 - reach..width - 1].iter().rev();
        let mirrored: Vec<f64> = left.chain(line).chain(right).copied().collect();
        for (column, seen) in mirrored.windows(WINDOW).enumerate() {
            means[column * height + row] = seen.iter().zip(window).map(|(value, weight)| value * weight).sum();
        }
    }
    means
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made by `tests/metrics_golden.py` with torchmetrics.
    #[test]
    fn figures_are_those_of_torchmetrics() {
        let golden: serde_json::Value =
            serde_json::from_str(include_str!("../../../tests/golden/metrics/pictures.json")).unwrap();
        let cases = golden["cases"].as_array().unwrap();
        assert!(cases.len() >= 5);
        for case in cases {
            let values = |name: &str| -> Vec<u8> { serde_json::from_value(case[name].clone()).unwrap() };
            let side = |name: &str| case[name].as_u64().unwrap() as usize;
            let (one, other) = (values("one"), values("other"));
            let near = |got: f64, truth: f64, bound: f64| assert!((got - truth).abs() < bound, "{got} {truth}");
            match case["psnr"].as_f64() {
                // torchmetrics takes the logarithm in f32.
                Some(truth) => near(psnr(&one, &other), truth, 1e-5),
                None => assert_eq!(psnr(&one, &other), f64::INFINITY),
            }
            let structure = ssim(&one, &other, side("width"), side("height")).unwrap();
            near(structure, case["ssim"].as_f64().unwrap(), 1e-9);
        }
    }

    #[test]
    fn other_shapes_have_no_structure() {
        let small = [7; 10 * 20 * 3];
        assert_eq!(ssim(&small, &small, 10, 20), None);
        assert_eq!(ssim(&small, &small, 20, 20), None);
        assert_eq!(ssim(&small, &small[1..], 20, 10), None);
        assert_eq!(ssim(&small, &small, usize::MAX, usize::MAX), None);
        assert_eq!(ssim(&[], &[], 0, 0), None);
        assert_eq!(psnr(&[], &[1]), f64::INFINITY);
    }
}
