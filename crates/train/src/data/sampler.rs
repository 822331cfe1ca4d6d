//! Which examples go together.

use super::shuffle::{Purpose, permutation};
use colrow_tensor::{Error, Result};

/// What fills a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchBy {
    /// This many examples.
    Examples(usize),
    /// As many examples as have at most this many tokens together.
    Tokens(usize),
}

/// Divides examples into batches, epoch by epoch.
///
/// An epoch is a function of (seed, epoch) alone, so a run resumes from the numbers of its epoch and batch. Examples keep
/// their random order: they are not sorted by length, which would make a batch's gradient a biased sample.
#[derive(Clone, Debug)]
pub struct Sampler {
    lengths: Vec<u32>,
    by: BatchBy,
    seed: Option<u64>,
}

impl Sampler {
    /// A sampler over examples of `lengths` tokens; without a seed, the order is that of the file.
    ///
    /// Errors if a batch is to hold nothing, or if one example is longer than the token budget.
    pub fn new(lengths: Vec<u32>, by: BatchBy, shuffle_seed: Option<u64>) -> Result<Self> {
        let (BatchBy::Examples(size) | BatchBy::Tokens(size)) = by;
        if size == 0 {
            return Err(Error::usage("expected a batch of at least one example or token, found 0"));
        }
        if u32::try_from(lengths.len()).is_err() {
            return Err(Error::new(format!("expected fewer than 2^32 examples, found {}", lengths.len())));
        }
        let too_long = lengths.iter().position(|&n| matches!(by, BatchBy::Tokens(budget) if n as usize > budget));
        if let Some(i) = too_long {
            let what = format!("example {} has {} tokens, more than a batch may hold ({size})", i + 1, lengths[i]);
            return Err(Error::usage(what).hint("raise the batch's token budget or lower the maximum length"));
        }
        Ok(Self { lengths, by, seed: shuffle_seed })
    }

    /// The batches of epoch `epoch` (from 0), as indices of examples: each example once. The last batch may be small.
    pub fn epoch(&self, epoch: u64) -> Vec<Vec<u32>> {
        let n = self.lengths.len() as u32;
        let order = match self.seed {
            Some(seed) => permutation(n, seed, Purpose::Epoch(epoch)),
            None => (0..n).collect(),
        };
        match self.by {
            BatchBy::Examples(size) => order.chunks(size).map(<[u32]>::to_vec).collect(),
            BatchBy::Tokens(budget) => {
                let mut batches: Vec<Vec<u32>> = Vec::new();
                let mut tokens = usize::MAX;
                for i in order {
                    let length = self.lengths[i as usize] as usize;
                    tokens = tokens.saturating_add(length);
                    match batches.last_mut() {
                        Some(batch) if tokens <= budget => batch.push(i),
                        _ => {
                            batches.push(vec![i]);
                            tokens = length;
                        }
                    }
                }
                batches
            }
        }
    }

    /// Lengths, longest first, of a batch that no batch of any epoch exceeds: not in tokens, not in sequences, not in its longest sequence, not in
    /// tokens that follow another in their sequence.
    ///
    /// With a batch by examples it can be drawn: it is that of the longest. With a batch by tokens its figures may come from different
    /// batches (the fullest; that of the shortest examples; any with the longest), and it has less than one sequence more than one
    /// that can be drawn; sequences of 0 tokens stand in it where no real lengths have all three figures.
    pub fn largest_batch(&self) -> Vec<u32> {
        let mut lengths = self.lengths.clone();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        match (self.seed, self.by) {
            (None, _) => {
                let batches = self.epoch(0);
                let tokens = |batch: &Vec<u32>| batch.iter().map(|&i| self.lengths[i as usize] as usize).sum();
                let most = batches.iter().map(tokens).max();
                spread(most.unwrap_or(0), batches.iter().map(Vec::len).max().unwrap_or(0), lengths.first())
            }
            (Some(_), BatchBy::Examples(size)) => {
                lengths.truncate(size);
                lengths
            }
            // Every set of examples that fits begins some order.
            (Some(_), BatchBy::Tokens(budget)) => {
                let fits = |sum: &mut usize, &length: &u32| {
                    *sum += length as usize;
                    (*sum <= budget).then_some(())
                };
                spread(fullest(&lengths, budget), lengths.iter().rev().scan(0, fits).count(), lengths.first())
            }
        }
    }
}

