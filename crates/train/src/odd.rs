//! Settings that are allowed and seldom meant: what a user is told of them, once each.

use std::collections::HashSet;
use std::path::Path;

use crate::data::TokenisedSet;
use crate::plan::{NOT_REBUILT, Plan, SitePlan};
use crate::recipe::{BatchSize, Data, Keeping, Method, PolicyName, Recipe};
use crate::schedule::warmup_steps;
use crate::tasks::Task;

/// What of the data decides whether a setting is odd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Training examples.
    pub examples: usize,
    /// Batches of an epoch.
    pub batches: usize,
    /// Steps of the run.
    pub steps: u64,
    /// Tokens of the longest training example, as it was cut.
    pub longest: usize,
    /// Development examples, and how many of them are training examples too, to the token.
    pub evaluated: usize,
    /// See `evaluated`.
    pub known: usize,
    /// Positions that a model has learned, where more can be computed.
    pub positions: Option<usize>,
}

/// What is odd about a recipe, given its data.
pub fn settings(recipe: &Recipe, facts: &Facts) -> Vec<String> {
    let Recipe { data, train, optim, .. } = recipe;
    let mut odd = Vec::new();
    // a tenth of these is usual; beyond them AdamW seldom comes back
    let sane = if train.method == Method::Full { 1e-3 } else { 1e-2 };
    if optim.lr == 0.0 {
        odd.push("optim.lr is 0: nothing is learned".to_owned());
    } else if optim.lr > sane {
        odd.push(format!(
            "optim.lr is {}: above {sane} AdamW seldom learns by train.method = {}",
            optim.lr, train.method
        ));
    }
    let warmup = warmup_steps(optim.warmup, facts.steps);
    if warmup > 0 && warmup >= facts.steps {
        odd.push(format!(
            "optim.warmup is {warmup} steps of a run of {}: the learning rate never gets to optim.lr",
            facts.steps
        ));
    }
    if same_file(data) {
        odd.push("data.dev is data.train: the metrics say how well it is remembered".to_owned());
    } else if facts.evaluated > 1 && facts.known == facts.evaluated {
        odd.push(format!(
            "all {} development examples are training examples too: the metrics say how well they are remembered",
            facts.evaluated
        ));
    }
    if let BatchSize::Sequences(n) = train.batch
        && n > facts.examples
    {
        odd.push(format!(
            "train.batch is {n}, and there are {} training examples: each epoch is one batch",
            facts.examples
        ));
    }
    if train.accumulate > facts.batches.max(1) {
        odd.push(format!(
            "train.accumulate is {}, and an epoch has {} batches: a step has no more than those",
            train.accumulate, facts.batches
        ));
    }
    let is_language = [Task::Chat, Task::Text].iter().any(|task| recipe.task == task.name());
    if let Some(most) = facts.positions.filter(|&most| facts.longest > most) {
        odd.push(format!(
            "the longest example has {} tokens, and max_position_embeddings in config.json is {most}: later positions the model has not learned",
            facts.longest
        ));
    }
    if !is_language && data.max_length != Data::default().max_length && data.max_length >= 8 * facts.longest.max(1) {
        odd.push(format!(
            "data.max_length is {}, and the longest example has {} tokens; nothing is padded, so that this costs nothing",
            data.max_length, facts.longest
        ));
    }
    odd
}

/// What is odd about what a recipe keeps, by its plan.
pub fn kept(keep: &Keeping, plan: &Plan) -> Option<String> {
    // what nothing stands before that rebuilds it is a part of these policies
    let is_lean = matches!(keep.policy, PolicyName::Lean | PolicyName::Leanest | PolicyName::Recompute);
    let asked = |site: &&SitePlan| !is_lean || keep.exception(&site.name, |_| true).is_some();
    let sites = plan.sites.iter().filter(|site| site.policy.ends_with(NOT_REBUILT)).filter(asked);
    let sites: Vec<&str> = sites.map(|site| site.name.as_str()).collect();
    let (first, more) = (sites.first()?, sites.len() - 1);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "{first}{more}: rows are drawn by current norms, and nothing rebuilds them there, so that all of them are kept; \
         `lean`, or cached norms, keep less"
    ))
}

