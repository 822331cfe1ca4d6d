//! The variance that sampled rows add to a weight gradient, and the variance that the minibatch gives it anyway.
//!
//! *Sampling.* From `a_i = ‖x_i‖·‖dz_i‖` and the probabilities p by which a site draws, for k rows of which the w largest are certain
//! (docs/wta-crs.md, sections 3 to 5):
//!
//! ```text
//! V(k) = Σ_{i>w} p_i/(k−w) · Σ_{i>w} a_i²/p_i  [− Σ_{i>w} a_i²  without replacement: pps]
//! ```
//!
//! For `pps` that is Σ(1/π_i − 1)a_i², the variance of independent coins. For `crs` (w = 0) and `wta` it leaves out −‖Σ_{i>w} G_i‖²/(k−w), and
//! so is a bound.
//!
//! *Minibatch.* The gradient is a sum over B sequences, so its variance is about `B/(B−1)·Σ_b‖g_b − ḡ‖²`. Matrices of random signs
//! U (out, 8) and V (in, 8), the same for the whole step, make each g_b = Σ_{i∈b} dz_iᵀx_i a matrix of 8 × 8 numbers,
//! `Σ_{i∈b} (dz_i·U)ᵀ(x_i·V)`. An element of `UᵀAV` has mean square ‖A‖², so that the mean over the 64 is an unbiased estimate. Its relative
//! variance is about 2/8 + 2/8 + 4/64 where A has rank one (the worst case), and down to 2/64 where it has many; averages over steps make it
//! smaller.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, Estimator, Tensor, certain_rows};

use crate::kept::Kept;
use crate::norm_memory::RowsOf;
use crate::policy::{Sampling, rows_of};

/// Columns of U and of V.
const PROBES: usize = 8;
/// Ratios at which the variance of sampling is told.
pub const GRID: usize = 20;
/// Least of those ratios.
pub const LEAST_RATIO: f64 = 0.02;

/// Ratio number `i` of the grid: geometric from [`LEAST_RATIO`] to 1.
pub fn grid(i: usize) -> f64 {
    LEAST_RATIO.powf((GRID - 1 - i) as f64 / (GRID - 1) as f64)
}

/// First rows of a batch's sequences, and the end.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Of the tokens, those of the sources where there are targets.
    pub tokens: Vec<u32>,
    /// Of the targets.
    pub targets: Vec<u32>,
}

/// What a step measured at a site.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Variance that sampling would add, at each ratio of [`grid`]; 0 at ratio 1.
    pub sampling: [f64; GRID],
    /// Variance of the minibatch's gradient.
    pub minibatch: f64,
}

#[derive(Debug, Default)]
struct Sums {
    sampling: [f64; GRID],
    /// `UᵀgV` by sequence.
    sequences: Vec<[f64; PROBES * PROBES]>,
}

#[derive(Debug, Default)]
struct State {
    /// Stream of U and V on a step that is measured.
    key: Option<Key>,
    bounds: Bounds,
    sums: HashMap<String, Sums>,
    /// Sites of which passes that are measured kept something.
    sketched: HashSet<String>,
}

/// Measures variances at some sites, on some steps.
#[derive(Debug)]
pub struct Variances {
    sites: HashMap<String, RowsOf>,
    state: Mutex<State>,
}

