//! The primitives that a device offers. Outputs are given by the caller, so that the meter sees every allocation.
//!
//! Shapes: `n` rows (tokens), `d` columns, `b` sequences. Float tensors of one call share one type. Shapes that do not match
//! are mistakes of the caller and panic.

use crate::codes::{Coded, Rows, Stored, StoredMut};
use crate::rng::Key;
use crate::tensor::Tensor;

crate::named! {
    /// How rows are chosen and weighted (docs/wta-crs.md).
    Estimator {
        /// The k largest, weight 1. Biased; for ablations.
        TopK = "topk",
        /// k draws with replacement, weight 1/(k·p) a draw (Drineas et al. 2006). Unbiased.
        Crs = "crs",
        /// The largest for certain, the others drawn with replacement (Liu et al. 2023, eq. 6). Unbiased.
        Wta = "wta",
        /// Inclusion probabilities min(1, c·p), systematic draw, weight 1/π (Horvitz–Thompson). Unbiased.
        Pps = "pps",
    }
}

/// Elements of a parameter that share a scale in moments of eight bits.
pub const MOMENT_BLOCK: usize = 256;
/// Elements of a parameter that are summed and updated together; whole [`MOMENT_BLOCK`]s.
pub const UPDATE_BLOCK: usize = 1 << 14;

/// An activation that is smooth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x·Φ(x), by the error function.
    Gelu,
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))).
    GeluTanh,
    /// x·σ(x) with the logistic function σ (Elfwing et al. 2018).
    Silu,
}

/// Dropout: the mask is a function of `key` and the element's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Stream of the mask.
    pub key: Key,
    /// Probability that an element is dropped, in [0, 1).
    pub p: f32,
}

/// Attention within each sequence of a ragged batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Number of heads of q.
    pub heads: usize,
    /// Number of heads of k and v, a divisor of the former: as many neighbouring heads of q share one (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Factor of q·k: 1/√h in BERT, 1 in T5.
    pub scale: f64,
    /// Whether a query sees no key after its own position.
    pub causal: bool,
    /// Of the keys up to its own position a query sees so many, the last ones (Beltagy et al. 2020). For causal attention.
    pub window: Option<usize>,
    /// Position of a sequence's first query row among its keys: 0 but where keys of earlier steps are cached.
    pub first_position: usize,
    /// Dropout of the attention probabilities.
    pub dropout: Option<Dropout>,
    /// A bias by relative position is added to the scores.
    pub buckets: Option<Buckets>,
}

/// Buckets of relative positions (Raffel et al. 2020, section 2.1): small distances have their own, larger ones share one on a log
/// scale, and beyond `max_distance` all share the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Their number, at least 4.
    pub count: usize,
    /// From here on all distances are one; more than count / 2.
    pub max_distance: usize,
    /// Whether keys after the query have half of the buckets, or all one.
    pub bidirectional: bool,
}

impl Buckets {
    /// The bucket of a key `relative` positions after its query. In f32, as the reference rounds.
    pub fn of(&self, relative: i64) -> usize {
        let (count, first) = match (self.bidirectional, relative > 0) {
            (true, after) => (self.count / 2, if after { self.count / 2 } else { 0 }),
            (false, _) => (self.count, 0),
        };
        let distance = if self.bidirectional { relative.unsigned_abs() } else { (-relative.min(0)).unsigned_abs() };
        let (distance, exact) = (distance as usize, count / 2);
        if distance < exact {
            return first + distance;
        }
        let share = (distance as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        first + (exact + (share * (count - exact) as f32) as usize).min(count - 1)
    }
}

/// Rotary position embedding (Su et al. 2021): of each head's columns j and j + h/2 the one is turned towards the other, by an angle that is
/// the row's position times a frequency.
#[derive(Clone, Copy, Debug)]
pub struct Rotation<'a> {
    /// Angles by position (1, h/2), or by sequence (b, h/2); f64.
    pub frequencies: &'a Tensor,
    /// What turned numbers are multiplied with: 1 but where positions are stretched (Peng et al. 2023, section 3.4).
    pub factor: f64,
    /// Heads that are turned, from the first column on.
    pub heads: usize,
    /// First rows of the sequences and the end (b+1, u32).
    pub bounds: &'a Tensor,
    /// Position of a sequence's first row.
    pub first_position: usize,
    /// Turns back what was turned, its factor too: the transpose, not the inverse.
    pub transposed: bool,
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInput<'a> {
    /// q, k, v side by side (n, (heads + 2·kv_heads)·h), or q alone (n, heads·h).
    pub q: Stored<'a>,
    /// k, v side by side (m, 2·kv_heads·h) and the first rows of their sequences and the end (b+1), where they are not beside q.
    pub kv: Option<(Stored<'a>, &'a Tensor)>,
    /// First rows of the sequences of q and the end (b+1, u32).
    pub bounds: &'a Tensor,
    /// Bias by bucket (buckets, heads).
    pub bias: Option<&'a Tensor>,
}

