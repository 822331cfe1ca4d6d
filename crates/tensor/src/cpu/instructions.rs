//! Which of the processor's instructions kernels use: all that we know and it has, or fewer if the environment says so.

use std::sync::OnceLock;

use crate::{Error, Result};

/// The environment variable that says the most that is used.
const VARIABLE: &str = "COLROW_INSTRUCTIONS";

/// What kernels need, each with all before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Instructions {
    Portable,
    Avx2,
    Avx512,
}

const NAMES: [(&str, Instructions); 3] =
    [("portable", Instructions::Portable), ("avx2", Instructions::Avx2), ("avx512", Instructions::Avx512)];

impl Instructions {
    pub(super) fn name(self) -> &'static str {
        NAMES.iter().find(|(_, instructions)| *instructions == self).map_or("", |(name, _)| *name)
    }
}

fn read() -> Result<Option<Instructions>> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(None) };
    let found = NAMES.iter().find(|(name, _)| value == *name);
    found.map(|(_, most)| Some(*most)).ok_or_else(|| {
        let names = NAMES.map(|(name, _)| name).join(", ");
        Error::usage(format!("{VARIABLE}: expected one of {names}, found {value:?}"))
    })
}

/// Checks what the environment says of instructions.
///
/// # Errors
/// A name that is not known.
pub fn check_environment() -> Result<()> {
    read().map(drop)
}

/// What kernels that are no products use: the most that the environment allows and this machine has.
#[inline]
pub(super) fn used() -> Instructions {
    #[cfg(test)]
    if let Some(used) = tests::HELD.get() {
        return used;
    }
    static USED: OnceLock<Instructions> = OnceLock::new();
    *USED.get_or_init(|| here().min(most()))
}

/// The most that this machine has.
fn here() -> Instructions {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        let wider = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512cd")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        return if wider { Instructions::Avx512 } else { Instructions::Avx2 };
    }
    Instructions::Portable
}

/// Whether the environment keeps products to fewer than are known.
pub(super) fn are_limited() -> bool {
    most() != Instructions::Avx512
}

/// The most that is used.
pub(super) fn most() -> Instructions {
    static MOST: OnceLock<Instructions> = OnceLock::new();
    *MOST.get_or_init(|| read().ok().flatten().unwrap_or(Instructions::Avx512))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::kernels::{Activation, Dropout, Norm};
    use crate::rng::Key;
    use crate::{Class, Code, Coded, DType, Device, Format, Stored, Tensor};

    thread_local! {
        /// What this thread uses, whatever the environment says.
        pub(super) static HELD: Cell<Option<Instructions>> = const { Cell::new(None) };
    }

    /// Bits of what kernels of every kind make of one matrix, on one thread that uses these instructions.
    fn results(used: Instructions, dtype: DType) -> Vec<Vec<u64>> {
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        one.install(|| {
            HELD.set(Some(used));
            assert_eq!(super::used(), used);
            let device = Device::cpu();
            let kernels = device.kernels();
            let random = |seed, shape: &[usize]| {
                let mut x = device.empty(Class::Workspace, dtype, shape);
                let odd = [f64::NAN, f64::INFINITY, -0.0, f64::NEG_INFINITY];
                x.write_f64((0..x.len() as u64).map(|i| match i % 301 {
                    at if at < 4 && seed == 1 => odd[at as usize],
                    _ => 2.0 * Key::new(seed).normal(i),
                }));
                x
            };
            let bits = |x: &Tensor| x.to_f64().iter().map(|x| x.to_bits()).collect();
            // a length that no vector divides
            let (n, d) = (5, 203);
            let mut found: Vec<Vec<u64>> = Vec::new();
            for seed in [1, 2] {
                let x = random(seed, &[n, d]);
                for form in [Activation::Gelu, Activation::GeluTanh] {
                    let (mut y, mut dy) = (random(seed, &[n, d]), random(3, &[n, d]));
                    kernels.activate(form, None, &mut y);
                    kernels.activate_backward(form, &(&x).into(), &mut dy);
                    found.extend([bits(&y), bits(&dy)]);
                }
                let (gamma, beta) = (random(4, &[d]), random(5, &[d]));
                for beta in [Some(&beta), None] {
                    let norm = Norm { gamma: &gamma, beta, eps: 1e-5 };
                    let mut y = random(3, &[n, d]);
                    kernels.layer_norm(&x, &norm, &mut y, None);
                    found.push(bits(&y));
                    let (r, mut dy) = (random(6, &[n]), random(3, &[n, d]));
                    kernels.layer_norm_backward(&(&x).into(), &r, &norm, &mut dy, true, [None, None]);
                    found.push(bits(&dy));
                }
                let dropout = Dropout { key: Key::new(7), p: 0.3 };
                let (mut y, mut sum, mut norms) = (random(seed, &[n, d]), random(5, &[d]), random(6, &[n]));
                kernels.dropout(dropout, None, &mut y);
                kernels.add_column_sum(&x, &mut sum);
                kernels.row_norms(&x, &mut norms);
                found.extend([bits(&y), bits(&sum), bits(&norms)]);
                kernels.relu(Some(dropout), &mut y, None);
                kernels.tanh_backward(&x, &mut y);
                found.push(bits(&y));
                for code in [Code::Int8, Code::Int4, Code::Bf16, Code::Positive8, Code::Nf4] {
                    let (mut coded, mut y) = (Coded::empty_like(&x, Format { code, group: 64 }), random(3, &[n, d]));
                    kernels.quantise(Some(Key::new(8)), &x, &mut coded);
                    kernels.read_rows(&Stored::Coded(&coded).into(), None, &mut y);
                    found.push(bits(&y));
                }
            }
            found
        })
    }

    /// No form of a kernel fuses or reorders what another does not.
    #[test]
    fn every_width_has_the_same_bits() {
        let wider = [Instructions::Avx2, Instructions::Avx512].into_iter().filter(|&wider| wider <= here());
        for (used, dtype) in wider.flat_map(|used| [(used, DType::F32), (used, DType::F64)]) {
            for (i, (got, want)) in results(used, dtype).iter().zip(results(Instructions::Portable, dtype)).enumerate()
            {
                // which NaN is not said
                let is_same =
                    |(a, b): (&u64, &u64)| a == b || f64::from_bits(*a).is_nan() && f64::from_bits(*b).is_nan();
                assert!(got.iter().zip(&want).all(is_same), "{used:?} {dtype:?}: result {i}");
            }
        }
    }
}
