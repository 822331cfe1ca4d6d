//! An op of one's own, `y = x + gelu(x)`: what it keeps is the policy's to say, and a linear behind it need not keep its input, because the op
//! can make it again. Its gradient is checked by finite differences.
//!
//!     cargo run --release --example custom_op

#![allow(clippy::print_stdout, reason = "a program")]

use std::sync::Arc;

use colrow_autograd::testing::{check_gradients, leaf, random_params, training};
use colrow_autograd::{Bits, Grads, Keep, Kept, Op, Policy, Rebuild, Tape, Var, VarId};
use colrow_tensor::rng::Key;
use colrow_tensor::{Activation, Class, DType, Device, Result, Rows, Tensor};

/// What the op keeps: its input, of which its output and its derivative are functions.
#[derive(Debug)]
struct Input(Kept);

/// `x + gelu(x)` of the rows of x (n, d) that `x` names.
fn apply(device: &Device, x: &Rows<'_>) -> Tensor {
    let kernels = device.kernels();
    let mut sum = device.empty(Class::Workspace, x.of.dtype(), &[x.len(), x.of.cols()]);
    let mut gelu = sum.empty_like();
    kernels.read_rows(x, None, &mut sum);
    kernels.activate(Activation::Gelu, Some(x), &mut gelu);
    kernels.add(&gelu, &mut sum);
    sum
}

impl Rebuild for Input {
    fn whole(&self) -> Tensor {
        apply(self.0.device(), &self.0.picked(None))
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        apply(self.0.device(), &self.0.picked(Some(index)))
    }
}

struct ResidualGelu {
    x: Option<VarId>,
    input: Arc<Input>,
}

/// Runs the op forward and records it.
fn residual_gelu(tape: &mut Tape<'_>, site: &str, x: Var) -> Var {
    let y = apply(tape.device(), &(&x.value).into());
    if x.id.is_none() || !tape.records() {
        return tape.constant(y);
    }
    // a derivative is not linear in what is rounded: to the nearest, and not at random
    let kept = match tape.keep(site) {
        Keep::Quantised(bits) => Kept::quantised(&x.value, bits.code(), None),
        _ => Kept::Exact(x.value),
    };
    let input = Arc::new(Input(kept));
    let y = tape.output(site, y, true, || ResidualGelu { x: x.id, input: input.clone() });
    Var { source: Some(input), ..y }
}

impl Op for ResidualGelu {
    fn name(&self) -> &'static str {
        "residual_gelu"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("input", &self.input.0)]
    }

    /// `dx = dy + dy·gelu'(x)`
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let kernels = dy.device().kernels();
        let mut dx = dy.copied();
        kernels.activate_backward(Activation::Gelu, &self.input.0.stored(), &mut dx);
        kernels.add(&dy, &mut dx);
        grads.add(self.x, dx);
        Ok(())
    }
}

pub(crate) fn main() -> Result<()> {
    let device = Device::cpu();
    let shapes: [(&str, &[usize]); 2] = [("x", &[12, 64]), ("w", &[3, 64])];
    let (mut params, [x, w]) = random_params(&device, DType::F64, shapes);
    let f = |tape: &mut Tape<'_>| {
        let x = leaf(tape, x);
        let y = residual_gelu(tape, "act", x);
        tape.linear("linear", &y, w, None)
    };
    // with all kept, and with the linear's input made again; the longest sum has 64 terms
    for keep in [Keep::Exact, Keep::Nothing] {
        let policy = Policy::new([("linear".to_owned(), keep)]);
        check_gradients(&mut params, &training(Key::new(1), false, policy, None), 64, f)?;
    }
    println!("the gradients are those of finite differences");

    let lean = [("act", Keep::Quantised(Bits::Int8)), ("linear", Keep::Nothing)];
    let lean = Policy::new(lean.map(|(site, keep)| (site.to_owned(), keep)));
    for (name, policy) in [("exact", Policy::exact()), ("lean", lean)] {
        let mut tape = Tape::new(&params, training(Key::new(1), false, policy, None));
        f(&mut tape);
        println!("{name}:");
        for entry in tape.ledger().entries {
            println!("  {:6}  {:13}  {:7}  {:5} bytes", entry.site, entry.op, entry.keep, entry.bytes);
        }
    }
    Ok(())
}
