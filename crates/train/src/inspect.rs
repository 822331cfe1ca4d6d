//! The evidence for sampling on a real model and data: how the probability mass is spread over rows, and what every estimator's
//! error is, site by site (Liu et al. 2023, section 3.2 and figures 3 to 5); and the error of what the recipe itself keeps.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use colrow_autograd::{CachePlace, Draw, NormMemory, NormSource, Policy, Probe, Sampling, estimate_by, row_norms};
use colrow_models::net::SiteKind;
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Error, Estimator, Named, Precision, Result, Tensor, certain_rows};
use serde::Serialize;

use crate::data::Batch;
use crate::job::Job;
use crate::recipe::{Estimate, PolicyName, Ratio};

/// Shares of the rows, those with the largest probabilities.
pub const TOPS: [f64; 8] = [0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0];
/// Shares of the k rows that are kept for certain.
pub const CERTAIN: [f64; 11] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
/// Shares of the rows that are kept.
pub const RATIOS: [f64; 3] = [0.1, 0.3, 0.5];
const ESTIMATORS: [Estimator; 4] = [Estimator::Crs, Estimator::Wta, Estimator::Pps, Estimator::TopK];
const SOURCES: &[NormSource] = NormSource::ALL;

/// What to inspect.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// Batches that are looked at.
    pub steps: usize,
    /// Passes over these batches that train before, so that norms are remembered and the model is past its start.
    pub passes: usize,
    /// Draws by which an error is measured.
    pub draws: u64,
    /// A linear whose operands in the first batch that is looked at are wanted.
    pub export: Option<String>,
}

/// The probability mass of the rows with the largest probabilities.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mass {
    /// Share of the rows.
    pub top: f64,
    /// Their share of `Σ ‖H_i‖·‖dZ_i‖`.
    pub share: f64,
}

/// The probability mass of the rows that are kept for certain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certain {
    /// Their number over k, |C|/k.
    pub share: f64,
    /// Σ_C p. Above `share` the paper's condition holds.
    pub mass: f64,
}

/// An estimator's error.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EstimatorError {
    /// Its name.
    pub estimator: &'static str,
    /// Where the norms of dZ come from.
    pub norms: &'static str,
    /// `√(E‖Ĝ − G‖²)/‖G‖`.
    pub rmse: f64,
    /// `E‖Ĝ − G‖²` over the variance of the minibatch gradient; `None` with a single batch.
    pub variance_to_minibatch: Option<f64>,
}

/// The error of the weight gradients that the recipe's own `keep` gives, whatever it does to their operands and to the gradients that
/// come from above.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RecipeError {
    /// `√(E‖Ĝ − G‖²)/‖G‖`.
    pub rmse: f64,
    /// `E‖Ĝ − G‖²` over the variance of the minibatch gradient; `None` with a single batch.
    pub variance_to_minibatch: Option<f64>,
}

/// What holds when a share of the rows is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AtRatio {
    /// The share, k/n.
    pub ratio: f64,
    /// The best number of certain rows, over k: |C| that minimises (1 − Σ_C p)/(k − |C|).
    pub certain_share: f64,
    /// Share of the batches where Σ_C p > |C|/k: the paper's condition for less variance than `crs` (its theorem 2).
    pub condition: f64,
    /// The mass of the largest rows, for any number of certain ones.
    pub certain: Vec<Certain>,
    /// By estimator and norm source.
    pub estimators: Vec<EstimatorError>,
}

/// A linear.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SiteEvidence {
    /// Its site; the last is the mean over all.
    pub name: String,
    /// Mean number of rows in a batch.
    pub rows: f64,
    /// Mass of the top rows.
    pub mass: Vec<Mass>,
    /// By ratio.
    pub ratios: Vec<AtRatio>,
    /// Of the recipe as it is.
    pub recipe: RecipeError,
}

