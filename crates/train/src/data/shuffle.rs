//! Seeded random orders, and what is made of them: subsets and held-out shares.
//!
//! The generator is splitmix64 (Steele, Lea and Flood, OOPSLA 2014) started from a hash of seed and purpose: draw `i` is
//! a function of (seed, purpose, i) alone, so that any epoch's order is known without those before it, on every platform.

use super::label_map::{OTHER_COLUMN, in_rows};
use super::{Examples, Labels};
use colrow_tensor::{Error, Result};
use std::mem::take;

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
    /// file order. Where `labels` are classes, each has its share: at least one example where it has two, none where it has one.
    pub fn hold_out(self, share: f64, seed: u64, labels: &Labels) -> Result<(Examples, Examples)> {
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
        let Labels::Class(classes) = labels else {
            return self.divide(count, seed, Purpose::HoldOut).map(|(share, rest)| (rest, share));
        };
        let mut sizes = vec![0; classes.iter().max().map_or(0, |&most| most as usize + 1)];
        classes.iter().for_each(|&class| sizes[class as usize] += 1);
        let mut quotas = quotas(&sizes, count);
        if quotas.iter().all(|&quota| quota == 0) {
            let what = format!("nothing can be held out to evaluate on: {}, each once", in_rows(n, &self));
            return Err(self.in_source(Error::new(what)).hint("is this the label's column?".to_owned() + OTHER_COLUMN));
        }
        let mut chosen = vec![false; n];
        for i in permutation(self.count()?, seed, Purpose::HoldOut) {
            let quota = &mut quotas[classes[i as usize] as usize];
            chosen[i as usize] = *quota > 0;
            *quota = quota.saturating_sub(1);
        }
        let (share, rest) = self.split(chosen);
        Ok((rest, share))
    }

    fn count(&self) -> Result<u32> {
        u32::try_from(self.rows.len()).map_err(|_| Error::new("expected fewer than 2^32 examples"))
    }

    fn divide(self, count: usize, seed: u64, purpose: Purpose) -> Result<(Examples, Examples)> {
        let mut chosen = vec![false; self.rows.len()];
        for &i in &permutation(self.count()?, seed, purpose)[..count] {
            chosen[i as usize] = true;
        }
        Ok(self.split(chosen))
    }

    /// The examples that are chosen, and those that are not.
    fn split(mut self, chosen: Vec<bool>) -> (Examples, Examples) {
        let (yes, no): (Vec<_>, Vec<_>) = take(&mut self.rows).into_iter().zip(chosen).partition(|(_, chosen)| *chosen);
        let rows = |pairs: Vec<(_, bool)>| pairs.into_iter().map(|(row, _)| row).collect();
        (self.with_rows(rows(yes)), self.with_rows(rows(no)))
    }
}

/// How many of each class's examples make up a share of `count`: in proportion, the largest remainders rounded up, but at least one and not
/// all of a class. Where many classes are small, the sum is another.
fn quotas(sizes: &[usize], count: usize) -> Vec<usize> {
    let n = sizes.iter().sum::<usize>().max(1);
    let part = |size: usize| size as u128 * count as u128;
    let quota = |&size: &usize| ((part(size) / n as u128) as usize).max(1).min(size.saturating_sub(1));
    let mut quotas: Vec<usize> = sizes.iter().map(quota).collect();
    let left = count.saturating_sub(quotas.iter().sum());
    let mut by_remainder: Vec<usize> =
        (0..sizes.len()).filter(|&c| part(sizes[c]) >= n as u128 && quotas[c] + 1 < sizes[c]).collect();
    by_remainder.sort_by_key(|&c| std::cmp::Reverse(part(sizes[c]) % n as u128));
    by_remainder.into_iter().take(left).for_each(|c| quotas[c] += 1);
    quotas
}

#[cfg(test)]
mod tests {
    use super::super::Example;
    use super::*;

    fn examples(n: u64) -> Examples {
        let row = |line| Example { line, row: line - 1, ..Example::default() };
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

    fn hold_out(n: u64, share: f64, labels: &Labels) -> Result<(Vec<u64>, Vec<u64>)> {
        examples(n).hold_out(share, 3, labels).map(|(train, dev)| (lines(&train), lines(&dev)))
    }

    #[test]
    fn held_out_examples_are_not_trained_on() {
        for labels in [Labels::Value(vec![0.0; 100]), Labels::Class(vec![0; 100])] {
            let (train, dev) = hold_out(100, 0.1, &labels).unwrap();
            assert_eq!((train.len(), dev.len()), (90, 10));
            assert!(dev.is_sorted() && dev.iter().all(|line| !train.contains(line)));
            // numbers are not grouped: the draw is that of every release
            assert_eq!(lines(&examples(100).divide(10, 3, Purpose::HoldOut).unwrap().0), dev);
        }
        let two = Labels::Value(vec![0.0; 2]);
        assert_eq!(hold_out(2, 0.001, &two).unwrap().1.len(), 1);
        assert_eq!(hold_out(2, 0.999, &two).unwrap().0.len(), 1);
        for share in [0.0, 1.0, -0.5, f64::NAN] {
            assert!(hold_out(9, share, &two).unwrap_err().to_string().contains("between 0 and 1"));
        }
        assert!(hold_out(1, 0.5, &two).unwrap_err().to_string().contains("at least two examples"));
    }

    #[test]
    fn a_class_of_two_is_in_both_parts_and_one_of_one_is_trained_on() {
        // class 0: 47 of 60, class 1: 10, class 2: 2, class 3: 1
        let class = |i: u32| [47, 57, 59].iter().filter(|&&end| i >= end).count() as u32;
        let classes: Vec<u32> = (0..60).map(|i| class(i * 7 % 60)).collect();
        for (share, want) in [(0.1, [4, 1, 1, 0]), (0.5, [24, 5, 1, 0]), (0.95, [45, 9, 1, 0]), (0.001, [1, 1, 1, 0])] {
            for seed in 0..8 {
                let (train, dev) = examples(60).hold_out(share, seed, &Labels::Class(classes.clone())).unwrap();
                let count = |part: &Examples, c| part.rows.iter().filter(|e| classes[e.row as usize] == c).count();
                assert_eq!([0, 1, 2, 3].map(|c| count(&dev, c)), want, "{share}");
                assert_eq!(train.rows.len() + dev.rows.len(), 60);
            }
        }
        let (a, b) =
            (hold_out(60, 0.1, &Labels::Class(classes.clone())).unwrap(), hold_out(60, 0.1, &Labels::Class(classes)));
        assert_eq!(a, b.unwrap());
    }

    #[test]
    fn as_many_labels_as_rows_hold_nothing_out() {
        let message = hold_out(500, 0.1, &Labels::Class((0..500).collect())).unwrap_err().to_string();
        assert!(message.contains("500 labels in 500 rows, each once") && message.contains("\"regress\""), "{message}");
    }

    #[test]
    fn quotas_are_in_proportion() {
        assert_eq!(quotas(&[500, 300, 200], 100), [50, 30, 20]);
        assert_eq!(quotas(&[334, 333, 333], 100), [34, 33, 33]);
        assert_eq!(quotas(&[98, 2], 10), [9, 1]);
        assert_eq!(quotas(&[1, 1, 8], 5), [0, 0, 5]);
        assert_eq!(quotas(&[2; 50], 10), [1; 50]);
        assert_eq!(quotas(&[], 1), [0; 0]);
    }
}
