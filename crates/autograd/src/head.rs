//! A language model's head and its loss in one op: `mean_i −log softmax(s·W·x_i)[labels_i]`, x (n, d), W (v, d).
//!
//! Logits are computed in chunks of rows and never whole: v is in the ten thousands. Keeps x and the labels; the backward pass computes each
//! chunk's logits again, one more product for n·v numbers that are not held.

use colrow_tensor::{Class, DType, Result, Tensor};

use crate::kept::Kept;
use crate::param::ParamId;
use crate::sample::gather;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// Logits that are in memory at once, if a row has fewer.
const CHUNK: usize = 1 << 21;

/// A head without a bias.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// W (v, d).
    pub weight: ParamId,
    /// The factor s of the logits.
    pub scale: f64,
}

struct HeadLoss {
    x: Option<VarId>,
    input: Kept,
    /// By chunk.
    labels: Vec<Kept>,
    weight: (ParamId, Tensor, bool),
    scale: f64,
}

/// One chunk's input (c, d), times s, and the gradient of its mean loss with respect to its logits (c, v).
struct Chunk {
    index: Tensor,
    x: Tensor,
    loss: Tensor,
    dlogits: Tensor,
}

impl HeadLoss {
    fn input(&self) -> &Tensor {
        self.input.exact()
    }

    /// The chunks in turn, each with its share of the rows.
    fn chunks(&self) -> impl Iterator<Item = (f64, Chunk)> {
        let n = self.input().rows();
        let mut first = 0;
        self.labels.iter().map(move |labels| {
            let labels = labels.exact();
            let chunk = self.chunk(first, labels);
            first += labels.len();
            (labels.len() as f64 / n as f64, chunk)
        })
    }

    fn chunk(&self, first: usize, labels: &Tensor) -> Chunk {
        let (input, (_, weight, _)) = (self.input(), &self.weight);
        let (device, dtype) = (input.device(), input.dtype());
        let kernels = device.kernels();
        let rows: Vec<u32> = (first..first + labels.len()).map(|i| i as u32).collect();
        let index = device.tensor(Class::Workspace, &[rows.len()], &rows);
        let mut x = gather(input, &index, None);
        kernels.scale(self.scale, None, &mut x);
        let mut logits = device.empty(Class::Workspace, dtype, &[rows.len(), weight.rows()]);
        kernels.matmul(&x, false, weight, true, 0.0, &mut logits);
        let mut dlogits = logits.empty_like();
        let mut loss = device.empty(Class::Workspace, dtype, &[1]);
        kernels.cross_entropy(&logits, labels, &mut loss, &mut dlogits);
        Chunk { index, x, loss, dlogits }
    }
}

impl Tape<'_> {
    /// The mean cross-entropy of `labels` (n) given x (n, d): one number.
    pub fn head_loss(&mut self, site: &str, x: &Var, head: Head, labels: &[u32]) -> Var {
        let device = self.device().clone();
        let weight = self.param(head.weight);
        let each = (CHUNK / weight.value.rows()).max(1);
        let on_device = |labels: &[u32]| Kept::Exact(device.tensor(Class::Workspace, &[labels.len()], labels));
        let op = HeadLoss {
            x: x.id,
            input: Kept::Exact(x.value.clone()),
            labels: labels.chunks(each).map(on_device).collect(),
            weight: (head.weight, weight.value.clone(), weight.trainable),
            scale: head.scale,
        };
        let kernels = device.kernels();
        let mut total = device.zeros(Class::Workspace, DType::F64, &[1]);
        op.chunks().for_each(|(share, chunk)| kernels.accumulate(share, &chunk.loss, 0, &mut total));
        let mut loss = device.zeros(Class::Workspace, x.value.dtype(), &[1]);
        kernels.accumulate(1.0, &total, 0, &mut loss);
        drop(total);
        self.output(site, loss, x.id.is_some() || weight.trainable, || op)
    }
}

