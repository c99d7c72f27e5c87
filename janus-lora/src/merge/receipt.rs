//! What a merge did to the weights: how far each tensor moved, and what rounding took back.

use candle_core::DType;
use serde::Serialize;

/// Beyond this share of the change lost to rounding, the merged checkpoint is hardly the adapted model any more.
const SWALLOWED: f64 = 0.5;

/// Sums over the values of one tensor or of several, in f64. W is the base's value, D what the adapters add, both exact;
/// the stored value is W + D summed in f32 and rounded to the type that is written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Σ W².
    weight_squares: f64,
    /// Σ D².
    delta_squares: f64,
    /// Σ (stored − (W + D))².
    loss_squares: f64,
    values: u64,
    shifted_values: u64,
    unmoved_values: u64,
}

impl Sums {
    /// Takes in one value: W, D, what is stored, and what would be stored without D.
    pub(super) fn add(&mut self, weight: f64, delta: f64, stored: f32, without: f32) {
        self.weight_squares += weight * weight;
        self.delta_squares += delta * delta;
        let loss = f64::from(stored) - (weight + delta);
        self.loss_squares += loss * loss;
        self.values += 1;
        if delta != 0.0 {
            self.shifted_values += 1;
            self.unmoved_values += u64::from(stored == without);
        }
    }

    pub(super) fn absorb(&mut self, other: &Self) {
        self.weight_squares += other.weight_squares;
        self.delta_squares += other.delta_squares;
        self.loss_squares += other.loss_squares;
        self.values += other.values;
        self.shifted_values += other.shifted_values;
        self.unmoved_values += other.unmoved_values;
    }

    /// As figures to be read.
    pub(super) fn change(&self) -> Change {
        let quotient = |part: f64, whole: f64| (whole > 0.0).then(|| (part / whole).sqrt());
        Change {
            values: self.values,
            weight_norm: self.weight_squares.sqrt(),
            delta_norm: self.delta_squares.sqrt(),
            relative_change: quotient(self.delta_squares, self.weight_squares),
            rounding_loss: quotient(self.loss_squares, self.delta_squares),
            shifted_values: self.shifted_values,
            unmoved_values: self.unmoved_values,
        }
    }
}

/// How far weights moved. W is the base's, D what the adapters add; norms are Frobenius norms.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Values looked at.
    pub values: u64,
    /// ‖W‖.
    pub weight_norm: f64,
    /// ‖D‖.
    pub delta_norm: f64,
    /// ‖D‖ / ‖W‖; absent where W is all zeros.
    pub relative_change: Option<f64>,
    /// ‖round(W + D) − (W + D)‖ / ‖D‖, with the rounding of W itself where the output is narrower than the base; absent
    /// where D is all zeros.
    pub rounding_loss: Option<f64>,
    /// Values whose D is not zero.
    pub shifted_values: u64,
    /// Those of them that are stored as they would be without D.
    pub unmoved_values: u64,
}

impl Change {
    /// Whether rounding lost more than half of the change.
    pub fn is_swallowed(&self) -> bool {
        self.rounding_loss.is_some_and(|loss| loss > SWALLOWED)
    }

    /// Share of the shifted values that did not move.
    pub fn unmoved_share(&self) -> f64 {
        self.unmoved_values as f64 / self.shifted_values.max(1) as f64
    }
}

/// The change of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorChange {
    /// Native name, for a site its path and `.weight`.
    pub tensor: String,
    /// Type it was rounded to.
    pub dtype: String,
    /// How far it moved.
    #[serde(flatten)]
    pub change: Change,
}

/// Gathers the receipt tensor by tensor.
#[derive(Debug, Default)]
pub(super) struct Receipt {
    pub(super) tensors: Vec<TensorChange>,
    total: Sums,
}

impl Receipt {
    pub(super) fn enter(&mut self, name: &str, dtype: DType, sums: &Sums) {
        self.total.absorb(sums);
        let (tensor, dtype) = (name.to_owned(), dtype.as_str().to_owned());
        self.tensors.push(TensorChange { tensor, dtype, change: sums.change() });
    }

    pub(super) fn total(&self) -> Change {
        self.total.change()
    }
}
