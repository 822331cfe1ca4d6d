//! Seeded random orders, and what is made of them: subsets and held-out shares.
//!
//! The generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014) started from a hash of seed and purpose: draw `i` is
//! a function of (seed, purpose, i) alone, so that any epoch's order is known without those before it, on every platform.

use super::Examples;
use colrow_tensor::{Error, Result};

/// What an order is for; different purposes get independent orders from one seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The order of the training examples in an epoch.
    Epoch(u64),
    /// Choosing the examples of a smaller training set.
    Subset,
    /// Choosing the examples to evaluate on.
    HoldOut,
}

/// A uniformly random order of `0..n`.
///
/// Fisher–Yates from the last place down. A place below `m` is drawn as the upper half of `draw · m`, whose
/// probabilities are off by less than `m / 2⁶⁴`.
pub fn permutation(n: u32, seed: u64, purpose: Purpose) -> Vec<u32> {
    let (kind, number) = match purpose {
        Purpose::Epoch(epoch) => (1, epoch),
        Purpose::Subset => (2, 0),
        Purpose::HoldOut => (3, 0),
    };
    let mut state = mix(mix(mix(seed).wrapping_add(kind)).wrapping_add(number));
    let mut order: Vec<u32> = (0..n).collect();
    for last in (1..order.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let place = (u128::from(mix(state)) * (last as u128 + 1)) >> 64;
        order.swap(last, place as usize);
    }
    order
}

/// The finaliser of splitmix64, a bijection.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Examples {
    /// Keeps `limit` random examples, in file order; all if there are no more. With one seed, a smaller subset is part
    /// of a larger one.
    pub fn subset(self, limit: usize, seed: u64) -> Result<Examples> {
        if limit == 0 {
            return Err(Error::usage("expected a limit of at least one example, found 0"));
        }
        Ok(if limit < self.rows.len() { self.divide(limit, seed, Purpose::Subset)?.0 } else { self })
    }

    /// Splits off a random share, rounded to whole examples but at least one on each side: (the rest, the share), both in
    /// file order.
    pub fn hold_out(self, share: f64, seed: u64) -> Result<(Examples, Examples)> {
        let n = self.rows.len();
        if !(share > 0.0 && share < 1.0) {
            return Err(Error::usage(format!("expected a share between 0 and 1, found {share}")));
        }
        if n < 2 {
            return Err(Error::new(format!("expected at least two examples to split, found {n}"))
                .at(self.source.display())
                .hint("give a file to evaluate on"));
        }
        let count = ((n as f64 * share).round() as usize).clamp(1, n - 1);
        self.divide(count, seed, Purpose::HoldOut).map(|(share, rest)| (rest, share))
    }

    fn divide(self, count: usize, seed: u64, purpose: Purpose) -> Result<(Examples, Examples)> {
        let n = u32::try_from(self.rows.len()).map_err(|_| Error::new("expected fewer than 2^32 examples"))?;
        let mut chosen = vec![false; self.rows.len()];
        for &i in &permutation(n, seed, purpose)[..count] {
            chosen[i as usize] = true;
        }
        let part =
            |rows| Examples { rows, source: self.source.clone(), skipped: self.skipped, columns: self.columns.clone() };
        let (yes, no): (Vec<_>, Vec<_>) = self.rows.into_iter().zip(chosen).partition(|(_, chosen)| *chosen);
        let rows = |pairs: Vec<(_, bool)>| pairs.into_iter().map(|(row, _)| row).collect();
        Ok((part(rows(yes)), part(rows(no))))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Example;
    use super::*;

    fn examples(n: u64) -> Examples {
        let row = |line| Example { text: String::new(), pair: None, label: None, line };
        Examples { rows: (1..=n).map(row).collect(), ..Examples::default() }
    }

    fn lines(examples: &Examples) -> Vec<u64> {
        examples.rows.iter().map(|e| e.line).collect()
    }

    #[test]
    fn the_generator_is_splitmix64() {
        // the first two outputs from state 0, as in the published C code
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        assert_eq!(mix(GAMMA), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(GAMMA.wrapping_mul(2)), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn orders_are_uniform_and_repeatable() {
        let mut counts = [0_u32; 24];
        for epoch in 0..24_000 {
            let order = permutation(4, 7, Purpose::Epoch(epoch));
            assert_eq!(order, permutation(4, 7, Purpose::Epoch(epoch)));
            let rank = order
                .iter()
                .enumerate()
                .fold(0, |rank, (i, v)| rank * (4 - i) + order[i + 1..].iter().filter(|later| *later < v).count());
            counts[rank] += 1;
        }
        // χ² with 23 degrees of freedom is below 49.7 with probability 0.999
        let chi2: f64 = counts.iter().map(|&c| (f64::from(c) - 1000.0).powi(2) / 1000.0).sum();
        assert!(chi2 < 49.7, "{chi2}");
    }

    #[test]
    fn purposes_and_seeds_differ() {
        let orders = [
            permutation(50, 1, Purpose::Epoch(0)),
            permutation(50, 1, Purpose::Epoch(1)),
            permutation(50, 0, Purpose::Epoch(1)),
            permutation(50, 1, Purpose::Subset),
            permutation(50, 1, Purpose::HoldOut),
        ];
        for (i, a) in orders.iter().enumerate() {
            assert!(orders[i + 1..].iter().all(|b| a != b));
        }
        assert!(permutation(0, 1, Purpose::Subset).is_empty());
    }

    #[test]
    fn subsets_nest_and_keep_file_order() {
        let small = lines(&examples(100).subset(10, 3).unwrap());
        let large = lines(&examples(100).subset(40, 3).unwrap());
        assert_eq!((small.len(), large.len()), (10, 40));
        assert!(small.is_sorted() && small.iter().all(|line| large.contains(line)));
        assert_ne!(small, lines(&examples(100).subset(10, 4).unwrap()));
        assert_eq!(lines(&examples(5).subset(9, 3).unwrap()), [1, 2, 3, 4, 5]);
        assert!(examples(5).subset(0, 3).is_err());
    }

    #[test]
    fn held_out_examples_are_not_trained_on() {
        let (train, dev) = examples(100).hold_out(0.1, 3).unwrap();
        let (train, dev) = (lines(&train), lines(&dev));
        assert_eq!((train.len(), dev.len()), (90, 10));
        assert!(dev.is_sorted() && dev.iter().all(|line| !train.contains(line)));
        assert_eq!(examples(2).hold_out(0.001, 3).unwrap().1.rows.len(), 1);
        assert_eq!(examples(2).hold_out(0.999, 3).unwrap().0.rows.len(), 1);
        for share in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(examples(9).hold_out(share, 3).unwrap_err().to_string().contains("between 0 and 1"));
        }
        assert!(examples(1).hold_out(0.5, 3).unwrap_err().to_string().contains("at least two examples"));
    }
}
