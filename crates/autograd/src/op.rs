//! What an op is to the tape.

use colrow_tensor::{Result, Tensor};

use crate::grads::Grads;
use crate::kept::Kept;

/// An op that was recorded: what it needs for its gradient. It holds a [`Handle`](crate::Handle) to every parameter whose value it
/// reads or whose gradient it adds to, so that the parameter may change when the last such op is gone: see [`Grads::take_final`].
///
/// An op of another crate is a struct that implements this, and a function that runs it forward and records it by
/// [`Tape::output`](crate::Tape::output). Here `y = x + x·Wᵀ`, which holds its input as the policy of its site says, like any linear:
///
/// ```
/// use colrow_autograd::testing::{check_gradients, leaf, random_params, training};
/// use colrow_autograd::{Grads, Handle, HeldInput, Keep, Kept, NormSource, Op, ParamId, Policy, Sampling, Tape, Var, VarId};
/// use colrow_tensor::rng::Key;
/// use colrow_tensor::{Class, DType, Device, Estimator, Result, Tensor};
///
/// struct Residual {
///     x: Option<VarId>,
///     input: HeldInput,
///     weight: Handle,
/// }
///
/// /// x (n, d), W (d, d)
/// fn residual(tape: &mut Tape<'_>, site: &str, x: &Var, weight: ParamId) -> Var {
///     let weight = tape.handle(weight);
///     let mut y = x.value.empty_like();
///     tape.device().kernels().linear(&x.value, &weight.value.stored(), None, &mut y);
///     tape.device().kernels().add(&x.value, &mut y);
///     let learns = x.id.is_some() || weight.trainable;
///     let input = if weight.trainable { HeldInput::new(tape, site, x, None) } else { HeldInput::nothing() };
///     tape.output(site, y, learns, || Residual { x: x.id, input, weight })
/// }
///
/// impl Op for Residual {
///     fn name(&self) -> &'static str {
///         "residual"
///     }
///
///     fn kept(&self) -> Vec<(&'static str, &Kept)> {
///         self.input.kept()
///     }
///
///     fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
///         let kernels = dy.device().kernels();
///         // dW = dyᵀ·x, of all rows or of those that are drawn
///         if let Some((dy, x)) = self.input.operands(&dy) {
///             let (dw, beta) = grads.param(&self.weight);
///             kernels.matmul(&dy, true, &x, false, beta, dw);
///         }
///         // dx = dy + dy·W
///         let mut dx = dy.empty_like();
///         kernels.linear_backward(&dy, &self.weight.value.stored(), &mut dx);
///         kernels.add(&dy, &mut dx);
///         grads.add(self.x, dx);
///         Ok(())
///     }
/// }
///
/// let device = Device::cpu();
/// let (mut params, [x, w]) = random_params(&device, DType::F64, [("x", &[10, 4]), ("w", &[4, 4])]);
/// let f = |tape: &mut Tape<'_>| {
///     let x = leaf(tape, x);
///     residual(tape, "site", &x, w)
/// };
/// // finite differences; the longest sum has 10 terms
/// let exact = training(Key::new(1), false, Policy::exact(), None);
/// check_gradients(&mut params, &exact, 10, f)?;
///
/// // three of ten rows, a 4-byte number and an 8-byte weight a row beside them
/// let sampling = Sampling { estimator: Estimator::Pps, ratio: 0.3, norms: NormSource::Uniform, uniform: 0.1 };
/// let mut tape = Tape::new(&params, training(Key::new(1), false, Policy::everywhere(Keep::Rows(sampling)), None));
/// f(&mut tape);
/// assert_eq!(tape.ledger().total(), 3 * (4 * 8 + 4 + 8));
/// # Ok::<(), colrow_tensor::Error>(())
/// ```
pub trait Op {
    /// The op's name: "linear", "layer_norm", …
    fn name(&self) -> &'static str;
    /// Everything it holds on to, by name.
    fn kept(&self) -> Vec<(&'static str, &Kept)>;
    /// From the gradient of its output to those of its inputs and parameters.
    ///
    /// # Errors
    /// Where a kept tensor cannot be made again.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()>;
}
