//! What of a recipe fits into so much memory: the ways that cost the least accuracy first.
//!
//! What can be given up, in the order of what it costs (the figures are in `benches/results` and in DESIGN's tables):
//!
//! 1. time: smaller batches whose gradients are added up, so that a step has the same sequences;
//! 2. moments of eight bits (MiniLM on SST-2: −0.04 ± 0.07 points);
//! 3. all rows, by the policies from `lean` to `recompute` (−0.4 ± 0.2 points there);
//! 4. clipping: weights are updated in the backward pass, where the gradient's norm is not known yet;
//! 5. the number of sequences a step;
//! 6. the ends of long examples;
//! 7. full fine-tuning: adapters.
//!
//! What comes later in the list is tried only where what stands before it does not do. A further option (weights in fewer bits, say) is one more
//! function from recipe to recipe, and its place in `Cost`.

use std::ops::RangeInclusive;

use colrow_autograd::NormSource;
use colrow_tensor::{BaseWeights, Result, TrainedWeights};
use serde::Serialize;

use crate::plan::Plan;
use crate::recipe::{BatchSize, Estimate, Keeping, Method, PolicyName, Ratio, Recipe};
use crate::step::{States, When};

/// The policies that are tried, the one that costs the least accuracy and time first, the leanest last. `paper` is not among them: `lean` keeps
/// less and knows the norms that it draws by. Nor are ratios: rows that are drawn in the backward pass do not change what is kept.
const POLICIES: [PolicyName; 4] = [PolicyName::Exact, PolicyName::Lean, PolicyName::Leanest, PolicyName::Recompute];

/// Examples are not cut to fewer tokens than this.
const SHORTEST: usize = 16;

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
    pub batch: BatchSize,
    /// Batches a step.
    pub accumulate: usize,
    /// How moments are held.
    pub states: States,
    /// When weights are updated.
    pub update: When,
    /// Most tokens of an example.
    pub max_length: usize,
    /// What is trained.
    pub method: Method,
    /// See [`Plan::peak_bytes`].
    pub peak_bytes: usize,
    /// See [`Plan::process_bytes`].
    pub process_bytes: usize,
    /// `KEY=VALUE` for each `--set` that makes the recipe this one.
    pub set: Vec<String>,
    /// What it gives up beside rows and bits, in words.
    pub gives_up: Vec<String>,
}

/// How a [`Fit`] was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    /// The recipe as it is.
    AsItIs,
    /// Smaller batches, more of them a step: with the recipe's own moments and policy, or the cheapest with which one sequence at a time fits.
    Accumulation,
    /// Moments of eight bits, with the recipe's batch and policy.
    EightBitStates,
    /// The cheapest policy with the recipe's batch; with moments of eight bits where no policy does it alone.
    CheapestPolicy,
    /// Updates in the backward pass and moments of eight bits, with the recipe's sequences a step and the cheapest policy.
    InBackward,
    /// The largest batch with the recipe's policy.
    LargestBatch,
    /// The largest batch with the leanest policy.
    LeanestPolicy,
    /// The largest batch with the leanest policy, moments of eight bits and updates in the backward pass.
    LeastMemory,
    /// The longest examples with the least of all that, where no batch of whole ones fits.
    ShorterSequences,
    /// Adapters, where nothing else fits.
    Lora,
    /// Frozen weights in codes of eight bits, under adapters where the recipe freezes nothing; where not even adapters fit.
    CodedBase,
}

/// What a way to run a recipe costs in accuracy; less is better. The last figures count only where those before them are equal.
type Cost = (bool, bool, bool, bool, Option<usize>, bool, usize);

fn cost(recipe: &Recipe, candidate: &Recipe) -> Cost {
    (
        candidate.train.method != recipe.train.method,
        candidate.data.max_length != recipe.data.max_length,
        // batches of one size may add up to a little more
        sequences(candidate).abs_diff(sequences(recipe)) >= candidate.train.accumulate,
        candidate.optim.clip != recipe.optim.clip,
        POLICIES.iter().position(|&policy| policy == candidate.keep.policy),
        candidate.optim.states != recipe.optim.states,
        candidate.train.accumulate,
    )
}

