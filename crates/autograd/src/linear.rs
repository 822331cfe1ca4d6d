//! `y = x·Wᵀ + b`, x (n, in), W (out, in), y (n, out).
//!
//! Keeps its input for `dW = dyᵀ·x`, in full, in sampled rows, in fewer bits, or not at all where it can be rebuilt: see
//! [`Keep`](crate::Keep). With a frozen weight it keeps nothing. `dx = dy·W` and `db = Σ_i dy_i` need no input. Where x can be rebuilt, so can y, by
//! the same product again.

use std::sync::Arc;

use colrow_tensor::{Class, Result, Tensor};

use crate::input::HeldInput;
use crate::kept::{Kept, Rebuild};
use crate::param::{Handle, ParamId};
use crate::probe::Probe;
use crate::tape::{Grads, Mode, Op, Tape, Var, VarId};

struct Linear {
    x: Option<VarId>,
    input: HeldInput,
    weight: Handle,
    bias: Option<Handle>,
    probe: Option<(String, Arc<dyn Probe>)>,
}

/// The output of a linear whose input can be rebuilt.
#[derive(Debug)]
struct Output {
    x: Arc<dyn Rebuild>,
    weight: Handle,
    bias: Option<Handle>,
}

impl Rebuild for Output {
    fn whole(&self) -> Tensor {
        product(&self.x.whole(), &self.weight, self.bias.as_ref())
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        product(&self.x.rows(index), &self.weight, self.bias.as_ref())
    }
}

/// `x·Wᵀ + b`
fn product(x: &Tensor, weight: &Handle, bias: Option<&Handle>) -> Tensor {
    let (device, weight) = (x.device(), weight.value.stored());
    let mut y = device.empty(Class::Workspace, x.dtype(), &[x.rows(), weight.rows()]);
    device.kernels().linear(x, &weight, bias.map(|b| b.value.dense()), &mut y);
    y
}

