//! Attention within each sequence of a ragged batch (Vaswani et al. 2017, eq. 1, by head): of a sequence to itself, or to another;
//! with T5's bias by relative position, if there is one.
//!
//! Keeps q, k, v: as they are, with each row's log-sum-exp; or in fewer bits, one scale a head, and no statistics; or nothing, where they can be
//! rebuilt. Probabilities, their dropout mask and the bias are rebuilt tile by tile, and so are output rows for a linear that reads them, but in
//! a block that runs again, where they are kept for the moment.

use std::sync::{Arc, Mutex, PoisonError};

use colrow_tensor::{
    Attention, AttentionGradients, AttentionInput, Buckets, Class, DType, Device, Dropout, Format, Result, Stored,
    Tensor,
};

use crate::compress::quantised;
use crate::kept::{Kept, Rebuild};
use crate::param::{Handle, ParamId};
use crate::policy::Keep;
use crate::tape::{Grads, Op, Tape, Var, VarId};

/// The sequences that the rows of a matrix belong to.
#[derive(Clone, Debug)]
pub struct Sequences {
    /// Their first rows and the end (b+1, u32).
    pub bounds: Tensor,
    /// Rows of the longest.
    pub longest: usize,
}

impl Sequences {
    /// From first rows and the end.
    pub fn new(device: &Device, bounds: &[u32]) -> Self {
        let longest = bounds.windows(2).map(|w| (w[1] - w[0]) as usize).max().unwrap_or(0);
        Self { bounds: device.tensor(Class::Workspace, &[bounds.len()], bounds), longest }
    }

    /// Their number.
    pub fn count(&self) -> usize {
        self.bounds.len() - 1
    }
}

/// How rows attend.
#[derive(Clone, Copy, Debug)]
pub struct Attend {
    /// Number of heads of q.
    pub heads: usize,
    /// Number of heads of k and v, a divisor of the former: as many neighbouring heads of q share one.
    pub kv_heads: usize,
    /// Factor of q·k.
    pub scale: f64,
    /// Whether a row sees no later row.
    pub causal: bool,
    /// Of the rows up to itself a row sees so many, the last ones; for causal attention.
    pub window: Option<usize>,
    /// Position of a sequence's first query row among its keys.
    pub first_position: usize,
    /// Probability that a probability is dropped.
    pub dropout: f32,
    /// A bias (buckets, heads) by relative position.
    pub bias: Option<(ParamId, Buckets)>,
}

impl Attend {
    /// Every row to every row, by so many heads and as many of k and v.
    pub fn new(heads: usize, scale: f64) -> Self {
        Self { heads, kv_heads: heads, scale, causal: false, window: None, first_position: 0, dropout: 0.0, bias: None }
    }

    fn spec(&self, dropout: Option<Dropout>) -> Attention {
        Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            scale: self.scale,
            causal: self.causal,
            window: self.window,
            first_position: self.first_position,
            dropout,
            buckets: self.bias.map(|(_, buckets)| buckets),
        }
    }
}

/// Projections that attention reads: q, k, v side by side, or q alone, or k, v.
#[derive(Debug)]
struct Projections {
    kept: Kept,
    /// What was rebuilt, so that output rows and gradients rebuild it once.
    again: Mutex<Option<Tensor>>,
    bounds: Kept,
}

impl Projections {
    /// The projections as numbers, where they are rebuilt.
    fn rebuilt(&self) -> Option<Tensor> {
        let Kept::Rebuild(source) = &self.kept else { return None };
        let mut again = self.again.lock().unwrap_or_else(PoisonError::into_inner);
        Some(again.get_or_insert_with(|| source.whole()).clone())
    }

    fn stored<'a>(&'a self, rebuilt: &'a Option<Tensor>) -> Stored<'a> {
        rebuilt.as_ref().map_or_else(|| self.kept.stored(), Stored::Exact)
    }
}