/// The recipe under every policy, the one that costs the least accuracy and time first, the leanest last.
pub fn candidates(recipe: &Recipe) -> Vec<Recipe> {
    let with = |policy| {
        let mut keep = Keeping { policy, ..recipe.keep.clone() };
        if policy != PolicyName::Exact {
            keep.norms = keep.norms.map(|_| NormSource::Current);
            if keep.estimator == Estimate::Exact {
                keep.estimator = Keeping::default().estimator;
            }
        }
        Recipe { keep, ..recipe.clone() }
    };
    // a recipe that leaves ratios to the run wants rows drawn
    let sensible = |policy: &PolicyName| *policy != PolicyName::Exact || !recipe.keep.chooses_ratios();
    POLICIES.into_iter().filter(sensible).map(with).collect()
}

fn eight_bit(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.optim.states = States::EightBit;
    recipe
}

/// With updates in the backward pass, and so without clipping, and with all sequences of a step in one batch.
fn in_backward(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.with_batch(sequences(recipe));
    recipe.train.accumulate = 1;
    (recipe.optim.update, recipe.optim.clip) = (When::InBackward, 0.0);
    recipe
}

fn lora(recipe: &Recipe) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.train.method = Method::Lora;
    // adapters stay in f32
    recipe.train.weights = TrainedWeights::F32;
    recipe
}

/// With what is frozen in codes.
fn coded(recipe: &Recipe, base: BaseWeights) -> Recipe {
    let mut recipe = recipe.clone();
    recipe.model.base = base;
    recipe
}

fn size(batch: BatchSize) -> usize {
    match batch {
        BatchSize::Sequences(n) | BatchSize::Tokens(n) => n,
    }
}

/// Sequences, or most tokens, of a step.
fn sequences(recipe: &Recipe) -> usize {
    size(recipe.train.batch).saturating_mul(recipe.train.accumulate)
}

/// What fits into `memory` bytes of a process, what costs the least accuracy first: the recipe as it is; where it does not fit, what makes
/// it do so with the same sequences a step; the largest batch under the recipe's own policy, the leanest, and the least of
/// everything; and where nothing of that fits, shorter examples, adapters, or frozen weights in codes. `batches` are the sizes that make sense, in the unit of the
/// recipe's batch; `plan` plans a recipe.
///
/// # Errors
/// Those of `plan`.
pub fn search(
    recipe: &Recipe,
    memory: usize,
    batches: RangeInclusive<usize>,
    plan: &dyn Fn(&Recipe) -> Result<Plan>,
) -> Result<Vec<Fit>> {
    let mut search = Search { recipe, memory, plan, found: Vec::new() };
    let as_it_is = search.first(Found::AsItIs, [recipe.clone()])?;
    let policies = candidates(recipe);
    let cheaper = policies.iter().take_while(|c| !as_it_is || c.keep != recipe.keep).cloned();
    let leanest = policies.last().unwrap_or(recipe);
    if as_it_is {
        search.first(Found::CheapestPolicy, cheaper)?;
    } else {
        let (least, bits) = (*batches.start(), eight_bit(recipe));
        let leaner = policies.iter().map(eight_bit);
        let added_up = search.accumulated(recipe, least)?;
        let whole = search.first(Found::EightBitStates, [bits.clone()])?;
        let added_up = added_up || !whole && search.accumulated(&bits, least)?;
        if !search.first(Found::CheapestPolicy, cheaper.chain(leaner.clone()))? {
            search.first(Found::InBackward, leaner.clone().map(|r| in_backward(&r)))?;
            for base in leaner.filter(|_| !added_up) {
                if search.accumulated(&base, least)? {
                    break;
                }
            }
        }
    }
    search.largest(Found::LargestBatch, recipe, batches.clone())?;
    search.largest(Found::LeanestPolicy, leanest, batches.clone())?;
    if !as_it_is {
        search.largest(Found::LeastMemory, &in_backward(&eight_bit(leanest)), batches.clone())?;
    }
    if search.found.is_empty() {
        search.shorter(Found::ShorterSequences, &in_backward(&eight_bit(leanest)), *batches.start())?;
    }
    if search.found.is_empty() {
        let (least, is_full) = (*batches.start(), recipe.train.method == Method::Full);
        let frozen = if is_full { lora(recipe) } else { recipe.clone() };
        let is_found = is_full && search.at_any_price(Found::Lora, &frozen, least)?;
        // in fewer bits than the recipe asks for, the most first
        let fewer = match recipe.model.base {
            _ if is_found => &[][..],
            BaseWeights::F32 | BaseWeights::Bf16 => &[BaseWeights::Int8, BaseWeights::Nf4],
            BaseWeights::Int8 => &[BaseWeights::Nf4],
            BaseWeights::Nf4 => &[],
        };
        for base in fewer {
            if search.at_any_price(Found::CodedBase, &coded(&frozen, *base), least)? {
                break;
            }
        }
    }
    search.found.sort_by(|(a, costs_a), (b, costs_b)| {
        let first = |fit: &Fit| fit.found != Found::AsItIs;
        (first(a), costs_a, a.found).cmp(&(first(b), costs_b, b.found))
    });
    Ok(search.found.into_iter().map(|(fit, _)| fit).collect())
}