/// Whether both data keys name one file. A folder has a file for each.
fn same_file(data: &Data) -> bool {
    let file = |path: &Option<String>| Path::new(path.as_deref()?).canonicalize().ok().filter(|path| path.is_file());
    file(&data.train).is_some_and(|train| file(&data.dev) == Some(train))
}

/// How many examples of `dev` are in `train`, to the token.
pub(crate) fn known(train: &TokenisedSet, dev: &TokenisedSet) -> usize {
    let all = |set: &TokenisedSet| (0..set.len()).map(|i| set.bounds[i]..set.bounds[i + 1]).collect::<Vec<_>>();
    let seen: HashSet<&[u32]> = all(train).into_iter().map(|range| &train.ids[range]).collect();
    all(dev).into_iter().filter(|range| seen.contains(&dev.ids[range.clone()])).count()
}

/// A loss beyond this many times that of the first step, or beyond this where that was below 1, is one of weights that have gone wrong.
pub(crate) const ABSURD: f64 = 100.0;

/// Watches the losses of a run's steps, and tells if they blow up: once in the first steps, and at the end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Losses {
    /// Losses so far, the sum of those that the rest is compared with, the last two.
    seen: u64,
    first: f64,
    last: [f64; 2],
    told: bool,
}

/// Whether a loss is far above the `first`.
fn grown(first: f64, loss: f64) -> bool {
    loss > 3.0 * first.abs() + 1.0
}

impl Losses {
    /// Losses that the others are compared with.
    const FIRST: u64 = 3;
    /// Steps that are watched.
    const WATCHED: u64 = 200;

    /// Notes the loss of a step; what to tell, if that and the two before it are far above the first.
    pub fn step(&mut self, loss: f64) -> Option<String> {
        self.seen += 1;
        if self.seen <= Self::FIRST {
            self.first += loss / Self::FIRST as f64;
        }
        let least = self.last.into_iter().fold(loss, f64::min);
        self.last = [self.last[1], loss];
        let grown = self.seen >= 2 * Self::FIRST && grown(self.first, least);
        if self.told || !grown || self.seen > Self::WATCHED {
            return None;
        }
        self.told = true;
        Some(format!(
            "the loss grew from {:.3} to {loss:.3} in {} steps: a lower optim.lr or a longer optim.warmup may help",
            self.first, self.seen
        ))
    }

