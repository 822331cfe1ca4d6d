//! Whether data is what it was: a hash over tokens, labels and their order, for a resumed run.

use std::hash::Hasher;

use serde::{Deserialize, Serialize};
use twox_hash::XxHash64;

use super::{Labels, Targets, TokenisedSet};

/// What identifies a data set. The same on every platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// XXH64 of tokens and labels in order, in hexadecimal.
    pub hash: String,
    /// Number of examples.
    pub examples: usize,
    /// Number of tokens.
    pub tokens: usize,
}

impl Fingerprint {
    /// The fingerprint of `sets` together, each with its labels, whose classes have these `names`.
    pub fn of<'a>(sets: impl IntoIterator<Item = (&'a TokenisedSet, Option<&'a Labels>)>, names: &[String]) -> Self {
        let mut hash = Hash(XxHash64::with_seed(0));
        let (mut examples, mut tokens) = (0, 0);
        hash.numbers(names.iter().map(|name| name.len() as u32));
        names.iter().for_each(|name| hash.0.write(name.as_bytes()));
        for (set, labels) in sets {
            hash.numbers(set.bounds.iter().map(|&bound| bound as u32));
            hash.numbers(set.ids.iter().copied());
            hash.0.write(&set.types);
            hash.numbers(set.special.iter().map(|&special| u32::from(special)));
            match &set.targets {
                Some(Targets { ids, bounds, .. }) => {
                    bounds.windows(2).for_each(|w| hash.numbers(ids[w[0]..w[1]].iter().copied()));
                }
                None => set.labels.iter().for_each(|labels| hash.labels(labels)),
            }
            labels.into_iter().for_each(|labels| hash.labels(labels));
            let of_targets = set.targets.as_ref().and_then(|targets| targets.weight.as_ref());
            for weight in set.weight.iter().chain(of_targets) {
                hash.numbers(weight.iter().map(|weight| weight.to_bits()));
            }
            examples += set.len();
            tokens += set.ids.len();
        }
        Self { hash: format!("{:016x}", hash.0.finish()), examples, tokens }
    }

    /// How data with this fingerprint became that with the fingerprint `now`; `None` if it is the same.
    pub fn change(&self, now: &Self) -> Option<String> {
        let size = |print: &Self| format!("{} examples with {} tokens", print.examples, print.tokens);
        if self == now {
            None
        } else if (self.examples, self.tokens) == (now.examples, now.tokens) {
            Some(format!("{} then and now, but others, in another order, or with other labels", size(self)))
        } else {
            Some(format!("{} then, {} now", size(self), size(now)))
        }
    }
}

struct Hash(XxHash64);

impl Hash {
    /// A sequence, its length first so that what ends one cannot begin the next.
    fn numbers(&mut self, values: impl ExactSizeIterator<Item = u32>) {
        self.0.write(&(values.len() as u64).to_le_bytes());
        values.for_each(|value| self.0.write(&value.to_le_bytes()));
    }

    fn labels(&mut self, labels: &Labels) {
        match labels {
            Labels::Class(classes) => self.numbers(classes.iter().copied()),
            Labels::Value(values) => self.numbers(values.iter().map(|value| value.to_bits())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[u32], bounds: &[usize], labels: Labels) -> TokenisedSet {
        let (types, special) = (vec![0; ids.len()], vec![false; ids.len()]);
        TokenisedSet {
            ids: ids.to_vec(),
            types,
            special,
            bounds: bounds.to_vec(),
            labels: Some(labels),
            ..TokenisedSet::default()
        }
    }

    fn of(set: &TokenisedSet) -> Fingerprint {
        Fingerprint::of([(set, None)], &["no".into(), "yes".into()])
    }

    #[test]
    fn whatever_a_run_sees_changes_the_fingerprint() {
        let class = |classes: &[u32]| Labels::Class(classes.to_vec());
        let whole = set(&[1, 2, 3, 4], &[0, 1, 4], class(&[0, 1]));
        // a checkpoint may come from another machine: the value is fixed
        assert_eq!(of(&whole).hash, "0127bf7791509dff");
        let mut others = vec![
            set(&[2, 3, 4, 1], &[0, 3, 4], class(&[1, 0])),
            set(&[1, 2, 3, 4], &[0, 2, 4], class(&[0, 1])),
            set(&[1, 2, 3, 5], &[0, 1, 4], class(&[0, 1])),
            set(&[1, 2, 3, 4], &[0, 1, 4], class(&[1, 1])),
            set(&[1, 2, 3, 4], &[0, 1, 4], Labels::Value(vec![0.0, 1.0])),
        ];
        let targets = |bounds: [usize; 3]| Targets { ids: vec![0, 1], bounds: bounds.to_vec(), weight: None };
        others.push(TokenisedSet { targets: Some(targets([0, 1, 2])), ..whole.clone() });
        others.push(TokenisedSet { targets: Some(targets([0, 2, 2])), ..whole.clone() });
        let weight = Some(vec![1.0, 0.0]);
        others.push(TokenisedSet { targets: Some(Targets { weight, ..targets([0, 1, 2]) }), ..whole.clone() });
        others.push(TokenisedSet { weight: Some(vec![1.0; 4]), ..whole.clone() });
        let mut typed = whole.clone();
        typed.types[2] = 1;
        others.push(typed);
        let mut prints: Vec<_> = others.iter().map(|set| of(set).hash).collect();
        prints.push(of(&whole).hash);
        prints.push(Fingerprint::of([(&whole, None)], &["yes".into(), "no".into()]).hash);
        prints.push(Fingerprint::of([(&whole, None), (&whole, None)], &["no".into(), "yes".into()]).hash);
        let all = prints.len();
        prints.sort();
        prints.dedup();
        assert_eq!(prints.len(), all);
    }

    #[test]
    fn a_change_is_told_in_counts() {
        let print = |hash: &str, examples, tokens| Fingerprint { hash: hash.into(), examples, tokens };
        let before = print("a", 2, 4);
        assert_eq!(before.change(&before), None);
        assert_eq!(
            before.change(&print("b", 1, 3)).unwrap(),
            "2 examples with 4 tokens then, 1 examples with 3 tokens now"
        );
        assert!(before.change(&print("b", 2, 4)).unwrap().contains("in another order"));
    }
}