struct Search<'a> {
    recipe: &'a Recipe,
    memory: usize,
    plan: &'a dyn Fn(&Recipe) -> Result<Plan>,
    found: Vec<(Fit, Cost)>,
}

impl Search<'_> {
    fn fits(&self, candidate: &Recipe) -> Result<bool> {
        Ok((self.plan)(candidate)?.process_bytes <= self.memory)
    }

    /// Notes the first candidate that fits. Whether there is one.
    fn first(&mut self, found: Found, candidates: impl IntoIterator<Item = Recipe>) -> Result<bool> {
        for candidate in candidates {
            let plan = (self.plan)(&candidate)?;
            if plan.process_bytes <= self.memory {
                let fit = Fit::new(found, self.recipe, &candidate, &plan);
                if !self.found.iter().any(|(other, _)| other.set == fit.set) {
                    self.found.push((fit, cost(self.recipe, &candidate)));
                }
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `base` with the largest batch that fits, if that is another than the recipe's.
    fn largest(&mut self, found: Found, base: &Recipe, batches: RangeInclusive<usize>) -> Result<()> {
        let size = largest(batches, |size| self.fits(&base.with_batch(size)))?;
        let sized = size.map(|size| base.with_batch(size)).filter(|r| r.train.batch != self.recipe.train.batch);
        self.first(found, sized).map(drop)
    }

    /// `base` with smaller batches and as many more of them a step. Whether that fits.
    fn accumulated(&mut self, base: &Recipe, least: usize) -> Result<bool> {
        if base.optim.update == When::InBackward {
            return Ok(false);
        }
        let sizes = least..=size(base.train.batch).saturating_sub(1);
        let together = sequences(base);
        let split = |size: usize, batches| {
            let mut split = base.with_batch(size);
            split.train.accumulate = batches;
            split
        };
        // gradients of the batches before stay, so that more than one is planned
        let fits = |size: usize| self.fits(&split(size, together.div_ceil(size).max(2)));
        let Some(most) = largest(sizes, fits)? else { return Ok(false) };
        let fewest = together.div_ceil(most);
        // batches of one size, where that does not take twice as many
        let batches = (fewest..=2 * fewest).find(|n| together.is_multiple_of(*n) && together / n >= least);
        let batches = batches.unwrap_or(fewest);
        self.first(Found::Accumulation, [split(together.div_ceil(batches).max(least), batches)])
    }

    /// `base` in the smallest batches with the longest examples that fit.
    fn shorter(&mut self, found: Found, base: &Recipe, least: usize) -> Result<bool> {
        let most = base.data.max_length;
        let cut = |length| {
            let mut cut = match base.train.batch {
                BatchSize::Sequences(_) => base.with_batch(least),
                BatchSize::Tokens(_) => base.with_batch(least.min(length)),
            };
            cut.data.max_length = length;
            cut
        };
        let length = largest(SHORTEST.min(most)..=most, |length| self.fits(&cut(length)))?;
        self.first(found, length.map(cut))
    }

    /// `base` under the cheapest policy that fits, with the recipe's batch, with the smallest, or with shorter examples. Whether that fits.
    fn at_any_price(&mut self, found: Found, base: &Recipe, least: usize) -> Result<bool> {
        // a recipe's patterns may name what a model with adapters does not have, and what it trains may leave nothing to freeze
        if (self.plan)(base).is_err() {
            return Ok(false);
        }
        let policies = candidates(base);
        Ok(self.first(found, policies.clone())?
            || self.first(found, policies.iter().map(|r| r.with_batch(least)))?
            || self.shorter(found, policies.last().unwrap_or(base), least)?)
    }
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
            BatchSize::Sequences(_) => BatchSize::Sequences(size),
            BatchSize::Tokens(_) => BatchSize::Tokens(size),
        };
        recipe
    }
}