/// What attention keeps, and its output's recipe.
#[derive(Debug)]
struct Held {
    device: Device,
    dtype: DType,
    spec: Attention,
    scratch: usize,
    q: Projections,
    kv: Option<Projections>,
    bias: Option<Handle>,
}

impl Held {
    /// Runs `body` with what attention reads.
    fn with_input<R>(&self, body: impl FnOnce(&AttentionInput<'_>) -> R) -> R {
        let q = self.q.rebuilt();
        let kv = self.kv.as_ref().map(|kv| (kv, kv.rebuilt()));
        body(&AttentionInput {
            q: self.q.stored(&q),
            kv: kv.as_ref().map(|(kv, rebuilt)| (kv.stored(rebuilt), kv.bounds.exact())),
            bounds: self.q.bounds.exact(),
            bias: self.bias.as_ref().map(|bias| bias.value.dense()),
        })
    }

    fn scratch(&self) -> Tensor {
        self.device.empty(Class::Workspace, self.dtype, &[self.scratch])
    }

    fn output(&self, index: Option<&Tensor>) -> Tensor {
        self.with_input(|input| {
            let n = index.map_or(input.q.rows(), Tensor::len);
            let mut out =
                self.device.empty(Class::Workspace, self.dtype, &[n, self.spec.heads * input.head_size(&self.spec)]);
            self.device.kernels().attention(&self.spec, input, index, &mut self.scratch(), &mut out, None);
            out
        })
    }
}

impl Rebuild for Held {
    fn whole(&self) -> Tensor {
        self.output(None)
    }

    fn rows(&self, index: &Tensor) -> Tensor {
        self.output(Some(index))
    }
}

struct AttentionOp {
    held: Arc<Held>,
    q: Option<VarId>,
    kv: Option<VarId>,
    /// Where q, k, v are kept as they are.
    lse: Kept,
}

impl Tape<'_> {
    /// Attention of `q` (n, heads·h) to `kv` (m, 2·kv_heads·h), which holds k and v side by side, or without `kv` of `q` (n,
    /// (heads + 2·kv_heads)·h) to itself, which holds q, k and v. Gives (n, heads·h).
    pub fn attention(
        &mut self,
        site: &str,
        attend: &Attend,
        (q, sequences): (Var, &Sequences),
        kv: Option<(Var, &Sequences)>,
    ) -> Var {
        let device = self.device().clone();
        let kernels = device.kernels();
        let key = self.dropout_key(site).filter(|_| attend.dropout > 0.0);
        let spec = attend.spec(key.map(|key| Dropout { key, p: attend.dropout }));
        let bias = attend.bias.map(|(id, _)| self.handle(id));
        let kv_longest = kv.as_ref().map_or(sequences.longest, |(_, s)| s.longest);
        let input = AttentionInput {
            q: (&q.value).into(),
            kv: kv.as_ref().map(|(kv, s)| ((&kv.value).into(), &s.bounds)),
            bounds: &sequences.bounds,
            bias: bias.as_ref().map(|bias| bias.value.dense()),
        };
        let (n, h, dtype) = (q.value.rows(), input.head_size(&spec), q.value.dtype());
        let scratch = q.value.device().target().attention_scratch(&spec, h, sequences.longest, kv_longest);
        let learns_bias = bias.as_ref().is_some_and(|bias| bias.trainable);
        let learns = q.id.is_some() || kv.as_ref().is_some_and(|(kv, _)| kv.id.is_some()) || learns_bias;
        let keep = self.keep(site);
        let mut out = device.empty(Class::Workspace, dtype, &[n, spec.heads * h]);
        let exact = match keep {
            Keep::Quantised(_) => false,
            Keep::Nothing => q.source.is_none(),
            Keep::Exact | Keep::Rows(_) | Keep::Recompute | Keep::Chain => true,
        };
        let exact = exact && learns && self.records();
        let mut lse = exact.then(|| device.empty(Class::Workspace, dtype, &[n, spec.heads]));
        let mut space = device.empty(Class::Workspace, dtype, &[scratch]);
        kernels.attention(&spec, &input, None, &mut space, &mut out, lse.as_mut());
        drop(space);
        if !(learns && self.records()) {
            return self.unrecorded(site, out);
        }
        let held = |x: Var, s: &Sequences| {
            let kept = match (keep, x.source) {
                (Keep::Quantised(bits), _) => {
                    let format = Format { code: bits.code(), group: h };
                    Kept::Quantised(quantised(&x.value, format, None))
                }
                (Keep::Nothing, Some(source)) => Kept::Rebuild(source),
                _ => Kept::Exact(x.value),
            };
            Projections { kept, again: Mutex::new(None), bounds: Kept::Exact(s.bounds.clone()) }
        };
        let (q_id, kv_id) = (q.id, kv.as_ref().and_then(|(kv, _)| kv.id));
        let held = Arc::new(Held {
            device: device.clone(),
            dtype,
            spec,
            scratch,
            q: held(q, sequences),
            kv: kv.map(|(kv, s)| held(kv, s)),
            bias,
        });
        let lse = lse.map_or(Kept::Nothing, Kept::Exact);
        let op = AttentionOp { held: held.clone(), q: q_id, kv: kv_id, lse };
        let out = self.output(site, out, learns, || op);
        Var { source: (!self.is_brief()).then_some(held as Arc<dyn Rebuild>), ..out }
    }
}

