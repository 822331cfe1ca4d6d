//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011).
//!
//! A draw is a pure function of a key (seed, step, site, …) and a counter (row, column), so that every device, every
//! number of threads and every replay of a dropout mask sees the same numbers.

/// Number of blocks that [`Key::blocks`] makes at once: one per 32-bit lane of a 512-bit register.
pub const LANES: usize = 16;

/// Where a stream of random numbers comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u32; 2]);

impl Key {
    /// The root of a run's random numbers.
    pub fn new(seed: u64) -> Self {
        Self([seed as u32, (seed >> 32) as u32])
    }

    /// An independent stream: a step, a site, a head.
    #[must_use]
    pub fn child(self, tag: u64) -> Self {
        // the last word sets keys apart from draws, whose counters end in 0
        let [a, b, ..] = self.block([tag as u32, (tag >> 32) as u32, 0, 1]);
        Self([a, b])
    }

    /// [`Key::child`] by name.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        self.child(fnv1a(name))
    }

    /// 128 random bits at `counter`.
    pub fn block(self, counter: [u32; 4]) -> [u32; 4] {
        let mut x = counter.map(|c| [c]);
        rounds(self.0, &mut x);
        x.map(|[c]| c)
    }

    /// Blocks `first..first + LANES` of `row`, by word and lane.
    #[inline(always)]
    #[expect(clippy::needless_range_loop, reason = "a lane of two words at once")]
    pub fn blocks(self, row: u32, first: u32) -> [[u32; LANES]; 4] {
        let mut x = [[0; LANES]; 4];
        for lane in 0..LANES {
            x[0][lane] = first + lane as u32;
            x[1][lane] = row;
        }
        rounds(self.0, &mut x);
        x
    }

    /// A number in [0, 1) with 53 random bits.
    pub fn uniform(self, counter: u64) -> f64 {
        let [a, b, ..] = self.block([counter as u32, (counter >> 32) as u32, 0, 0]);
        let bits = u64::from(a) << 32 | u64::from(b);
        (bits >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// A standard normal number (Box–Muller).
    pub fn normal(self, counter: u64) -> f64 {
        let [a, b, c, d] = self.block([counter as u32, (counter >> 32) as u32, 0, 0]);
        let unit =
            |hi: u32, lo: u32| ((u64::from(hi) << 32 | u64::from(lo)) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64);
        let radius = (-2.0 * (1.0 - unit(a, b)).ln()).sqrt();
        radius * (std::f64::consts::TAU * unit(c, d)).cos()
    }
}

/// FNV-1a, 64 bits: site names to numbers.
fn fnv1a(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3))
}

#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "a lane of four words at once")]
fn rounds<const N: usize>([mut k0, mut k1]: [u32; 2], x: &mut [[u32; N]; 4]) {
    for _ in 0..10 {
        for i in 0..N {
            let a = u64::from(x[0][i]) * 0xD251_1F53;
            let b = u64::from(x[2][i]) * 0xCD9E_8D57;
            x[0][i] = (b >> 32) as u32 ^ x[1][i] ^ k0;
            x[1][i] = b as u32;
            x[2][i] = (a >> 32) as u32 ^ x[3][i] ^ k1;
            x[3][i] = a as u32;
        }
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers published with the Random123 library.
    #[test]
    fn philox_known_answers() {
        assert_eq!(Key([0, 0]).block([0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(Key([u32::MAX; 2]).block([u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            Key([0xa409_3822, 0x299f_31d0]).block([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn lanes_are_single_blocks() {
        let key = Key::new(7).named("site").child(3);
        let lanes = key.blocks(5, 100);
        for i in 0..LANES as u32 {
            assert_eq!(key.block([100 + i, 5, 0, 0]), lanes.map(|word| word[i as usize]));
        }
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let (key, n) = (Key::new(1), 100_000);
        let mean = (0..n).map(|i| key.uniform(i)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 4.0 / (12.0 * n as f64).sqrt());
        let (m1, m2) = (0..n).map(|i| key.normal(i)).fold((0.0, 0.0), |(a, b), x| (a + x, b + x * x));
        assert!((m1 / n as f64).abs() < 4.0 / (n as f64).sqrt());
        assert!((m2 / n as f64 - 1.0).abs() < 4.0 * (2.0 / n as f64).sqrt());
    }
}
