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
    let (device, weight) = (tape.device(), &tape.param(head.weight).value);
    let mut logits = device.empty(Class::Workspace, x.dtype(), &[x.rows(), weight.rows()]);
    device.kernels().linear(&x, &weight.into(), None, &mut logits);
    let mut tokens = device.empty(Class::Workspace, DType::U32, &[x.rows()]);
    device.kernels().largest(&logits, &mut tokens);
    tokens.to_vec()
}