impl Variances {
    /// Of linears at `sites` that draw rows, with what their rows are.
    pub fn new(sites: impl IntoIterator<Item = (String, RowsOf)>) -> Self {
        Self { sites: sites.into_iter().collect(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the sequences of the batch that the next pass sees. That pass is measured if there is a `key`, the same for all passes of a step.
    pub fn begin(&self, key: Option<Key>, bounds: Bounds) {
        let mut state = self.state();
        (state.key, state.bounds) = (key, bounds);
    }

    /// What was measured since the last call, by site. Not told of: a step of one sequence, a gradient of 0, numbers that are not finite.
    pub fn take(&self) -> HashMap<String, Measured> {
        let sums = std::mem::take(&mut self.state().sums);
        sums.into_iter().filter_map(|(site, sums)| Some((site, sums.measured()?))).collect()
    }

    /// Sites that were measured so far: those that have a gradient.
    pub fn measures(&self) -> HashSet<String> {
        self.state().sketched.clone()
    }

    /// Whether the ratio of `site` may change. Such a site draws even where all rows are kept, so that memory grows with the ratio.
    pub(crate) fn watches(&self, site: &str) -> bool {
        self.sites.contains_key(site)
    }

    /// What has to be kept of x (n, in) to measure `site` in the backward pass, if this pass is measured.
    pub(crate) fn sketch(self: &Arc<Self>, site: &str, sampling: Sampling, x: &Tensor) -> Option<Sketch> {
        let mut state = self.state();
        let key = state.key?.named(site);
        state.sketched.insert(site.to_owned());
        drop(state);
        let projections = Kept::Exact(projected(x, key.named("in")));
        Some(Sketch { site: site.to_owned(), variances: self.clone(), sampling, key, projections, drawn_by: None })
    }
}

/// What is kept of an input to measure variances in the backward pass.
pub(crate) struct Sketch {
    site: String,
    variances: Arc<Variances>,
    sampling: Sampling,
    key: Key,
    /// `x·V` (n, 8).
    projections: Kept,
    /// Where rows were drawn before: the norms of x's rows and the probabilities.
    drawn_by: Option<[Kept; 2]>,
}

impl Sketch {
    /// Notes by what rows were drawn in the forward pass.
    pub(crate) fn drawn_by(&mut self, h: Tensor, p: Tensor) {
        self.drawn_by = Some([h, p].map(Kept::Exact));
    }

    /// What is held, for the ledger.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&'static str, &Kept)> {
        let drawn_by = self.drawn_by.iter().flat_map(|kept| ["row norms", "probabilities"].into_iter().zip(kept));
        [("projections", &self.projections)].into_iter().chain(drawn_by)
    }

    /// Measures, if rows were drawn in the forward pass, with dz (n, out) and the norms `z` of its rows.
    pub(crate) fn measure_drawn(&self, dz: &Tensor, z: &Tensor) {
        if let Some([h, p]) = &self.drawn_by {
            self.measure(dz, z, h.exact(), p.exact());
        }
    }

    /// Measures, with dz (n, out), the norms of its rows and of x's, and the probabilities (n each).
    pub(crate) fn measure(&self, dz: &Tensor, z: &Tensor, h: &Tensor, p: &Tensor) {
        let left = projected(dz, self.key.named("out"));
        let n = dz.rows();
        let Some(&rows) = self.variances.sites.get(&self.site).filter(|_| !dz.device().is_meta()) else { return };
        let mut guard = self.variances.state();
        let State { bounds, sums, .. } = &mut *guard;
        let each_row;
        let bounds = match rows {
            RowsOf::Tokens => &bounds.tokens,
            RowsOf::Targets => &bounds.targets,
            RowsOf::Sequences => {
                each_row = (0..=n as u32).collect();
                &each_row
            }
        };
        let sums = sums.entry(self.site.clone()).or_default();
        let a: Vec<f64> = h.to_f64().into_iter().zip(z.to_f64()).map(|(h, z)| h * z).collect();
        let curve = sampling_variance(self.sampling, &p.to_f64(), &a);
        sums.sampling.iter_mut().zip(curve).for_each(|(sum, v)| *sum += v);
        let (left, right) = (left.to_f64(), self.projections.exact().to_f64());
        sums.sequences.extend(bounds.windows(2).map(|b| {
            let rows = b[0] as usize * PROBES..b[1] as usize * PROBES;
            let mut product = [0.0; PROBES * PROBES];
            for (l, r) in left[rows.clone()].chunks_exact(PROBES).zip(right[rows].chunks_exact(PROBES)) {
                for (row, l) in product.chunks_exact_mut(PROBES).zip(l) {
                    row.iter_mut().zip(r).for_each(|(sum, r)| *sum += l * r);
                }
            }
            product
        }));
    }
}

impl Sums {
    fn measured(&self) -> Option<Measured> {
        let b = self.sequences.len() as f64;
        let spread = |j: usize| {
            let mean = self.sequences.iter().map(|s| s[j]).sum::<f64>() / b;
            self.sequences.iter().map(|s| (s[j] - mean).powi(2)).sum::<f64>()
        };
        let squares: f64 = (0..PROBES * PROBES).map(spread).sum();
        let minibatch = b / (b - 1.0) * squares / (PROBES * PROBES) as f64;
        let measured = Measured { sampling: self.sampling, minibatch };
        let finite = minibatch.is_finite() && self.sampling.iter().all(|v| v.is_finite());
        (b > 1.0 && minibatch > 0.0 && finite).then_some(measured)
    }
}

/// `x·S` (n, 8) with the random signs S (d, 8) of the stream `key`.
fn projected(x: &Tensor, key: Key) -> Tensor {
    let (device, d) = (x.device(), x.cols());
    let mut signs = device.empty(Class::Workspace, x.dtype(), &[d, PROBES]);
    let bit = |word: u32, bit: u32| if word >> bit & 1 == 0 { 1.0 } else { -1.0 };
    let block =
        |b: usize| key.block([b as u32, 0, 0, 0]).into_iter().flat_map(move |word| (0..32).map(move |i| bit(word, i)));
    signs.write_f64((0..(d * PROBES).div_ceil(128)).flat_map(block));
    let mut projections = device.empty(Class::Workspace, x.dtype(), &[x.rows(), PROBES]);
    device.kernels().matmul(x, false, &signs, false, 0.0, &mut projections);
    projections
}

/// The module's V at each ratio of the grid, of rows drawn by `p` with `a_i = ‖x_i‖·‖dz_i‖`.
fn sampling_variance(sampling: Sampling, p: &[f64], a: &[f64]) -> [f64; GRID] {
    let n = p.len();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| p[j].total_cmp(&p[i]));
    // Σp, Σa²/p and Σa² without the first w rows, summed from the small end, so that they do not cancel
    let mut outside = vec![[0.0; 3]; n + 1];
    for w in (0..n).rev() {
        let (p, square) = (p[order[w]], a[order[w]].powi(2));
        let [sum, quotients, squares] = outside[w + 1];
        let quotient = if square > 0.0 { square / p } else { 0.0 };
        outside[w] = [sum + p, quotients + quotient, squares + square];
    }
    std::array::from_fn(|i| {
        let k = rows_of(grid(i) as f32, n);
        let certain = match sampling.estimator {
            _ if k == n => return 0.0,
            Estimator::Crs => 0,
            Estimator::Wta | Estimator::Pps | Estimator::TopK => certain_rows(k, |w| outside[w][0]),
        };
        let [sum, quotients, squares] = outside[certain];
        if sum <= 0.0 {
            return 0.0;
        }
        let with_replacement = sum / (k - certain) as f64 * quotients;
        match sampling.estimator {
            Estimator::Pps => (with_replacement - squares).max(0.0),
            _ => with_replacement,
        }
    })
}

#[cfg(test)]
mod tests {
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::sample::{Draw, estimate_by, probabilities, row_norms};
    use crate::testing::{check_unbiased, random, random_params};
    use crate::{Grads, Keep, Mode, NormSource, ParamId, Params, Policy, Tape};

