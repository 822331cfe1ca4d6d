//! The primitives that a device offers. Outputs are given by the caller, so that the meter sees every allocation.
//!
//! Shapes: `n` rows (tokens), `d` columns, `b` sequences. Float tensors of one call share one type. Shapes that do not match
//! are mistakes of the caller and panic.

use crate::rng::Key;
use crate::tensor::Tensor;

/// How rows are chosen and weighted (docs/wta-crs.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Estimator {
    /// The k largest, weight 1. Biased; for ablations.
    TopK,
    /// k draws with replacement, weight 1/(k·p) a draw (Drineas et al. 2006). Unbiased.
    Crs,
    /// The largest for certain, the others drawn with replacement (Liu et al. 2023, eq. 6). Unbiased.
    Wta,
    /// Inclusion probabilities min(1, c·p), systematic draw, weight 1/π (Horvitz–Thompson). Unbiased.
    Pps,
}

/// Columns that share a scale in int8.
pub const QUANT_GROUP: usize = 64;

/// The two forms of GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// x·Φ(x), by the error function.
    Erf,
    /// ½x(1 + tanh(√(2/π)(x + 0.044715x³))).
    Tanh,
}

/// Dropout: the mask is a function of `key` and the element's place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Stream of the mask.
    pub key: Key,
    /// Probability that an element is dropped, in [0, 1).
    pub p: f32,
}

/// Bidirectional attention within each sequence of a ragged batch.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Number of heads; the head size is d / heads.
    pub heads: usize,
    /// Dropout of the attention probabilities.
    pub dropout: Option<Dropout>,
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
    /// Multiplies the gradient first (clipping, averaging).
    pub grad_scale: f64,
}

