//! AdamW with moments in eight bits, in blocks that share a scale (Dettmers et al. 2022, arXiv 2110.02861).
//!
//! **The map.** The bits of a positive float, read as an integer, are a piecewise linear logarithm of it. A code c of 0…C stands for the
//! number whose bits are as far below those of s, the largest magnitude of its block, as four times the bits of the float c are below those
//! of C:
//!
//! > `bits(x) = bits(s) − 4·(bits(C) − bits(c))`, and 0 for c = 0.
//!
//! So x is about `s·(c/C)⁴`, made and read by a shift and a difference each, without a table, a root or a division, and s itself
//! comes back to the bit. Both moments are held in units of the gradient: m with C = 127 beside a sign, v as r = √v with C = 255.
//!
//! **Errors.** A code is off by half a place at most for m, by less than one for r. Places are `4/(C·y)` of x apart, y = (x/s)^¼, or
//! between a half and twice as much, as the pieces fall: for r about 1.6 % at the block's largest, 2.8 % at a tenth, 5 % at a hundredth of
//! it, where the published dynamic map of v has places that are, of r, 0.4, 7 and 28 % apart. In trained models most r are a hundredth to a
//! third of their block's largest: on those of a MiniLM after 56 steps, relative errors (root mean square) are 1.1 % of r and 1.6 % of m/r,
//! the dynamic map's 1.5 and 2.0 %. The smallest r is 2⁻³²·s, the smallest m 2⁻²⁸·s. An m below the middle of the first place becomes
//! 0; an r above 0 never does: a step would divide by `eps` alone. The step itself sees the new moments before they are rounded.
//!
//! **Rounding.** m is rounded to the nearest code. v moves by 1−β₂, a thousandth, a step: rounded to the nearest it would not move at all,
//! and weights whose gradients have become small would never learn of it. Codes of r are rounded up or down by turns, `⌊c + u⌋` with
//! u = frac(α·i + β·t) for element i and step t. Over the steps u is equidistributed (Weyl 1916), so that the code is right on average (up
//! to a place where two pieces meet), and more evenly so than with random numbers; α and β are those of Roberts' R₂ sequence, so that
//! elements side by side turn at other times.

use rayon::prelude::*;

use super::optim::{Decoded, Rule, Weights};
use super::vectorised;
use crate::dtype::{Float, ROUND};
use crate::kernels::UPDATE_BLOCK as CHUNK;
use crate::kernels::{AdamW, MOMENT_BLOCK as BLOCK};

/// C of the first moment, and of the root of the second.
const M_CODES: f32 = 127.0;
const R_CODES: f32 = 255.0;
/// The bit of a code that says that m is negative.
const SIGN: u8 = 128;
/// Bits of the least scale, 2⁻⁷⁵: all r above 0 are larger in f32, and the bits of every code's number are above 0.
const SMALLEST: u32 = (127 - 75) << 23;
/// Steps of u from element to element and from step to step, in 2⁻³²: 1/ρ and 1/ρ² with ρ³ = ρ + 1.
const ALPHA: u32 = 0xC13F_A9A9;
const BETA: u32 = 0x91E1_0DA6;

/// One moment of a parameter or of a part of it: codes, and a scale for each block.
pub(super) struct Moment<'a> {
    pub(super) codes: &'a mut [u8],
    pub(super) scale: &'a mut [f32],
}

impl<'a> Moment<'a> {
    fn chunks(self) -> impl IndexedParallelIterator<Item = Self> {
        let scale = self.scale.par_chunks_mut(CHUNK / BLOCK);
        self.codes.par_chunks_mut(CHUNK).zip(scale).map(|(codes, scale)| Moment { codes, scale })
    }

    fn blocks(self) -> impl Iterator<Item = (&'a mut [u8], &'a mut f32)> {
        self.codes.chunks_mut(BLOCK).zip(self.scale)
    }
}

/// The code of 0 ≤ x ≤ s, both as bits; `turn` is added before it is rounded, a multiple of 2⁻¹⁶ from −½ and below ½, so that no code
/// exceeds that of s.
#[inline(always)]
fn code(x: u32, s: u32, codes: f32, turn: f32) -> u8 {
    let c = f32::from_bits(codes.to_bits() - ((s - x) >> 2)) + turn;
    (c + ROUND).to_bits() as u8
}

/// What the code c stands for, but 0; `unit` is [`unit`] of its block.
#[inline(always)]
fn number(c: u8, unit: u32) -> f32 {
    let x = unit.wrapping_add(f32::from(c).to_bits() << 2);
    f32::from_bits(if c == 0 { 0 } else { x })
}

