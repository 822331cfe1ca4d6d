//! Element types and the float arithmetic that the kernels are generic over.

use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub, SubAssign};

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit float: weights, activations, gradients.
    F32,
    /// 64-bit float: the same code, for finite differences.
    F64,
    /// 32-bit index: token ids, row numbers, sequence bounds.
    U32,
    /// Byte: codes of the norm cache.
    U8,
}

impl DType {
    /// Size of one element in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 | Self::U32 => 4,
            Self::U8 => 1,
        }
    }
}

/// 1.5·2²³: added to a number below 2²², it rounds it to the nearest integer, which is then in the low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// A Rust type that a tensor can hold.
///
/// # Safety
/// Every bit pattern must be a valid value and `DTYPE.size()` must be the type's size: tensors reinterpret raw bytes.
pub unsafe trait Element: Copy + Default + Send + Sync + 'static {
    /// The matching [`DType`].
    const DTYPE: DType;
}

// SAFETY: plain numbers, every bit pattern valid, sizes as in `DType::size`.
unsafe impl Element for f32 {
    const DTYPE: DType = DType::F32;
}
// SAFETY: as above.
unsafe impl Element for f64 {
    const DTYPE: DType = DType::F64;
}
// SAFETY: as above.
unsafe impl Element for u32 {
    const DTYPE: DType = DType::U32;
}
// SAFETY: as above.
unsafe impl Element for u8 {
    const DTYPE: DType = DType::U8;
}

