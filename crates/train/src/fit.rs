//! What of a recipe fits into so much memory: the cheapest policy and ratio, or the largest batch.

use std::ops::RangeInclusive;

use colrow_tensor::Result;
use serde::Serialize;

use crate::plan::Plan;
use crate::recipe::{Batch, Estimator, Keep, NormSource, PolicyName, Ratio, Recipe};

/// The policies that are tried, the one that costs the least accuracy and time first, the leanest last. `paper` is not among them: `lean` keeps
/// less and knows the norms that it draws by. Nor are ratios: rows that are drawn in the backward pass do not change what is kept.
const POLICIES: [PolicyName; 4] = [PolicyName::Exact, PolicyName::Lean, PolicyName::Leanest, PolicyName::Recompute];

/// A way to run a recipe, and what it needs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// How it was found.
    pub found: Found,
    /// What linears keep.
    pub policy: PolicyName,
    /// Share of the rows that sampled sites keep; 1 where none is sampled.
    pub ratio: Ratio,
    /// Size of a batch.
    #[serde(flatten)]
    pub batch: Batch,
    /// See [`Plan::peak_bytes`].
    pub peak_bytes: usize,
    /// See [`Plan::process_bytes`].
    pub process_bytes: usize,
    /// `KEY=VALUE` for each `--set` that makes the recipe this one.
    pub set: Vec<String>,
}

/// How a [`Fit`] was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The recipe as it is.
    AsItIs,
    /// The cheapest policy and ratio with the recipe's batch.
    CheapestPolicy,
    /// The largest batch with the recipe's policy.
    LargestBatch,
    /// The largest batch with the leanest policy.
    LeanestPolicy,
}

/// The recipe under every policy, the one that costs the least accuracy and time first, the leanest last.
pub fn candidates(recipe: &Recipe) -> Vec<Recipe> {
    let with = |policy| {
        let mut keep = Keep { policy, ..recipe.keep.clone() };
        if policy != PolicyName::Exact {
            keep.norms = keep.norms.map(|_| NormSource::Current);
            if keep.estimator == Estimator::Exact {
                keep.estimator = Keep::default().estimator;
            }
        }
        Recipe { keep, ..recipe.clone() }
    };
    // a recipe that leaves ratios to the run wants rows drawn
    let sensible = |policy: &PolicyName| *policy != PolicyName::Exact || !recipe.keep.chooses_ratios();
    POLICIES.into_iter().filter(sensible).map(with).collect()
}

/// What fits into `memory` bytes of a process, best first: the recipe as it is; the cheapest policy and ratio, if it is another; the largest
/// batch under the recipe's own policy and under the leanest, if they are others. `batches` are the sizes that make sense, in the
/// unit of the recipe's batch; `plan` plans a recipe.
///
/// # Errors
/// Those of `plan`.
pub fn search(
    recipe: &Recipe,
    memory: usize,
    batches: RangeInclusive<usize>,
    plan: &dyn Fn(&Recipe) -> Result<Plan>,
) -> Result<Vec<Fit>> {
    let try_out = |found: Found, candidate: &Recipe| -> Result<Option<Fit>> {
        let plan = plan(candidate)?;
        Ok((plan.process_bytes <= memory).then(|| Fit::new(found, recipe, candidate, &plan)))
    };
    let mut fits: Vec<Fit> = try_out(Found::AsItIs, recipe)?.into_iter().collect();
    let candidates = candidates(recipe);
    for candidate in &candidates {
        if candidate.keep == recipe.keep && !fits.is_empty() {
            break;
        }
        if let Some(fit) = try_out(Found::CheapestPolicy, candidate)? {
            fits.push(fit);
            break;
        }
    }
    let leanest = candidates.last().filter(|leanest| leanest.keep != recipe.keep);
    for (found, base) in [(Found::LargestBatch, Some(recipe)), (Found::LeanestPolicy, leanest)] {
        let Some(base) = base else { continue };
        let sized = |size| base.with_batch(size);
        let fits_in = |size| Ok(plan(&sized(size))?.process_bytes <= memory);
        if let Some(size) =
            largest(batches.clone(), fits_in)?.filter(|&size| sized(size).train.batch != recipe.train.batch)
        {
            fits.extend(try_out(found, &sized(size))?);
        }
    }
    Ok(fits)
}

/// The largest of `sizes` that fits, where every smaller size fits too; by doubling, then bisection. `None` if not even the smallest does.
///
/// # Errors
/// Those of `fits`.
pub fn largest(sizes: RangeInclusive<usize>, fits: impl Fn(usize) -> Result<bool>) -> Result<Option<usize>> {
    let (mut good, most) = (*sizes.start(), *sizes.end());
    if good > most || !fits(good)? {
        return Ok(None);
    }
    let mut bad = most + 1;
    while good < most {
        let next = (2 * good).min(most);
        if !fits(next)? {
            bad = next;
            break;
        }
        good = next;
    }
    while bad - good > 1 {
        let middle = good + (bad - good) / 2;
        if fits(middle)? {
            good = middle;
        } else {
            bad = middle;
        }
    }
    Ok(Some(good))
}

impl Recipe {
    /// This recipe with another number of sequences or tokens in a batch.
    #[must_use]
    pub fn with_batch(&self, size: usize) -> Self {
        let mut recipe = self.clone();
        recipe.train.batch = match recipe.train.batch {
            Batch::Sequences(_) => Batch::Sequences(size),
            Batch::Tokens(_) => Batch::Tokens(size),
        };
        recipe
    }
}

