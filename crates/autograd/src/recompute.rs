//! Blocks that run again in the backward pass (gradient checkpointing; Chen et al. 2016): of all that a block computes, its input alone is kept,
//! in int8 rounded to the nearest, or nothing where that can be rebuilt. The backward pass runs the block forward from there, dropout and
//! all, with its ops recorded, and then backward. The block's gradients are those at the rounded input.

use colrow_tensor::{Code, Result, Tensor};

use crate::kept::Kept;
use crate::param::Params;
use crate::policy::Keep;
use crate::tape::{Grads, Mode, Op, Tape, Var, VarId};

/// A part of a model: from its inputs to its output.
type Block = dyn Fn(&mut Tape<'_>, Vec<Var>) -> Var;

struct Recompute {
    inputs: Vec<(Option<VarId>, Kept)>,
    /// Those that the block uses.
    params: Params,
    mode: Mode,
    block: Box<Block>,
}

impl Tape<'_> {
    /// Runs `block`, a function of `inputs` and of parameters alone; where the policy keeps [`Keep::Recompute`] at `site`, so that it runs again
    /// in the backward pass.
    pub fn block(
        &mut self,
        site: &str,
        inputs: Vec<Var>,
        block: impl Fn(&mut Tape<'_>, Vec<Var>) -> Var + 'static,
    ) -> Var {
        if !self.records() || self.keep(site) != Keep::Recompute {
            return block(self, inputs);
        }
        let held = |x: &Var| match &x.source {
            Some(source) => Kept::Rebuild(source.clone()),
            None => Kept::quantised(&x.value, Code::Int8, None),
        };
        let held: Vec<_> = inputs.iter().map(|x| (x.id, held(x))).collect();
        let (y, params) = self.run_unrecorded(|tape| block(tape, inputs));
        let learns = held.iter().any(|(id, _)| id.is_some()) || params.iter().any(|(_, p)| p.trainable);
        let mode = self.mode().clone();
        self.output(site, y.value, learns, || Recompute { inputs: held, params, mode, block: Box::new(block) })
    }
}

impl Op for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        self.inputs.iter().map(|(_, kept)| ("input", kept)).collect()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let Self { inputs, params, mode, block } = *self;
        let mut tape = Tape::new(&params, mode);
        let mut ids = Vec::new();
        let again = inputs.into_iter().map(|(id, kept)| {
            let value = match &kept {
                Kept::Rebuild(source) => source.whole(),
                kept => kept.read(None),
            };
            let x = tape.input(value, id.is_some());
            ids.extend(id.zip(x.id));
            x
        });
        let again = again.collect();
        let y = block(&mut tape, again);
        let recorded = tape.into_recorded();
        // the inner pass numbers its variables anew
        let outer = std::mem::take(&mut grads.vars);
        recorded.backward_from(y, dy, grads, &mut |_| Ok(()))?;
        let mut inner = std::mem::replace(&mut grads.vars, outer);
        for (id, within) in ids {
            if let Some(dx) = inner[within.0].take() {
                grads.add(Some(id), dx);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;
    use colrow_tensor::{Activation, DType, Device, Format};

    use super::*;
    use crate::compress::{Bits, GROUP, quantised};
    use crate::testing::{leaf, random_params, run, training};
    use crate::{ParamId, Policy};

    /// What a block gives again from its rounded input is what it gives from that: the output is exact, gradients are those there, to the bit; of a
    /// constant and of a frozen weight there is none; nothing of the block is kept.
    #[test]
    fn a_block_runs_again_from_its_input() {
        let device = Device::cpu();
        let shapes: [(&str, &[usize]); 4] = [("x", &[9, 70]), ("c", &[9, 70]), ("w", &[70, 70]), ("frozen", &[70, 70])];
        let (mut params, [x, c, w, frozen]) = random_params(&device, DType::F64, shapes);
        for id in [c, frozen] {
            params[id].trainable = false;
        }
        let f = |tape: &mut Tape<'_>| {
            let (x, c) = (leaf(tape, x), leaf(tape, c));
            tape.block("block", vec![x, c], move |tape, inputs| {
                let [x, c] = &inputs[..] else { unreachable!("two inputs") };
                let h = tape.linear("a", x, w, None);
                let h = tape.activate("gelu", Activation::Gelu, h);
                let h = tape.dropout("dropout", h, 0.3);
                let h = tape.linear("b", &h, frozen, None);
                let h = tape.add("sum", h, c);
                tape.add("residual", h, x)
            })
        };
        let mode = |keep| {
            let policy = Policy::new([("block".to_owned(), keep)]);
            training(Key::new(1), true, policy, None)
        };
        let again = run(&params, &mode(Keep::Recompute), f).unwrap();
        let exact = run(&params, &mode(Keep::Exact), f).unwrap();
        assert_eq!(again.output, exact.output);
        assert!(again.gradients[1].is_none() && again.gradients[3].is_none());
        let coded =
            |id: ParamId| quantised(params[id].value.dense(), Format { code: Bits::Int8.code(), group: GROUP }, None);
        let rounded = [x, c].map(|id| (id, Kept::Quantised(coded(id)).read(None).to_f64()));
        for (id, values) in rounded {
            params[id].value.dense_mut().write_f64(values);
        }
        let there = run(&params, &mode(Keep::Exact), f).unwrap();
        assert!(again.gradients == there.gradients && again.gradients != exact.gradients);
        let mut tape = Tape::new(&params, mode(Keep::Recompute));
        f(&mut tape);
        let kept: Vec<_> = tape.ledger().entries.into_iter().map(|e| (e.site, e.bytes)).collect();
        let coded = 9 * (70 + 2 * 8);
        let want = [("leaf", 0), ("block", coded), ("block", coded)];
        assert_eq!(kept, want.map(|(site, bytes)| (site.to_owned(), bytes)));
    }
}