/// bits(s) − 4·bits(C)
fn unit(s: f32, codes: f32) -> u32 {
    s.to_bits().wrapping_sub(codes.to_bits() << 2)
}

#[inline(always)]
fn magnitude(m: f32) -> u32 {
    m.to_bits() & !(1 << 31)
}

#[inline(always)]
fn signed_number(c: u8, unit: u32) -> f32 {
    let x = number(c & !SIGN, unit);
    if c < SIGN { x } else { -x }
}

/// Steps the weights of a block; `m` and `r` get the new moments. Returns their scales, as bits.
#[inline(always)]
fn step<T: Float>(
    rule: &Rule<T>,
    g: &[T],
    w: &mut [T],
    codes: [&[u8]; 2],
    unit: [u32; 2],
    [m, r]: [&mut [f32]; 2],
) -> [u32; 2] {
    let mut scale = [SMALLEST; 2];
    let old = codes[0].iter().zip(codes[1]);
    for ((((&g, w), m), r), (&m_code, &r_code)) in g.iter().zip(w).zip(m).zip(r).zip(old) {
        let old_m = T::of(f64::from(signed_number(m_code, unit[0])));
        let old_r = T::of(f64::from(number(r_code, unit[1])));
        let (new_m, new_v) = rule.moments(g, old_m, old_r * old_r);
        let new_r = new_v.sqrt();
        *w = rule.weight(*w, new_m, new_r);
        (*m, *r) = (new_m.f64() as f32, new_r.f64() as f32);
        scale = [scale[0].max(magnitude(*m)), scale[1].max(r.to_bits())];
    }
    scale
}

/// Codes to the nearest, in a block with scale s as bits.
#[inline(always)]
fn nearest(m: &[f32], s: u32, codes: &mut [u8]) {
    for (c, &m) in codes.iter_mut().zip(m) {
        *c = code(magnitude(m), s, M_CODES, 0.0) | if m < 0.0 { SIGN } else { 0 };
    }
}

/// Codes by turns, `turn` being u of the first element in 2⁻³².
#[inline(always)]
fn by_turns(r: &[f32], s: u32, mut turn: u32, codes: &mut [u8]) {
    for (c, &r) in codes.iter_mut().zip(r) {
        // u − ½, as code() rounds to the nearest
        let rounded = code(r.to_bits(), s, R_CODES, (turn as i32 >> 16) as f32 * (1.0 / 65536.0));
        *c = if r > 0.0 { rounded.max(1) } else { 0 };
        turn = turn.wrapping_add(ALPHA);
    }
}

vectorised! {
    /// `turn` is u of the first element, in 2⁻³².
    fn adamw_chunk<T: Float>(rule: &Rule<T>, g: &[T], w: &mut [T], m: Moment<'_>, v: Moment<'_>, turn: u32) {
        let blocks = g.chunks(BLOCK).zip(w.chunks_mut(BLOCK)).zip(m.blocks().zip(v.blocks()));
        let (mut new_m, mut new_r) = ([0.0; BLOCK], [0.0; BLOCK]);
        for (i, ((g, w), ((m_codes, m_scale), (r_codes, r_scale)))) in blocks.enumerate() {
            let (m, r) = (&mut new_m[..g.len()], &mut new_r[..g.len()]);
            let units = [unit(*m_scale, M_CODES), unit(*r_scale, R_CODES)];
            let scale = step(rule, g, w, [m_codes, r_codes], units, [m, r]);
            (*m_scale, *r_scale) = (f32::from_bits(scale[0]), f32::from_bits(scale[1]));
            nearest(m, scale[0], m_codes);
            by_turns(r, scale[1], turn.wrapping_add(((i * BLOCK) as u32).wrapping_mul(ALPHA)), r_codes);
        }
    }
}