impl Fit {
    fn new(found: Found, recipe: &Recipe, candidate: &Recipe, plan: &Plan) -> Self {
        let Recipe { model, data, train, optim, keep, .. } = candidate;
        let batch = match train.batch {
            BatchSize::Sequences(n) => format!("train.batch={n}"),
            BatchSize::Tokens(n) => format!("train.batch_tokens={n}"),
        };
        let norms = keep.norms.map_or_else(String::new, |norms| format!("keep.norms={norms}"));
        let set = [
            (train.method != recipe.train.method, format!("train.method={}", train.method)),
            (train.weights != recipe.train.weights, format!("train.weights={}", train.weights)),
            (model.base != recipe.model.base, format!("model.base={}", model.base)),
            (keep.policy != recipe.keep.policy, format!("keep.policy={}", keep.policy)),
            (keep.estimator != recipe.keep.estimator, format!("keep.estimator={}", keep.estimator)),
            (keep.norms != recipe.keep.norms, norms),
            (optim.states != recipe.optim.states, format!("optim.states={}", optim.states)),
            (optim.update != recipe.optim.update, format!("optim.update={}", optim.update)),
            (optim.clip != recipe.optim.clip, format!("optim.clip={}", optim.clip)),
            (train.batch != recipe.train.batch, batch),
            (train.accumulate != recipe.train.accumulate, format!("train.accumulate={}", train.accumulate)),
            (data.max_length != recipe.data.max_length, format!("data.max_length={}", data.max_length)),
        ];
        let clip = format!("optim.clip=0: the gradient is no longer clipped to {}", recipe.optim.clip);
        let [is, was] = [data.max_length, recipe.data.max_length];
        let cut = format!("data.max_length={is}: examples are cut to {is} tokens, not to {was}");
        let gives_up = [
            (optim.clip != recipe.optim.clip, clip),
            (data.max_length != recipe.data.max_length, cut),
            (
                train.method != recipe.train.method,
                "train.method=lora: adapters are trained, not the weights".to_owned(),
            ),
            (
                model.base != recipe.model.base,
                format!(
                    "model.base={}: weights that are not trained are rounded to {} bits",
                    model.base,
                    if model.base == BaseWeights::Nf4 { "four" } else { "eight" }
                ),
            ),
        ];
        let said = |list: &[(bool, String)]| list.iter().filter(|(is, _)| *is).map(|(_, text)| text.clone()).collect();
        Self {
            found,
            policy: keep.policy,
            ratio: if keep.policy == PolicyName::Exact { Ratio::Fixed(1.0) } else { keep.ratio },
            batch: train.batch,
            accumulate: train.accumulate,
            states: optim.states,
            update: optim.update,
            max_length: data.max_length,
            method: train.method,
            peak_bytes: plan.peak_bytes,
            process_bytes: plan.process_bytes,
            set: said(&set),
            gives_up: said(&gives_up),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use colrow_autograd::Ledger;
    use colrow_tensor::Bytes;

    use super::*;

    /// Two bytes a sequence of 128 tokens under `exact`, 1.7 under `paper`, fewer under the others; and of a model whose moments take 5 bytes
    /// of 10, 1 in eight bits, whose gradients take 2 where they stay, and whose weights 3.
    fn plan(recipe: &Recipe) -> Result<Plan> {
        let n = size(recipe.train.batch);
        let drawn_early = recipe.keep.norms() != NormSource::Current;
        let each = match recipe.keep.policy {
            PolicyName::Exact => 2.0,
            PolicyName::Paper => 1.7,
            PolicyName::Lean if drawn_early => 1.6,
            PolicyName::Lean => 1.5,
            PolicyName::Leanest => 1.2,
            PolicyName::Recompute => 1.1,
        };
        let each = each * recipe.data.max_length as f64 / 128.0;
        let moments = if recipe.optim.states == States::EightBit { 1 } else { 5 };
        let gradients = if recipe.optim.update == When::InBackward { 0 } else { 2 };
        let learned = if recipe.train.method == Method::Full { moments + gradients } else { 0 };
        let weights = match recipe.model.base {
            BaseWeights::Nf4 => 0,
            BaseWeights::Int8 => 1,
            _ => 3,
        };
        let fixed = weights + learned;
        let bytes = fixed + (n as f64 * each).round() as usize;
        Ok(Plan {
            sent_bytes: None,
            kept_bytes: 0,
            peak_bytes: bytes.saturating_sub(1),
            peak_bytes_by_class: Bytes::default(),
            evaluation_peak_bytes: 0,
            process_bytes: bytes,
            mapped_bytes: 0,
            sites: Vec::new(),
            tokens: 0,
            ledger: Ledger::default(),
            measured: HashSet::new(),
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
            assert!(fit.process_bytes <= memory && fit.peak_bytes == fit.process_bytes.saturating_sub(1));
        }
        fits.into_iter().map(|fit| (fit.found, fit.process_bytes, fit.set)).collect()
    }

    fn fit(found: Found, bytes: usize, set: &[&str]) -> (Found, usize, Vec<String>) {
        (found, bytes, set.iter().map(|&s| s.to_owned()).collect())
    }

    #[test]
    fn what_costs_the_least_accuracy_comes_first() {
        use Found::*;
        let batch = |n| ["keep.policy=recompute", n];
        assert_eq!(
            found(&["train.batch=100"], 210),
            [fit(AsItIs, 210, &[]), fit(LeanestPolicy, 210, &batch("train.batch=182"))]
        );
        let least = ["keep.policy=recompute", "optim.states=8bit", "optim.update=in-backward", "optim.clip=0"];
        let least = |n: &'static str| [&least[..], &[n]].concat();
        assert_eq!(
            found(&["train.batch=100"], 135),
            [
                fit(Accumulation, 110, &["train.batch=50", "train.accumulate=2"]),
                fit(CheapestPolicy, 130, &["keep.policy=leanest"]),
                fit(LargestBatch, 134, &["train.batch=62"]),
                fit(LeanestPolicy, 135, &batch("train.batch=114")),
                fit(LeastMemory, 135, &least("train.batch=119")),
            ]
        );
        // 97 has no divisors
        assert_eq!(
            found(&["train.batch=97"], 100)[0],
            fit(Accumulation, 76, &["train.batch=33", "train.accumulate=3"]),
        );
        assert_eq!(
            found(&["train.batch_tokens=100"], 100),
            [
                fit(Accumulation, 60, &["train.batch_tokens=25", "train.accumulate=4"]),
                fit(LargestBatch, 100, &["train.batch_tokens=45"]),
                fit(LeanestPolicy, 100, &batch("train.batch_tokens=82")),
                fit(LeastMemory, 100, &least("train.batch_tokens=87")),
            ]
        );
    }

    #[test]
    fn moments_of_eight_bits_and_updates_in_the_backward_pass_fit_where_nothing_else_does() {
        use Found::*;
        let states = "optim.states=8bit";
        let in_backward = [states, "optim.update=in-backward", "optim.clip=0"];
        // of 10 bytes without a sequence, 6 with moments of eight bits
        assert_eq!(
            found(&["train.batch=2"], 11),
            [
                fit(EightBitStates, 10, &[states]),
                fit(LeanestPolicy, 11, &["keep.policy=recompute", "train.batch=1"]),
                fit(LeastMemory, 11, &[&["keep.policy=recompute"], &in_backward[..], &["train.batch=6"]].concat()),
            ]
        );
        assert_eq!(
            found(&["train.batch=100"], 10)[0],
            fit(Accumulation, 10, &[states, "train.batch=2", "train.accumulate=50"])
        );
        // 4 with updates in the backward pass too; all of a step's sequences are then in one batch
        let gone = found(&["train.batch=1", "train.accumulate=2", "optim.clip=0.5"], 8);
        assert_eq!(gone[0], fit(EightBitStates, 8, &[states]));
        let gone = found(&["train.batch=1", "train.accumulate=2", "optim.clip=0.5"], 7);
        let lean = ["keep.policy=leanest", states];
        assert_eq!(gone[0], fit(CheapestPolicy, 7, &lean), "{gone:?}");
        let gone = found(&["train.batch=1", "train.accumulate=2", "optim.clip=0.5"], 6);
        let whole = [&["keep.policy=leanest"], &in_backward[..], &["train.batch=2", "train.accumulate=1"]].concat();
        assert_eq!(gone[0], fit(InBackward, 6, &whole), "{gone:?}");
        // a recipe that has all of it already
        let all = ["train.batch=100", states, "optim.update=in-backward", "optim.clip=0", "keep.policy=recompute"];
        assert_eq!(found(&all, 15), [fit(LargestBatch, 15, &["train.batch=10"])]);
    }

    #[test]
    fn shorter_sequences_and_adapters_come_last() {
        use Found::*;
        let least = ["keep.policy=recompute", "optim.states=8bit", "optim.update=in-backward", "optim.clip=0"];
        let one = ["train.batch=1", "data.max_length=58"];
        assert_eq!(found(&["train.batch=100"], 4), [fit(ShorterSequences, 4, &[&least[..], &one].concat())]);
        let adapters = ["train.method=lora", "keep.policy=recompute", "train.batch=1", "data.max_length=58"];
        assert_eq!(found(&["train.batch=100"], 3), [fit(Lora, 3, &adapters)]);
        let coded = ["train.method=lora", "model.base=int8", "keep.policy=leanest", "train.batch=1"];
        assert_eq!(found(&["train.batch=100"], 2), [fit(CodedBase, 2, &coded)]);
        let shorter = ["model.base=int8", "keep.policy=recompute", "train.batch=1", "data.max_length=58"];
        assert_eq!(found(&["train.batch=100", "train.method=lora"], 1), [fit(CodedBase, 1, &shorter)]);
        let fewest = ["model.base=nf4", "keep.policy=recompute", "train.batch=1", "data.max_length=58"];
        let lora = ["train.batch=100", "train.method=lora"];
        assert_eq!(found(&lora, 0), [fit(CodedBase, 0, &fewest)]);
        assert_eq!(found(&[&lora[..], &["model.base=int8"]].concat(), 0), [fit(CodedBase, 0, &fewest)]);
    }

    #[test]
    fn what_is_given_up_is_said() {
        let recipe = Recipe::parse("model.path = 'm'", "test", &["train.batch=100".to_owned()]).unwrap();
        let fits = search(&recipe, 4, 1..=1000, &plan).unwrap();
        let said = [
            "optim.clip=0: the gradient is no longer clipped to 1",
            "data.max_length=58: examples are cut to 58 tokens, not to 128",
        ];
        assert_eq!(fits[0].gives_up, said);
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