/// What was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct About {
    /// The model's folder or hub id.
    pub model: String,
    /// The training data.
    pub data: String,
    /// The task.
    pub task: String,
    /// The policy of the recipe.
    pub policy: PolicyName,
    /// Its estimator.
    pub estimator: Estimate,
    /// Its share of the rows.
    pub ratio: Ratio,
    /// Where it has norms from.
    pub norms: NormSource,
    /// Passes that trained before.
    pub passes: usize,
}

/// A linear's input and output gradient, a row a token.
#[derive(Debug)]
pub struct Operands {
    /// Its input.
    pub x: Tensor,
    /// The gradient of its output.
    pub dz: Tensor,
}

/// All that was found.
#[derive(Debug, Serialize)]
pub struct Evidence {
    /// Of what.
    pub about: About,
    /// Batches looked at.
    pub steps: usize,
    /// Mean number of tokens in a batch.
    pub rows_per_step: f64,
    /// By site, in the order of the forward pass.
    pub sites: Vec<SiteEvidence>,
    /// The mean over sites.
    pub mean: SiteEvidence,
    /// What [`Inspection::export`] asked for.
    #[serde(skip)]
    pub operands: Option<Operands>,
}

#[derive(Debug, Default)]
struct SiteSums {
    batches: usize,
    rows: usize,
    mass: [f64; TOPS.len()],
    certain: [f64; RATIOS.len()],
    condition: [f64; RATIOS.len()],
    certain_mass: [[f64; CERTAIN.len()]; RATIOS.len()],
    /// Squared errors by ratio, estimator, source.
    errors: [[[f64; SOURCES.len()]; ESTIMATORS.len()]; RATIOS.len()],
    /// Σ‖G‖² and ΣG over batches.
    squares: f64,
    sum: Option<Tensor>,
    /// The exact gradient of the batch, and the squared error of the recipe's over batches.
    gradient: Option<Tensor>,
    recipe: f64,
}

/// What a step is for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Look {
    /// Only norms are remembered.
    Train,
    /// Everything is kept: the estimators are measured.
    Exact,
    /// The same batch as the recipe keeps it.
    Recipe,
}

/// Sums over batches, site by site.
#[derive(Debug)]
struct Collector {
    memory: Arc<NormMemory>,
    look: Mutex<Look>,
    uniform: f32,
    draws: u64,
    key: Key,
    sites: Mutex<BTreeMap<String, SiteSums>>,
    export: Option<String>,
    operands: Mutex<Option<Operands>>,
}

/// Share of the sum that the `top` share of the values has, those sorted from the largest.
fn mass_of(sorted: &[f64], top: f64) -> f64 {
    let rows = ((top * sorted.len() as f64).round() as usize).clamp(1, sorted.len());
    sorted[..rows].iter().sum::<f64>() / sorted.iter().sum::<f64>()
}

/// Σ_C p of the `share` of k rows with the largest probabilities.
fn certain_mass(p: &[f64], k: usize, share: f64) -> f64 {
    p[..(share * k as f64).round() as usize].iter().sum()
}

/// |C|, and Σ_C p; p sorted from the largest.
fn best_certain(p: &[f64], k: usize) -> (usize, f64) {
    let sums = p.iter().scan(0.0, |sum, p| {
        *sum += p;
        Some(*sum)
    });
    let mass: Vec<f64> = std::iter::once(0.0).chain(sums).collect();
    let certain = certain_rows(k, |c| 1.0 - mass[c]);
    (certain, mass[certain])
}

fn product(x: &Tensor, dz: &Tensor) -> Tensor {
    let mut g = x.device().empty(Class::Workspace, x.dtype(), &[dz.cols(), x.cols()]);
    x.device().kernels().matmul(dz, true, x, false, 0.0, &mut g);
    g
}