impl Tape<'_> {
    /// Attention of `q` (n, heads·h) to keys and values (m, 2·kv_heads·h) that are not on the tape, such as those of earlier steps, as they
    /// are or in fewer bits. Gives (n, heads·h), through which no gradient flows; probabilities are not dropped.
    pub fn attention_to(
        &mut self,
        site: &str,
        attend: &Attend,
        (q, sequences): (&Tensor, &Sequences),
        (kv, kv_sequences): (Stored<'_>, &Sequences),
    ) -> Var {
        let spec = attend.spec(None);
        let bias = attend.bias.map(|(id, _)| self.param(id).value.dense());
        let input =
            AttentionInput { q: q.into(), kv: Some((kv, &kv_sequences.bounds)), bounds: &sequences.bounds, bias };
        let device = self.device().clone();
        let h = input.head_size(&spec);
        let scratch = device.target().attention_scratch(&spec, h, sequences.longest, kv_sequences.longest);
        let mut scratch = device.empty(Class::Workspace, q.dtype(), &[scratch]);
        let mut out = device.empty(Class::Workspace, q.dtype(), &[q.rows(), spec.heads * h]);
        device.kernels().attention(&spec, &input, None, &mut scratch, &mut out, None);
        drop(scratch);
        self.unrecorded(site, out)
    }
}