    /// What to tell at a run's end, whose first step had the loss `first` and whose last evaluation has the loss `evaluated`: that the last
    /// steps are far above the first, or the evaluation so far that no overfitting explains it.
    pub fn at_end(&self, first: Option<f64>, evaluated: Option<f64>) -> Option<String> {
        let (first, least) = (first?, self.last[0].min(self.last[1]));
        let absurd = evaluated.filter(|loss| *loss > ABSURD * first.max(1.0));
        let last = absurd.or_else(|| Some(least).filter(|least| grown(first, *least)))?;
        Some(format!(
            "the run diverged: its loss is {last:.3} at the end, and was {first:.3} at the first step; a lower optim.lr or a longer optim.warmup \
             may help"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: Facts =
        Facts { examples: 100, batches: 10, steps: 30, longest: 40, evaluated: 20, known: 3, positions: None };

    fn odd(sets: &[&str], facts: Facts) -> Vec<String> {
        let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
        settings(&Recipe::parse("model.path = 'm'", "test", &sets).unwrap(), &facts)
    }

    #[track_caller]
    fn one(sets: &[&str], facts: Facts, needle: &str) {
        let odd = odd(sets, facts);
        assert!(odd.len() == 1 && odd[0].starts_with(needle), "{odd:?}");
    }

    #[test]
    fn odd_settings_are_told_and_usual_ones_not() {
        for usual in [
            &[][..],
            &["optim.lr=1e-3", "optim.warmup=0.1", "train.batch=100", "train.accumulate=10"],
            &["optim.lr=1e-2", "train.method=lora", "optim.warmup=29"],
            &["data.max_length=319", "train.batch_tokens=100000"],
        ] {
            assert_eq!(odd(usual, USUAL), [""; 0], "{usual:?}");
        }
        one(&["optim.lr=0"], USUAL, "optim.lr is 0");
        one(&["optim.lr=0.002"], USUAL, "optim.lr is 0.002: above 0.001");
        one(&["optim.lr=1e300", "train.method=bitfit"], USUAL, "optim.lr is 1");
        one(&["optim.warmup=30"], USUAL, "optim.warmup is 30 steps of a run of 30");
        one(&["optim.warmup=1e12"], USUAL, "optim.warmup is 1000000000000 steps of a run of 30");
        one(&["train.batch=101"], USUAL, "train.batch is 101, and there are 100");
        one(&["train.accumulate=11"], USUAL, "train.accumulate is 11, and an epoch has 10 batches");
        one(&["data.max_length=320"], USUAL, "data.max_length is 320, and the longest example has 40 tokens");
        let all = Facts { known: 20, ..USUAL };
        one(&[], all, "all 20 development examples are training examples too");
    }

    #[test]
    fn one_file_for_both_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let name = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(name("a.tsv"), "").unwrap();
        std::fs::write(name("b.tsv"), "").unwrap();
        let both = |train: &str, dev: &str| {
            odd(&[&format!("data.train='{}'", name(train)), &format!("data.dev='{}'", name(dev))], USUAL)
        };
        assert!(both("a.tsv", "./a.tsv")[0].starts_with("data.dev is data.train"));
        assert_eq!((both("a.tsv", "b.tsv"), both(".", ".")), (vec![], vec![]));
    }

    #[test]
    fn examples_in_both_sets_are_counted() {
        let set = |ids: &[u32], bounds: &[usize]| TokenisedSet {
            ids: ids.to_vec(),
            bounds: bounds.to_vec(),
            ..TokenisedSet::default()
        };
        let train = set(&[1, 2, 3, 4, 5], &[0, 2, 5]);
        assert_eq!(known(&train, &set(&[3, 4, 5, 1, 2, 1, 2, 1], &[0, 3, 5, 7, 8])), 3);
    }

    #[test]
    fn losses_that_blow_up_are_told_once() {
        let told = |losses: &[f64]| {
            let mut watch = Losses::default();
            losses.iter().filter_map(|&loss| watch.step(loss)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[0.7, 0.6, 0.7, 0.5, 9.0, 0.6, 9.0, 0.4, 2.0, 2.0]), [""; 0], "single steps may be far off");
        let grown = told(&[0.7, 0.7, 0.7, 2.0, 5.0, 7.0, 8.0, 9.0, 9.0]);
        let text = "the loss grew from 0.700 to 8.000 in 7 steps: a lower optim.lr or a longer optim.warmup may help";
        assert_eq!(grown, [text]);
        assert_eq!(told(&[vec![0.5; 200], vec![50.0; 9]].concat()), [""; 0], "later the log tells");
    }

    #[test]
    fn a_run_that_ends_far_above_its_beginning_has_diverged() {
        let told = |losses: &[f64], evaluated: Option<f64>| {
            let mut watch = Losses::default();
            losses.iter().for_each(|&loss| drop(watch.step(loss)));
            watch.at_end(losses.first().copied(), evaluated)
        };
        let text = "the run diverged: its loss is 9.000 at the end, and was 0.700 at the first step; a lower optim.lr or a longer optim.warmup \
                    may help";
        assert_eq!(told(&[0.7, 3610.0, 9.0], None).as_deref(), Some(text));
        assert!(told(&[0.7, 3610.0], Some(1188.0)).unwrap().contains("its loss is 1188.000 at the end"));
        for (losses, evaluated) in [
            (&[0.7, 0.5, 9.0][..], Some(0.6)),
            (&[0.7, 9.0], None),
            (&[0.7, 0.1, 0.1], Some(4.0)),
            (&[], None),
            (&[0.7], None),
        ] {
            assert_eq!(told(losses, evaluated), None, "{losses:?}");
        }
    }
}