impl Collector {
    fn measure(&self, site: &str, x: &Tensor, dz: &Tensor) {
        if self.export.as_deref() == Some(site) {
            let mut operands = self.operands.lock().unwrap_or_else(PoisonError::into_inner);
            operands.get_or_insert_with(|| Operands { x: x.copied(), dz: dz.copied() });
        }
        let (h, z) = (row_norms(x), row_norms(dz));
        let n = x.rows();
        let kernels = x.device().kernels();
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        let sums = sites.entry(site.to_owned()).or_default();
        let mut a: Vec<f64> = h.to_f64().iter().zip(z.to_f64()).map(|(h, z)| h * z).collect();
        let total: f64 = a.iter().sum();
        if total <= 0.0 || !total.is_finite() {
            return;
        }
        a.sort_by(|a, b| b.total_cmp(a));
        let p: Vec<f64> = a.iter().map(|a| a / total).collect();
        sums.mass.iter_mut().zip(TOPS).for_each(|(sum, top)| *sum += mass_of(&p, top));
        let g = product(x, dz);
        let estimate = |&source: &NormSource| match source {
            NormSource::Current => Some(z.copied()),
            _ => self.memory.estimate(site, source, &h),
        };
        let estimates: Vec<_> = SOURCES.iter().map(estimate).collect();
        let key = self.key.named(site).child(sums.batches as u64);
        for (r, ratio) in RATIOS.into_iter().enumerate() {
            let sampling =
                Sampling { estimator: Estimator::Pps, ratio: ratio as f32, norms: NormSource::Current, uniform: 0.0 };
            let k = sampling.rows_of(n);
            let (certain, mass) = best_certain(&p, k);
            sums.certain[r] += certain as f64 / k as f64;
            sums.certain_mass[r].iter_mut().zip(CERTAIN).for_each(|(sum, share)| *sum += certain_mass(&p, k, share));
            sums.condition[r] += f64::from(u8::from(mass > certain as f64 / k as f64));
            for (e, estimator) in ESTIMATORS.into_iter().enumerate() {
                for (s, &source) in SOURCES.iter().enumerate() {
                    let uniform = if source == NormSource::Current { 0.0 } else { self.uniform };
                    let draws = if estimator == Estimator::TopK { 1 } else { self.draws };
                    let error = |draw: u64| {
                        let key = key.child(r as u64).child(e as u64).child(s as u64).child(draw);
                        let how = Draw { estimator, rows: k, uniform, key };
                        let mut difference = estimate_by(&how, x, &h, dz, estimates[s].as_ref());
                        kernels.scale(-1.0, None, &mut difference);
                        kernels.add(&g, &mut difference);
                        difference.sum_squares()
                    };
                    sums.errors[r][e][s] += (0..draws).map(error).sum::<f64>() / draws as f64;
                }
            }
        }
        sums.batches += 1;
        sums.rows += n;
        sums.squares += g.sum_squares();
        sums.gradient = Some(g.copied());
        match &mut sums.sum {
            Some(sum) => kernels.add(&g, sum),
            None => sums.sum = Some(g),
        }
    }
}

impl Collector {
    /// Operands as the recipe keeps them: all rows or the drawn ones.
    fn compare(&self, site: &str, x: &Tensor, dz: &Tensor) {
        let mut sites = self.sites.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((sums, g)) = sites.get_mut(site).and_then(|sums| sums.gradient.take().map(|g| (sums, g))) {
            let (kernels, mut difference) = (x.device().kernels(), product(x, dz));
            kernels.scale(-1.0, None, &mut difference);
            kernels.add(&g, &mut difference);
            sums.recipe += difference.sum_squares();
        }
    }

    fn look(&self, look: Look) {
        *self.look.lock().unwrap_or_else(PoisonError::into_inner) = look;
    }
}

impl Probe for Collector {
    fn linear(&self, site: &str, x: &Tensor, dz: &Tensor) {
        let look = *self.look.lock().unwrap_or_else(PoisonError::into_inner);
        match look {
            Look::Train => {
                self.memory.record(site, &row_norms(dz));
                self.memory.settle();
            }
            // not remembered: the recipe would draw by this very batch's norms next
            Look::Exact => self.measure(site, x, dz),
            Look::Recipe => self.compare(site, x, dz),
        }
    }
}

