//! Checks that ops are tested with: gradients against finite differences, f32 against f64, the mean of sampled gradients
//! against the exact one. All tolerances come from here; a check that could not fail is an error too.

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device, Error, Result, Tensor};

use crate::kept::Kept;
use crate::norm_memory::NormMemory;
use crate::param::{Handle, ParamId, Params};
use crate::policy::Policy;
use crate::tape::{Grads, Mode, Op, Tape, Var};

/// Rounding of everything that is not a long sum, in terms of one: exp, erf and tanh are good to a few ε.
const FUNCTIONS: usize = 16;
/// Elements that are checked of a parameter that has more.
const SUBSET: usize = 100;
/// Chance that [`check_unbiased`] refuses an unbiased estimator, were the seeds not fixed.
const FALSE_ALARM: f64 = 1e-3;

/// Relative error that rounding may cause in a result that went through sums of `length` terms in all: `(length + 16)·ε`, the
/// worst case of a running sum (Higham 2002, section 3.1: `γ_n ≈ n·u`, relative to the sum of magnitudes).
pub fn rounding(dtype: DType, length: usize) -> f64 {
    let epsilon = if dtype == DType::F64 { f64::EPSILON } else { f64::from(f32::EPSILON) };
    (length + FUNCTIONS) as f64 * epsilon
}

/// Standard normal numbers in [`Class::Workspace`].
pub fn random(device: &Device, dtype: DType, key: Key, shape: &[usize]) -> Tensor {
    let mut t = device.empty(Class::Workspace, dtype, shape);
    t.write_f64((0..shape.iter().product::<usize>() as u64).map(|i| key.normal(i)));
    t
}

/// Trainable parameters of standard normal numbers, each drawn by its name.
pub fn random_params<const N: usize>(
    device: &Device,
    dtype: DType,
    list: [(&str, &[usize]); N],
) -> (Params, [ParamId; N]) {
    let mut params = Params::new(device, dtype);
    let ids = list.map(|(name, shape)| {
        let id = params.add(name, shape, false);
        let values = random(device, dtype, Key::new(17).named(name), shape).to_f64();
        params[id].value.dense_mut().write_f64(values);
        id
    });
    (params, ids)
}

/// A training mode.
pub fn training(key: Key, dropout: bool, policy: Policy, norms: Option<Arc<NormMemory>>) -> Mode {
    Mode::Training { key, dropout, policy: Arc::new(policy), norms, variances: None, probe: None }
}

struct Leaf {
    param: Handle,
    kept: Kept,
}

/// A parameter as a variable, so that an op's gradient of its input is checked like any other; a constant if it is frozen.
pub fn leaf(tape: &mut Tape<'_>, id: ParamId) -> Var {
    let param = tape.handle(id);
    let value = param.value.dense().copied();
    tape.output("leaf", value, param.trainable, || Leaf { param, kept: Kept::Nothing })
}

impl Op for Leaf {
    fn name(&self) -> &'static str {
        "leaf"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.kept)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        dy.device().kernels().add(&dy, grads.param_sum(&self.param));
        Ok(())
    }
}

/// What a function gave.
#[derive(Debug)]
pub struct Run {
    /// Its output y, widened.
    pub output: Vec<f64>,
    /// By parameter the gradient of `Σ c_i·y_i`, c fixed standard normal numbers; `None` where there is none.
    pub gradients: Vec<Option<Vec<f64>>>,
}

impl Run {
    fn largest(&self) -> f64 {
        self.gradients.iter().flatten().flatten().fold(0.0, |m, g| f64::max(m, g.abs()))
    }

    /// Whether two runs gave the same numbers, to the bit.
    pub fn same_bits(&self, other: &Self) -> bool {
        let bits = |x: &Vec<f64>| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let all =
            |run: &Self| (bits(&run.output), run.gradients.iter().map(|g| g.as_ref().map(bits)).collect::<Vec<_>>());
        all(self) == all(other)
    }
}

/// Whether a difference is too large, or not a number.
fn beyond(difference: f64, bound: f64) -> bool {
    difference.is_nan() || bound.is_nan() || difference.abs() > bound
}

fn contraction(i: usize) -> f64 {
    Key::new(23).normal(i as u64)
}

