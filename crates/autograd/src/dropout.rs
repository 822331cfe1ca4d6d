//! Dropout (Srivastava et al. 2014): each element is 0 with probability p, else divided by 1−p.
//!
//! Keeps nothing: the mask is replayed from the generator. Also the residual sum, which keeps nothing either.

use std::sync::Arc;

use colrow_tensor::{Dropout, Result, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::tape::{Grads, Op, Tape, Var, VarId};

struct DropoutOp {
    x: Option<VarId>,
    dropout: Dropout,
}

/// What is rebuilt, behind dropout.
#[derive(Debug)]
pub(crate) struct Dropped {
    pub(crate) source: Arc<dyn Rebuild>,
    pub(crate) dropout: Dropout,
}

impl Rebuild for Dropped {
    fn whole(&self) -> Tensor {
        replay(self.dropout, None, self.source.whole())
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        replay(self.dropout, Some(index), self.source.rows(index))
    }
}

/// x, or the rows `index` of it, behind dropout.
pub(crate) fn replay(dropout: Dropout, index: Option<&Tensor>, x: Tensor) -> Tensor {
    let (device, mut x) = (x.device().clone(), x.into_owned());
    device.kernels().dropout(dropout, index, &mut x);
    x
}

struct Add {
    terms: [Option<VarId>; 2],
}

impl Tape<'_> {
    /// Drops elements of x (n, d) with probability `p`; without effect outside training.
    pub fn dropout(&mut self, site: &str, x: Var, p: f32) -> Var {
        let Some(key) = self.dropout_key(site).filter(|_| p > 0.0) else { return x };
        let dropout = Dropout { key, p };
        let y = self.output(site, replay(dropout, None, x.value), x.id.is_some(), || DropoutOp { x: x.id, dropout });
        let source = x.source.map(|source| Arc::new(Dropped { source, dropout }) as Arc<dyn Rebuild>);
        Var { source, ..y }
    }

    /// `x + y`, in the memory of `x` where nothing else holds it.
    pub fn add(&mut self, site: &str, x: Var, y: &Var) -> Var {
        let mut sum = x.value.into_owned();
        self.device().kernels().add(&y.value, &mut sum);
        self.output(site, sum, x.id.is_some() || y.id.is_some(), || Add { terms: [x.id, y.id] })
    }
}

impl Op for DropoutOp {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        grads.add(self.x, replay(self.dropout, None, dy));
        Ok(())
    }
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let [x, y] = self.terms;
        grads.add(x, dy.clone());
        grads.add(y, dy);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{DType, Device};

    use super::*;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, run, training};
    use crate::{Mode, Policy};

    #[test]
    fn gradients_of_dropout_and_sums() {
        let device = Device::cpu();
        let f: [fn(&mut Tape<'_>, Var, Var) -> Var; 5] = [
            |tape, x, _| tape.dropout("dropout", x, 0.4),
            |tape, x, y| tape.add("sum", x, &y),
            |tape, x, _| tape.add("twice", x.clone(), &x),
            // three consumers of x, one of them through dropout in place
            |tape, x, y| {
                let a = tape.dropout("dropout", x.clone(), 0.4);
                let b = tape.add("b", a, &x);
                let c = tape.add("c", y, &x);
                tape.add("d", b, &c)
            },
            // the same gradient reaches x by both terms, and x's own producer gets the sum
            |tape, x, y| {
                let a = tape.add("a", x, &y);
                let b = tape.add("b", a.clone(), &a);
                let c = tape.tanh("tanh", b);
                tape.add("c", c, &a)
            },
        ];
        for f in f {
            let (mut params, [x, y]) = random_params(&device, DType::F64, [("x", &[7, 9]), ("y", &[7, 9])]);
            let mode = training(Key::new(3), true, Policy::exact(), None);
            let f = |tape: &mut Tape<'_>| {
                let (x, y) = (leaf(tape, x), leaf(tape, y));
                f(tape, x, y)
            };
            check_gradients(&mut params, &mode, 4, f).unwrap();
            check_precision(&mut params, &mode, 4, f).unwrap();
        }
    }

    #[test]
    fn acts_in_training_only_and_by_key_and_site() {
        let device = Device::cpu();
        let (params, [x]) = random_params(&device, DType::F64, [("x", &[7, 90])]);
        let output = |mode: &Mode, site: &str| {
            let f = |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                tape.dropout(site, x, 0.5)
            };
            run(&params, mode, f).unwrap().output
        };
        let at = |seed: u64, dropout: bool| training(Key::new(seed), dropout, Policy::exact(), None);
        let plain = params[x].value.dense().to_f64();
        assert_eq!(output(&Mode::Inference, "a"), plain);
        assert_eq!(output(&at(1, false), "a"), plain);
        assert_eq!(output(&at(1, true), "a"), output(&at(1, true), "a"));
        assert_ne!(output(&at(1, true), "a"), output(&at(1, true), "b"));
        assert_ne!(output(&at(1, true), "a"), output(&at(2, true), "a"));
        assert!(output(&at(1, true), "a").iter().zip(&plain).all(|(y, x)| *y == 0.0 || *y == 2.0 * x));
    }
}
