//! The two types values are stored in.

use half::bf16;

use super::matrix::Store;

/// A stored value that is computed with as f32.
pub(crate) trait Element: Copy + Send + Sync + Default + std::fmt::Debug + 'static {
    /// Whether two values make one operand of the bf16 dot product.
    const PAIRED: bool;

    /// As f32, exactly.
    fn widen(self) -> f32;

    /// Rounded to nearest, ties to even.
    fn narrow(value: f32) -> Self;

    /// Where buffers of such values wait for their next use.
    fn spares() -> &'static Store<Self>;
}

impl Element for f32 {
    const PAIRED: bool = false;

    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }

    fn spares() -> &'static Store<Self> {
        static SPARES: Store<f32> = Store::new();
        &SPARES
    }
}

impl Element for bf16 {
    const PAIRED: bool = true;

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    /// Without branches, so that loops over it become vector instructions.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
        let quiet = (bits >> 16) | 0x40;
        let is_nan = (bits & 0x7fff_ffff) > 0x7f80_0000;
        bf16::from_bits(if is_nan { quiet } else { rounded } as u16)
    }

    fn spares() -> &'static Store<Self> {
        static SPARES: Store<bf16> = Store::new();
        &SPARES
    }
}