impl SiteSums {
    fn evidence(&self, name: &str) -> SiteEvidence {
        let n = self.batches as f64;
        let sum = self.sum.as_ref().map_or(0.0, Tensor::sum_squares);
        // unbiased, of one batch's gradient
        let minibatch = (self.batches > 1).then(|| (self.squares - sum / n) / (n - 1.0)).filter(|v| *v > 0.0);
        let at = |r: usize| AtRatio {
            ratio: RATIOS[r],
            certain_share: self.certain[r] / n,
            condition: self.condition[r] / n,
            certain: CERTAIN
                .iter()
                .zip(self.certain_mass[r])
                .map(|(&share, sum)| Certain { share, mass: sum / n })
                .collect(),
            estimators: all_pairs()
                .map(|(e, s)| EstimatorError {
                    estimator: ESTIMATORS[e].name(),
                    norms: SOURCES[s].name(),
                    rmse: (self.errors[r][e][s] / self.squares).sqrt(),
                    variance_to_minibatch: minibatch.map(|v| self.errors[r][e][s] / n / v),
                })
                .collect(),
        };
        SiteEvidence {
            name: name.to_owned(),
            rows: self.rows as f64 / n,
            mass: TOPS.iter().zip(self.mass).map(|(&top, sum)| Mass { top, share: sum / n }).collect(),
            ratios: (0..RATIOS.len()).map(at).collect(),
            recipe: RecipeError {
                rmse: (self.recipe / self.squares).sqrt(),
                variance_to_minibatch: minibatch.map(|v| self.recipe / n / v),
            },
        }
    }
}

fn all_pairs() -> impl Iterator<Item = (usize, usize)> {
    (0..ESTIMATORS.len()).flat_map(|e| (0..SOURCES.len()).map(move |s| (e, s)))
}

fn mean_of(sites: &[SiteEvidence]) -> SiteEvidence {
    let mean = |of: &dyn Fn(&SiteEvidence) -> f64| sites.iter().map(of).sum::<f64>() / sites.len() as f64;
    let mean_known = |of: &dyn Fn(&SiteEvidence) -> Option<f64>| {
        let known: Option<Vec<f64>> = sites.iter().map(of).collect();
        known.map(|v| v.iter().sum::<f64>() / v.len() as f64)
    };
    let at = |r: usize| AtRatio {
        ratio: RATIOS[r],
        certain_share: mean(&|s| s.ratios[r].certain_share),
        condition: mean(&|s| s.ratios[r].condition),
        certain: (0..CERTAIN.len())
            .map(|i| Certain { share: CERTAIN[i], mass: mean(&|s| s.ratios[r].certain[i].mass) })
            .collect(),
        estimators: all_pairs()
            .enumerate()
            .map(|(i, (e, s))| EstimatorError {
                estimator: ESTIMATORS[e].name(),
                norms: SOURCES[s].name(),
                rmse: mean(&|site| site.ratios[r].estimators[i].rmse),
                variance_to_minibatch: mean_known(&|site| site.ratios[r].estimators[i].variance_to_minibatch),
            })
            .collect(),
    };
    SiteEvidence {
        name: "mean".to_owned(),
        rows: mean(&|s| s.rows),
        mass: (0..TOPS.len()).map(|i| Mass { top: TOPS[i], share: mean(&|s| s.mass[i].share) }).collect(),
        ratios: (0..RATIOS.len()).map(at).collect(),
        recipe: RecipeError {
            rmse: mean(&|s| s.recipe.rmse),
            variance_to_minibatch: mean_known(&|s| s.recipe.variance_to_minibatch),
        },
    }
}

