//! Greedy decoding, with the keys and values of earlier rows cached.

use colrow_autograd::{Attend, Head, Sequences, Tape, Var};
use colrow_tensor::{Class, DType, Device, Tensor};

/// What decodes a batch of sequences step by step. All of them are at the same position.
pub trait Decoder {
    /// What its layers remember of a row.
    fn cached(&self) -> CacheSize;

    /// The tokens that stand before the first of each answer, sequence by sequence, as many of each and at least one: what starts a
    /// decoder, or a prompt.
    fn first(&self) -> Vec<u32>;

    /// The hidden rows (n, d) of `tokens` (n): of each sequence as many, behind those of earlier steps, whose keys and values are in the
    /// `cache` to which each layer adds its own by [`Cache::attend`].
    fn step(&self, tape: &mut Tape<'_>, tokens: &[u32], cache: &mut Cache) -> Var;
}

/// What a decoder's layers remember of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSize {
    /// Layers that attend to earlier rows.
    pub layers: usize,
    /// Columns of k and v together.
    pub columns: usize,
}

/// Keys and values of a batch's decoder. Sequence s has the rows `s·longest..` of a layer's; attention stops at the rows that are being
/// decoded.
#[derive(Debug)]
pub struct Cache {
    device: Device,
    dtype: DType,
    /// By layer k and v (b·longest, columns) of the rows decoded so far.
    layers: Vec<Tensor>,
    columns: usize,
    /// The rows of a step.
    queries: Sequences,
    keys: Sequences,
    sequences: usize,
    longest: usize,
    /// The first row of a sequence that is being decoded.
    position: usize,
}

/// The first rows of so many sequences of so many rows, and the end.
fn bounds(sequences: usize, rows: usize) -> Vec<u32> {
    (0..=sequences).map(|s| (s * rows) as u32).collect()
}

impl Cache {
    /// An empty cache for `sequences` of at most `longest` rows, `rows` of which come in the first step.
    pub fn new(
        device: &Device,
        dtype: DType,
        CacheSize { layers, columns }: CacheSize,
        [sequences, longest]: [usize; 2],
        rows: usize,
    ) -> Self {
        let layer = |_| device.zeros(Class::Cache, dtype, &[sequences * longest, columns]);
        Self {
            device: device.clone(),
            dtype,
            layers: (0..layers).map(layer).collect(),
            columns,
            queries: Sequences::new(device, &bounds(sequences, rows)),
            keys: Sequences::new(device, &bounds(sequences, longest)),
            sequences,
            longest,
            position: 0,
        }
    }

    /// The rows of this step as sequences: what attention to something else than earlier rows asks with.
    pub fn queries(&self) -> &Sequences {
        &self.queries
    }

    /// The position of this step's first row in its sequence.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Attention of the new rows, whose q, k and v are the columns of `qkv`, to themselves and earlier rows, in layer `layer`.
    pub fn attend(&mut self, tape: &mut Tape<'_>, site: &str, layer: usize, attend: &Attend, qkv: &Var) -> Var {
        let (n, width) = (qkv.value.rows(), qkv.value.cols() - self.columns);
        let kernels = self.device.kernels();
        let mut q = self.device.empty(Class::Workspace, self.dtype, &[n, width]);
        let mut kv = self.device.empty(Class::Workspace, self.dtype, &[n, self.columns]);
        kernels.read_columns(&qkv.value, 0, &mut q);
        kernels.read_columns(&qkv.value, width, &mut kv);
        let step = n / self.sequences;
        let row = |i: usize| i / step * self.longest + self.position + i % step;
        let rows: Vec<u32> = (0..n).map(|i| row(i) as u32).collect();
        let rows = self.device.tensor(Class::Workspace, &[n], &rows);
        kernels.scatter_rows(&kv, &rows, &mut self.layers[layer]);
        let attend = Attend { causal: true, first_position: self.position, ..*attend };
        let (q, kv) = (tape.constant(q), tape.constant(self.layers[layer].clone()));
        tape.attention(site, &attend, (q, &self.queries), Some((kv, &self.keys)))
    }

    /// Goes on behind a step of `rows` rows a sequence, to steps of one.
    fn advance(&mut self, rows: usize) {
        self.position += rows;
        if rows != 1 {
            self.queries = Sequences::new(&self.device, &bounds(self.sequences, 1));
        }
    }
}