impl Op for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        let q = if self.held.kv.is_some() { "q" } else { "q, k, v" };
        let mut kept = vec![(q, &self.held.q.kept), ("log-sum-exp", &self.lse), ("bounds", &self.held.q.bounds)];
        if let Some(kv) = &self.held.kv {
            kept.extend([("k, v", &kv.kept), ("bounds of k, v", &kv.bounds)]);
        }
        kept
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let Self { held, q, kv, lse } = *self;
        let device = dy.device().clone();
        let lse = if let Kept::Exact(lse) = &lse { Some(lse) } else { None };
        let learned_bias = held.bias.as_ref().filter(|bias| bias.trainable);
        let (dq, dkv, parts) = held.with_input(|input| {
            let like = |x: &Stored<'_>| device.empty(Class::Workspace, held.dtype, &[x.rows(), x.cols()]);
            let parts =
                |bias: &Tensor| device.empty(Class::Workspace, held.dtype, &[input.bounds.len() - 1, bias.len()]);
            let mut dbias = learned_bias.map(|bias| parts(bias.value.dense()));
            let mut dq = like(&input.q);
            let mut dkv = input.kv.as_ref().map(|(kv, _)| like(kv));
            let gradients = AttentionGradients { q: &mut dq, kv: dkv.as_mut(), bias: dbias.as_mut() };
            device.kernels().attention_backward(&held.spec, input, lse, &dy, &mut held.scratch(), gradients);
            (dq, dkv, dbias)
        });
        drop(dy);
        if let (Some(bias), Some(parts)) = (learned_bias, &parts) {
            device.kernels().add_column_sum(parts, grads.param_sum(bias));
        }
        grads.add(q, dq);
        if let Some(dkv) = dkv {
            grads.add(kv, dkv);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::Code;
    use colrow_tensor::rng::Key;

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};

    fn attend(heads: usize, dropout: f32) -> Attend {
        Attend { dropout, ..Attend::new(heads, 0.7) }
    }

    /// Sequences of one token, of more than one tile of 64 rows, and of a few.
    #[test]
    fn gradients_in_ragged_batches() {
        let device = Device::cpu();
        for (bounds, heads, h) in [(vec![0_u32, 1, 6, 10], 3, 2), (vec![0, 1, 71], 2, 3)] {
            let n = *bounds.last().unwrap() as usize;
            let sequences = Sequences::new(&device, &bounds);
            for (dropout, p) in [(false, 0.1), (true, 0.0), (true, 0.3)] {
                let (mut params, [x]) = random_params(&device, DType::F64, [("qkv", &[n, 3 * heads * h])]);
                let mode = training(Key::new(2), dropout, Policy::exact(), None);
                let f = |tape: &mut Tape<'_>| {
                    let qkv = leaf(tape, x);
                    tape.attention("attention", &attend(heads, p), (qkv, &sequences), None)
                };
                check_gradients(&mut params, &mode, 2 * n + 2 * h, f).unwrap();
                check_precision(&mut params, &mode, 3 * n + 3 * h, f).unwrap();
            }
        }
    }

    /// Causal and not, with a bias by position, to itself and to another sequence; more than one tile of rows.
    #[test]
    fn gradients_with_a_bias_and_of_cross_attention() {
        let device = Device::cpu();
        let (heads, h) = (2, 2);
        let rows = Sequences::new(&device, &[0, 3, 70, 71]);
        let others = Sequences::new(&device, &[0, 5, 6, 74]);
        for (causal, cross) in [(false, false), (true, false), (false, true)] {
            let (n, m) = (71, 74);
            let shapes: [(&str, &[usize]); 3] = [
                ("q", &[n, if cross { 1 } else { 3 } * heads * h]),
                ("kv", &[m, 2 * heads * h]),
                ("bias", &[8, heads]),
            ];
            let (mut params, [q, kv, bias]) = random_params(&device, DType::F64, shapes);
            let mode = training(Key::new(2), true, Policy::exact(), None);
            let buckets = Buckets { count: 8, max_distance: 20, bidirectional: !causal };
            let attend = Attend { causal, bias: Some((bias, buckets)), ..attend(heads, 0.2) };
            let f = |tape: &mut Tape<'_>| {
                let q = leaf(tape, q);
                let kv = cross.then(|| (leaf(tape, kv), &others));
                tape.attention("attention", &attend, (q, &rows), kv)
            };
            for frozen in [None, Some(q), Some(bias)] {
                params.iter_mut().for_each(|(id, p)| p.trainable = Some(id) != frozen);
                params[kv].trainable = cross;
                // a bias entry sums over all pairs of rows
                check_gradients(&mut params, &mode, n * m, f).unwrap();
                check_precision(&mut params, &mode, n * m, f).unwrap();
            }
        }
    }

    /// Heads of q that share keys and values, with and without a window; more than one tile of rows, dropout and a bias too.
    #[test]
    fn gradients_of_grouped_heads_in_windows() {
        let device = Device::cpu();
        let (heads, kv_heads, h, n) = (6, 2, 2, 75);
        let sequences = Sequences::new(&device, &[0, 3, 74, 75]);
        let shapes: [(&str, &[usize]); 2] = [("qkv", &[n, (heads + 2 * kv_heads) * h]), ("bias", &[8, heads])];
        let (mut params, [x, bias_param]) = random_params(&device, DType::F64, shapes);
        let buckets = Buckets { count: 8, max_distance: 20, bidirectional: false };
        for (window, p, biased) in [(None, 0.0, false), (Some(4), 0.0, false), (Some(66), 0.3, true)] {
            let bias = biased.then_some((bias_param, buckets));
            let attend = Attend { kv_heads, causal: true, window, bias, ..attend(heads, p) };
            let mode = training(Key::new(2), true, Policy::exact(), None);
            let f = |tape: &mut Tape<'_>| {
                let qkv = leaf(tape, x);
                tape.attention("attention", &attend, (qkv, &sequences), None)
            };
            params[bias_param].trainable = biased;
            check_gradients(&mut params, &mode, n * n, f).unwrap();
            check_precision(&mut params, &mode, n * n, f).unwrap();
        }
    }

    /// A row sees its own and earlier rows alone; decoding row by row with cached keys gives the same.
    #[test]
    fn causal_attention_and_its_cache() {
        let device = Device::cpu();
        let (n, heads, inner) = (7, 2, 4);
        let (mut params, [x, bias]) =
            random_params(&device, DType::F64, [("qkv", &[n, 3 * inner]), ("bias", &[8, heads])]);
        let buckets = Buckets { count: 8, max_distance: 20, bidirectional: false };
        let attend = Attend { causal: true, bias: Some((bias, buckets)), ..attend(heads, 0.0) };
        let all = Sequences::new(&device, &[0, n as u32]);
        let whole = |params: &crate::Params| {
            let mut tape = Tape::new(params, crate::Mode::Inference);
            let qkv = leaf(&mut tape, x);
            tape.attention("attention", &attend, (qkv, &all), None).value.to_f64()
        };
        let out = whole(&params);
        let numbers = params[x].value.dense().to_f64();
        let part = |row: usize, columns: std::ops::Range<usize>| numbers[row * 3 * inner..][columns].to_vec();
        let cache: Vec<f64> = (0..n).flat_map(|row| part(row, inner..3 * inner)).collect();
        let kv = device.tensor(Class::Workspace, &[n, 2 * inner], &cache);
        for row in 0..n {
            let mut tape = Tape::new(&params, crate::Mode::Inference);
            let q = tape.constant(device.tensor(Class::Workspace, &[1, inner], &part(row, 0..inner)));
            let kv = tape.constant(kv.clone());
            let one = Sequences::new(&device, &[0, 1]);
            let attend = Attend { first_position: row, ..attend };
            let got = tape.attention("attention", &attend, (q, &one), Some((kv, &all))).value.to_f64();
            assert!(got.iter().zip(&out[row * inner..]).all(|(g, w)| (g - w).abs() < 1e-14), "row {row}");
        }
        // the last row's numbers change nothing before it
        let mut changed = numbers.clone();
        changed[(n - 1) * 3 * inner..].iter_mut().for_each(|x| *x += 1.0);
        params[x].value.dense_mut().write_f64(changed);
        let other = whole(&params);
        assert_eq!(out[..(n - 1) * inner], other[..(n - 1) * inner]);
        assert_ne!(out[(n - 1) * inner..], other[(n - 1) * inner..]);
    }

    /// Two sites drop different probabilities; one site drops the same ones again.
    #[test]
    fn every_site_has_its_own_mask() {
        let device = Device::cpu();
        let sequences = Sequences::new(&device, &[0, 20]);
        let (params, [x]) = random_params(&device, DType::F64, [("qkv", &[20, 12])]);
        let run = |site: &str| {
            let mut tape = Tape::new(&params, training(Key::new(2), true, Policy::exact(), None));
            let qkv = leaf(&mut tape, x);
            tape.attention(site, &attend(2, 0.3), (qkv, &sequences), None).value.to_f64()
        };
        assert!(run("layer.0") == run("layer.0") && run("layer.0") != run("layer.1"));
    }

    /// What a sequence gives does not depend on its neighbours.
    #[test]
    fn sequences_are_independent() {
        let device = Device::cpu();
        let (params, [x]) = random_params(&device, DType::F64, [("qkv", &[8, 6])]);
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let mut run = |value: Tensor, bounds: &[u32]| {
            let x = tape.constant(value);
            tape.attention("attention", &attend(1, 0.0), (x, &Sequences::new(&device, bounds)), None).value.to_f64()
        };
        let all = params[x].value.dense().to_f64();
        let part = |from: usize, to: usize| device.tensor(Class::Workspace, &[to - from, 6], &all[6 * from..6 * to]);
        let together = run(part(0, 8), &[0, 3, 8]);
        assert_eq!(together[..6], run(part(0, 3), &[0, 3]));
        assert_eq!(together[6..], run(part(3, 8), &[0, 5]));
    }

    /// Keys and values of earlier steps in fewer bits: with keys off by at most e_k an element, scores are off by δ ≤ scale·e_k·max Σ|q|,
    /// probabilities by a factor within e^±2δ, and the output by at most (e^2δ − 1)·max |v| + e^2δ·e_v. An int8 number is off by at most half a
    /// step, its group's largest/254; one in bf16 by 2⁻⁸ of itself at most.
    #[test]
    fn cached_keys_and_values_in_fewer_bits_are_within_their_bound() {
        let device = Device::cpu();
        let (heads, kv_heads, h, n, m) = (6, 2, 8, 3, 40);
        let random = |name: &str, rows: usize, cols: usize| {
            let key = Key::new(7).named(name);
            let data: Vec<f64> = (0..(rows * cols) as u64).map(|i| key.normal(i)).collect();
            device.tensor(Class::Workspace, &[rows, cols], &data)
        };
        let (q, kv) = (random("q", n, heads * h), random("kv", m, 2 * kv_heads * h));
        let [rows, keys] = [n, m].map(|n| Sequences::new(&device, &[0, n as u32]));
        let attend = Attend { kv_heads, causal: true, first_position: m - n, ..Attend::new(heads, 0.35) };
        let params = crate::Params::new(&device, DType::F64);
        let run = |kv: Stored<'_>| {
            let mut tape = Tape::new(&params, crate::Mode::Inference);
            tape.attention_to("attention", &attend, (&q, &rows), (kv, &keys)).value.to_f64()
        };
        let mut tape = Tape::new(&params, crate::Mode::Inference);
        let (q_var, kv_var) = (tape.constant(q.clone()), tape.constant(kv.clone()));
        let exact = tape.attention("attention", &attend, (q_var, &rows), Some((kv_var, &keys))).value.to_f64();
        assert_eq!(run((&kv).into()), exact);
        let largest = |x: &[f64]| x.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        let sum = q.to_f64().chunks_exact(h).map(|q| q.iter().map(|q| q.abs()).sum()).fold(0.0, f64::max);
        for (code, step) in [(Code::Int8, 1.0 / 254.0), (Code::Bf16, 1.0 / 256.0)] {
            let coded = quantised(&kv, Format { code, group: h }, None);
            let top = largest(&kv.to_f64());
            let (error, delta) = (step * top, 0.35 * step * top * sum);
            let bound = ((2.0 * delta).exp() - 1.0) * top + (2.0 * delta).exp() * error;
            let off: Vec<f64> = run(Stored::Coded(&coded)).iter().zip(&exact).map(|(a, b)| a - b).collect();
            assert!(largest(&off) > 0.0 && largest(&off) < bound, "{code:?}: {} of {bound}", largest(&off));
        }
    }
}
