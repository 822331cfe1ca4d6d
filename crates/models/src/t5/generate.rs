//! Greedy decoding, with the keys and values of earlier rows cached.

use colrow_autograd::{Attend, Mode, Params, Sequences, Tape, Var};
use colrow_tensor::{Class, DType, Device, Tensor};

use super::{Reads, T5};
use crate::tokens::Tokens;

/// Keys and values of a batch's decoder. Sequence s has the rows `s·longest..` of a layer's cache; attention stops at the row that is being
/// decoded.
pub(super) struct Cache {
    device: Device,
    dtype: DType,
    /// By layer k and v (b·longest, 2·inner) of the rows decoded so far.
    own: Vec<Tensor>,
    /// By layer k and v of the encoder's output.
    encoder: Vec<Var>,
    sources: Sequences,
    /// One row a sequence.
    queries: Sequences,
    keys: Sequences,
    longest: usize,
    /// The row that is being decoded.
    position: usize,
}

impl Cache {
    /// Attention of the new rows, whose q, k and v are `qkv` (b, 3·inner), to themselves and earlier rows, in layer `layer`.
    pub(super) fn attend(&mut self, tape: &mut Tape, site: &str, layer: usize, attend: &Attend, qkv: &Var) -> Var {
        let (b, inner) = (qkv.value.rows(), qkv.value.cols() / 3);
        let kernels = self.device.kernels();
        let mut q = self.device.empty(Class::Workspace, self.dtype, &[b, inner]);
        let mut kv = self.device.empty(Class::Workspace, self.dtype, &[b, 2 * inner]);
        kernels.read_columns(&qkv.value, 0, &mut q);
        kernels.read_columns(&qkv.value, inner, &mut kv);
        let rows: Vec<u32> = (0..b).map(|s| (s * self.longest + self.position) as u32).collect();
        let rows = self.device.tensor(Class::Workspace, &[b], &rows);
        kernels.scatter_rows(&kv, &rows, &mut self.own[layer]);
        let attend = Attend { first_position: self.position, ..*attend };
        let (q, kv) = (tape.constant(q), tape.constant(self.own[layer].clone()));
        tape.attention(site, &attend, (q, &self.queries), Some((kv, &self.keys)))
    }

    /// Attention of the new rows to the encoder's output.
    pub(super) fn attend_encoder(&self, tape: &mut Tape, site: &str, layer: usize, attend: &Attend, q: Var) -> Var {
        let kv = self.encoder[layer].clone();
        tape.attention(site, attend, (q, &self.queries), Some((kv, &self.sources)))
    }
}

impl T5 {
    /// For each source the most likely next token again and again, until a text ends or has `longest` tokens. Without the token that
    /// ends it.
    pub fn generate(&self, params: &Params, input: &Tokens, longest: usize) -> Vec<Vec<u32>> {
        let (device, dtype) = (params.device().clone(), params.dtype());
        let mut tape = Tape::new(params, Mode::Inference);
        let sources = Sequences::new(&device, &input.bounds);
        let memory = self.encode(&mut tape, input, &sources);
        let b = sources.count();
        let layers = self.decoder.blocks.iter();
        let encoder = layers.filter_map(|block| Some(block.cross.as_ref()?.kv.as_ref()?.forward(&mut tape, &memory)));
        let encoder = encoder.collect();
        drop(memory);
        let every = |step: usize| (0..=b).map(|s| (s * step) as u32).collect::<Vec<_>>();
        let cache = |_| device.zeros(Class::Cache, dtype, &[b * longest, 2 * self.config.inner()]);
        let mut cache = Cache {
            device: device.clone(),
            dtype,
            own: (0..self.decoder.blocks.len()).map(cache).collect(),
            encoder,
            sources,
            queries: Sequences::new(&device, &every(1)),
            keys: Sequences::new(&device, &every(longest)),
            longest,
            position: 0,
        };
        let mut texts = vec![Vec::new(); b];
        let mut ended = vec![false; b];
        let mut last = vec![self.config.decoder_start_token_id as u32; b];
        for position in 0..longest {
            cache.position = position;
            let x = self.decoder.forward(&mut tape, self, &last, &mut Reads::Cache(&mut cache));
            last = self.most_likely(params, x.value);
            for (s, &token) in last.iter().enumerate() {
                ended[s] |= token as usize == self.config.eos_token_id;
                if !ended[s] {
                    texts[s].push(token);
                }
            }
            // every position takes the same memory
            if ended.iter().all(|&e| e) || device.is_meta() {
                break;
            }
        }
        texts
    }

    /// The token with the largest logit for each row of x (b, d_model). The logits' factor is positive and changes nothing.
    fn most_likely(&self, params: &Params, x: Tensor) -> Vec<u32> {
        let (device, weight) = (params.device(), &params[self.head.weight].value);
        let mut logits = device.empty(Class::Workspace, x.dtype(), &[x.rows(), weight.rows()]);
        device.kernels().matmul(&x, false, weight, true, 0.0, &mut logits);
        let mut tokens = device.empty(Class::Workspace, DType::U32, &[x.rows()]);
        device.kernels().largest(&logits, &mut tokens);
        tokens.to_vec()
    }
}