/// Trains `passes` times over the first `steps` batches of the recipe's data, keeping everything, then looks at those batches without
/// learning: keeping everything, and once more, with the same dropout, as the recipe keeps it. `done` is told of every batch.
///
/// # Errors
/// Anything that is wrong with model or data; a recipe that trains no linear's weight.
pub fn inspect(job: &mut Job, settings: &Inspection, mut done: impl FnMut(usize, usize)) -> Result<Evidence> {
    let policies = [(Look::Exact, Arc::new(Policy::exact())), (Look::Recipe, job.policy.clone())];
    job.policy = policies[0].1.clone();
    // the errors of estimators, not of rounding
    job.recipe.train.precision = Precision::F32;
    job.auto.clear();
    let model = job.model()?;
    let device = model.registry.params.device().clone();
    let linears = model.sites().into_iter().filter(|site| site.kind == SiteKind::Linear);
    let sites: Vec<_> = linears.map(|site| (site.name, site.rows)).collect();
    if let Some(name) = settings.export.as_ref().filter(|name| !sites.iter().any(|(site, _)| site == *name)) {
        let known: Vec<&str> = sites.iter().map(|(site, _)| site.as_str()).collect();
        return Err(Error::usage(format!("expected a linear's site to export, found `{name}`"))
            .hint(format!("sites are {}", known.join(", "))));
    }
    let memory = Arc::new(NormMemory::new(&device, &sites, job.cached_tokens(), CachePlace::Memory)?);
    let mut engine = job.engine(model, std::path::Path::new(""))?;
    let collector = Arc::new(Collector {
        memory: memory.clone(),
        look: Mutex::new(Look::Train),
        uniform: job.recipe.keep.uniform.max(0.01) as f32,
        draws: settings.draws,
        key: Key::new(job.recipe.seed).named("inspect"),
        sites: Mutex::default(),
        export: settings.export.clone(),
        operands: Mutex::default(),
    });
    engine.gradient.norms = Some(memory);
    engine.gradient.probe = Some(collector.clone());
    let batches = job.sampler.epoch(0);
    let batches = &batches[..settings.steps.min(batches.len())];
    let total = batches.len() * (settings.passes + 1);
    let (mut step, mut tokens) = (0, 0);
    for pass in 0..=settings.passes {
        let measuring = pass == settings.passes;
        for examples in batches {
            let micro = Batch::placed(&job.train, examples);
            step += 1;
            if measuring {
                tokens += micro.tokens.ids.len();
                for (look, policy) in &policies {
                    collector.look(*look);
                    engine.gradient.policy = policy.clone();
                    engine.step(std::slice::from_ref(&micro), 0.0, step as u64, false)?;
                }
            } else {
                engine.step(&[micro], job.recipe.optim.lr, step as u64, false)?;
            }
            done(step, total);
        }
    }
    let sums = collector.sites.lock().unwrap_or_else(PoisonError::into_inner);
    let order = engine.model.sites();
    let found = order.iter().filter_map(|site| Some(sums.get(&site.name)?.evidence(&site.name)));
    let sites: Vec<_> = found.filter(|site| site.rows > 0.0).collect();
    if sites.is_empty() {
        return Err(Error::usage("this recipe trains no linear's weight; there is nothing to sample")
            .hint("inspect full fine-tuning: --set train.method=full"));
    }
    let rows_per_step = tokens as f64 / batches.len() as f64;
    let operands = collector.operands.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(name) = settings.export.as_ref().filter(|_| operands.is_none()) {
        return Err(Error::usage(format!(
            "this recipe does not train the weight of `{name}`; there is nothing to export"
        )));
    }
    let (recipe, keep) = (&job.recipe, &job.recipe.keep);
    let about = About {
        model: recipe.model.path.clone(),
        data: recipe.data.train.clone().unwrap_or_default(),
        task: recipe.task.clone(),
        policy: keep.policy,
        estimator: keep.estimator,
        ratio: keep.ratio,
        norms: keep.norms(),
        passes: settings.passes,
    };
    Ok(Evidence { about, steps: batches.len(), rows_per_step, mean: mean_of(&sites), sites, operands })
}

#[cfg(test)]
mod tests {
    use colrow_autograd::{BatchPlaces, Places, RowsOf};
    use colrow_tensor::{DType, Device, Rows};

