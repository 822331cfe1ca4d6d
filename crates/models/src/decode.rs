//! Decoding token by token, with the keys and values of earlier rows cached, as they are or in fewer bits.

use colrow_autograd::{Attend, Head, Sequences, Tape, Var};
use colrow_tensor::{Class, Code, Coded, DType, Device, Error, Format, Result, Tensor, Weight};

use crate::choose::Choice;

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
    /// Columns of a head, which share a scale where they are in fewer bits.
    pub head: usize,
}

/// Keys and values of a batch's decoder. Sequence s has the rows `s·longest..` of a layer's; attention stops at the rows that are being
/// decoded.
#[derive(Debug)]
pub struct Cache {
    device: Device,
    dtype: DType,
    /// By layer k and v (b·longest, columns) of the rows decoded so far.
    layers: Vec<Weight>,
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
    /// An empty cache for `sequences` of at most `longest` rows, `rows` of which come in the first step; as numbers are, or in codes.
    pub fn new(
        device: &Device,
        (dtype, code): (DType, Option<Code>),
        CacheSize { layers, columns, head }: CacheSize,
        [sequences, longest]: [usize; 2],
        rows: usize,
    ) -> Self {
        let size = [sequences * longest, columns];
        let layer = |_| match code {
            None => Weight::Dense(device.zeros(Class::Cache, dtype, &size)),
            Some(code) => {
                let mut coded = Coded::empty(device, Class::Cache, dtype, size, Format { code, group: head });
                device.kernels().zero(&mut coded.codes);
                device.kernels().zero(&mut coded.scale);
                Weight::Coded(coded)
            }
        };
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
        match &mut self.layers[layer] {
            Weight::Dense(all) => kernels.scatter_rows(&kv, &rows, all),
            Weight::Coded(all) => {
                let mut coded = Coded::empty_like(&kv, all.format);
                kernels.quantise(None, &kv, &mut coded);
                kernels.scatter_rows(&coded.codes, &rows, &mut all.codes);
                if !coded.scale.is_empty() {
                    kernels.scatter_rows(&coded.scale, &rows, &mut all.scale);
                }
            }
        }
        let attend = Attend { causal: true, first_position: self.position, ..*attend };
        tape.attention_to(site, &attend, (&q, &self.queries), (self.layers[layer].stored(), &self.keys))
    }

    /// Goes on behind a step of `rows` rows a sequence, to steps of one.
    fn advance(&mut self, rows: usize) {
        self.position += rows;
        if rows != 1 {
            self.queries = Sequences::new(&self.device, &bounds(self.sequences, 1));
        }
    }
}

/// How texts are decoded.
#[derive(Clone, Copy, Debug)]
pub struct Decoding<'a> {
    /// How a token is chosen.
    pub choice: Choice,
    /// Tokens that end a text.
    pub ends: &'a [u32],
    /// Most tokens of a text, the one that ends it included.
    pub longest: usize,
    /// How keys and values are cached: as numbers are, or in codes.
    pub cache: Option<Code>,
}

/// A text that was decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    /// Its tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// Whether one did.
    pub ended: bool,
}

/// Goes on with each of the `sequences`, token by token, until one comes that ends a text or there are as many as there may be. `each` sees the
/// number of a sequence and each of its tokens as it comes, and may stop everything by `false`.
///
/// # Errors
/// Logits that are not finite.
pub fn decode(
    tape: &mut Tape<'_>,
    decoder: &dyn Decoder,
    head: Head,
    sequences: usize,
    how: &Decoding<'_>,
    each: &mut dyn FnMut(usize, u32) -> bool,
) -> Result<Vec<Text>> {
    let device = tape.device().clone();
    let dtype = tape.param(head.weight).value.dtype();
    let mut last = decoder.first();
    let mut rows = last.len() / sequences.max(1);
    let most = (how.longest + rows).saturating_sub(1);
    let mut cache = Cache::new(&device, (dtype, how.cache), decoder.cached(), [sequences, most], rows);
    let mut texts = vec![Text::default(); sequences];
    for step in 0..how.longest {
        let mut x = decoder.step(tape, &last, &mut cache);
        if rows != 1 {
            let ends: Vec<u32> = bounds(sequences, rows)[1..].iter().map(|end| end - 1).collect();
            x = tape.rows("last", &x, &device.tensor(Class::Workspace, &[sequences], &ends));
        }
        last = next_tokens(tape, head, x.value, &how.choice, step)?;
        cache.advance(rows);
        rows = 1;
        let mut goes_on = true;
        for (s, (text, &token)) in texts.iter_mut().zip(&last).enumerate().filter(|(_, (text, _))| !text.ended) {
            text.ended = how.ends.contains(&token);
            if !text.ended {
                text.tokens.push(token);
                goes_on &= each(s, token);
            }
        }
        // every position takes the same memory
        if !goes_on || texts.iter().all(|text| text.ended) || device.is_meta() {
            break;
        }
    }
    Ok(texts)
}

/// The next token for each row of x (b, d).
fn next_tokens(tape: &Tape<'_>, head: Head, x: Tensor, choice: &Choice, step: usize) -> Result<Vec<u32>> {
    let device = tape.device();
    // a factor of all logits is positive and changes no largest one
    let head = if choice.is_greedy() { Head { scale: 1.0, ..head } } else { head };
    let logits = tape.head_logits(x, head);
    if !logits.sum_squares().is_finite() {
        return Err(Error::new("the model gives numbers that are not finite, and no token can be chosen")
            .hint("are there infinities or NaN among its weights?"));
    }
    if choice.is_greedy() {
        let mut tokens = device.empty(Class::Workspace, DType::U32, &[logits.rows()]);
        device.kernels().largest(&logits, &mut tokens);
        return Ok(tokens.to_vec());
    }
    let numbers: Vec<f32> = logits.to_f64().into_iter().map(|x| x as f32).collect();
    Ok(numbers.chunks_exact(logits.cols().max(1)).enumerate().map(|(s, row)| choice.of(row, s, step)).collect())
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
            Head::new(self.words, 1.0)
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
            CacheSize { layers: self.qkv.len(), columns: 2 * WIDTH, head: WIDTH / 2 }
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
                all.push(*next_tokens(&tape, model.head(), x.value, &Choice::greedy(), 0).unwrap().last().unwrap());
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
            let answers = |end: Option<u32>, longest| {
                let how = Decoding { choice: Choice::greedy(), ends: end.as_slice(), longest, cache: None };
                let mut tape = Tape::new(&params, Mode::Inference);
                let texts = decode(&mut tape, &model, model.head(), 2, &how, &mut |_, _| true).unwrap();
                texts.into_iter().map(|text| text.tokens).collect::<Vec<_>>()
            };
            assert_eq!(answers(None, 6), expected);
            assert!(expected[0] != expected[1] && answers(None, 0).concat().is_empty());
            // the first text ends where its third token comes first
            let end = expected[0][2];
            let ended = expected.iter().map(|text| text.iter().copied().take_while(|&t| t != end).collect::<Vec<_>>());
            assert_eq!(answers(Some(end), 6), ended.collect::<Vec<_>>());
        }
    }
}
