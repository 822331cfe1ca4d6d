//! What is measured at each linear of a backward pass, summed over batches. Which steps are made, and of what, is `inspect`'s.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use colrow_autograd::{Draw, NormMemory, NormSource, Probe, Sampling, estimate_by, row_norms};
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Estimator, Named, Tensor, certain_rows};

use super::{AtRatio, CERTAIN, Certain, EstimatorError, Mass, Operands, RATIOS, RecipeError, SiteEvidence, TOPS};

const ESTIMATORS: [Estimator; 4] = [Estimator::Crs, Estimator::Wta, Estimator::Pps, Estimator::TopK];
const SOURCES: &[NormSource] = NormSource::ALL;

/// What is summed over batches, of one site.
#[derive(Debug, Default)]
pub(super) struct SiteSums {
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
pub(super) enum Look {
    /// Only norms are remembered.
    Train,
    /// Everything is kept: the estimators are measured.
    Exact,
    /// The same batch as the recipe keeps it.
    Recipe,
}

/// Sums over batches, site by site.
#[derive(Debug)]
pub(super) struct Collector {
    /// The norms of steps before.
    pub(super) memory: Arc<NormMemory>,
    /// What the present step is for.
    pub(super) look: Mutex<Look>,
    /// The share of uniform probability where norms are estimates.
    pub(super) uniform: f32,
    /// Draws by which an error is measured.
    pub(super) draws: u64,
    /// What they draw with.
    pub(super) key: Key,
    /// By site.
    pub(super) sites: Mutex<BTreeMap<String, SiteSums>>,
    /// The linear whose operands are wanted.
    pub(super) export: Option<String>,
    /// Its operands, once they were there.
    pub(super) operands: Mutex<Option<Operands>>,
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

    /// What the next step is for.
    pub(super) fn look(&self, look: Look) {
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
    /// What the sums say of the site of this name.
    pub(super) fn evidence(&self, name: &str) -> SiteEvidence {
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

/// The mean over sites.
pub(super) fn mean_of(sites: &[SiteEvidence]) -> SiteEvidence {
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

#[cfg(test)]
mod tests {
    use colrow_autograd::{BatchPlaces, CachePlace, Places, RowsOf};
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