    const N: usize = 24;
    const BOUNDS: [u32; 5] = [0, 4, 5, 15, 24];

    fn sampling(estimator: Estimator, norms: NormSource) -> Sampling {
        Sampling { estimator, ratio: 0.3, norms, uniform: 0.1 }
    }

    fn bounds(tokens: &[u32]) -> Bounds {
        Bounds { tokens: tokens.to_vec(), targets: vec![0, 1] }
    }

    /// A random matrix whose rows' norms are spread over two orders of magnitude.
    fn matrix(device: &Device, seed: u64, d: usize) -> Tensor {
        let key = Key::new(seed);
        let mut t = random(device, DType::F64, key, &[N, d]);
        let x = t.to_f64();
        t.write_f64((0..N * d).map(|j| x[j] * (1.2 * key.child(1).normal((j / d) as u64)).exp()));
        t
    }

    /// What one step measures of a linear with these rows, on a tape.
    struct Site {
        params: Params,
        w: ParamId,
        variances: Arc<Variances>,
    }

    impl Site {
        fn new(device: &Device, rows: RowsOf) -> Self {
            let (params, [w]) = random_params(device, DType::F64, [("w", &[3, 5])]);
            Self { params, w, variances: Arc::new(Variances::new([("site".to_owned(), rows)])) }
        }

        /// The weight's gradient of a pass.
        fn pass(&self, keep: Keep, measure: Option<Key>, bounds: Bounds, x: &Tensor, dz: &Tensor) -> Vec<f64> {
            self.variances.begin(measure, bounds);
            let mode = Mode::Training {
                key: Key::new(3),
                dropout: false,
                policy: Arc::new(Policy::everywhere(keep)),
                norms: None,
                variances: Some(self.variances.clone()),
                probe: None,
            };
            let mut tape = Tape::new(&self.params, mode);
            let mut grads = Grads::new(&self.params);
            let x = tape.constant(x.copied());
            let y = tape.linear("site", &x, self.w, None);
            assert_eq!(tape.ledger().total(), tape.device().meter().live().kept);
            drop(x);
            tape.backward_from(y, dz.clone(), &mut grads).unwrap();
            grads.of(self.w).unwrap().to_f64()
        }