impl Fit {
    fn new(found: Found, recipe: &Recipe, candidate: &Recipe, plan: &Plan) -> Self {
        let (was, keep) = (&recipe.keep, &candidate.keep);
        let mut set = Vec::new();
        if keep.policy != was.policy {
            set.push(format!("keep.policy={}", keep.policy));
        }
        if keep.estimator != was.estimator {
            set.push(format!("keep.estimator={}", keep.estimator));
        }
        if let Some(norms) = keep.norms.filter(|_| keep.norms != was.norms) {
            set.push(format!("keep.norms={norms}"));
        }
        let batch = candidate.train.batch;
        if batch != recipe.train.batch {
            set.push(match batch {
                Batch::Sequences(n) => format!("train.batch={n}"),
                Batch::Tokens(n) => format!("train.batch_tokens={n}"),
            });
        }
        let ratio = if keep.policy == PolicyName::Exact { Ratio::Fixed(1.0) } else { keep.ratio };
        let (policy, peak_bytes, process_bytes) = (keep.policy, plan.peak_bytes, plan.process_bytes);
        Self { found, policy, ratio, batch, peak_bytes, process_bytes, set }
    }
}

#[cfg(test)]
mod tests {
    use colrow_autograd::Ledger;
    use colrow_tensor::Bytes;

    use super::*;

    /// Two bytes a sequence under `exact`, 1.7 under `paper`, fewer under the others, and 10 in any case.
    fn plan(recipe: &Recipe) -> Result<Plan> {
        let (Batch::Sequences(n) | Batch::Tokens(n)) = recipe.train.batch;
        let drawn_early = recipe.keep.norms() != NormSource::Current;
        let each = match recipe.keep.policy {
            PolicyName::Exact => 2.0,
            PolicyName::Paper => 1.7,
            PolicyName::Lean if drawn_early => 1.6,
            PolicyName::Lean => 1.5,
            PolicyName::Leanest => 1.2,
            PolicyName::Recompute => 1.1,
        };
        let bytes = 10 + (n as f64 * each).round() as usize;
        Ok(Plan {
            kept_bytes: 0,
            peak_bytes: bytes - 10,
            peak_bytes_by_class: Bytes::default(),
            evaluation_peak_bytes: 0,
            process_bytes: bytes,
            sites: Vec::new(),
            tokens: 0,
            ledger: Ledger::default(),
        })
    }

    fn found(set: &[&str], memory: usize) -> Vec<(Found, usize, Vec<String>)> {
        let sets: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        let recipe = Recipe::parse("model.path = 'm'", "test", &sets).unwrap();
        let fits = search(&recipe, memory, 1..=1000, &plan).unwrap();
        // what the arguments make of the recipe is what was planned
        for fit in &fits {
            let again = Recipe::parse("model.path = 'm'", "test", &[sets.clone(), fit.set.clone()].concat()).unwrap();
            assert_eq!(plan(&again).unwrap().process_bytes, fit.process_bytes);
            assert!(fit.process_bytes <= memory && fit.peak_bytes + 10 == fit.process_bytes);
        }
        fits.into_iter().map(|fit| (fit.found, fit.process_bytes, fit.set)).collect()
    }

    fn fit(found: Found, bytes: usize, set: &[&str]) -> (Found, usize, Vec<String>) {
        (found, bytes, set.iter().map(|&s| s.to_owned()).collect())
    }

    #[test]
    fn the_cheapest_policy_comes_before_smaller_batches() {
        use Found::*;
        let batch = |n| ["keep.policy=recompute", n];
        assert_eq!(
            found(&["train.batch=100"], 210),
            [fit(AsItIs, 210, &[]), fit(LeanestPolicy, 210, &batch("train.batch=182"))]
        );
        assert_eq!(
            found(&["train.batch=100"], 135),
            [
                fit(CheapestPolicy, 130, &["keep.policy=leanest"]),
                fit(LargestBatch, 134, &["train.batch=62"]),
                fit(LeanestPolicy, 135, &batch("train.batch=114")),
            ]
        );
        assert_eq!(
            found(&["train.batch_tokens=100"], 100),
            [
                fit(LargestBatch, 100, &["train.batch_tokens=45"]),
                fit(LeanestPolicy, 100, &batch("train.batch_tokens=82")),
            ]
        );
        assert_eq!(found(&["train.batch=100"], 10), []);
    }

    #[test]
    fn a_cheaper_policy_than_the_recipe_s_is_named() {
        use Found::*;
        let recipe = |policy| ["train.batch=1000", policy, "keep.estimator=exact", "keep.norms=cached"];
        // the recipe fits, and so would one that costs less accuracy
        assert_eq!(
            found(&recipe("keep.policy=leanest"), 1520),
            [
                fit(AsItIs, 1210, &[]),
                fit(CheapestPolicy, 1510, &["keep.policy=lean", "keep.estimator=pps", "keep.norms=current"]),
            ]
        );
        // the recipe is the cheapest that fits, and the largest batch is its own
        assert_eq!(found(&["train.batch=1000", "keep.policy=lean"], 1600), [fit(AsItIs, 1510, &[])]);
    }

    #[test]
    fn the_largest_size_is_found_wherever_it_is() {
        for (least, most) in [(1, 1), (1, 2), (3, 50), (7, 64)] {
            for limit in 0..70 {
                let got = largest(least..=most, |n| Ok(n <= limit)).unwrap();
                assert_eq!(got, (least..=most).rev().find(|&n| n <= limit), "{least}..={most}, {limit}");
            }
        }
        #[expect(clippy::reversed_empty_ranges, reason = "no size at all")]
        let none = largest(2..=1, |_| Ok(true)).unwrap();
        assert_eq!(none, None);
    }
}
