//! A ragged batch: the tokens of some examples end to end, and what their loss compares with.

use colrow_autograd::{BatchPlaces, Bounds, Places};
use colrow_models::tokens::Tokens;

use super::{Labels, Lengths, TokenisedSet};

/// A batch of `b` examples with `n` tokens together, on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// What the model reads.
    pub tokens: Tokens,
    /// Which tokens the tokenizer added, `n`.
    pub special: Vec<bool>,
    /// A label an example, `b`, if they are known.
    pub labels: Option<Labels>,
    /// What the model is to write, a sequence an example, where the objective has texts as targets.
    pub targets: Option<Tokens>,
    /// For each token its number in the training set, for the norm cache; `None` for tokens that have none.
    pub places: Option<Vec<u64>>,
    /// The same for the rows of the targets.
    pub target_places: Option<Vec<u64>>,
}

impl Batch {
    /// Gathers the examples `indices` of `set`, each below `set.len()`.
    pub fn of(set: &TokenisedSet, indices: &[u32]) -> Self {
        let tokens = Tokens {
            ids: gathered(&set.ids, &set.bounds, indices).copied().collect(),
            types: gathered(&set.types, &set.bounds, indices).map(|&kind| u32::from(kind)).collect(),
            bounds: ends(&set.bounds, indices),
            weight: set.weight.as_ref().map(|weight| gathered(weight, &set.bounds, indices).copied().collect()),
        };
        let targets = set.targets.as_ref().map(|targets| Tokens {
            ids: gathered(&targets.ids, &targets.bounds, indices).copied().collect(),
            types: Vec::new(),
            bounds: ends(&targets.bounds, indices),
            weight: targets.weight.as_ref().map(|weight| gathered(weight, &targets.bounds, indices).copied().collect()),
        });
        Self {
            tokens,
            special: gathered(&set.special, &set.bounds, indices).copied().collect(),
            labels: set.labels.as_ref().map(|labels| labels.select(indices)),
            targets,
            places: None,
            target_places: None,
        }
    }

    /// The same with the places of its tokens in the set, those of targets after all others.
    pub fn placed(set: &TokenisedSet, indices: &[u32]) -> Self {
        let of = |bounds: &[usize], first: usize| {
            let range = |&i: &u32| (first + bounds[i as usize]) as u64..(first + bounds[i as usize + 1]) as u64;
            indices.iter().flat_map(range).collect()
        };
        let target_places = set.targets.as_ref().map(|targets| of(&targets.bounds, set.ids.len()));
        Self { places: Some(of(&set.bounds, 0)), target_places, ..Self::of(set, indices) }
    }

    /// Sequences of these lengths, all of token 0, without labels: what plans and benchmarks need.
    pub fn of_lengths(lengths: &Lengths) -> Self {
        let of = |lengths: &Vec<u32>| Tokens::of(lengths.iter().map(|&length| vec![0; length as usize]));
        let mut tokens = of(&lengths.sources);
        let n = tokens.ids.len();
        tokens.types = vec![0; n];
        let targets = lengths.targets.as_ref().map(of);
        Self { tokens, special: vec![false; n], targets, ..Self::default() }
    }

    /// Where its sequences begin and end.
    pub fn bounds(&self) -> Bounds {
        let targets = self.targets.as_ref().map(|targets| targets.bounds.clone());
        Bounds { tokens: self.tokens.bounds.clone(), targets: targets.unwrap_or_default() }
    }

    /// Where its tokens stand, in a step whose loss is a mean of this `weight`.
    pub fn batch_places(&self, weight: f64) -> BatchPlaces {
        let positions = self.tokens.positions().zip(self.special.iter().copied()).collect();
        let first = |targets: &Tokens| targets.positions().map(|p| (p, p == 0)).collect();
        let targets = self.targets.as_ref().map(first).unwrap_or_default();
        BatchPlaces {
            tokens: Places { tokens: self.places.clone(), positions },
            targets: Places { tokens: self.target_places.clone(), positions: targets },
            weight,
        }
    }
}

/// The rows of the sequences `indices`.
fn gathered<'a, T>(rows: &'a [T], bounds: &'a [usize], indices: &'a [u32]) -> impl Iterator<Item = &'a T> {
    indices.iter().flat_map(|&i| &rows[bounds[i as usize]..bounds[i as usize + 1]])
}

/// Where these sequences end when they stand one after the other, 0 first.
fn ends(bounds: &[usize], indices: &[u32]) -> Vec<u32> {
    let mut end = 0;
    let each = indices.iter().map(|&i| {
        end += (bounds[i as usize + 1] - bounds[i as usize]) as u32;
        end
    });
    std::iter::once(0).chain(each).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Targets;
    use super::*;

    /// The tokens of targets are numbered after those of all sources, so that none shares a place with another.
    #[test]
    fn places_are_distinct() {
        let mut set = TokenisedSet {
            ids: vec![2; 9],
            bounds: vec![0, 3, 5, 9],
            targets: Some(Targets { bounds: vec![0, 2, 3, 7], ..Default::default() }),
            ..Default::default()
        };
        set.types = vec![0; 9];
        set.special = vec![false; 9];
        if let Some(targets) = &mut set.targets {
            targets.ids = (0..7).collect();
            targets.weight = Some((0..7).map(|i| i as f32).collect());
        }
        let batch = Batch::placed(&set, &[2, 0]);
        assert_eq!(batch.places, Some(vec![5, 6, 7, 8, 0, 1, 2]));
        assert_eq!(batch.target_places, Some(vec![12, 13, 14, 15, 9, 10]));
        let targets = batch.targets.unwrap();
        assert_eq!((targets.ids, targets.bounds), (vec![3, 4, 5, 6, 0, 1], vec![0, 4, 6]));
        assert_eq!(targets.weight.unwrap(), [3.0, 4.0, 5.0, 6.0, 0.0, 1.0]);
        set.targets = None;
        let batch = Batch::placed(&set, &[1]);
        assert_eq!((batch.places, batch.target_places), (Some(vec![3, 4]), None));
    }

    #[test]
    fn gathers_what_was_asked_for() {
        let set = TokenisedSet {
            ids: vec![2, 7, 3, 2, 3, 2, 8, 8, 3],
            types: vec![0, 0, 0, 0, 0, 0, 0, 1, 1],
            special: vec![true, false, true, true, true, true, false, false, true],
            bounds: vec![0, 3, 5, 9],
            labels: Some(Labels::Value(vec![0.5, 1.5, 2.5])),
            weight: Some((0..9).map(|i| i as f32).collect()),
            ..Default::default()
        };
        let batch = Batch::of(&set, &[2, 0]);
        assert_eq!(batch.tokens.ids, [2, 8, 8, 3, 2, 7, 3]);
        assert_eq!(batch.tokens.types, [0, 0, 1, 1, 0, 0, 0]);
        assert_eq!(batch.tokens.bounds, [0, 4, 7]);
        assert_eq!(batch.special, [true, false, false, true, true, false, true]);
        assert_eq!(batch.tokens.weight.unwrap(), [5.0, 6.0, 7.0, 8.0, 0.0, 1.0, 2.0]);
        assert_eq!(batch.labels, Some(Labels::Value(vec![2.5, 0.5])));
        assert_eq!(Batch::of(&set, &[]).tokens.bounds, [0]);
    }
}