impl Op for HeadLoss {
    fn name(&self) -> &'static str {
        "head_loss"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        let labels = self.labels.iter().map(|labels| ("labels", labels));
        [("input", &self.input)].into_iter().chain(labels).collect()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let (id, weight, trainable) = &self.weight;
        let device = dy.device().clone();
        let kernels = device.kernels();
        let mut dx = self.x.map(|_| self.input().empty_like());
        for (share, Chunk { index, x, mut dlogits, .. }) in self.chunks() {
            kernels.scale(share, Some(&dy), &mut dlogits);
            if *trainable {
                let (dw, beta) = grads.param(*id, weight);
                kernels.matmul(&dlogits, true, &x, false, beta, dw);
            }
            if let Some(dx) = &mut dx {
                let mut part = x;
                kernels.matmul(&dlogits, false, weight, false, 0.0, &mut part);
                kernels.scale(self.scale, None, &mut part);
                kernels.scatter_rows(&part, &index, dx);
            }
        }
        if let Some(dx) = dx {
            grads.add(self.x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::Device;
    use colrow_tensor::rng::Key;

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, run, training};

    /// Equal to a linear and its loss, whichever of input and weight is learned.
    #[test]
    fn gradients_and_loss() {
        let device = Device::cpu();
        let (n, v) = (7, 11);
        let (mut params, [x, w]) = random_params(&device, DType::F64, [("x", &[n, 5]), ("w", &[v, 5])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 5 % v as u32).collect();
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.head_loss("head", &x, Head { weight: w, scale: 0.4 }, &labels)
        };
        let plain = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            let mut scaled = x.value.copied();
            device.kernels().scale(0.4, None, &mut scaled);
            let x = tape.constant(scaled);
            let logits = tape.linear("head", &x, w, None);
            tape.cross_entropy("loss", &logits, &device.tensor(Class::Workspace, &[n], &labels))
        };
        for which in [[true, true], [true, false], [false, true]] {
            params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
            check_gradients(&mut params, &mode, v + 5, f).unwrap();
            check_precision(&mut params, &mode, v + 5 + n, f).unwrap();
        }
        let (ours, theirs) = (run(&params, &mode, f).unwrap(), run(&params, &mode, plain).unwrap());
        assert!((ours.output[0] - theirs.output[0]).abs() < 1e-14);
        let (ours, theirs) = (ours.gradients[1].clone().unwrap(), theirs.gradients[1].clone().unwrap());
        assert!(ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() < 1e-14));
    }

    /// With more logits than fit into a chunk the loss is the same, and no more than two chunks are in memory.
    #[test]
    fn logits_are_never_whole() {
        let device = Device::cpu();
        let (n, v) = (50, 1 << 17);
        let (params, [x, w]) = random_params(&device, DType::F32, [("x", &[n, 2]), ("w", &[v, 2])]);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 1009).collect();
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let mut tape = Tape::new(&params, mode);
        let x = leaf(&mut tape, x);
        let numbers = (x.value.to_f64(), params[w].value.to_f64());
        device.meter().reset_peak();
        let before = device.meter().live().total();
        let loss = tape.head_loss("head", &x, Head { weight: w, scale: 1.0 }, &labels);
        let extra = device.meter().peak().total() - before;
        assert!(extra < 2 * CHUNK * 4 + 10_000, "{extra} bytes, all logits are {}", n * v * 4);
        let one = |i: usize| {
            let logit = |j: usize| numbers.0[2 * i] * numbers.1[2 * j] + numbers.0[2 * i + 1] * numbers.1[2 * j + 1];
            (0..v).map(|j| logit(j).exp()).sum::<f64>().ln() - logit(labels[i] as usize)
        };
        let want = (0..n).map(one).sum::<f64>() / n as f64;
        assert!((loss.value.scalar() / want - 1.0).abs() < 1e-6, "{} is not {want}", loss.value.scalar());
    }
}