        fn measured(&self) -> Option<Measured> {
            self.variances.take().remove("site")
        }
    }

    /// `B/(B−1)·Σ_b‖g_b − ḡ‖²` by its definition.
    fn exact_minibatch(bounds: &[u32], x: &Tensor, dz: &Tensor) -> f64 {
        let (rows, d, e) = (x.to_f64(), x.cols(), dz.cols());
        let dz = dz.to_f64();
        let gradient = |b: &[u32]| -> Vec<f64> {
            let sum = |j: usize| (b[0] as usize..b[1] as usize).map(|i| dz[i * e + j / d] * rows[i * d + j % d]).sum();
            (0..d * e).map(sum).collect()
        };
        let all: Vec<Vec<f64>> = bounds.windows(2).map(gradient).collect();
        let count = all.len() as f64;
        let square = |j: usize| {
            let mean = all.iter().map(|g| g[j]).sum::<f64>() / count;
            all.iter().map(|g| (g[j] - mean).powi(2)).sum::<f64>()
        };
        count / (count - 1.0) * (0..d * e).map(square).sum::<f64>()
    }

    #[test]
    fn the_minibatch_variance_is_estimated_without_bias() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 5), matrix(&device, 2, 3));
        let each: Vec<u32> = (0..=N as u32).collect();
        for norms in [NormSource::Current, NormSource::Uniform] {
            let keep = Keep::Rows(sampling(Estimator::Pps, norms));
            for (rows, of) in [
                (RowsOf::Tokens, bounds(&BOUNDS)),
                (RowsOf::Targets, Bounds { tokens: vec![0, 9], targets: BOUNDS.to_vec() }),
                (RowsOf::Sequences, bounds(&[0, 1])),
            ] {
                let site = Site::new(&device, rows);
                let exact = exact_minibatch(if rows == RowsOf::Sequences { &each } else { &BOUNDS }, &x, &dz);
                let estimate = |t: u64| {
                    site.pass(keep, Some(Key::new(t)), of.clone(), &x, &dz);
                    Ok(vec![site.measured().unwrap().minibatch])
                };
                check_unbiased(&[exact], 2000, estimate).unwrap();
            }
        }
    }

    /// The passes of a step are one minibatch: their sequences are compared with each other, and what sampling adds adds up.
    #[test]
    fn passes_of_a_step_are_measured_together() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 5), matrix(&device, 2, 3));
        let part = |t: &Tensor, rows: std::ops::Range<usize>| {
            let (d, rows) = (t.cols(), rows.start * t.cols()..rows.end * t.cols());
            device.tensor(Class::Workspace, &[rows.len() / d, d], &t.to_vec::<f64>()[rows])
        };
        let keep = Keep::Rows(sampling(Estimator::Pps, NormSource::Current));
        let (site, key) = (Site::new(&device, RowsOf::Tokens), Some(Key::new(5)));
        site.pass(keep, key, bounds(&BOUNDS), &x, &dz);
        let whole = site.measured().unwrap();
        let mut apart = [0.0; GRID];
        let split = [(0..5, [0, 4, 5].as_slice()), (5..24, &[0, 10, 19])];
        for (rows, of) in &split {
            site.pass(keep, key, bounds(of), &part(&x, rows.clone()), &part(&dz, rows.clone()));
            let one = site.measured().unwrap();
            apart.iter_mut().zip(one.sampling).for_each(|(sum, v)| *sum += v);
        }
        for (rows, of) in &split {
            site.pass(keep, key, bounds(of), &part(&x, rows.clone()), &part(&dz, rows.clone()));
        }
        let both = site.measured().unwrap();
        assert!((both.minibatch / whole.minibatch - 1.0).abs() < 1e-12);
        assert_eq!(both.sampling, apart);
    }

    #[test]
    fn what_is_not_told() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 5), matrix(&device, 2, 3));
        let keep = Keep::Rows(sampling(Estimator::Pps, NormSource::Current));
        let (site, key) = (Site::new(&device, RowsOf::Tokens), Some(Key::new(5)));
        site.pass(keep, None, bounds(&BOUNDS), &x, &dz);
        assert_eq!(site.measured(), None, "not a measured step");
        site.pass(keep, key, bounds(&[0, N as u32]), &x, &dz);
        assert_eq!(site.measured(), None, "one sequence");
        for factor in [0.0, f64::INFINITY] {
            let mut dz = dz.copied();
            device.kernels().scale(factor, None, &mut dz);
            site.pass(keep, key, bounds(&BOUNDS), &x, &dz);
            assert_eq!(site.measured(), None, "dz times {factor}");
        }
        site.pass(keep, key, bounds(&BOUNDS), &x, &dz);
        assert!(site.measured().is_some() && site.measured().is_none());
    }

    /// A watched site draws even where it draws all: the gradient is exact to the bit, measured or not.
    #[test]
    fn all_rows_are_the_exact_gradient() {
        let device = Device::cpu();
        let (x, dz) = (matrix(&device, 1, 5), matrix(&device, 2, 3));
        let site = Site::new(&device, RowsOf::Tokens);
        let exact = site.pass(Keep::Exact, None, bounds(&BOUNDS), &x, &dz);
        for norms in [NormSource::Current, NormSource::Uniform] {
            let all = Keep::Rows(Sampling { ratio: 1.0, ..sampling(Estimator::Pps, norms) });
            let half = Keep::Rows(Sampling { ratio: 0.5, ..sampling(Estimator::Pps, norms) });
            for measure in [None, Some(Key::new(5))] {
                assert_eq!(site.pass(all, measure, bounds(&BOUNDS), &x, &dz), exact);
            }
            let [plain, measured] = [None, Some(Key::new(5))].map(|m| site.pass(half, m, bounds(&BOUNDS), &x, &dz));
            assert!(plain == measured && plain != exact, "measuring does not change the draw");
        }
    }

    /// Rows of x that are orthogonal have G_i that are, so that the variance of every estimator is known to the end: the pps draw has
    /// Σ(1/π_i − 1)a_i², the others their bound less Σ_{i>w}a_i²/(k−w).
    #[test]
    fn sampling_variance_is_that_of_drawn_estimates() {
        let device = Device::cpu();
        let h: Vec<f64> = (0..N).map(|i| (1.1 * Key::new(7).normal(i as u64)).exp()).collect();
        let diagonal: Vec<f64> = (0..N * N).map(|j| if j / N == j % N { h[j / N] } else { 0.0 }).collect();
        let x = device.tensor(Class::Workspace, &[N, N], &diagonal);
        let dz = matrix(&device, 8, 2);
        let mut g = device.empty(Class::Workspace, DType::F64, &[2, N]);
        device.kernels().matmul(&dz, true, &x, false, 0.0, &mut g);
        let (h, z) = (row_norms(&x), row_norms(&dz));
        let a: Vec<f64> = h.to_f64().iter().zip(z.to_f64()).map(|(h, z)| h * z).collect();
        for (estimator, (norms, uniform)) in [Estimator::Crs, Estimator::Wta, Estimator::Pps]
            .into_iter()
            .flat_map(|e| [(Some(&z), 0.0), (None, 0.1)].map(|n| (e, n)))
        {
            let how = |k, t| Draw { estimator, rows: k, uniform, key: Key::new(9).child(k as u64).child(t) };
            let p = probabilities(&how(1, 0), &h, norms).to_f64();
            let curve = sampling_variance(sampling(estimator, NormSource::Current), &p, &a);
            assert!(curve.windows(2).all(|v| v[0] >= v[1]) && curve[GRID - 1] == 0.0, "{estimator:?}: {curve:?}");
            for i in [0, 8, 13, 15, 17] {
                let k = rows_of(grid(i) as f32, N);
                let mut order: Vec<usize> = (0..N).collect();
                order.sort_by(|&i, &j| p[j].total_cmp(&p[i]));
                let factor = |c: usize| order[c..].iter().map(|&i| p[i]).sum::<f64>() / (k - c) as f64;
                let certain = match estimator {
                    Estimator::Wta => (0..k).min_by(|&a, &b| factor(a).total_cmp(&factor(b))).unwrap(),
                    _ => 0,
                };
                let rest = order[certain..].iter().map(|&i| a[i].powi(2)).sum::<f64>() / (k - certain) as f64;
                let want = if estimator == Estimator::Pps { curve[i] } else { curve[i] - rest };
                let error = |t: u64| {
                    let mut difference = estimate_by(&how(k, t), &x, &h, &dz, norms);
                    device.kernels().scale(-1.0, None, &mut difference);
                    device.kernels().add(&g, &mut difference);
                    Ok(vec![difference.sum_squares()])
                };
                check_unbiased(&[want], 20_000, error).unwrap_or_else(|e| panic!("{estimator:?} {uniform} {k}: {e}"));
            }
        }
    }
}