/// See [`Kernels::adamw_8bit`](crate::kernels::Kernels::adamw_8bit).
pub(super) fn adamw<T: Float>(step: &AdamW, factor: f64, g: &[T], w: Weights<'_, T>, m: Moment<'_>, v: Moment<'_>) {
    let (rule, first) = (Rule::new(step, factor), (step.step as u32).wrapping_mul(BETA));
    let chunks = g.par_chunks(CHUNK).zip(w.chunks(step.first)).zip(m.chunks().zip(v.chunks()));
    chunks.for_each_init(Decoded::default, |decoded, ((g, (number, w)), (m, v))| {
        let turn = first.wrapping_add(((number * CHUNK) as u32).wrapping_mul(ALPHA));
        w.update(number, g.len(), decoded, |w| adamw_chunk(&rule, g, w, m, v, turn));
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cpu::optim;
    use crate::rng::Key;

    const HOW: AdamW = AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, step: 1, first: 0 };
    const FACTOR: f64 = 0.5;

    /// Moments of n elements: codes and scales of m, of r.
    struct State {
        m: (Vec<u8>, Vec<f32>),
        r: (Vec<u8>, Vec<f32>),
    }

    impl State {
        fn new(n: usize) -> Self {
            let zero = || (vec![0; n], vec![0.0; n.div_ceil(BLOCK)]);
            Self { m: zero(), r: zero() }
        }

        fn step<T: Float>(&mut self, how: &AdamW, g: &[T], w: &mut [T]) {
            self.step_by(FACTOR, how, g, w);
        }

        fn step_by<T: Float>(&mut self, factor: f64, how: &AdamW, g: &[T], w: &mut [T]) {
            let [m, v] = [&mut self.m, &mut self.r].map(|(codes, scale)| Moment { codes, scale });
            adamw(how, factor, g, Weights::Exact(w), m, v);
        }

        fn m(&self) -> Vec<f32> {
            let (codes, scale) = &self.m;
            codes.iter().enumerate().map(|(i, &c)| signed_number(c, unit(scale[i / BLOCK], M_CODES))).collect()
        }

        fn r(&self) -> Vec<f32> {
            let (codes, scale) = &self.r;
            codes.iter().enumerate().map(|(i, &c)| number(c, unit(scale[i / BLOCK], R_CODES))).collect()
        }
    }

    fn normal(key: Key, n: usize) -> Vec<f32> {
        (0..n as u64).map(|i| key.normal(i) as f32).collect()
    }

    /// The definition of the map for codes between codes, `c` above 0.
    fn place(c: f64, s: f32, codes: f32) -> f64 {
        let bits = |x: f64| {
            let e = x.log2().floor();
            (e + 127.0 + x / e.exp2() - 1.0) * f64::from(1 << 23)
        };
        let x = f64::from(s.to_bits()) - 4.0 * (bits(f64::from(codes)) - bits(c));
        f64::from(f32::from_bits(x.clamp(0.0, f64::from(u32::MAX)).round() as u32))
    }

    /// That x came back as `back` from a code that is off by at most `off` places.
    fn near(x: f32, back: f32, s: f32, codes: f32, off: f64) -> Result<(), String> {
        let (x, back, s64) = (f64::from(x.abs()), f64::from(back.abs()), f64::from(s));
        // codes are computed in f32, to 2⁻¹⁷ of a place
        let off = off + f64::from(2.0_f32.powi(-16));
        let c = (1..=codes as u32).find(|&c| place(c.into(), s, codes) >= back);
        let c = if back > 0.0 { f64::from(c.unwrap_or(codes as u32)) } else { 0.0 };
        let low = if c > off { place(c - off, s, codes) } else { 0.0 };
        if x < low || x > place(c + off, s, codes) {
            return Err(format!("{x} of {s} came back as {back}, code {c}"));
        }
        // places are at most twice as far apart as those of the fourth power
        let (y, h) = ((x / s64).sqrt().sqrt(), 2.0 * off / f64::from(codes));
        let bound = s64 * ((y + h).powi(4) - y.powi(4));
        if (x - back).abs() <= bound { Ok(()) } else { Err(format!("{x} of {s} came back as {back} ± {bound:e}")) }
    }

    /// What comes back, and the scale, of m and of r = |m|.
    fn round_trip(x: &[f32], turn: u32) -> [(Vec<f32>, f32); 2] {
        let mut codes = vec![0; x.len()];
        let s = x.iter().fold(SMALLEST, |s, &x| s.max(magnitude(x)));
        nearest(x, s, &mut codes);
        let m = codes.iter().map(|&c| signed_number(c, unit(f32::from_bits(s), M_CODES))).collect();
        let magnitudes: Vec<f32> = x.iter().map(|x| x.abs()).collect();
        by_turns(&magnitudes, s, turn, &mut codes);
        let r = codes.iter().map(|&c| number(c, unit(f32::from_bits(s), R_CODES))).collect();
        [(m, f32::from_bits(s)), (r, f32::from_bits(s))]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, rng_seed: proptest::test_runner::RngSeed::Fixed(1), ..ProptestConfig::default() })]

        /// Any length, any finite numbers: within the bounds, the largest to the bit, zeros as zeros, r above 0 as such.
        #[test]
        fn numbers_come_back_within_their_bounds(n in 1_usize..=256, seed in 0_u64..10_000, size in -140_i32..127, spread in 0.0_f64..20.0) {
            let key = Key::new(seed);
            let x: Vec<f32> = (0..n as u64)
                .map(|i| if i % 7 == 3 { 0.0 } else { (key.normal(i) * (f64::from(size) + spread * key.child(1).normal(i)).exp2()) as f32 })
                .map(|x| x.clamp(f32::MIN, f32::MAX))
                .collect();
            let largest = x.iter().fold(0.0, |s: f32, x| s.max(x.abs()));
            let least = f32::from_bits(SMALLEST);
            for ((back, s), (codes, off)) in round_trip(&x, seed as u32 ^ 0x9E37_79B9).into_iter().zip([(M_CODES, 0.5), (R_CODES, 1.0)]) {
                prop_assert_eq!(s, largest.max(least));
                for (&x, &back) in x.iter().zip(&back) {
                    let told = format!("{x} of {s} came back as {back}");
                    prop_assert!(x != 0.0 || back == 0.0, "{}", told);
                    prop_assert!(x.abs() != s || back.abs() == s, "{}", told);
                    prop_assert!(codes == R_CODES || back == 0.0 || back.signum() == x.signum(), "{}", told);
                    if x == 0.0 || x.abs() < least {
                        continue;
                    }
                    if codes == R_CODES {
                        prop_assert!(back > 0.0, "{}", told);
                    }
                    if codes == M_CODES || back > place(1.0, s, codes) as f32 {
                        prop_assert_eq!(near(x, back, s, codes, off), Ok(()));
                    }
                }
            }
        }
    }

    #[test]
    fn codes_are_in_order_and_begin_and_end_where_they_should() {
        for s in [1.0_f32, 1.999_999_9, 3e-12, f32::from_bits(SMALLEST), f32::MAX] {
            for (codes, least) in [(M_CODES, 28), (R_CODES, 32)] {
                let numbers: Vec<f32> = (0..=codes as u8).map(|c| number(c, unit(s, codes))).collect();
                assert!(numbers.is_sorted_by(|a, b| a < b) && numbers[0] == 0.0 && numbers[codes as usize] == s);
                let first = f64::from(numbers[1]) / f64::from(s) * f64::from(least).exp2();
                assert!((0.5..=2.1).contains(&first), "{codes}: {first}");
            }
        }
    }

    /// Over steps, and over elements, codes by turns are right on average, to the discrepancy of the sequence.
    #[test]
    fn codes_by_turns_are_right_on_average() {
        let mut r = [1.0_f32; 64];
        for (i, r) in r[1..].iter_mut().enumerate() {
            *r = (-0.3 * i as f64).exp() as f32;
        }
        let steps = 4096;
        let mut sums = [0.0; 64];
        for t in 0..steps {
            let mut codes = [0; 64];
            by_turns(&r, r[0].to_bits(), BETA.wrapping_mul(t), &mut codes);
            sums.iter_mut().zip(codes).for_each(|(sum, c)| *sum += f64::from(c));
        }
        for (i, (sum, r)) in sums.into_iter().zip(r).enumerate() {
            let exact = f64::from(f32::from_bits(R_CODES.to_bits() - ((1.0_f32.to_bits() - r.to_bits()) >> 2)));
            let mean = sum / f64::from(steps);
            assert!((mean - exact.max(1.0)).abs() < 16.0 / f64::from(steps), "{i}: {mean} for {exact}");
        }
    }

    /// From the same moments, weights step as with moments in floats, to the bit; then moments are those, rounded.
    #[test]
    fn a_step_is_that_of_moments_in_floats() {
        for n in [1, 7, 255, 256, 257, 1000, CHUNK + 300] {
            let (mut state, mut w) = (State::new(n), normal(Key::new(2), n));
            for step in 1..=4 {
                let how = AdamW { step, ..HOW };
                let g = normal(Key::new(3).child(step), n);
                let (mut m, mut v, mut want) = (state.m(), state.r(), w.clone());
                v.iter_mut().for_each(|r| *r *= *r);
                optim::adamw(&how, FACTOR, &g, Weights::Exact(&mut want), &mut m, &mut v);
                state.step(&how, &g, &mut w);
                assert!(w == want, "{n} elements, step {step}");
                for (i, ((m, v), (m_back, r_back))) in m.iter().zip(&v).zip(state.m().iter().zip(state.r())).enumerate()
                {
                    near(*m, *m_back, state.m.1[i / BLOCK], M_CODES, 0.5).unwrap();
                    near(v.sqrt(), r_back, state.r.1[i / BLOCK], R_CODES, 1.0).unwrap();
                    assert!(m.signum() == m_back.signum() || *m_back == 0.0);
                }
            }
        }
        let (g, w) = ([0.3, -2e-7, 0.0], [1.0_f64, -2.0, 3.0]);
        let ([mut got, mut want], [mut m, mut v]) = ([w; 2], [[0.0; 3]; 2]);
        State::new(3).step(&HOW, &g, &mut got);
        optim::adamw(&HOW, FACTOR, &g, Weights::Exact(&mut want), &mut m, &mut v);
        assert_eq!(got, want, "in f64");
    }

    /// Weights and moments stay numbers whatever finite gradient comes, and those of other blocks do not notice.
    #[test]
    fn finite_gradients_never_make_a_nan() {
        let least = f32::from_bits(1);
        for g in [0.0, least, 1e-40, f32::MIN_POSITIVE, 1e-23, 1e-12, 1.0, 1e15, 1e19, 1e30, f32::MAX] {
            let blocks = [[g, -g].repeat(BLOCK / 2), [g, 1e-3, 0.0, -g].repeat(BLOCK / 4), vec![1e-3; BLOCK]].concat();
            let (mut state, mut w) = (State::new(3 * BLOCK), vec![1.0_f32; 3 * BLOCK]);
            for step in 1..=40 {
                // the large gradient comes and goes
                let now: Vec<f32> =
                    blocks.iter().map(|&g| if step % 10 < 5 { g } else { g.clamp(-1.0, 1.0) }).collect();
                state.step_by(1.0, &AdamW { step, ..HOW }, &now, &mut w);
                assert!(w.iter().all(|w| w.is_finite()), "g = {g:e}, step {step}");
                assert!(state.m().iter().chain(&state.r()).all(|x| !x.is_nan()), "g = {g:e}, step {step}");
            }
            let (mut alone, mut w_alone) = (State::new(BLOCK), vec![1.0_f32; BLOCK]);
            for step in 1..=40 {
                alone.step_by(1.0, &AdamW { step, ..HOW }, &[1e-3; BLOCK], &mut w_alone);
            }
            assert_eq!(w[2 * BLOCK], w_alone[0], "g = {g:e}");
        }
    }

    /// Gradients of half of a block fall to a fifth. Rounded to the nearest, r would stay where it was, five times too large.
    ///
    /// Where two pieces of the map meet, as at half of the gradient's deviation of 1, averages of codes lie up to a place above those of r.
    /// A code changes by E|Δ| = ½(1−β₂)·E|z²−1| of r a step, so that random roundings would add a variance of E|Δ| times a place a step, and
    /// 1/(1−β₂²) steps are remembered: together a quarter of a place.
    #[test]
    fn moments_follow_gradients_that_change() {
        let (n, steps) = (4 * BLOCK, 8000);
        let (mut state, mut w) = (State::new(n), vec![0.0; n]);
        let mut exact = [vec![0.0_f32; n], vec![0.0_f32; n], vec![0.0_f32; n]];
        for step in 1..=steps {
            let mut g = normal(Key::new(9).child(step), n);
            if step > 500 {
                g.iter_mut().step_by(2).for_each(|g| *g *= 0.2);
            }
            let how = AdamW { step, ..HOW };
            state.step(&how, &g, &mut w);
            let [w, m, v] = &mut exact;
            optim::adamw(&how, FACTOR, &g, Weights::Exact(w), m, v);
        }
        let log_ratio: Vec<f64> = state.r().iter().zip(&exact[2]).map(|(r, v)| f64::from(r / v.sqrt()).ln()).collect();
        for (first, y) in [(0, 0.2_f64.powf(0.25)), (1, 1.0)] {
            let half = || log_ratio.iter().skip(first).step_by(2);
            let mean = half().sum::<f64>() / (n / 2) as f64;
            let spread = (half().map(|x| (x - mean).powi(2)).sum::<f64>() / (n / 2) as f64).sqrt();
            let place = 2.0 * 4.0 / (f64::from(R_CODES) * y);
            assert!(mean.abs() < place, "half {first}: r is off by {mean} on average");
            assert!(spread < (place / 4.0).sqrt(), "half {first}: r is off by {spread}");
        }
    }

    #[test]
    fn the_number_of_threads_does_not_change_a_bit() {
        let n = 3 * CHUNK + 77;
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let (mut state, mut w) = (State::new(n), vec![0.0; n]);
                (1..=3).for_each(|step| state.step(&AdamW { step, ..HOW }, &normal(Key::new(step), n), &mut w));
                (w, state.m, state.r)
            })
        };
        let one = run(1);
        assert!([2, 3].into_iter().all(|threads| run(threads) == one));
    }
}
