//! AdamW with moments in eight bits beside AdamW with moments in floats, on problems whose minima are known.

use std::sync::Arc;

use colrow_autograd::{Grads, Mode, ParamId, Params, Policy, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{Class, DType, Device, Tensor};
use colrow_train::recipe::Optim;
use colrow_train::step::{Hyperparameters, Optimizer, States, Update};

/// Features and outputs: as many weights as moments in eight bits need.
const D: usize = 64;
const BATCH: usize = 64;
const STEPS: u64 = 600;

fn normal(device: &Device, key: Key, shape: [usize; 2], scale: impl Fn(usize) -> f64) -> Tensor {
    let mut t = device.empty(Class::Workspace, DType::F32, &shape);
    t.write_f64((0..shape[0] * shape[1]).map(|i| key.normal(i as u64) * scale(i % shape[1])));
    t
}

/// The loss of outputs y (n, D) for targets (n, D).
type Problem = fn(&mut Tape<'_>, &Var, &Tensor) -> Var;

/// Mean squared error. Features differ by a hundred times, the curvatures of their weights by ten thousand.
fn quadratic(tape: &mut Tape<'_>, y: &Var, target: &Tensor) -> Var {
    tape.mean_squared_error("loss", y, target)
}

/// Cross-entropy of the class with the largest output.
fn logistic(tape: &mut Tape<'_>, y: &Var, target: &Tensor) -> Var {
    let rows = target.to_f64();
    let class = |row: &[f64]| (0..D).fold(0, |best, c| if row[c] > row[best] { c } else { best }) as u32;
    let classes: Vec<u32> = rows.chunks(D).map(class).collect();
    let classes = tape.device().tensor(Class::Workspace, &[classes.len()], &classes);
    tape.cross_entropy("loss", y, &classes)
}

/// Losses by step, and the weights at the end.
fn run(problem: Problem, states: States) -> (Vec<f64>, Vec<f64>) {
    let device = Device::cpu();
    let mut params = Params::new(&device, DType::F32);
    let w: ParamId = params.add("w", &[D, D], false);
    let truth = normal(&device, Key::new(1), [D, D], |_| 1.0);
    let mut optimizer =
        Optimizer::new(Hyperparameters::from(&Optim { states, clip: 0.0, ..Optim::default() }), &params);
    let losses = (1..=STEPS).map(|number| {
        let key = Key::new(2).child(number);
        let x = normal(&device, key, [BATCH, D], |column| 10_f64.powf(-2.0 * column as f64 / D as f64));
        let mut target = normal(&device, key.child(1), [BATCH, D], |_| 0.1);
        device.kernels().matmul(&x, false, &truth, true, 1.0, &mut target);
        let mode = Mode::Training {
            key,
            dropout: false,
            policy: Arc::new(Policy::exact()),
            norms: None,
            variances: None,
            probe: None,
        };
        let mut tape = Tape::new(&params, mode);
        let y = tape.linear("linear", &tape.constant(x), w, None);
        let loss = problem(&mut tape, &y, &target);
        drop(y);
        let value = loss.value.scalar();
        let mut grads = Grads::new(&params);
        tape.backward(loss, 1.0, &mut grads).unwrap();
        let lr = 2e-2 * (1.0 - number as f64 / (STEPS + 1) as f64);
        let mut sums = device.zeros(Class::Workspace, DType::F64, &[2]);
        optimizer.begin_step(number, lr, 1).unwrap();
        for (id, gradient) in grads.take_rest() {
            optimizer.take(&mut params, id, gradient, &mut sums);
        }
        optimizer.finish(&mut params, &mut sums).unwrap();
        optimizer.grad_norm(&sums.to_f64(), &params).unwrap();
        value
    });
    let losses = losses.collect();
    (losses, params[w].value.dense().to_f64())
}

/// Steps are off by a few per cent, either way (see `moments_in_eight_bits_follow_those_in_floats`): so are losses on the way, by half of that, as the
/// errors of 4096 weights cancel, and the weights at the end.
#[test]
fn moments_in_eight_bits_reach_the_same_minimum_the_same_way() {
    for (name, problem) in [("quadratic", quadratic as Problem), ("logistic", logistic)] {
        let ((exact, w), (losses, w8)) = (run(problem, States::F32), run(problem, States::EightBit));
        let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
        for (part, (want, got)) in exact.chunks(50).zip(losses.chunks(50)).enumerate() {
            let (want, got) = (mean(want), mean(got));
            assert!((got / want - 1.0).abs() < 0.02, "{name}, steps from {}: {got}, not {want}", 50 * part);
        }
        assert!(mean(&exact[550..]) < 0.3 * exact[0], "{name} is learned");
        let norm = |w: &[f64]| w.iter().map(|w| w * w).sum::<f64>().sqrt();
        let apart: Vec<f64> = w.iter().zip(&w8).map(|(a, b)| a - b).collect();
        assert!(norm(&apart) < 0.05 * norm(&w), "{name}: weights are {} apart", norm(&apart) / norm(&w));
        assert!(w != w8, "{name}: eight bits are not floats");
    }
}