    use super::*;

    #[test]
    fn masses_and_certain_rows_by_hand() {
        let p = [0.5, 0.2, 0.1, 0.1, 0.1];
        // one row, round(2.5) rows away from zero, and at least one
        for (top, want) in [(0.2, 0.5), (0.5, 0.8), (0.01, 0.5)] {
            assert!((mass_of(&p, top) - want).abs() < 1e-15);
        }
        // k = 3: 1/3, 0.5/2, 0.3/1
        assert_eq!(best_certain(&p, 3), (1, 0.5));
        assert_eq!(best_certain(&[0.25; 4], 2), (0, 0.0));
        assert_eq!(best_certain(&p, 1), (0, 0.0));
        // of 4 rows none, round(1.2), round(2) and all
        for (share, want) in [(0.0, 0.0), (0.3, 0.5), (0.5, 0.7), (1.0, 0.9)] {
            assert!((certain_mass(&p, 4, share) - want).abs() < 1e-15);
        }
    }

    const N: usize = 40;

    fn collector(device: &Device, draws: u64) -> Collector {
        let sites = [("site".to_owned(), RowsOf::Tokens)];
        let memory = Arc::new(NormMemory::new(device, &sites, N, CachePlace::Memory).unwrap());
        let positions = (0..N as u32).map(|i| (i, false)).collect();
        let tokens = Places { tokens: Some((0..N as u64).collect()), positions };
        memory.begin(BatchPlaces { tokens, targets: Places::default(), weight: 1.0 });
        Collector {
            memory,
            look: Mutex::new(Look::Exact),
            uniform: 0.1,
            draws,
            key: Key::new(3),
            sites: Mutex::default(),
            export: None,
            operands: Mutex::default(),
        }
    }

    fn matrix(device: &Device, seed: u64, d: usize) -> Tensor {
        let key = Key::new(seed);
        let number = |i: usize| key.normal(i as u64) * (1.2 * key.child(1).normal((i / d) as u64)).exp();
        device.tensor(Class::Workspace, &[N, d], &(0..N * d).map(number).collect::<Vec<f64>>())
    }

