//! Boxes with labels: those that are true of a picture, and those that were detected in it.

/// A box and what is in it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LabelledBox {
    /// Left, top, right, bottom in pixels.
    pub corners: [f32; 4],
    /// The number of its label.
    pub label: u32,
}

/// A box that was detected.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Detection {
    /// Left, top, right, bottom in pixels.
    pub corners: [f32; 4],
    /// The number of its label.
    pub label: u32,
    /// From 0 to 1: `sqrt(class probability · centre-ness)`.
    pub score: f32,
}