impl AttentionInput<'_> {
    /// Columns of a head: h.
    pub fn head_size(&self, spec: &Attention) -> usize {
        self.q.cols() / if self.kv.is_some() { spec.heads } else { spec.heads + 2 * spec.kv_heads }
    }
}

/// Where attention's gradients go.
#[derive(Debug)]
pub struct AttentionGradients<'a> {
    /// Like q.
    pub q: &'a mut Tensor,
    /// Like k and v, where they are not beside q.
    pub kv: Option<&'a mut Tensor>,
    /// The bias's, by sequence (b, buckets·heads).
    pub bias: Option<&'a mut Tensor>,
}

/// A norm's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// Scale γ (d).
    pub gamma: &'a Tensor,
    /// Shift β (d); none in a root mean square norm, which takes no mean off.
    pub beta: Option<&'a Tensor>,
    /// Added to the variance.
    pub eps: f64,
}

/// One AdamW step (Loshchilov & Hutter 2019), as in `torch.optim.AdamW`.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// The first of the weight's elements that gradient and moments are of, which are as many as those have; a multiple of [`UPDATE_BLOCK`].
    pub first: usize,
}

/// Every primitive, with its shapes.
pub trait Kernels {
    /// `c = beta·c + op(a)·op(b)`, op(x) = xᵀ where `ta`, `tb` say so; op(a) (m, k), op(b) (k, n), c (m, n). With beta 0, c need
    /// not be initialised. With [`Precision::Bf16`](crate::Precision::Bf16), f32 operands are rounded first.
    fn matmul(&self, a: &Tensor, ta: bool, b: &Tensor, tb: bool, beta: f64, c: &mut Tensor);
    /// `y_i = weight·x_i + bias`, x (n, in), weight (out, in), bias (out), y (n, out), which need not be initialised; rounds as `matmul`, a weight
    /// in codes as its numbers.
    fn linear(&self, x: &Tensor, weight: &Stored<'_>, bias: Option<&Tensor>, y: &mut Tensor);
    /// `dx = dy·weight` of [`Kernels::linear`], dy (n, out), dx (n, in), which need not be initialised.
    fn linear_backward(&self, dy: &Tensor, weight: &Stored<'_>, dx: &mut Tensor);
    /// `x = 0`, any element type.
    fn zero(&self, x: &mut Tensor);
    /// `y = x`, any element type.
    fn copy(&self, x: &Tensor, y: &mut Tensor);
    /// `x *= factor·by`, by (1) or 1.
    fn scale(&self, factor: f64, by: Option<&Tensor>, x: &mut Tensor);
    /// `y += x`.
    fn add(&self, x: &Tensor, y: &mut Tensor);
    /// `y[first..] += x` for as many elements as x has.
    fn add_at(&self, x: &Tensor, first: usize, y: &mut Tensor);
    /// `y (d) += Σ_i x_i`, x (n, d), rows in order.
    fn add_column_sum(&self, x: &Tensor, y: &mut Tensor);
    /// `y_i = ‖x_i‖₂`, x (n, d), y (n).
    fn row_norms(&self, x: &Tensor, y: &mut Tensor);
    /// `y = f(x)`, x and y (n, d); without x, of y itself.
    fn activate(&self, form: Activation, x: Option<&Rows<'_>>, y: &mut Tensor);
    /// `dy *= f'(x)`.
    fn activate_backward(&self, form: Activation, x: &Stored<'_>, dy: &mut Tensor);
    /// `y = f(x[:, ..c])⊙x[:, c..]`, x (n, 2c), y (n, c) (Shazeer 2020).
    fn gated(&self, form: Activation, x: &Rows<'_>, y: &mut Tensor);
    /// `dx` (n, 2c) of [`Kernels::gated`] from dy (n, c).
    fn gated_backward(&self, form: Activation, x: &Stored<'_>, dy: &Tensor, dx: &mut Tensor);
    /// `x = max(x, 0)`, then dropout; x (n, d). Bit c of row i of `bits` (n, ⌈d/8⌉, u8), lowest first, says whether the element is above 0 at the
    /// end.
    fn relu(&self, dropout: Option<Dropout>, x: &mut Tensor, bits: Option<&mut Tensor>);
    /// `dy *= above/(1−p)`, p that of `dropout`; `above` says where the output is above 0: bits as in [`Kernels::relu`], or codes above 0 (n, d,
    /// u8).
    fn relu_backward(&self, dropout: Option<Dropout>, above: &Tensor, dy: &mut Tensor);
    /// `x = tanh(x)`.
    fn tanh(&self, x: &mut Tensor);
    /// `dy *= 1 − y²`.
    fn tanh_backward(&self, y: &Tensor, dy: &mut Tensor);
    /// `x *= mask/(1−p)`, x (n, d): forward, and the same again backward. With `index` (n, u32), x holds these rows of the matrix that the mask
    /// is for.
    fn dropout(&self, dropout: Dropout, index: Option<&Tensor>, x: &mut Tensor);
    /// `z = (x − mean)·r`, `r = 1/√(var + eps)`, `y = gamma·z + beta`; x, y, z (n, d), gamma, beta (d), r (n). Without beta the root
    /// mean square norm: `z = x·r`, `r = 1/√(mean x² + eps)`, `y = gamma·z`. z and r are `kept` if asked for.
    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, y: &mut Tensor, kept: Option<(StoredMut<'_>, &mut Tensor)>);
    /// `dgamma += Σ_i dy_i⊙z_i` and `dbeta += Σ_i dy_i`, where they are wanted; then, with `dx`, `dx = r(g − mean g − z·mean(g⊙z))` with
    /// `g = gamma⊙dy`, written over `dy`; without `mean g` where the mean was not taken off.
    fn layer_norm_backward(
        &self,
        z: &Stored<'_>,
        r: &Tensor,
        norm: &Norm<'_>,
        dy: &mut Tensor,
        dx: bool,
        sums: [Option<&mut Tensor>; 2],
    );
    /// `y_i = gamma⊙z_i + beta`: a norm's output from its ẑ, to the bit where that is exact.
    fn scale_rows(&self, norm: &Norm<'_>, z: &Rows<'_>, y: &mut Tensor);
    /// `y_i (+)= table[ids_i]`: adds where `add`, else writes; ids (n) u32, table (v, d), y (n, d).
    fn embed(&self, ids: &Tensor, table: &Stored<'_>, add: bool, y: &mut Tensor);
    /// `dtable[ids_i] += dy_i`, in the order of i.
    fn embed_backward(&self, ids: &Tensor, dy: &Tensor, dtable: &mut Tensor);
    /// `y_j = scale_j·x_j`, scale (k) or 1, x_j the rows named (k, d).
    fn read_rows(&self, x: &Rows<'_>, scale: Option<&Tensor>, y: &mut Tensor);
    /// `y[index_j] = x_j`, other rows as they are, any element type; the indices are distinct.
    fn scatter_rows(&self, x: &Tensor, index: &Tensor, y: &mut Tensor);
    /// `y = x[:, first..first + c]`, x (n, d), y (n, c).
    fn read_columns(&self, x: &Tensor, first: usize, y: &mut Tensor);
    /// `y[:, first..first + c] = x`, x (n, c), y (n, d).
    fn write_columns(&self, x: &Tensor, first: usize, y: &mut Tensor);
    /// Writes x (n, d) in codes ([`Code`](crate::Code)), each group of columns with its own scale: rounded to one of the two
    /// neighbouring codes by random numbers of the stream `key`, so that the mean is x, or to the nearest. A group with a number that is not finite
    /// reads as NaN.
    fn quantise(&self, key: Option<Key>, x: &Tensor, coded: &mut Coded);
    /// `out_i = Σ_j drop(softmax_j(scale·q_i·k_j + bias_{j−i})) v_j` within each sequence and head; out (n, heads·h); `lse` (n,
    /// heads) gets the logarithm of each softmax's denominator. With `index` (k, u32) only those rows, out (k, heads·h).
    fn attention(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        index: Option<&Tensor>,
        scratch: &mut Tensor,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    );
    /// Gradients from `dout` (n, heads·h); the probabilities are rebuilt tile by tile, from `lse` where it is given.
    fn attention_backward(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        lse: Option<&Tensor>,
        dout: &Tensor,
        scratch: &mut Tensor,
        gradients: AttentionGradients<'_>,
    );
    /// Turns the first `heads` heads of each row of x (n, d), in place; angles and their sines are computed in f64.
    fn rotate(&self, rotation: &Rotation<'_>, x: &mut Tensor);
    /// `loss (1) = mean_i −log softmax(logits_i)[labels_i]`, and its gradient in the logits' place, if it is wanted; logits (b, c), labels (b) u32.
    fn cross_entropy(&self, logits: &mut Tensor, labels: &Tensor, loss: &mut Tensor, gradient: bool);
    /// `loss (1) = mean (x − target)²` and its gradient.
    fn mean_squared_error(&self, x: &Tensor, target: &Tensor, loss: &mut Tensor, dx: &mut Tensor);
    /// Draw probabilities `p_i = (1−uniform)·h_i·dz_i/Σ(h·dz) + uniform/n`; h, p (n), dz (n) or all equal. Norms that are not
    /// finite, or all zero, make p uniform.
    fn importance(&self, h: &Tensor, dz: Option<&Tensor>, uniform: f64, p: &mut Tensor);
    /// Draws k ≤ n rows by probabilities `p` (n): `index` (k) u32 ascending, `scale` (k) their weights; places that a repeated
    /// draw leaves over hold row 0 with weight 0.
    fn sample_rows(&self, estimator: Estimator, key: Key, p: &Tensor, index: &mut Tensor, scale: &mut Tensor);
    /// The first column with the largest number of each row: x (n, c), index (n) u32.
    fn largest(&self, x: &Tensor, index: &mut Tensor);
    /// `sums[slot] += factor·x`, x (1), in f64; x and sums float tensors of any types.
    fn accumulate(&self, factor: f64, x: &Tensor, slot: usize, sums: &mut Tensor);
    /// `sums[slot] += Σ x²`, in f64, sums (k) f64. Infinite or NaN if an element is.
    fn sum_squares(&self, x: &Tensor, slot: usize, sums: &mut Tensor);
    /// `sums_i = Σ x²` over block i of [`UPDATE_BLOCK`] elements, in f64, sums (⌈n/block⌉) f64. What [`Kernels::sum_squares`] adds is their sum, in order.
    fn block_squares(&self, x: &Tensor, sums: &mut Tensor);
    /// What the step's gradients are to be multiplied with, `factor` (1) f64, by `sums` (k) f64: the loss, then Σg² of each. With a `most` above 0
    /// `min(1, most/(√Σ_{j>0} sums_j + 1e-6))`, as in `torch.nn.utils.clip_grad_norm_`, else 1. NaN if one of the sums is not finite.
    fn clip(&self, sums: &Tensor, most: f64, factor: &mut Tensor);
    /// One step of weights `w` by gradient `g`, times `factor` (1) f64, with moments `m`, `v`. Where the factor is NaN, nothing changes. Weights in
    /// codes are in bfloat16 and have a stream: each is written back as one of the two neighbours of its new number, by random numbers
    /// that depend on the stream and its place, so that the mean is that number.
    fn adamw(&self, step: &AdamW, factor: &Tensor, g: &Tensor, w: StoredMut<'_>, m: &mut Tensor, v: &mut Tensor);
    /// The same with moments in eight bits: codes (u8, like w) and scales (⌈n/[`MOMENT_BLOCK`]⌉), all zero at first. `m = ±scale·(c/127)⁴`
    /// with the sign in the highest bit of the code, and `√v = scale·(c/255)⁴`. The step sees the new moments before they are rounded: m to
    /// the nearest code; √v up or down in turns that depend on step and place, so that its running average follows v. Moments beyond
    /// ±2⁶³ count as that.
    fn adamw_8bit(
        &self,
        step: &AdamW,
        factor: &Tensor,
        g: &Tensor,
        w: StoredMut<'_>,
        m: [&mut Tensor; 2],
        v: [&mut Tensor; 2],
    );
}