/// Runs `f` forward and backward.
///
/// # Errors
/// Those of the ops, and a frozen parameter that got a gradient.
pub fn run(params: &Params, mode: &Mode, f: impl Fn(&mut Tape<'_>) -> Var) -> Result<Run> {
    let mut tape = Tape::new(params, mode.clone());
    let mut grads = Grads::new(params);
    let y = f(&mut tape);
    let output = y.value.to_f64();
    let mut dy = y.value.empty_like();
    dy.write_f64((0..output.len()).map(contraction));
    tape.backward_from(y, dy, &mut grads)?;
    if let Some((_, p)) = params.iter().find(|(id, p)| !p.trainable && grads.of(*id).is_some()) {
        return Err(Error::new("a frozen parameter got a gradient").at(&p.name));
    }
    Ok(Run { output, gradients: params.iter().map(|(id, _)| grads.of(id).map(Tensor::to_f64)).collect() })
}

/// Checks every trainable parameter's gradient of `L = Σ c_i·y_i` against central differences, in f64; of large parameters 100
/// elements by a fixed seed. `length` is the number of terms in the sums that lead to an output.
///
/// With step `h = ε^⅓·max(1, |θ|)`, the difference `D(h) = (L(θ+h) − L(θ−h))/2h` errs by
/// - truncation, `h²·L‴/6` plus higher orders: a third of `D(2h) − D(h)`, doubled for the higher orders;
/// - rounding, `rounding(length + outputs)·S/h` with `S = Σ|c_i|·max(1, |y_i|)`.
///
/// # Errors
/// An element that differs by more; errors of the ops; a check so coarse that it could miss 10⁻⁴ of the largest gradient.
pub fn check_gradients(
    params: &mut Params,
    mode: &Mode,
    length: usize,
    f: impl Fn(&mut Tape<'_>) -> Var,
) -> Result<()> {
    if params.dtype() != DType::F64 {
        return Err(Error::new("finite differences need f64"));
    }
    let exact = run(params, mode, &f)?;
    let magnitude: f64 = exact.output.iter().enumerate().map(|(i, y)| contraction(i).abs() * y.abs().max(1.0)).sum();
    let rounded = rounding(DType::F64, length + exact.output.len()) * magnitude;
    let ids: Vec<ParamId> = params.iter().filter(|(_, p)| p.trainable).map(|(id, _)| id).collect();
    for id in ids {
        for i in elements(params[id].value.len()) {
            let mut old = [0.0_f64];
            params[id].value.dense().read_range(i, &mut old);
            let [old] = old;
            let mut loss_at = |x: f64| {
                params[id].value.dense_mut().write_range(i, &[x]);
                let y = f(&mut Tape::new(params, mode.clone())).value.to_f64();
                params[id].value.dense_mut().write_range(i, &[old]);
                y.iter().enumerate().map(|(i, y)| contraction(i) * y).sum::<f64>()
            };
            let mut slope = |h: f64| (loss_at(old + h) - loss_at(old - h)) / ((old + h) - (old - h));
            let h = f64::EPSILON.cbrt() * old.abs().max(1.0);
            let (near, far) = (slope(h), slope(2.0 * h));
            let bound = 2.0 / 3.0 * (far - near).abs() + rounded / h;
            let got = exact.gradients[id.0].as_ref().map_or(0.0, |g| g[i]);
            let place = || format!("{}[{i}]", params[id].name);
            if beyond(got - near, bound) {
                return Err(Error::new(format!("expected the gradient {near} ± {bound:.1e}, found {got}")).at(place()));
            }
            if bound > 1e-4 * exact.largest() {
                return Err(Error::new(format!("differences are only good to {bound:.1e} here")).at(place()));
            }
        }
    }
    Ok(())
}

fn elements(len: usize) -> Vec<usize> {
    if len <= SUBSET {
        return (0..len).collect();
    }
    (0..SUBSET as u64).map(|c| (Key::new(29).uniform(c) * len as f64) as usize).collect()
}

/// Checks that outputs and gradients in f32 are those in f64, for the same parameters (which are rounded to f32 in place):
/// within `rounding(F32, length)` of the largest output and the largest gradient. `length` counts the terms of all sums between
/// a parameter and a gradient.
///
/// # Errors
/// A number that differs by more; errors of the ops.
pub fn check_precision(
    params: &mut Params,
    mode: &Mode,
    length: usize,
    f: impl Fn(&mut Tape<'_>) -> Var,
) -> Result<()> {
    let mut single = Params::new(params.device(), DType::F32);
    for (_, p) in params.iter_mut() {
        let id = single.add(&p.name, &p.value.shape(), p.decay);
        single[id].trainable = p.trainable;
        single[id].value.dense_mut().write_f64(p.value.dense().to_f64());
        p.value.dense_mut().write_f64(single[id].value.dense().to_f64());
    }
    let (want, got) = (run(params, mode, &f)?, run(&single, mode, &f)?);
    let (tolerance, largest) = (rounding(DType::F32, length), want.largest());
    let near = |what: &str, got: &[f64], want: &[f64], largest: f64| {
        let bound = tolerance * largest;
        match got.iter().zip(want).position(|(g, w)| beyond(g - w, bound)) {
            None => Ok(()),
            Some(i) => Err(Error::new(format!("expected {} ± {bound:.1e}, found {}", want[i], got[i])).at(what)),
        }
    };
    near("output", &got.output, &want.output, want.output.iter().fold(0.0, |m, y| f64::max(m, y.abs())))?;
    for ((_, p), (got, want)) in params.iter().zip(got.gradients.iter().zip(&want.gradients)) {
        match (got, want) {
            (Some(g), Some(w)) => near(&p.name, g, w, largest)?,
            (None, None) => {}
            _ => return Err(Error::new("a gradient in one float type only").at(&p.name)),
        }
    }
    Ok(())
}

/// Checks that the mean of `draw(0), …, draw(trials − 1)` is `exact`: element by element, and along `exact` (the mean of
/// ⟨draw, exact⟩/‖exact‖² is 1).
///
/// A mean may be off by z standard errors, `z = √(2·ln(comparisons/0.001))`: for independent draws and the normal limit, no
/// comparison of an unbiased estimator exceeds that in 99.9 % of all seeds (Bonferroni, and P(|Z| > z) ≤ e^(−z²/2)); with 12
/// elements z is 4.4. Rounding is allowed for as in [`rounding`], for estimators that do not vary.
///
/// # Errors
/// A mean that is further off.
pub fn check_unbiased(exact: &[f64], trials: u64, draw: impl FnMut(u64) -> Result<Vec<f64>>) -> Result<()> {
    let (n, trials_f) = (exact.len(), trials as f64);
    let norm_square: f64 = exact.iter().map(|x| x * x).sum();
    // the last column is the projection on the exact value; deviations are summed, so that squares do not cancel
    let mut sums = vec![(0.0, 0.0); n + 1];
    for sample in (0..trials).map(draw) {
        let sample = sample?;
        let along =
            sample.iter().zip(exact).map(|(s, x)| (s - x) * x).sum::<f64>() / norm_square.max(f64::MIN_POSITIVE);
        let deviations = sample.iter().zip(exact).map(|(s, x)| s - x).chain([along]);
        for ((sum, squares), e) in sums.iter_mut().zip(deviations) {
            *sum += e;
            *squares += e * e;
        }
    }
    let z = (2.0 * ((n + 1) as f64 / FALSE_ALARM).ln()).sqrt();
    let largest = exact.iter().fold(0.0, |m, x| f64::max(m, x.abs()));
    for (i, (sum, squares)) in sums.into_iter().enumerate() {
        let mean = sum / trials_f;
        let error = ((squares / trials_f - mean * mean).max(0.0) / (trials_f - 1.0)).sqrt();
        let floor = rounding(DType::F64, 1000) * if i < n { largest } else { 1.0 };
        if beyond(mean, z * error + floor) {
            let what = if i < n { format!("element {i}") } else { "along the exact gradient".to_owned() };
            let text = format!("the mean of {trials} draws is off by {mean:.3e}, {:.1} standard errors", mean / error);
            return Err(Error::new(text).at(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tape::VarId;

    /// `y = x²`, with a gradient of `factor·2x·dy`.
    struct Square {
        x: Option<VarId>,
        kept: Kept,
        factor: f64,
    }

    impl Op for Square {
        fn name(&self) -> &'static str {
            "square"
        }

        fn kept(&self) -> Vec<(&'static str, &Kept)> {
            vec![("input", &self.kept)]
        }

        fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
            if let Kept::Exact(x) = &self.kept {
                let mut dx = dy.empty_like();
                dx.write_f64(x.to_f64().into_iter().zip(dy.to_f64()).map(|(x, dy)| self.factor * x * dy));
                grads.add(self.x, dx);
            }
            Ok(())
        }
    }

    fn square(tape: &mut Tape<'_>, x: Var, factor: f64) -> Var {
        let mut y = x.value.empty_like();
        y.write_f64(x.value.to_f64().into_iter().map(|x| x * x));
        tape.output("square", y, true, || Square { x: x.id, kept: Kept::Exact(x.value), factor })
    }

    #[test]
    fn a_slightly_wrong_gradient_is_found() {
        let device = Device::cpu();
        let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[3, 4])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let check = |params: &mut Params, factor: f64| {
            check_gradients(params, &mode, 1, |tape| {
                let x = leaf(tape, x);
                square(tape, x, factor)
            })
        };
        check(&mut params, 2.0).unwrap();
        assert!(check(&mut params, 2.0002).unwrap_err().to_string().contains("expected the gradient"));
        assert!(check(&mut params, -2.0).is_err());
        assert!(check(&mut params, f64::NAN).is_err());
    }

    #[test]
    fn a_biased_mean_is_found() {
        let exact = [1.0, -2.0, 0.5];
        let noisy = |shift: f64| {
            move |t: u64| Ok((0..3).map(|i| exact[i] + shift + Key::new(3).child(t).normal(i as u64)).collect())
        };
        check_unbiased(&exact, 10_000, noisy(0.0)).unwrap();
        assert!(check_unbiased(&exact, 10_000, noisy(0.1)).is_err());
        check_unbiased(&exact, 10, |_| Ok(exact.to_vec())).unwrap();
        assert!(check_unbiased(&exact, 10, |_| Ok(vec![1.0, -2.0, 0.5 + 1e-9])).is_err());
        assert!(check_unbiased(&exact, 10, |_| Ok(vec![f64::NAN; 3])).is_err());
    }
}