/// For each of the `sequences` the most likely next token again and again, until the token `end` comes or there are `longest`. Without
/// `end`.
pub fn greedy(
    tape: &mut Tape<'_>,
    decoder: &dyn Decoder,
    head: Head,
    sequences: usize,
    end: Option<u32>,
    longest: usize,
) -> Vec<Vec<u32>> {
    let device = tape.device().clone();
    let dtype = tape.param(head.weight).value.dtype();
    let mut last = decoder.first();
    let mut rows = last.len() / sequences.max(1);
    let most = (longest + rows).saturating_sub(1);
    let mut cache = Cache::new(&device, dtype, decoder.cached(), [sequences, most], rows);
    let mut texts = vec![Vec::new(); sequences];
    let mut ended = vec![false; sequences];
    for _ in 0..longest {
        let mut x = decoder.step(tape, &last, &mut cache);
        if rows != 1 {
            let ends: Vec<u32> = bounds(sequences, rows)[1..].iter().map(|end| end - 1).collect();
            x = tape.rows("last", &x, &device.tensor(Class::Workspace, &[sequences], &ends));
        }
        last = most_likely(tape, head, x.value);
        cache.advance(rows);
        rows = 1;
        for (s, &token) in last.iter().enumerate() {
            ended[s] |= Some(token) == end;
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

/// The token with the largest logit for each row of x (b, d). The logits' factor is positive and changes nothing.
fn most_likely(tape: &Tape<'_>, head: Head, x: Tensor) -> Vec<u32> {
    let (device, weight) = (tape.device(), tape.param(head.weight).value.stored());
    let mut logits = device.empty(Class::Workspace, x.dtype(), &[x.rows(), weight.rows()]);
    device.kernels().linear(&x, &weight, None, &mut logits);
    let mut tokens = device.empty(Class::Workspace, DType::U32, &[x.rows()]);
    device.kernels().largest(&logits, &mut tokens);
    tokens.to_vec()
}

#[cfg(test)]
mod tests {
    use colrow_autograd::{Mode, ParamId, Params};
    use colrow_tensor::rng::Key;

    use super::*;

    const WIDTH: usize = 8;
    const WORDS: usize = 23;
    fn attend() -> Attend {
        Attend { causal: true, ..Attend::new(2, 0.5) }
    }

    /// A decoder of two layers behind a prompt, without an encoder.
    struct PromptOnly {
        words: ParamId,
        qkv: [ParamId; 2],
        prompts: Vec<u32>,
    }

    impl PromptOnly {
        fn new(params: &mut Params, prompts: &[u32]) -> Self {
            let mut add = |name: &str, rows: usize| {
                let id = params.add(name, &[rows, WIDTH], true);
                let key = Key::new(5).named(name);
                params[id].value.dense_mut().write_f64((0..(rows * WIDTH) as u64).map(|i| key.normal(i)));
                id
            };
            let words = add("words", WORDS);
            Self { words, qkv: [add("0", 3 * WIDTH), add("1", 3 * WIDTH)], prompts: prompts.to_vec() }
        }

        fn head(&self) -> Head {
            Head { weight: self.words, scale: 1.0 }
        }

        fn hidden(
            &self,
            tape: &mut Tape<'_>,
            tokens: &[u32],
            mut attends: impl FnMut(&mut Tape<'_>, usize, Var) -> Var,
        ) -> Var {
            let ids = tape.device().tensor(Class::Workspace, &[tokens.len()], tokens);
            let mut x = tape.embedding("words", &[(&ids, self.words)]);
            for (i, &qkv) in self.qkv.iter().enumerate() {
                let qkv = tape.linear("qkv", &x, qkv, None);
                let h = attends(tape, i, qkv);
                x = tape.add("residual", h, &x);
            }
            x
        }
    }

    impl Decoder for PromptOnly {
        fn cached(&self) -> CacheSize {
            CacheSize { layers: self.qkv.len(), columns: 2 * WIDTH }
        }

        fn first(&self) -> Vec<u32> {
            self.prompts.clone()
        }

        fn step(&self, tape: &mut Tape<'_>, tokens: &[u32], cache: &mut Cache) -> Var {
            self.hidden(tape, tokens, |tape, layer, qkv| cache.attend(tape, "attention", layer, &attend(), &qkv))
        }
    }

    /// The same without a cache: every row again for each token.
    fn slowly(params: &Params, model: &PromptOnly, longest: usize) -> Vec<Vec<u32>> {
        let answer = |prompt: &[u32]| {
            let mut all = prompt.to_vec();
            for _ in 0..longest {
                let mut tape = Tape::new(params, Mode::Inference);
                let sequences = Sequences::new(params.device(), &[0, all.len() as u32]);
                let x = model.hidden(&mut tape, &all, |tape, _, qkv| {
                    tape.attention("attention", &attend(), (qkv, &sequences), None)
                });
                all.push(*most_likely(&tape, model.head(), x.value).last().unwrap());
            }
            all.split_off(prompt.len())
        };
        model.prompts.chunks(model.prompts.len() / 2).map(answer).collect()
    }

    #[test]
    fn a_decoder_without_an_encoder_goes_on_behind_its_prompts() {
        let mut params = Params::new(&Device::cpu(), DType::F64);
        for prompts in [&[3, 7, 1, 20, 4, 4][..], &[2, 9]] {
            let model = PromptOnly::new(&mut params, prompts);
            let expected = slowly(&params, &model, 6);
            let answers =
                |end, longest| greedy(&mut Tape::new(&params, Mode::Inference), &model, model.head(), 2, end, longest);
            assert_eq!(answers(None, 6), expected);
            assert!(expected[0] != expected[1] && answers(None, 0).concat().is_empty());
            // the first text ends where its third token comes first
            let end = expected[0][2];
            let ended = expected.iter().map(|text| text.iter().copied().take_while(|&t| t != end).collect::<Vec<_>>());
            assert_eq!(answers(Some(end), 6), ended.collect::<Vec<_>>());
        }
    }
}
