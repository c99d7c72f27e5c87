//! The two types values are stored in.

use half::bf16;
use half::vec::HalfBitsVecExt;

use super::matrix::Store;

/// A stored value that is computed with as f32.
pub(crate) trait Element: Copy + Send + Sync + Default + std::fmt::Debug + 'static {
    /// Whether two values make one operand of the bf16 dot product.
    const PAIRED: bool;

    /// As f32, exactly.
    fn widen(self) -> f32;

    /// Rounded to nearest, ties to even.
    fn narrow(value: f32) -> Self;

    /// The values as they are, where they are f32.
    fn as_wide(values: &[Self]) -> Option<&[f32]>;

    /// Zeros; of many, memory of the system that nothing was written to yet.
    fn zeros(count: usize) -> Vec<Self>;

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

    fn as_wide(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
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

    fn as_wide(_: &[Self]) -> Option<&[f32]> {
        None
    }

    fn zeros(count: usize) -> Vec<Self> {
        // Of bf16 zeros the compiler does not know that they are all zero bits: each would be written.
        vec![0_u16; count].reinterpret_into()
    }

    fn spares() -> &'static Store<Self> {
        static SPARES: Store<bf16> = Store::new();
        &SPARES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_half_for_all_kinds_of_values() {
        // Every exponent with either sign, and mantissas about the ties of an even and of an odd neighbour.
        let mantissas =
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1_7fff, 0x1_8000, 0x1_8001, 0x7f_7fff, 0x7f_8000, 0x7f_ffff];
        for high in 0..0x200u32 {
            for mantissa in mantissas {
                let value = f32::from_bits(high << 23 | mantissa);
                let (got, truth) = (<bf16 as Element>::narrow(value), bf16::from_f32(value));
                assert_eq!(got.is_nan(), value.is_nan(), "{value:e}");
                if !value.is_nan() {
                    assert_eq!(got.to_bits(), truth.to_bits(), "{value:e}: {got} {truth}");
                }
                let wide = Element::widen(got);
                assert!(wide.to_bits() == truth.to_f32().to_bits() || wide.is_nan() && truth.is_nan());
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none() {
        for bits in [0x7f80_0001u32, 0xff80_0001, 0x7fff_ffff, 0xffff_ffff, 0x7fc0_0000, 0x7f80_ffff] {
            assert!(<bf16 as Element>::narrow(f32::from_bits(bits)).is_nan(), "{bits:x}");
        }
        for value in [f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(<bf16 as Element>::narrow(value).to_f32(), value);
        }
        assert_eq!(<bf16 as Element>::narrow(f32::MAX).to_f32(), f32::INFINITY, "nearer than the largest bf16");
        assert!(<bf16 as Element>::narrow(-0.0).to_bits() == 0x8000);
    }
}