/// Float arithmetic of the kernels. Multiplications and additions are never contracted, so that results do not depend on
/// which vector instructions the machine has.
pub trait Float:
    Element
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// The smallest positive normal number.
    const SMALLEST: Self;
    /// Rounds from f64.
    fn of(x: f64) -> Self;
    /// Widens to f64.
    fn f64(self) -> f64;
    /// A whole number.
    fn of_int(x: i32) -> Self;
    /// The whole number nearest to one that is below 2²² in size, ties to even; any from NaN.
    fn nearest(self) -> i32;
    /// Widens a bfloat16.
    fn of_bf16(bits: u16) -> Self;
    /// Rounds to the nearest bfloat16, ties to even.
    fn to_bf16(self) -> u16;
    /// Rounds to one of the two neighbouring bfloat16: with `random` uniform over all its values, the mean of the results is the number (as an
    /// f32), and one that is a bfloat16 stays what it is.
    fn to_bf16_by(self, random: u16) -> u16;
    /// Square root.
    fn sqrt(self) -> Self;
    /// eˣ; f32: within 2 ulp, 0 below −87.3.
    fn exp(self) -> Self;
    /// Error function; f32: absolute error below 5e-7.
    fn erf(self) -> Self;
    /// Hyperbolic tangent; f32: absolute error below 3e-7.
    fn tanh(self) -> Self;
    /// The larger of two numbers.
    fn max(self, other: Self) -> Self;
    /// The absolute value.
    fn abs(self) -> Self;
    /// Neither infinite nor NaN.
    fn is_finite(self) -> bool;
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;
    const SMALLEST: Self = f64::MIN_POSITIVE;
    fn of(x: f64) -> Self {
        x
    }
    fn f64(self) -> f64 {
        self
    }
    fn of_int(x: i32) -> Self {
        f64::from(x)
    }
    fn nearest(self) -> i32 {
        self.round_ties_even() as i32
    }
    fn of_bf16(bits: u16) -> Self {
        f64::from(f32::of_bf16(bits))
    }
    fn to_bf16(self) -> u16 {
        (self as f32).to_bf16()
    }
    fn to_bf16_by(self, random: u16) -> u16 {
        (self as f32).to_bf16_by(random)
    }
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    fn exp(self) -> Self {
        self.exp()
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    fn tanh(self) -> Self {
        self.tanh()
    }
    fn max(self, other: Self) -> Self {
        self.max(other)
    }
    fn abs(self) -> Self {
        self.abs()
    }
    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;
    const SMALLEST: Self = f32::MIN_POSITIVE;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn of_int(x: i32) -> Self {
        x as f32
    }
    #[inline(always)]
    fn nearest(self) -> i32 {
        (self + ROUND).to_bits().wrapping_sub(ROUND.to_bits()) as i32
    }
    #[inline(always)]
    fn of_bf16(bits: u16) -> Self {
        f32::from_bits(u32::from(bits) << 16)
    }
    #[inline(always)]
    fn to_bf16(self) -> u16 {
        let bits = self.to_bits();
        let even = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        // rounding must not turn a NaN into an infinity
        if self.is_nan() { (bits >> 16 | 0x40) as u16 } else { even as u16 }
    }
    #[inline(always)]
    fn to_bf16_by(self, random: u16) -> u16 {
        // the lower 16 bits are the share of the way to the neighbour farther from 0, in 2⁻¹⁶
        let rounded = self.to_bits().wrapping_add(u32::from(random)) >> 16;
        if self.is_finite() { rounded as u16 } else { self.to_bf16() }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }

    /// 2ⁿ·e^r with r in ±ln2/2 (Cody–Waite reduction, Taylor polynomial of degree 7: remainder below 6e-9).
    #[inline(always)]
    fn exp(self) -> Self {
        // clamp lets NaN through, as it must
        let x = self.clamp(-87.33, 88.72);
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
        let p = 1.0 / 5040.0;
        let p = p * r + 1.0 / 720.0;
        let p = p * r + 1.0 / 120.0;
        let p = p * r + 1.0 / 24.0;
        let p = p * r + 1.0 / 6.0;
        let p = p * r + 0.5;
        let p = p * r * r + r + 1.0;
        // n is at most 128, one more than the largest exponent: scale in two steps
        let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
        let (a, b) = (n >> 1, n - (n >> 1));
        let scale = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
        let y = p * scale(a) * scale(b);
        if self < -87.33 { 0.0 } else { y }
    }

    /// Rational approximation x·P(x²)/Q(x²) on ±4, the form and coefficients that XLA and Eigen use.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = self.clamp(-4.0, 4.0);
        let s = x * x;
        let p = -2.726_142_3e-10_f32;
        let p = p * s + 2.770_681_4e-8;
        let p = p * s - 2.101_024e-6;
        let p = p * s - 5.692_506_4e-5;
        let p = p * s - 7.349_906_3e-4;
        let p = p * s - 2.954_6e-3;
        let p = p * s - 1.609_603_3e-2;
        let q = -1.456_607_2e-5_f32;
        let q = q * s - 2.133_740_5e-4;
        let q = q * s - 1.682_827e-3;
        let q = q * s - 7.373_329e-3;
        let q = q * s - 1.426_473_9e-2;
        x * p / q
    }

    /// 1 − 2/(e²ˣ + 1), and x − x³/3 near 0, where that would cancel.
    #[inline(always)]
    fn tanh(self) -> Self {
        let e = Float::exp(2.0 * self.clamp(-10.0, 10.0));
        let far = 1.0 - 2.0 / (e + 1.0);
        let near = self - self * self * self * (1.0 / 3.0);
        if self.abs() < 0.02 { near } else { far }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn is_finite(self) -> bool {
        self.is_finite()
    }
}

#[cfg(test)]
mod tests {
    use super::Float;

    fn points() -> impl Iterator<Item = f32> {
        (-200_000..=200_000).map(|i| i as f32 * 4.4e-4)
    }

    #[test]
    fn exp_is_within_two_ulp() {
        for x in points() {
            let (got, want) = (f64::from(Float::exp(x)), f64::from(x).exp());
            let ulp = f64::from(f32::EPSILON) * want;
            let tiny = if x < -87.33 { 1.2e-38 } else { 0.0 };
            assert!(
                (got - want).abs() <= 2.0 * ulp + tiny || want > f64::from(f32::MAX),
                "exp({x}) = {got}, not {want}"
            );
        }
        assert_eq!(Float::exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(Float::exp(0.0_f32), 1.0);
        assert!(Float::exp(f32::NAN).is_nan());
    }

    #[test]
    fn erf_and_tanh_are_within_their_bounds() {
        for x in points().filter(|x| x.abs() < 12.0) {
            let e = (f64::from(Float::erf(x)) - libm::erf(f64::from(x))).abs();
            assert!(e < 5e-7, "erf({x}): {e}");
            assert!((f64::from(Float::tanh(x)) - f64::from(x).tanh()).abs() < 3e-7, "tanh({x})");
        }
    }
}
