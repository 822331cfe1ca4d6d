//! Blocks that run again in the backward pass (gradient checkpointing; Chen et al. 2016): of all that a block computes, its input alone is kept,
//! in int8 rounded to the nearest, or nothing where that can be rebuilt. The backward pass runs the block forward from there, dropout and
//! all, with its ops recorded, and then backward. The block's gradients are those at the rounded input.
//!
//! A block may also keep nothing where the block before it runs again: that one then runs once more, unrecorded, to give its output.
//!
//! Of a block's two parts the second, a transformer's position-wise feed-forward network (Vaswani et al. 2017, section 3.3), takes each row
//! alone. It runs some rows at a time, in the backward pass forward and backward at once, and what it computes is never there for all rows.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use colrow_tensor::{Code, Result, Tensor};

use crate::kept::{Kept, Rebuild};
use crate::param::Params;
use crate::policy::Keep;
use crate::sample::{gather, numbers};
use crate::tape::{Grads, Mode, Op, Tape, Var, VarId};

/// The part of a block in which rows see each other: from its inputs to its output (n, d).
type Mix = dyn Fn(&mut Tape<'_>, Vec<Var>) -> Var + Send + Sync;

/// The part in which each row stands alone, (n, d) to (n, d).
type ByRows = dyn Fn(&mut Tape<'_>, Var) -> Var + Send + Sync;

/// Rows that a part which takes each alone takes at a time: so many that to decode and pack a weight anew costs little beside its product,
/// at 2·1,024 operations a weight.
const ROWS: usize = 1024;

/// What a block's output is made of.
#[derive(Clone)]
struct Block {
    inputs: Vec<(Option<VarId>, Kept)>,
    /// Those that the block uses.
    params: Arc<Params>,
    mode: Mode,
    mix: Arc<Mix>,
    by_rows: Arc<ByRows>,
}

struct Recompute(Arc<Block>);

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

impl Rebuild for Block {
    fn whole(&self) -> Tensor {
        let mut tape = Tape::new(&self.params, self.mode.clone());
        let inputs = self.inputs.iter().map(|(_, kept)| tape.constant(whole(kept))).collect();
        let run = |tape: &mut Tape<'_>| {
            let h = (self.mix)(tape, inputs);
            tape.piecewise(h, &*self.by_rows)
        };
        tape.run_unrecorded(run).0.value
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        gather(&self.whole(), index, None)
    }
}

fn whole(kept: &Kept) -> Tensor {
    match kept {
        Kept::Rebuild(source) => source.whole(),
        kept => kept.read(None),
    }
}

impl Mode {
    /// The pieces in which `n` rows are taken by a part that takes each alone: all at once where something draws by or measures the rows of a
    /// whole batch.
    fn pieces(&self, n: usize) -> Vec<Range<usize>> {
        let together = match self {
            Self::Inference => false,
            Self::Training { norms, variances, probe, .. } => norms.is_some() || variances.is_some() || probe.is_some(),
        };
        let count = if together { 1 } else { n.div_ceil(ROWS).max(1) };
        let each = n.div_ceil(count);
        (0..count).map(|i| n.min(i * each)..n.min((i + 1) * each)).collect()
    }

    /// For the rows from `first` on, which have random numbers of their own.
    fn at_row(&self, first: usize) -> Self {
        let mut mode = self.clone();
        if let (Self::Training { key, .. }, 1..) = (&mut mode, first) {
            *key = key.named("rows").child(first as u64);
        }
        mode
    }
}

impl Tape<'_> {
    /// Runs a block, a function of `inputs` and of parameters alone: `mix`, and then `by_rows`, which takes each row alone and gives as many
    /// columns. Where the policy keeps [`Keep::Recompute`] or [`Keep::Chain`] at `site`, both run again in the backward pass.
    pub fn block(
        &mut self,
        site: &str,
        inputs: Vec<Var>,
        mix: impl Fn(&mut Tape<'_>, Vec<Var>) -> Var + Send + Sync + 'static,
        by_rows: impl Fn(&mut Tape<'_>, Var) -> Var + Send + Sync + 'static,
    ) -> Var {
        let keep = self.keep(site);
        if self.records() && !matches!(keep, Keep::Recompute | Keep::Chain) {
            let h = mix(self, inputs);
            return by_rows(self, h);
        }
        let run = |tape: &mut Tape<'_>, inputs| {
            let h = mix(tape, inputs);
            tape.piecewise(h, &by_rows)
        };
        if !self.records() {
            return run(self, inputs);
        }
        let held = |x: &Var| match (&x.source, &x.block) {
            (Some(source), _) => Kept::Rebuild(source.clone()),
            (None, Some(block)) if keep == Keep::Chain => Kept::Rebuild(block.clone()),
            _ => Kept::quantised(&x.value, Code::Int8, None),
        };
        let held: Vec<_> = inputs.iter().map(|x| (x.id, held(x))).collect();
        let (y, params) = self.run_unrecorded(|tape| run(tape, inputs));
        let learns = held.iter().any(|(id, _)| id.is_some()) || params.iter().any(|(_, p)| p.trainable);
        let mode = self.mode().clone();
        let block = Arc::new(Block {
            inputs: held,
            params: Arc::new(params),
            mode,
            mix: Arc::new(mix),
            by_rows: Arc::new(by_rows),
        });
        let y = self.output(site, y.value, learns, || Recompute(block.clone()));
        Var { block: Some(block), ..y }
    }

    /// What `by_rows` gives of h, unrecorded, piece by piece in h's place.
    fn piecewise(&mut self, h: Var, by_rows: &ByRows) -> Var {
        let pieces = self.mode().pieces(h.value.rows());
        if pieces.len() == 1 {
            return by_rows(self, h);
        }
        let device = self.device().clone();
        let mut y = h.value.into_owned();
        for rows in pieces {
            let mode = self.mode().at_row(rows.start);
            let index = numbers(&device, rows);
            let x = self.constant(gather(&y, &index, None));
            let part = self.with_mode(mode, |tape| by_rows(tape, x));
            device.kernels().scatter_rows(&part.value, &index, &mut y);
        }
        self.constant(y)
    }
}

impl Block {
    /// The gradient of h (n, d) that follows from `dy`, that of what [`Block::by_rows`] gives of it, in dy's place.
    fn backward_by_rows(&self, h: Tensor, dy: Tensor, grads: &mut Grads) -> Result<Option<Tensor>> {
        let device = dy.device().clone();
        let mut piece = |h: Tensor, dy: Tensor, first: usize| {
            let mut tape = Tape::new(&self.params, self.mode.at_row(first)).brief();
            let x = tape.input(h, true);
            let id = x.id;
            let y = (self.by_rows)(&mut tape, x).id;
            tape.into_recorded().backward_from(y, dy, grads, &mut |_| Ok(()))?;
            Ok(id.and_then(|id| grads.vars[id.0].take()))
        };
        let pieces = self.mode.pieces(h.rows());
        if pieces.len() == 1 {
            return piece(h, dy, 0);
        }
        let mut dh = dy.into_owned();
        for rows in pieces {
            let first = rows.start;
            let index = numbers(&device, rows);
            if let Some(dx) = piece(gather(&h, &index, None), gather(&dh, &index, None), first)? {
                device.kernels().scatter_rows(&dx, &index, &mut dh);
            }
        }
        Ok(Some(dh))
    }
}

impl Op for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        self.0.inputs.iter().map(|(_, kept)| ("input", kept)).collect()
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        // no later block holds it any more, so that its inputs are freed when they are read
        let mut block = Arc::unwrap_or_clone(self.0);
        let mut tape = Tape::new(&block.params, block.mode.clone()).brief();
        let mut ids = Vec::new();
        let again = std::mem::take(&mut block.inputs).into_iter().map(|(id, kept)| {
            let x = tape.input(whole(&kept), id.is_some());
            ids.extend(id.zip(x.id));
            x
        });
        let again = again.collect();
        let Var { value, id, .. } = (block.mix)(&mut tape, again);
        let recorded = tape.into_recorded();
        // the inner passes number their variables anew
        let outer = std::mem::take(&mut grads.vars);
        if let Some(dh) = block.backward_by_rows(value, dy, grads)? {
            recorded.backward_from(id, dh, grads, &mut |_| Ok(()))?;
        }
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
    use crate::testing::{Run, leaf, random_params, rounding, run, training};
    use crate::{Attend, ParamId, Policy, Sequences};

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
            let mix = move |tape: &mut Tape<'_>, inputs: Vec<Var>| {
                let [x, c] = &inputs[..] else { unreachable!("two inputs") };
                let h = tape.linear("a", x, w, None);
                let h = tape.activate("gelu", Activation::Gelu, h);
                let h = tape.dropout("dropout", h, 0.3);
                let h = tape.linear("b", &h, frozen, None);
                let h = tape.add("sum", h, c);
                tape.add("residual", h, x)
            };
            tape.block("block", vec![x, c], mix, move |tape, h| {
                let up = tape.linear("up", &h, w, None);
                let up = tape.activate("silu", Activation::Silu, up);
                tape.add("feed forward", up, &h)
            })
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

    /// A block whose rows stand alone, of n rows: x + W₂·gelu(W₁·x), W₁ (64, 4). What it gives, its gradients, and the peak of what lives beside
    /// the parameters.
    fn alone(n: usize, keep: Keep, rounds: bool) -> (Run, usize) {
        let device = Device::cpu();
        let shapes: [(&str, &[usize]); 3] = [("x", &[n, 4]), ("up", &[64, 4]), ("down", &[4, 64])];
        let (mut params, [x, up, down]) = random_params(&device, DType::F64, shapes);
        if rounds {
            let format = Format { code: Bits::Int8.code(), group: GROUP };
            let coded = Kept::Quantised(quantised(params[x].value.dense(), format, None)).read(None).to_f64();
            params[x].value.dense_mut().write_f64(coded);
        }
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.block("block", vec![x], first, move |tape, x| {
                let mut h = tape.linear("up", &x, up, None);
                h = tape.activate("gelu", Activation::Gelu, h);
                h = tape.linear("down", &h, down, None);
                tape.add("residual", h, &x)
            })
        };
        let before = device.meter().live().total();
        device.meter().reset_peak();
        let ran = run(&params, &mode(keep), f).unwrap();
        (ran, device.meter().peak().total() - before)
    }

    fn first(_: &mut Tape<'_>, mut inputs: Vec<Var>) -> Var {
        inputs.remove(0)
    }

    fn mode(keep: Keep) -> Mode {
        training(Key::new(1), true, Policy::new([("block".to_owned(), keep)]), None)
    }

    /// Outputs in pieces are those of all rows at once; so are gradients, at the rounded input.
    #[test]
    fn pieces_are_the_whole() {
        for n in [ROWS + 1, 3 * ROWS] {
            let [again, exact, there] = [(Keep::Recompute, false), (Keep::Exact, false), (Keep::Exact, true)]
                .map(|(keep, at)| alone(n, keep, at).0);
            // sums of 4 and of 64; those of weights are over all rows
            let close = |a: &[f64], b: &[f64], length| {
                let most = b.iter().fold(1.0, |max: f64, b| max.max(b.abs()));
                a.len() == b.len()
                    && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= rounding(DType::F64, length) * 64.0 * most)
            };
            assert!(close(&again.output, &exact.output, 68));
            for (a, b) in again.gradients.iter().zip(&there.gradients) {
                assert!(close(a.as_ref().unwrap(), b.as_ref().unwrap(), 68 + n));
            }
        }
    }

    /// What a row needs of the peak is less than the row of 64 that it is computed through.
    #[test]
    fn what_is_computed_on_the_way_is_there_for_a_piece_alone() {
        let each = |keep| (alone(6 * ROWS, keep, false).1 - alone(4 * ROWS, keep, false).1) / (2 * ROWS);
        let (again, exact) = (each(Keep::Recompute), each(Keep::Exact));
        assert!(again < 8 * 64 && exact > 2 * 8 * 64, "{again} {exact}");
    }

    /// Each piece drops by random numbers of its own, the same forward and backward.
    #[test]
    fn pieces_drop_by_themselves() {
        let (n, d) = (2 * ROWS, 8);
        let device = Device::cpu();
        let (params, [x]) = random_params(&device, DType::F64, [("x", &[n, d])]);
        let f = |tape: &mut Tape<'_>| {
            let x = leaf(tape, x);
            tape.block("block", vec![x], first, |tape, x| tape.dropout("dropout", x, 0.5))
        };
        let ran = run(&params, &mode(Keep::Recompute), f).unwrap();
        let dropped = |x: &[f64]| x.iter().map(|x| *x == 0.0).collect::<Vec<_>>();
        let by_output = dropped(&ran.output);
        assert_eq!(by_output, dropped(ran.gradients[0].as_ref().unwrap()));
        let same = (0..ROWS * d).filter(|i| by_output[*i] == by_output[ROWS * d + i]).count();
        // of as many coins, seven standard deviations about a half
        let (coins, off) = ((ROWS * d) as f64, 7.0 * ((ROWS * d) as f64).sqrt() / 2.0);
        assert!((same as f64 - coins / 2.0).abs() < off, "{same}");
    }

    /// Attention runs forward and forward again, and not once more for the linear that reads it and would otherwise have its input made again.
    #[test]
    fn attention_is_not_made_a_third_time() {
        let device = Device::cpu();
        let (n, d) = (9, 8);
        let shapes: [(&str, &[usize]); 3] = [("x", &[n, d]), ("qkv", &[3 * d, d]), ("out", &[d, d])];
        let (params, [x, qkv, out]) = random_params(&device, DType::F64, shapes);
        let sequences = Sequences::new(&device, &[0, 4, n as u32]);
        let calls = |keep| {
            let sites = [("block".to_owned(), keep), ("out".to_owned(), Keep::Nothing)];
            let mode = training(Key::new(1), false, Policy::new(sites), None);
            device.profile().start();
            run(&params, &mode, |tape| {
                let (x, sequences) = (leaf(tape, x), sequences.clone());
                let attend = move |tape: &mut Tape<'_>, mut inputs: Vec<Var>| {
                    let h = tape.linear("qkv", &inputs.remove(0), qkv, None);
                    let h = tape.attention("attention", &Attend::new(2, 0.5), (h, &sequences), None);
                    tape.linear("out", &h, out, None)
                };
                tape.block("block", vec![x], attend, |_, h| h)
            })
            .unwrap();
            let costs = device.profile().stop();
            costs.iter().find(|(kernel, _)| *kernel == "attention").map(|(_, cost)| cost.calls)
        };
        assert_eq!((calls(Keep::Recompute), calls(Keep::Exact)), (Some(2), Some(2)));
    }

    /// A chain of two: the second keeps nothing, and has the gradients that it has where the first's output is kept as it is.
    #[test]
    fn a_block_is_given_its_input_by_the_one_before() {
        let device = Device::cpu();
        let (mut params, [x, w, v]) =
            random_params(&device, DType::F64, [("x", &[9, 70]), ("w", &[70, 70]), ("v", &[70, 70])]);
        let f = |tape: &mut Tape<'_>| {
            let mut h = leaf(tape, x);
            for (site, w) in [("a", w), ("b", v)] {
                h = tape.block(site, vec![h], first, move |tape, x| {
                    let mut h = tape.linear("linear", &x, w, None);
                    h = tape.activate("gelu", Activation::Gelu, h);
                    h = tape.dropout(site, h, 0.3);
                    tape.add("residual", h, &x)
                });
            }
            h
        };
        let mode = |a, b| training(Key::new(1), true, Policy::new([("a".into(), a), ("b".into(), b)]), None);
        let chain = mode(Keep::Recompute, Keep::Chain);
        let kept = |params: &Params, mode: &Mode| {
            let mut tape = Tape::new(params, mode.clone());
            f(&mut tape);
            tape.ledger().entries.into_iter().map(|e| (e.site, e.bytes)).collect::<Vec<_>>()
        };
        let coded = 9 * (70 + 2 * 8);
        let want = |kept: [usize; 3]| ["leaf", "a", "b"].map(str::to_owned).into_iter().zip(kept).collect::<Vec<_>>();
        assert_eq!(kept(&params, &chain), want([0, coded, 0]));
        // with no block before it that runs again it keeps its input
        assert_eq!(kept(&params, &mode(Keep::Exact, Keep::Chain)).last(), want([0, 0, coded]).last());
        let ran = run(&params, &chain, f).unwrap();
        let own = run(&params, &mode(Keep::Recompute, Keep::Recompute), f).unwrap();
        assert!(ran.output == own.output && ran.gradients != own.gradients);
        let rounded = quantised(params[x].value.dense(), Format { code: Bits::Int8.code(), group: GROUP }, None);
        params[x].value.dense_mut().write_f64(Kept::Quantised(rounded).read(None).to_f64());
        let exact = run(&params, &mode(Keep::Exact, Keep::Exact), f).unwrap();
        assert!(ran.gradients == exact.gradients);
    }
}