/// Lengths of so many sequences with so many tokens together, as many as can be of the longest's length: of no more tokens is each the first of its
/// sequence, which counts in no loss of next tokens.
fn spread(tokens: usize, sequences: usize, longest: Option<&u32>) -> Vec<u32> {
    let Some(&longest) = longest else { return Vec::new() };
    let rest = |i: usize| tokens.saturating_sub(i * longest as usize).min(longest as usize);
    (0..sequences).map(|i| rest(i) as u32).collect()
}

/// The largest sum of a selection from `lengths` (longest first) that is at most `budget`.
///
/// Dynamic programme over the sums that can be reached, length by length: time O(distinct lengths × budget).
fn fullest(lengths: &[u32], budget: usize) -> usize {
    const UNREACHED: u32 = u32::MAX;
    let all = lengths.iter().map(|&n| n as usize).sum();
    if budget >= all {
        return all;
    }
    // The length that first reached a sum, and how many of it the sum holds.
    let mut last = vec![UNREACHED; budget + 1];
    let mut copies = vec![0_u32; budget + 1];
    last[0] = 0;
    for group in lengths.chunk_by(|a, b| a == b) {
        let length = group[0];
        if length == 0 || last[budget] != UNREACHED {
            break;
        }
        for sum in length as usize..=budget {
            let before = sum - length as usize;
            let used = if last[before] == length { copies[before] } else { 0 };
            if last[sum] == UNREACHED && last[before] != UNREACHED && (used as usize) < group.len() {
                last[sum] = length;
                copies[sum] = used + 1;
            }
        }
    }
    (0..=budget).rev().find(|&sum| last[sum] != UNREACHED).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(sampler: &Sampler, batch: &[u32]) -> usize {
        batch.iter().map(|&i| sampler.lengths[i as usize] as usize).sum()
    }

    #[test]
    fn file_order_without_seed() {
        let sampler = Sampler::new(vec![4, 2, 3, 5, 1], BatchBy::Tokens(6), None).unwrap();
        let want: [&[u32]; 3] = [&[0, 1], &[2], &[3, 4]];
        assert_eq!(sampler.epoch(0), want);
        assert_eq!(sampler.epoch(7), want);
        assert_eq!(sampler.largest_batch(), [5, 1]);
        let sampler = Sampler::new(vec![4, 2, 3, 5, 1], BatchBy::Examples(2), None).unwrap();
        assert_eq!(sampler.epoch(0), [&[0, 1][..], &[2, 3], &[4]]);
        assert_eq!(sampler.largest_batch(), [5, 3]);
    }

    #[test]
    fn bad_sizes() {
        let message = |lengths, by| Sampler::new(lengths, by, None).unwrap_err().to_string();
        assert!(message(vec![1], BatchBy::Examples(0)).contains("found 0"));
        assert!(message(vec![1], BatchBy::Tokens(0)).contains("found 0"));
        assert!(
            message(vec![8, 9], BatchBy::Tokens(8)).contains("example 2 has 9 tokens, more than a batch may hold (8)")
        );
        let none = Sampler::new(vec![], BatchBy::Tokens(8), Some(1)).unwrap();
        assert!(none.epoch(0).is_empty() && none.largest_batch().is_empty());
    }

    fn sampler() -> impl Strategy<Value = Sampler> {
        let by = (any::<bool>(), 1..40_usize);
        let lengths = proptest::collection::vec(1..20_u32, 0..60);
        (lengths, by, any::<Option<u64>>()).prop_map(|(lengths, (by_tokens, size), seed)| {
            let by = if by_tokens { BatchBy::Tokens(size + 19) } else { BatchBy::Examples(size) };
            Sampler::new(lengths, by, seed).unwrap()
        })
    }

    proptest! {
        #![proptest_config(super::super::fixed_cases())]

        #[test]
        fn each_example_once_and_budget_kept(sampler in sampler(), epoch in any::<u64>()) {
            let batches = sampler.epoch(epoch);
            let mut seen: Vec<u32> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..sampler.lengths.len() as u32).collect::<Vec<_>>());
            let largest = sampler.largest_batch();
            let most = largest.iter().sum::<u32>() as usize;
            for (i, batch) in batches.iter().enumerate() {
                prop_assert!(!batch.is_empty() && tokens(&sampler, batch) <= most && batch.len() <= largest.len());
                prop_assert!(batch.iter().all(|&i| sampler.lengths[i as usize] <= largest[0]));
                let next: usize = largest.iter().map(|&length| length.saturating_sub(1) as usize).sum();
                prop_assert!(tokens(&sampler, batch) - batch.len() <= next);
                match sampler.by {
                    BatchBy::Examples(size) => prop_assert!(batch.len() == size || i + 1 == batches.len()),
                    BatchBy::Tokens(budget) => {
                        prop_assert!(tokens(&sampler, batch) <= budget && most <= budget);
                        // the next example did not fit
                        if let Some(next) = batches.get(i + 1) {
                            prop_assert!(tokens(&sampler, batch) + tokens(&sampler, &next[..1]) > budget);
                        }
                    }
                }
            }
            prop_assert_eq!(batches, sampler.clone().epoch(epoch));
        }

        #[test]
        fn fullest_set_is_found(mut lengths in proptest::collection::vec(0..12_u32, 0..9), budget in 1..60_usize) {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let sum = |set: u32| -> usize { (0..lengths.len()).filter(|i| set >> i & 1 == 1).map(|i| lengths[i] as usize).sum() };
            let best = (0..1_u32 << lengths.len()).map(sum).filter(|&s| s <= budget).max().unwrap();
            prop_assert_eq!(fullest(&lengths, budget), best);
        }

        /// Over all sets of examples that fit, each of which some order draws: none is larger in any way, each figure is that of one, and
        /// one of them is less than one example smaller.
        #[test]
        fn the_largest_batch_is_as_small_as_can_be(
            lengths in proptest::collection::vec(1..12_u32, 1..9), budget in 11..60_usize, by_tokens in any::<bool>(),
        ) {
            let by = if by_tokens { BatchBy::Tokens(budget) } else { BatchBy::Examples(budget / 8) };
            let sampler = Sampler::new(lengths.clone(), by, Some(0)).unwrap();
            let of = |set: u32| -> Vec<u32> { (0..lengths.len()).filter(|i| set >> i & 1 == 1).map(|i| lengths[i]).collect() };
            let figures = |set: &[u32]| [set.iter().sum::<u32>() as usize, set.len(), set.iter().copied().max().unwrap_or(0) as usize];
            let fits = |set: &Vec<u32>| match by {
                BatchBy::Tokens(budget) => figures(set)[0] <= budget,
                BatchBy::Examples(size) => set.len() <= size,
            };
            let sets: Vec<_> = (1..1_u32 << lengths.len()).map(of).filter(fits).map(|set| figures(&set)).collect();
            let largest = figures(&sampler.largest_batch());
            for i in 0..3 {
                prop_assert_eq!(Some(largest[i]), sets.iter().map(|set| set[i]).max());
            }
            let longest = lengths.iter().copied().max().unwrap_or(0) as usize;
            prop_assert!(sets.iter().any(|set| set[1] == largest[1] && set[0] + longest > largest[0]));
            prop_assert!(by_tokens || sets.contains(&largest));
        }
    }

    #[test]
    fn epochs_and_seeds_give_different_orders() {
        let epoch = |seed, epoch| Sampler::new(vec![1; 50], BatchBy::Examples(8), Some(seed)).unwrap().epoch(epoch);
        assert_ne!(epoch(1, 0), epoch(1, 1));
        assert_ne!(epoch(1, 0), epoch(2, 0));
        assert_eq!(epoch(1, 3), epoch(1, 3));
    }
}
