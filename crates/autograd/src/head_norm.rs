//! The root mean square norm of each head of queries or keys (Henry et al. 2020; in Qwen3): a norm over the columns of a head, with one scale γ
//! for all of them. Other columns stay as they are.
//!
//! Keeps ẑ of those heads, as it is or in fewer bits, and 1/σ, as a norm of whole rows does.

use std::ops::Range;
use std::sync::Arc;

use colrow_tensor::{Class, Norm, Result, StoredMut, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::param::{Handle, ParamId};
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// Neighbouring heads of the rows of a matrix, their norm's scale γ (h) and epsilon.
#[derive(Clone, Debug)]
struct Heads {
    range: Range<usize>,
    gamma: Handle,
    eps: f64,
}

impl Heads {
    fn size(&self) -> usize {
        self.gamma.value.len()
    }

    fn norm(&self) -> Norm<'_> {
        Norm { gamma: self.gamma.value.dense(), beta: None, eps: self.eps }
    }

    /// These heads of the rows of x (n, d), one a row (n·heads, h).
    fn of(&self, x: &Tensor) -> Tensor {
        let (n, h) = (x.rows(), self.size());
        let mut heads = x.device().empty(Class::Workspace, x.dtype(), &[n, self.range.len() * h]);
        x.device().kernels().read_columns(x, self.range.start * h, &mut heads);
        heads.reshape(&[n * self.range.len(), h])
    }

    /// Writes them back.
    fn put(&self, heads: Tensor, x: &mut Tensor) {
        let h = self.size();
        let device = x.device().clone();
        device.kernels().write_columns(&heads.reshape(&[x.rows(), self.range.len() * h]), self.range.start * h, x);
    }

    /// x with these heads normalised, of which ẑ and 1/σ go to `kept`.
    fn normalise(&self, x: Tensor, kept: Option<(StoredMut<'_>, &mut Tensor)>) -> Tensor {
        let mut y = x.into_owned();
        let heads = self.of(&y);
        let mut normal = heads.empty_like();
        y.device().kernels().layer_norm(&heads, &self.norm(), &mut normal, kept);
        drop(heads);
        self.put(normal, &mut y);
        y
    }
}

/// What is rebuilt, normalised.
#[derive(Debug)]
struct Normalised {
    source: Arc<dyn Rebuild>,
    heads: Heads,
}

impl Rebuild for Normalised {
    fn whole(&self) -> Tensor {
        self.heads.normalise(self.source.whole(), None)
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.heads.normalise(self.source.rows(index), None)
    }
}

struct HeadNorm {
    x: Option<VarId>,
    heads: Heads,
    z: Kept,
    r: Kept,
}

impl Tape<'_> {
    /// The root mean square norm of each of the heads `range` of the rows of x (n, d), with scale `gamma` (h) and σ² = mean x² + `eps`; in
    /// the memory of x where nothing else holds it.
    pub fn head_norm(&mut self, site: &str, x: Var, range: Range<usize>, gamma: ParamId, eps: f64) -> Var {
        let heads = Heads { range, gamma: self.handle(gamma), eps };
        let source = x.source.map(|source| Arc::new(Normalised { source, heads: heads.clone() }) as Arc<dyn Rebuild>);
        let learns = x.id.is_some() || heads.gamma.trainable;
        if !(learns && self.records()) {
            let y = heads.normalise(x.value, None);
            return Var { source, ..self.unrecorded(site, y) };
        }
        let size = [x.value.rows() * heads.range.len(), heads.size()];
        let dtype = x.value.dtype();
        let (y, z, r) = self.normalised(site, (size, dtype), |kept| heads.normalise(x.value, Some(kept)));
        let y = self.output(site, y, learns, || HeadNorm { x: x.id, heads, z, r });
        Var { source, ..y }
    }
}

impl Op for HeadNorm {
    fn name(&self) -> &'static str {
        "head_norm"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("normalised", &self.z), ("1/sigma", &self.r)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let Self { x, heads, z, r } = *self;
        let device = dy.device().clone();
        let mut dx = dy.into_owned();
        let mut part = heads.of(&dx);
        let mut dgamma = heads.gamma.trainable.then(|| grads.take_sum(&heads.gamma));
        let sums = [dgamma.as_mut(), None];
        device.kernels().layer_norm_backward(&z.stored(), r.exact(), &heads.norm(), &mut part, x.is_some(), sums);
        if let Some(sum) = dgamma {
            grads.put_sum(&heads.gamma, sum);
        }
        if x.is_some() {
            heads.put(part, &mut dx);
            grads.add(x, dx);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};
    use crate::{Bits, Keep, Policy};

    #[test]
    fn gradients_of_input_and_scale() {
        let device = Device::cpu();
        let (h, n) = (5, 4);
        let (mut params, [x, g]) = random_params(&device, DType::F64, [("x", &[n, 4 * h]), ("gamma", &[h])]);
        let mode = training(Key::new(1), false, Policy::exact(), None);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.head_norm("norm", x, 1..3, g, 0.3)
        };
        for which in [[true, true], [true, false], [false, true]] {
            params.iter_mut().zip(which).for_each(|((_, p), learned)| p.trainable = learned);
            check_gradients(&mut params, &mode, 3 * h + 2 * n, f).unwrap();
            check_precision(&mut params, &mode, 3 * h + 2 * n, f).unwrap();
        }
    }

    /// Heads 1 and 2 are normed each for itself, heads 0 and 3 stay.
    #[test]
    fn other_heads_stay_and_what_is_kept_is_as_the_site_says() {
        let device = Device::cpu();
        let (params, [x, g]) = random_params(&device, DType::F32, [("x", &[3, 16]), ("gamma", &[4])]);
        let run = |keep| {
            let mode = training(Key::new(1), false, Policy::everywhere(keep), None);
            let mut tape = Tape::new(&params, mode);
            let x = leaf(&mut tape, x);
            let y = tape.head_norm("norm", x, 1..3, g, 1e-6);
            let bytes =
                tape.ledger().entries.iter().filter(|e| e.op == "head_norm").map(|e| e.bytes).collect::<Vec<_>>();
            (y.value.to_f64(), bytes)
        };
        let (y, bytes) = run(Keep::Exact);
        assert_eq!(bytes, [3 * 8 * 4, 3 * 2 * 4]);
        assert_eq!(run(Keep::Quantised(Bits::Int8)).1, [3 * 8 + 6 * 4, 3 * 2 * 4]);
        let (x, g) = (params[x].value.dense().to_f64(), params[g].value.dense().to_f64());
        for (i, &got) in y.iter().enumerate() {
            let (head, c) = (i % 16 / 4, i % 4);
            let row = &x[i - c..][..4];
            let size = (row.iter().map(|x| x * x).sum::<f64>() / 4.0 + 1e-6).sqrt();
            let want = if (1..3).contains(&head) { x[i] / size * g[c] } else { x[i] };
            assert!((got - want).abs() < 1e-6 * want.abs().max(1.0), "{got} is not {want}");
        }
    }
}