impl Tape<'_> {
    /// Applies the linear layer `weight`, `bias` at `site`.
    pub fn linear(&mut self, site: &str, x: &Var, weight: ParamId, bias: Option<ParamId>) -> Var {
        let (w, b) = (self.handle(weight), bias.map(|b| self.handle(b)));
        let y = product(&x.value, &w, b.as_ref());
        let learned_bias = b.clone().filter(|b| b.trainable);
        let learns = x.id.is_some() || w.trainable || learned_bias.is_some();
        let input = if w.trainable { HeldInput::new(self, site, x, None) } else { HeldInput::nothing() };
        let probe = match self.mode() {
            Mode::Training { probe: Some(probe), .. } => Some((site.to_owned(), probe.clone())),
            _ => None,
        };
        let y =
            self.output(site, y, learns, || Linear { probe, x: x.id, input, weight: w.clone(), bias: learned_bias });
        let output =
            |x: &Arc<dyn Rebuild>| -> Arc<dyn Rebuild> { Arc::new(Output { x: x.clone(), weight: w, bias: b }) };
        Var { source: x.source.as_ref().map(output), ..y }
    }
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        self.input.kept()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let kernels = dy.device().kernels();
        if let Some(b) = &self.bias {
            kernels.add_column_sum(&dy, grads.param_sum(b));
        }
        if let Some((dz, x)) = self.input.operands(&dy) {
            if let Some((site, probe)) = &self.probe {
                probe.linear(site, &x, &dz);
            }
            let (dw, beta) = grads.param(&self.weight);
            kernels.matmul(&dz, true, &x, false, beta, dw);
        }
        let Self { x, input, weight, .. } = *self;
        drop(input);
        if x.is_some() {
            let mut dx = dy.device().empty(Class::Workspace, dy.dtype(), &[dy.rows(), weight.value.cols()]);
            kernels.linear_backward(&dy, &weight.value.stored(), &mut dx);
            grads.add(x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use colrow_tensor::rng::Key;
    use colrow_tensor::{Activation, DType, Device, Estimator};

    use super::*;
    use crate::sample::row_norms;
    use crate::tape::Mode;
    use crate::testing::{
        check_gradients, check_precision, check_unbiased, leaf, random, random_params, run, training,
    };
    use crate::{
        BatchPlaces, Bits, CachePlace, Keep, NormMemory, NormSource, Params, Places, Policy, RowsOf, Sampling,
    };

    const ESTIMATORS: [Estimator; 3] = [Estimator::Crs, Estimator::Wta, Estimator::Pps];
    const SOURCES: [NormSource; 4] =
        [NormSource::Current, NormSource::Cached, NormSource::Running, NormSource::Uniform];

    fn everywhere(keep: Keep) -> Policy {
        Policy::everywhere(keep)
    }

    fn rows(estimator: Estimator, norms: NormSource, ratio: f32) -> Keep {
        Keep::Rows(Sampling { estimator, ratio, norms, uniform: 0.1 })
    }

    fn mode(keep: Keep) -> Mode {
        training(Key::new(5), false, everywhere(keep), None)
    }

    fn learn(params: &mut Params, which: &[bool]) {
        params.iter_mut().zip(which).for_each(|((_, p), &learned)| p.trainable = learned);
    }

    #[test]
    fn gradients_whatever_is_frozen() {
        let device = Device::cpu();
        let shapes: [(&str, &[usize]); 3] = [("x", &[9, 4]), ("w", &[5, 4]), ("b", &[5])];
        let (mut params, [x, w, b]) = random_params(&device, DType::F64, shapes);
        for bias in [Some(b), None] {
            let f = |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                tape.linear("linear", &x, w, bias)
            };
            for which in 1..8_u8 {
                let which = [which & 1 > 0, which & 2 > 0, which & 4 > 0];
                learn(&mut params, &which);
                let run = run(&params, &mode(Keep::Exact), f).unwrap();
                let has: Vec<bool> = run.gradients.iter().map(Option::is_some).collect();
                assert_eq!(has, [which[0], which[1], which[2] && bias.is_some()]);
                if has.contains(&true) {
                    check_gradients(&mut params, &mode(Keep::Exact), 13, f).unwrap();
                    check_precision(&mut params, &mode(Keep::Exact), 18, f).unwrap();
                }
            }
        }
    }

    /// Layer norm, linear, GELU, linear: both linears' inputs can be rebuilt, unless `sources` is off.
    fn stack(tape: &mut Tape<'_>, [x, g, b, w1, b1, w2]: [ParamId; 6], form: Activation, sources: bool) -> Var {
        let given = |y: Var| Var { source: y.source.clone().filter(|_| sources), ..y };
        let x = leaf(tape, x);
        let y = given(tape.layer_norm("norm", &x, g, b, 1e-12));
        let y = tape.linear("up", &y, w1, Some(b1));
        let y = given(tape.activate("gelu", form, y));
        tape.linear("down", &y, w2, None)
    }

    const STACK: [(&str, &[usize]); 6] =
        [("x", &[9, 7]), ("gamma", &[7]), ("beta", &[7]), ("w1", &[13, 7]), ("b1", &[13]), ("w2", &[3, 13])];

    #[test]
    fn rebuilt_inputs_give_the_same_bits() {
        let device = Device::cpu();
        for (dtype, form) in
            [DType::F32, DType::F64].into_iter().flat_map(|t| [(t, Activation::Gelu), (t, Activation::GeluTanh)])
        {
            let (mut params, ids) = random_params(&device, dtype, STACK);
            let f = |tape: &mut Tape<'_>| stack(tape, ids, form, true);
            let all_rows = ESTIMATORS.into_iter().flat_map(|e| SOURCES.map(|s| rows(e, s, 1.0)));
            let exact = run(&params, &mode(Keep::Exact), f).unwrap();
            for keep in all_rows.chain([Keep::Nothing, rows(Estimator::TopK, NormSource::Current, 1.0)]) {
                assert!(run(&params, &mode(keep), f).unwrap().same_bits(&exact), "{keep:?} {dtype:?} {form:?}");
            }
            // drawn late, rows come from what rebuilds the input, or from the input itself: the same
            let late = mode(rows(Estimator::Pps, NormSource::Current, 0.5));
            let rebuilt = run(&params, &late, f).unwrap();
            assert!(!rebuilt.same_bits(&exact));
            assert!(rebuilt.same_bits(&run(&params, &late, |tape| stack(tape, ids, form, false)).unwrap()));
            if dtype == DType::F64 {
                check_gradients(&mut params, &mode(Keep::Nothing), 60, f).unwrap();
                check_precision(&mut params, &mode(Keep::Nothing), 100, f).unwrap();
            }
        }
    }

    #[test]
    fn gradients_of_two_passes_add_up() {
        let device = Device::cpu();
        let (params, ids) = random_params(&device, DType::F64, STACK);
        for keep in [Keep::Exact, Keep::Nothing, rows(Estimator::Pps, NormSource::Current, 0.5)] {
            let mut grads = Grads::new(&params);
            let mut once = Vec::new();
            for pass in 0..2 {
                let mut tape = Tape::new(&params, mode(keep));
                let y = stack(&mut tape, ids, Activation::Gelu, true);
                tape.backward(y, 1.0, &mut grads).unwrap();
                let now: Vec<_> = ids.iter().map(|&id| grads.of(id).unwrap().to_f64()).collect();
                if pass == 0 {
                    once = now;
                } else {
                    for (once, now) in once.iter().flatten().zip(now.iter().flatten()) {
                        assert!((2.0 * once - now).abs() <= 1e-12 * now.abs().max(1.0), "{once} twice is {now}");
                    }
                }
            }
        }
    }

    const N: usize = 16;

    /// Inputs (N, 3) and output gradients (N, 2) whose rows' norms are spread as `name` says.
    fn data(device: &Device, name: &str) -> (Tensor, Tensor) {
        let key = Key::new(41).named(name);
        let spread = |c: u64, i: usize| match name {
            "heavy-tailed" => (1.0 - key.child(c).uniform(i as u64)).powf(-1.5),
            "uniform" => key.child(c).uniform(i as u64),
            // 94 % of the product; the other rows are drawn often enough for the normal limit even with k = 1
            "one dominant row" => 0.2 + f64::from(u8::from(i == 7)) * 2.8,
            "zero rows" => f64::from(u8::from(i % 3 != c as usize)),
            _ => 1.0,
        };
        let matrix = |c: u64, d: usize| {
            let mut t = random(device, DType::F64, key.child(2 + c), &[N, d]);
            let norms = row_norms(&t).to_f64();
            let x = t.to_f64();
            t.write_f64((0..N * d).map(|j| x[j] / norms[j / d] * spread(c, j / d)));
            t
        };
        (matrix(0, 3), matrix(1, 2))
    }

    const DATA: [&str; 5] = ["heavy-tailed", "uniform", "all equal", "one dominant row", "zero rows"];

    /// A linear whose dW is drawn again and again.
    struct Drawn {
        params: Params,
        w: ParamId,
        x: Tensor,
        dz: Tensor,
        memory: Arc<NormMemory>,
        /// What is remembered before each draw: norms that are not those of `dz`.
        stale: (crate::Running, Vec<u8>),
    }

    fn snapshot(memory: &NormMemory) -> (crate::Running, Vec<u8>) {
        memory.save(|running, codes| (running.clone(), codes.to_vec()))
    }

    impl Drawn {
        fn new(name: &str) -> Self {
            let device = Device::cpu();
            let (x, dz) = data(&device, name);
            let (params, [w]) = random_params(&device, DType::F64, [("w", &[2, 3])]);
            let memory = Arc::new(
                NormMemory::new(&device, &[("linear".to_owned(), RowsOf::Tokens)], N, CachePlace::Memory).unwrap(),
            );
            let positions = (0..N as u32).map(|p| (p, p == 0)).collect();
            let tokens = Places { tokens: Some((0..N as u64).collect()), positions };
            memory.begin(BatchPlaces { tokens, targets: Places::default(), weight: 1.0 });
            // wrong by factors up to e³, and zero for every fifth row
            let wrong = |i: usize| if i % 5 == 3 { 0.0 } else { Key::new(43).normal(i as u64).clamp(-3.0, 3.0).exp() };
            memory.record("linear", &device.tensor(Class::Workspace, &[N], &(0..N).map(wrong).collect::<Vec<_>>()));
            memory.settle();
            let stale = snapshot(&memory);
            Self { params, w, x, dz, memory, stale }
        }

        fn weight_gradient(&self, keep: Keep, trial: u64) -> Result<Vec<f64>> {
            self.memory.restore(self.stale.0.clone(), &self.stale.1)?;
            let mode = training(Key::new(47).child(trial), false, everywhere(keep), Some(self.memory.clone()));
            let mut tape = Tape::new(&self.params, mode);
            let mut grads = Grads::new(&self.params);
            let x = tape.constant(self.x.clone());
            let y = tape.linear("linear", &x, self.w, None);
            tape.backward_from(y, self.dz.clone(), &mut grads)?;
            self.memory.settle();
            Ok(grads.of(self.w).map(Tensor::to_f64).unwrap_or_default())
        }

        fn check(&self, keep: Keep, trials: u64) -> Result<()> {
            let exact = self.weight_gradient(Keep::Exact, 0)?;
            check_unbiased(&exact, trials, |t| self.weight_gradient(keep, t))
        }
    }

    /// With k = 1 and k = 5 of 16 rows.
    #[test]
    fn sampled_weight_gradients_are_unbiased() {
        // on one thread, kernels this small do not wait for the pool
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        pool.install(|| {
            for name in DATA {
                let drawn = Drawn::new(name);
                for (estimator, source) in ESTIMATORS.into_iter().flat_map(|e| SOURCES.map(|s| (e, s))) {
                    for ratio in [1.0 / 16.0, 0.3] {
                        let result = drawn.check(rows(estimator, source, ratio), 4000);
                        result.unwrap_or_else(|e| panic!("{estimator:?} {source:?} {ratio} {name}: {e}"));
                    }
                }
            }
        });
    }

    #[test]
    fn int8_weight_gradients_are_unbiased() {
        for name in DATA {
            Drawn::new(name).check(Keep::Quantised(Bits::Int8), 4000).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    #[test]
    fn topk_is_biased() {
        for source in SOURCES {
            assert!(Drawn::new("uniform").check(rows(Estimator::TopK, source, 0.3), 100).is_err());
        }
    }

    /// A remembered norm of 0 is no proof of a zero row: it is drawn sometimes, even with no uniform share asked for.
    #[test]
    fn rows_remembered_as_zero_are_drawn() {
        let drawn = Drawn::new("all equal");
        let keep = |norms| Keep::Rows(Sampling { estimator: Estimator::Pps, ratio: 0.3, norms, uniform: 0.0 });
        for source in [NormSource::Cached, NormSource::Running] {
            drawn.check(keep(source), 20_000).unwrap();
        }
    }

    /// The true norms are remembered by the backward pass, and drawn by in the next forward pass.
    #[test]
    fn norms_are_remembered_for_the_next_pass() {
        let drawn = Drawn::new("heavy-tailed");
        for (source, norms) in SOURCES.into_iter().zip([false, true, true, false]) {
            drawn.weight_gradient(rows(Estimator::Pps, source, 0.3), 0).unwrap();
            assert_eq!(snapshot(&drawn.memory) != drawn.stale, norms, "{source:?}");
        }
        drawn.weight_gradient(rows(Estimator::Pps, NormSource::Cached, 0.3), 0).unwrap();
        let like = row_norms(&drawn.dz);
        let got = drawn.memory.estimate("linear", NormSource::Cached, &like).unwrap().to_f64();
        assert!(got.iter().zip(like.to_f64()).all(|(g, w)| (g / w).log2().abs() <= 0.126), "{got:?}");
    }
}