/// Every primitive, with its shapes.
pub trait Kernels {
    /// `c = beta·c + op(a)·op(b)`, op(x) = xᵀ where `ta`, `tb` say so; op(a) (m, k), op(b) (k, n), c (m, n). With beta 0, c need
    /// not be initialised.
    fn matmul(&self, a: &Tensor, ta: bool, b: &Tensor, tb: bool, beta: f64, c: &mut Tensor);
    /// `x = 0`, any element type.
    fn zero(&self, x: &mut Tensor);
    /// `y = x`, any element type.
    fn copy(&self, x: &Tensor, y: &mut Tensor);
    /// `x *= factor`.
    fn scale(&self, factor: f64, x: &mut Tensor);
    /// `y += x`.
    fn add(&self, x: &Tensor, y: &mut Tensor);
    /// Every row of `y` (n, d) = `row` (d).
    fn broadcast_row(&self, row: &Tensor, y: &mut Tensor);
    /// `y (d) += Σ_i x_i`, x (n, d), rows in order.
    fn add_column_sum(&self, x: &Tensor, y: &mut Tensor);
    /// `y (d) += Σ_i x_i⊙z_i`, x, z (n, d), rows in order.
    fn add_column_dot(&self, x: &Tensor, z: &Tensor, y: &mut Tensor);
    /// `y_i = ‖x_i‖₂`, x (n, d), y (n).
    fn row_norms(&self, x: &Tensor, y: &mut Tensor);
    /// `y = gelu(x)`.
    fn gelu(&self, form: Gelu, x: &Tensor, y: &mut Tensor);
    /// `dy *= gelu'(x)`.
    fn gelu_backward(&self, form: Gelu, x: &Tensor, dy: &mut Tensor);
    /// `x = tanh(x)`.
    fn tanh(&self, x: &mut Tensor);
    /// `dy *= 1 − y²`.
    fn tanh_backward(&self, y: &Tensor, dy: &mut Tensor);
    /// `x *= mask/(1−p)`, x (n, d): forward, and the same again backward.
    fn dropout(&self, dropout: Dropout, x: &mut Tensor);
    /// `z = (x − mean)·r`, `r = 1/√(var + eps)`, `y = gamma·z + beta`; x, y, z (n, d), gamma, beta (d), r (n).
    #[expect(clippy::too_many_arguments, reason = "three inputs and three outputs")]
    fn layer_norm(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: &Tensor,
        eps: f64,
        y: &mut Tensor,
        z: &mut Tensor,
        r: &mut Tensor,
    );
    /// `dx = r(g − mean g − z·mean(g⊙z))` with `g = gamma⊙dy`, written over `dy`.
    fn layer_norm_backward(&self, z: &Tensor, r: &Tensor, gamma: &Tensor, dy: &mut Tensor);
    /// `x_i = gamma⊙x_i + beta`, x (n, d): a layer norm's output from its ẑ, to the bit.
    fn scale_rows(&self, gamma: &Tensor, beta: &Tensor, x: &mut Tensor);
    /// `y_i (+)= table[ids_i]`: adds where `add`, else writes; ids (n) u32, table (v, d), y (n, d).
    fn embed(&self, ids: &Tensor, table: &Tensor, add: bool, y: &mut Tensor);
    /// `dtable[ids_i] += dy_i`, in the order of i.
    fn embed_backward(&self, ids: &Tensor, dy: &Tensor, dtable: &mut Tensor);
    /// `y_j = scale_j·x[index_j]`; index (k) u32, scale (k) or 1.
    fn gather_rows(&self, x: &Tensor, index: &Tensor, scale: Option<&Tensor>, y: &mut Tensor);
    /// `y[index_j] = x_j`, all other rows 0; the indices are distinct.
    fn scatter_rows(&self, x: &Tensor, index: &Tensor, y: &mut Tensor);
    /// `y = x[:, first..first + c]`, x (n, d), y (n, c).
    fn read_columns(&self, x: &Tensor, first: usize, y: &mut Tensor);
    /// `y[:, first..first + c] += x`, x (n, c), y (n, d).
    fn add_to_columns(&self, x: &Tensor, first: usize, y: &mut Tensor);
    /// int8 with stochastic rounding in groups of [`QUANT_GROUP`] columns: `scale = max|x|/127` of a group, `codes` = ⌊x/scale + u⌋ +
    /// 128 with u uniform in [0, 1), so that E[(codes − 128)·scale] = x. x, codes (n, d), scale (n, ⌈d/group⌉).
    fn quantise(&self, key: Key, x: &Tensor, codes: &mut Tensor, scale: &mut Tensor);
    /// `y = (codes − 128)·scale`.
    fn dequantise(&self, codes: &Tensor, scale: &Tensor, y: &mut Tensor);
    /// Elements of scratch that attention needs, forward or backward, for sequences of at most `longest` tokens.
    fn attention_scratch(&self, longest: usize) -> usize;
    /// `out_i = Σ_j drop(softmax_j(q_i·k_j/√h)) v_j` within each sequence and head of size h; qkv (n, 3d) holds q, k, v side by
    /// side, bounds (b+1) u32, out (n, d); `lse` (n, heads) gets the logarithm of each softmax's denominator.
    fn attention(
        &self,
        spec: &Attention,
        qkv: &Tensor,
        bounds: &Tensor,
        scratch: &mut Tensor,
        out: &mut Tensor,
        lse: &mut Tensor,
    );
    /// `dqkv` (n, 3d) from `dout` (n, d); the probabilities are rebuilt tile by tile from qkv and lse.
    #[expect(clippy::too_many_arguments, reason = "what the forward pass had, and the gradient in and out")]
    fn attention_backward(
        &self,
        spec: &Attention,
        qkv: &Tensor,
        bounds: &Tensor,
        lse: &Tensor,
        dout: &Tensor,
        scratch: &mut Tensor,
        dqkv: &mut Tensor,
    );
    /// `loss (1) = mean_i −log softmax(logits_i)[labels_i]` and its gradient; logits, dlogits (b, c), labels (b) u32.
    fn cross_entropy(&self, logits: &Tensor, labels: &Tensor, loss: &mut Tensor, dlogits: &mut Tensor);
    /// `loss (1) = mean (x − target)²` and its gradient.
    fn mean_squared_error(&self, x: &Tensor, target: &Tensor, loss: &mut Tensor, dx: &mut Tensor);
    /// Draw probabilities `p_i = (1−uniform)·h_i·dz_i/Σ(h·dz) + uniform/n`; h, p (n), dz (n) or all equal. Norms that are not
    /// finite, or all zero, make p uniform.
    fn importance(&self, h: &Tensor, dz: Option<&Tensor>, uniform: f64, p: &mut Tensor);
    /// Draws k ≤ n rows by probabilities `p` (n): `index` (k) u32 ascending, `scale` (k) their weights; places that a repeated
    /// draw leaves over hold row 0 with weight 0.
    fn sample_rows(&self, estimator: Estimator, key: Key, p: &Tensor, index: &mut Tensor, scale: &mut Tensor);
    /// Σ x², in f64; 0 on the shape-only device. Infinite or NaN if an element is.
    fn sum_squares(&self, x: &Tensor) -> f64;
    /// One step of weights `w` by gradient `g` with moments `m`, `v`.
    fn adamw(&self, step: &AdamW, g: &Tensor, w: &mut Tensor, m: &mut Tensor, v: &mut Tensor);
}