    /// With true norms `crs` has the variance ((Σa)² − ‖G‖²)/k; top-k the norm of what it leaves out. 4,000 draws: a squared
    /// error's mean is within 8 %, its relative deviation being about 1.
    #[test]
    fn errors_are_those_of_the_closed_forms() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 3), matrix(&device, 2, 2));
        let collector = collector(&device, 4000);
        collector.linear("site", &x, &dz);
        let g = product(&x, &dz);
        let square = g.sum_squares();
        let a: Vec<f64> = row_norms(&x).to_f64().iter().zip(row_norms(&dz).to_f64()).map(|(h, z)| h * z).collect();
        let evidence = collector.sites.lock().unwrap()["site"].evidence("site");
        let error = |r: usize, estimator: &str, norms: &str| {
            let all = &evidence.ratios[r].estimators;
            all.iter().find(|e| e.estimator == estimator && e.norms == norms).unwrap().rmse
        };
        for (r, ratio) in RATIOS.into_iter().enumerate() {
            let k = (ratio * N as f64).round();
            let want = ((a.iter().sum::<f64>().powi(2) - square) / k / square).sqrt();
            let found = error(r, "crs", "current");
            assert!((found / want - 1.0).abs() < 0.08, "{ratio}: {found} is not {want}");
            // the others have less, in this order, and a source that knows less has more
            assert!(error(r, "wta", "current") < found && error(r, "pps", "current") < error(r, "wta", "current"));
            assert!(error(r, "pps", "uniform") > error(r, "pps", "current"));
            let mut order: Vec<usize> = (0..N).collect();
            order.sort_by(|&i, &j| a[j].total_cmp(&a[i]));
            let left: Vec<u32> = order[k as usize..].iter().map(|&i| i as u32).collect();
            let left = device.tensor(Class::Workspace, &[left.len()], &left);
            let rest = |t: &Tensor| {
                let mut rows = device.empty(Class::Workspace, DType::F64, &[left.len(), t.cols()]);
                device.kernels().read_rows(&Rows { of: t.into(), index: Some(&left) }, None, &mut rows);
                rows
            };
            let bias = product(&rest(&x), &rest(&dz)).sum_squares();
            assert!((error(r, "topk", "current") / (bias / square).sqrt() - 1.0).abs() < 1e-9);
        }
    }

    /// Norms that were recorded are what the cached source draws by: as good as the true ones, but for the uniform share and the code's
    /// nine percent.
    #[test]
    fn cached_norms_are_those_of_the_last_time() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 3), matrix(&device, 2, 2));
        let collector = collector(&device, 500);
        collector.look(Look::Train);
        collector.linear("site", &x, &dz);
        assert!(collector.sites.lock().unwrap().is_empty());
        collector.look(Look::Exact);
        collector.linear("site", &x, &dz);
        let evidence = collector.sites.lock().unwrap()["site"].evidence("site");
        let error = |norms: &str| {
            let all = &evidence.ratios[1].estimators;
            all.iter().find(|e| e.estimator == "pps" && e.norms == norms).unwrap().rmse
        };
        assert!(error("cached") < 1.3 * error("current"), "{} {}", error("cached"), error("current"));
        assert!(error("uniform") > 1.5 * error("cached"));
        assert_eq!(evidence.ratios[0].estimators[0].variance_to_minibatch, None, "one batch has no variance");
    }

    /// Operands 10 % too large beside exact ones: an error of 10 %, measured once for each exact gradient.
    #[test]
    fn the_recipes_error_by_hand() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 3), matrix(&device, 2, 2));
        let collector = collector(&device, 1);
        let mut larger = dz.copied();
        device.kernels().scale(1.1, None, &mut larger);
        for _ in 0..2 {
            collector.look(Look::Exact);
            collector.linear("site", &x, &dz);
            collector.look(Look::Recipe);
            collector.linear("site", &x, &larger);
            collector.linear("site", &x, &larger);
        }
        let evidence = collector.sites.lock().unwrap()["site"].evidence("site");
        assert!((evidence.recipe.rmse - 0.1).abs() < 1e-12, "{:?}", evidence.recipe);
        assert_eq!(evidence.rows, N as f64);
    }

    /// Else the recipe would draw by the norms of the very batch that it is measured on.
    #[test]
    fn what_is_measured_is_not_remembered() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 3), matrix(&device, 2, 2));
        let collector = collector(&device, 1);
        let remembered = || collector.memory.estimate("site", NormSource::Cached, &row_norms(&x)).unwrap().to_f64();
        collector.look(Look::Train);
        collector.linear("site", &x, &dz);
        let before = remembered();
        let mut larger = dz.copied();
        device.kernels().scale(9.0, None, &mut larger);
        for look in [Look::Exact, Look::Recipe] {
            collector.look(look);
            collector.linear("site", &x, &larger);
            assert_eq!(remembered(), before, "{look:?}");
        }
        collector.look(Look::Train);
        collector.linear("site", &x, &larger);
        assert_ne!(remembered(), before);
    }

    /// Two gradients G and 3G: variance 2‖G‖² (n − 1 = 1), Σ‖G‖² = 10‖G‖².
    #[test]
    fn the_minibatch_variance_by_hand() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 3), matrix(&device, 2, 2));
        let collector = collector(&device, 1);
        collector.linear("site", &x, &dz);
        let mut three = dz.copied();
        device.kernels().scale(3.0, None, &mut three);
        collector.linear("site", &x, &three);
        let evidence = collector.sites.lock().unwrap()["site"].evidence("site");
        for e in &evidence.ratios[1].estimators {
            let want = e.rmse.powi(2) * 10.0 / 2.0 / 2.0;
            assert!((e.variance_to_minibatch.unwrap() / want - 1.0).abs() < 1e-9, "{e:?}");
        }
    }
}
