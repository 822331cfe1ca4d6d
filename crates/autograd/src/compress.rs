//! A matrix in fewer bits. Rounded stochastically the copy is an unbiased estimate; what is not linear in it is near-exact.

use colrow_tensor::rng::Key;
use colrow_tensor::{Code, Coded, Format, Tensor};

/// Columns that share a scale, but where heads do.
pub(crate) const GROUP: usize = 64;

colrow_tensor::named! {
    /// Bits of a copy.
    Bits {
        /// int8 with a scale for every 64 columns, or every head of attention.
        Int8 = "int8",
        /// int4, the same. Coarse: for ablations.
        Int4 = "int4",
        /// bfloat16.
        Bf16 = "bf16",
    }
}

impl Bits {
    /// The code of signed numbers.
    pub fn code(self) -> Code {
        match self {
            Self::Int8 => Code::Int8,
            Self::Int4 => Code::Int4,
            Self::Bf16 => Code::Bf16,
        }
    }
}

/// A copy of `x` in codes, rounded by random numbers of the stream `key`, or without one to the nearest.
pub(crate) fn quantised(x: &Tensor, format: Format, key: Option<Key>) -> Coded {
    let mut coded = Coded::empty_like(x, format);
    x.device().kernels().quantise(key, x, &mut coded);
    coded
}
