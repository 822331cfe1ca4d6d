//! A model of one's own on the tape, trained by AdamW, once keeping all that its ops need for their gradients and once a sixth of it:
//!
//!     cargo run --release --example own_model

#![allow(clippy::print_stdout, reason = "a program")]

use std::sync::Arc;

use colrow_autograd::{Bits, Grads, Keep, Mode, NormSource, ParamId, Params, Policy, Sampling, Tape, Var};
use colrow_tensor::rng::Key;
use colrow_tensor::{Activation, Class, DType, Device, Estimator, Result, Tensor};
use colrow_train::step::{Hyperparameters, Optimizer, States, Update, When};

const ROWS: usize = 256;
const INPUTS: usize = 32;
const HIDDEN: usize = 128;
const CLASSES: usize = 4;
const STEPS: u64 = 300;

/// Linear, GELU, linear.
struct Mlp {
    params: Params,
    up: [ParamId; 2],
    down: [ParamId; 2],
}

impl Mlp {
    fn new(device: &Device, key: Key) -> Self {
        let mut params = Params::new(device, DType::F32);
        let mut linear = |name: &str, outputs: usize, inputs: usize| {
            // matrices decay, biases do not
            let weight = params.add(format!("{name}.weight"), &[outputs, inputs], true);
            let bias = params.add(format!("{name}.bias"), &[outputs], false);
            let (key, std) = (key.named(name), (1.0 / inputs as f64).sqrt());
            params[weight].value.dense_mut().write_f64((0..).map(|i| std * key.normal(i)));
            [weight, bias]
        };
        let (up, down) = (linear("up", HIDDEN, INPUTS), linear("down", CLASSES, HIDDEN));
        Self { params, up, down }
    }

    /// Every op has a name, its site, by which the policy knows it.
    fn loss(&self, tape: &mut Tape<'_>, x: &Var, labels: &Tensor) -> Var {
        let x = tape.linear("up", x, self.up[0], Some(self.up[1]));
        let x = tape.activate("gelu", Activation::Gelu, x);
        let x = tape.linear("down", &x, self.down[0], Some(self.down[1]));
        tape.cross_entropy("loss", &x, labels)
    }
}

/// Points in a space of 32 dimensions; the class of a point is that of its first two coordinates' quadrant.
fn batch(device: &Device, key: Key) -> (Tensor, Tensor) {
    let x: Vec<f32> = (0..(ROWS * INPUTS) as u64).map(|i| key.normal(i) as f32).collect();
    let quadrant = |x: &[f32]| 2 * u32::from(x[0] > 0.0) + u32::from(x[1] > 0.0);
    let labels: Vec<u32> = x.chunks(INPUTS).map(quadrant).collect();
    (device.tensor(Class::Workspace, &[ROWS, INPUTS], &x), device.tensor(Class::Workspace, &[ROWS], &labels))
}

/// Mean loss of the last 50 steps, and bytes kept between the passes of a step.
pub(crate) fn train(policy: Policy) -> Result<(f64, usize)> {
    let device = Device::cpu();
    let root = Key::new(1);
    let mut model = Mlp::new(&device, root.named("init"));
    let settings = Hyperparameters {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip: 1.0,
        states: States::F32,
        update: When::AfterBackward,
    };
    let mut adamw = Optimizer::new(settings, &model.params);
    let policy = Arc::new(policy);
    let (mut last, mut kept) = (0.0, 0);
    for step in 1..=STEPS {
        let (x, labels) = batch(&device, root.named("data").child(step));
        let mode = Mode::Training {
            key: root.named("step").child(step),
            dropout: false,
            policy: policy.clone(),
            norms: None,
            variances: None,
            probe: None,
        };
        let mut tape = Tape::new(&model.params, mode);
        let x = tape.constant(x);
        let loss = model.loss(&mut tape, &x, &labels);
        kept = tape.ledger().total();

        // the step's numbers, the loss and each parameter's Σg², stay on the device until its end
        let mut sums = device.zeros(Class::Workspace, DType::F64, &[1 + model.params.len()]);
        device.kernels().accumulate(1.0, &loss.value, 0, &mut sums);
        let mut grads = Grads::new(&model.params);
        tape.backward(loss, 1.0, &mut grads)?;
        adamw.begin_step(step, 3e-3, 1)?;
        for (id, gradient) in grads.take_rest() {
            adamw.take(&mut model.params, id, gradient, &mut sums);
        }
        adamw.finish(&mut model.params, &mut sums)?;
        adamw.end_step();
        let sums = sums.to_f64();
        adamw.grad_norm(&sums, &model.params)?;
        last += if step > STEPS - 50 { sums[0] / 50.0 } else { 0.0 };
    }
    Ok((last, kept))
}

/// Of the inputs of the first linear 30 % of the rows; of the GELU's input int8 codes; of the second linear's input nothing: the codes make it
/// again, for the rows that are drawn once the gradient is known.
pub(crate) fn lean() -> Policy {
    let rows = |norms| Keep::Rows(Sampling { estimator: Estimator::Pps, ratio: 0.3, norms, uniform: 0.1 });
    let keeps =
        [("up", rows(NormSource::Uniform)), ("gelu", Keep::Quantised(Bits::Int8)), ("down", rows(NormSource::Current))];
    Policy::new(keeps.map(|(site, keep)| (site.to_owned(), keep)))
}

pub(crate) fn main() -> Result<()> {
    for (name, policy) in [("exact", Policy::exact()), ("lean", lean())] {
        let (loss, kept) = train(policy)?;
        println!("{name:5}  loss {loss:.3}  kept {kept:7} bytes");
    }
    Ok(())
}
