//! Attention within each sequence of a ragged batch (Vaswani et al. 2017, eq. 1, by head): of a sequence to itself, or to another;
//! with T5's bias by relative position, if there is one.
//!
//! Keeps q, k, v and each row's log-sum-exp; probabilities, their dropout mask and the bias are rebuilt tile by tile.

use colrow_tensor::{
    Attention, AttentionGradients, AttentionInput, Buckets, Class, DType, Device, Dropout, Result, Tensor,
};

use crate::kept::Kept;
use crate::param::ParamId;
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
    /// Number of heads.
    pub heads: usize,
    /// Factor of q·k.
    pub scale: f64,
    /// Whether a row sees no later row.
    pub causal: bool,
    /// Position of a sequence's first query row among its keys.
    pub first_position: usize,
    /// Probability that a probability is dropped.
    pub dropout: f32,
    /// A bias (buckets, heads) by relative position.
    pub bias: Option<(ParamId, Buckets)>,
}

struct AttentionOp {
    spec: Attention,
    scratch: usize,
    dtype: DType,
    q: (Option<VarId>, Kept, Kept),
    kv: Option<(Option<VarId>, Kept, Kept)>,
    lse: Kept,
    bias: Option<(ParamId, Tensor, bool)>,
}

impl Tape<'_> {
    /// Attention of `q` (n, d) to `kv` (m, 2d), which holds k and v side by side, or without `kv` of `q` (n, 3d) to itself, which holds
    /// q, k and v. Gives (n, d).
    pub fn attention(
        &mut self,
        site: &str,
        attend: &Attend,
        (q, sequences): (Var, &Sequences),
        kv: Option<(Var, &Sequences)>,
    ) -> Var {
        let params = self.params();
        let device = self.device().clone();
        let kernels = device.kernels();
        let key = self.dropout_key(site).filter(|_| attend.dropout > 0.0);
        let spec = Attention {
            heads: attend.heads,
            scale: attend.scale,
            causal: attend.causal,
            first_position: attend.first_position,
            dropout: key.map(|key| Dropout { key, p: attend.dropout }),
            buckets: attend.bias.map(|(_, buckets)| buckets),
        };
        let bias = attend.bias.map(|(id, _)| (id, params[id].value.clone(), params[id].trainable));
        let kv_longest = kv.as_ref().map_or(sequences.longest, |(_, s)| s.longest);
        let input = AttentionInput {
            q: &q.value,
            kv: kv.as_ref().map(|(kv, s)| (&kv.value, &s.bounds)),
            bounds: &sequences.bounds,
            bias: bias.as_ref().map(|(_, bias, _)| bias),
        };
        let (n, inner, dtype) = (q.value.rows(), input.inner(), q.value.dtype());
        let scratch = kernels.attention_scratch(&spec, sequences.longest, kv_longest);
        let mut out = device.empty(Class::Workspace, dtype, &[n, inner]);
        let mut lse = device.empty(Class::Workspace, dtype, &[n, spec.heads]);
        let mut space = device.empty(Class::Workspace, dtype, &[scratch]);
        kernels.attention(&spec, &input, &mut space, &mut out, &mut lse);
        drop(space);
        let learns = q.id.is_some()
            || kv.as_ref().is_some_and(|(kv, _)| kv.id.is_some())
            || bias.as_ref().is_some_and(|(.., trainable)| *trainable);
        let held = |x: Var, s: &Sequences| (x.id, Kept::Exact(x.value), Kept::Exact(s.bounds.clone()));
        self.output(site, out, learns, || AttentionOp {
            spec,
            scratch,
            dtype,
            q: held(q, sequences),
            kv: kv.map(|(kv, s)| held(kv, s)),
            lse: Kept::Exact(lse),
            bias,
        })
    }
}

impl Op for AttentionOp {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn kept(&self) -> Vec<(&'static str, &Kept)> {
        let q = if self.kv.is_some() { "q" } else { "q, k, v" };
        let mut kept = vec![(q, &self.q.1), ("log-sum-exp", &self.lse), ("bounds", &self.q.2)];
        if let Some((_, kv, bounds)) = &self.kv {
            kept.extend([("k, v", kv), ("bounds of k, v", bounds)]);
        }
        kept
    }

    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Grads) -> Result<()> {
        let device = dy.device().clone();
        let kernels = device.kernels();
        let (q, bounds) = (self.q.1.exact(), self.q.2.exact());
        let kv = self.kv.as_ref().map(|(_, kv, bounds)| (kv.exact(), bounds.exact()));
        let input = AttentionInput { q, kv, bounds, bias: self.bias.as_ref().map(|(_, bias, _)| bias) };
        let learned_bias = self.bias.as_ref().filter(|(.., trainable)| *trainable);
        let parts = |bias: &Tensor| device.empty(Class::Workspace, self.dtype, &[bounds.len() - 1, bias.len()]);
        let mut dbias = learned_bias.map(|(_, bias, _)| parts(bias));
        let mut dq = q.empty_like();
        let mut dkv = kv.map(|(kv, _)| kv.empty_like());
        let mut space = device.empty(Class::Workspace, self.dtype, &[self.scratch]);
        let gradients = AttentionGradients { q: &mut dq, kv: dkv.as_mut(), bias: dbias.as_mut() };
        kernels.attention_backward(&self.spec, &input, self.lse.exact(), &dy, &mut space, gradients);
        drop((space, dy));
        if let (Some((id, bias, _)), Some(parts)) = (learned_bias, &dbias) {
            kernels.add_column_sum(parts, grads.param_sum(*id, bias));
        }
        grads.add(self.q.0, dq);
        if let (Some((id, ..)), Some(dkv)) = (&self.kv, dkv) {
            grads.add(*id, dkv);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use colrow_tensor::rng::Key;

    use super::*;
    use crate::Policy;
    use crate::testing::{check_gradients, check_precision, leaf, random_params, training};

    fn attend(heads: usize, dropout: f32) -> Attend {
        Attend { heads, scale: 0.7, causal: false, first_position: 0, dropout, bias: None }
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
        let numbers = params[x].value.to_f64();
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
        params[x].value.write_f64(changed);
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
        let all = params[x].value.to_f64();
        let part = |from: usize, to: usize| device.tensor(Class::Workspace, &[to - from, 6], &all[6 * from..6 * to]);
        let together = run(part(0, 8), &[0, 3, 8]);
        assert_eq!(together[..6], run(part(0, 3), &[0, 3]));
        assert_eq!(together[6..], run(part(3, 8), &[0, 5]));
    }
}
