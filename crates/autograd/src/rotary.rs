//! Rotary position embedding (RoPE; Su et al. 2021) of the heads of queries and keys.
//!
//! Keeps nothing but where sequences begin: an angle is a function of the position, and the gradient turns back by the same.

use std::sync::Arc;

use colrow_tensor::{Result, Rotation, Tensor};

use crate::attention::Sequences;
use crate::kept::{Kept, Rebuild};
use crate::sample::gather;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// How heads turn.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Angles by position, of columns j and j + h/2 of a head: for all sequences (1, h/2), or for each (b, h/2); f64.
    pub frequencies: Tensor,
    /// What turned numbers are multiplied with; 1 but where positions are stretched (Peng et al. 2023, section 3.4).
    pub factor: f64,
    /// Heads that turn, from the first column on.
    pub heads: usize,
    /// Position of a sequence's first row.
    pub first_position: usize,
}

#[derive(Clone, Debug)]
struct Turn {
    frequencies: Kept,
    bounds: Kept,
    factor: f64,
    heads: usize,
    first_position: usize,
}

impl Turn {
    fn apply(&self, x: Tensor, transposed: bool) -> Tensor {
        let (device, mut x) = (x.device().clone(), x.into_owned());
        let rotation = Rotation {
            frequencies: self.frequencies.exact(),
            factor: self.factor,
            heads: self.heads,
            bounds: self.bounds.exact(),
            first_position: self.first_position,
            transposed,
        };
        device.kernels().rotate(&rotation, &mut x);
        x
    }
}

/// What is rebuilt, turned.
#[derive(Debug)]
struct Turned {
    source: Arc<dyn Rebuild>,
    turn: Turn,
}

impl Rebuild for Turned {
    fn whole(&self) -> Tensor {
        self.turn.apply(self.source.whole(), false)
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        gather(&self.whole(), index, None)
    }
}

struct RotaryOp {
    x: Option<VarId>,
    turn: Turn,
}

impl Tape<'_> {
    /// Turns the first heads of each row of x (n, d), in its memory where nothing else holds it.
    pub fn rotary(&mut self, site: &str, x: Var, rotary: &Rotary, sequences: &Sequences) -> Var {
        let turn = Turn {
            frequencies: Kept::Exact(rotary.frequencies.clone()),
            bounds: Kept::Exact(sequences.bounds.clone()),
            factor: rotary.factor,
            heads: rotary.heads,
            first_position: rotary.first_position,
        };
        let y = turn.apply(x.value, false);
        let y = self.output(site, y, x.id.is_some(), || RotaryOp { x: x.id, turn: turn.clone() });
        let source = x.source.map(|source| Arc::new(Turned { source, turn }) as Arc<dyn Rebuild>);
        Var { source, ..y }
    }
}

impl Op for RotaryOp {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        vec![("frequencies", &self.turn.frequencies), ("bounds", &self.turn.bounds)]
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        grads.add(self.x, self.turn.apply(dy, true));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{Class, DType, Device};

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};

    /// Two of three heads turn, each sequence by its own frequencies, by more than their length.
    #[test]
    fn gradients() {
        let device = Device::cpu();
        let sequences = Sequences::new(&device, &[0, 3, 4, 9]);
        let frequencies = [1.0, 0.1, 0.5, 0.05, 0.3, 0.01];
        for (rows, heads) in [(1, 2), (3, 3)] {
            let rotary = Rotary {
                frequencies: device.tensor(Class::Workspace, &[rows, 2], &frequencies[..2 * rows]),
                factor: 1.3,
                heads,
                first_position: 2,
            };
            let (mut params, [x]) = random_params(&device, DType::F64, [("x", &[9, 12])]);
            let mode = training(Key::new(1), true, Policy::exact(), None);
            let f = |tape: &mut Tape<'_>| {
                let x = leaf(tape, x);
                tape.rotary("rotary", x, &rotary, &sequences)
            };
            check_gradients(&mut params, &mode, 2, f).unwrap();
            check_precision(&mut params, &mode, 2, f).unwrap();
        }
    }

    /// What can be rebuilt is rebuilt turned, to the same bits.
    #[test]
    fn a_turned_matrix_is_rebuilt() {
        let device = Device::cpu();
        let sequences = Sequences::new(&device, &[0, 4, 6]);
        let rotary = Rotary {
            frequencies: device.tensor(Class::Workspace, &[1, 2], &[1.0, 0.1]),
            factor: 1.0,
            heads: 1,
            first_position: 0,
        };
        let (params, [x, g]) = random_params(&device, DType::F32, [("x", &[6, 4]), ("gamma", &[4])]);
        let mut tape = Tape::new(&params, training(Key::new(1), false, Policy::exact(), None));
        let x = leaf(&mut tape, x);
        let y = tape.rms_norm("norm", &x, g, 1e-6);
        let y = tape.rotary("rotary", y, &rotary, &sequences);
        let source = y.source.unwrap();
        assert_eq!(source.whole().to_f64(), y.value.to_f64());
        let rows = source.rows(&device.tensor(Class::Workspace, &[2], &[1_u32, 5])).to_f64();
        let all = y.value.to_f64();
        assert_eq!(rows, [&all[4..8], &all[20..24]].concat());
    }
}
