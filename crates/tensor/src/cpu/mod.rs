//! Kernels on the processor: generic over f32 and f64, multi-threaded with rayon, vectorised for the machine found at run
//! time. Every result is the same for any number of threads: reductions run over fixed chunks, in order.

mod activation;
pub(crate) mod attention;
mod columns;
mod loss;
pub(crate) mod matmul;
mod optim;
mod quant;
mod rows;
mod rowwise;
mod select;

use crate::kernels::{AdamW, Attention, AttentionGradients, AttentionInput, Dropout, Estimator, Gelu, Kernels};
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::{DType, Element, Float};

/// Compiles a function once for each vector width and picks one at run time.
macro_rules! vectorised {
    ($($item:item)*) => {$(
        #[multiversion::multiversion(targets(
            "x86_64+avx512f+avx512bw+avx512cd+avx512dq+avx512vl+avx2+fma",
            "x86_64+avx2+fma",
        ))]
        $item
    )*};
}
use vectorised;

/// Runs `$body` with `$T` the float type of `$tensor`.
macro_rules! by_float {
    ($tensor:expr, $T:ident => $body:expr) => {
        match $tensor.dtype() {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => panic!("this kernel is for float tensors, not {other:?}"),
        }
    };
}

/// The processor.
#[derive(Debug)]
pub(crate) struct Cpu {
    threads: usize,
}

impl Cpu {
    pub(crate) fn new(threads: usize) -> Self {
        Self { threads }
    }
}

impl Kernels for Cpu {
    fn matmul(&self, a: &Tensor, ta: bool, b: &Tensor, tb: bool, beta: f64, c: &mut Tensor) {
        by_float!(a, T => matmul::matmul::<T>(a, ta, b, tb, beta, c));
    }

    fn zero(&self, x: &mut Tensor) {
        fn fill<T: Element>(x: &mut Tensor) {
            rowwise::fill(x.as_mut_slice::<T>(), T::default());
        }
        match x.dtype() {
            DType::F32 => fill::<f32>(x),
            DType::F64 => fill::<f64>(x),
            DType::U32 => fill::<u32>(x),
            DType::U8 => fill::<u8>(x),
        }
    }

    fn copy(&self, x: &Tensor, y: &mut Tensor) {
        match x.dtype() {
            DType::F32 => rowwise::copy(x.as_slice::<f32>(), y.as_mut_slice()),
            DType::F64 => rowwise::copy(x.as_slice::<f64>(), y.as_mut_slice()),
            DType::U32 => rowwise::copy(x.as_slice::<u32>(), y.as_mut_slice()),
            DType::U8 => rowwise::copy(x.as_slice::<u8>(), y.as_mut_slice()),
        }
    }

    fn scale(&self, factor: f64, x: &mut Tensor) {
        by_float!(x, T => rowwise::scale::<T>(T::of(factor), x.as_mut_slice()));
    }

    fn add(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(x, T => rowwise::add::<T>(x.as_slice(), y.as_mut_slice()));
    }

    fn broadcast_row(&self, row: &Tensor, y: &mut Tensor) {
        by_float!(row, T => rowwise::broadcast_row::<T>(row.as_slice(), y.as_mut_slice()));
    }

    fn add_column_sum(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(x, T => rowwise::add_column_sum::<T>(x.as_slice(), y.as_mut_slice()));
    }

    fn add_column_dot(&self, x: &Tensor, z: &Tensor, y: &mut Tensor) {
        by_float!(x, T => rowwise::add_column_dot::<T>(x.as_slice(), z.as_slice(), y.as_mut_slice()));
    }

    fn row_norms(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(x, T => rowwise::row_norms::<T>(x.as_slice(), x.cols(), y.as_mut_slice()));
    }

    fn gelu(&self, form: Gelu, x: &Tensor, y: &mut Tensor) {
        by_float!(x, T => activation::gelu::<T>(form, x.as_slice(), y.as_mut_slice()));
    }

    fn gelu_backward(&self, form: Gelu, x: &Tensor, dy: &mut Tensor) {
        by_float!(x, T => activation::gelu_backward::<T>(form, x.as_slice(), dy.as_mut_slice()));
    }

    fn gated_gelu(&self, form: Gelu, x: &Tensor, y: &mut Tensor) {
        let f = y.cols();
        by_float!(x, T => activation::gated_gelu::<T>(form, f, x.as_slice(), y.as_mut_slice()));
    }

    fn gated_gelu_backward(&self, form: Gelu, x: &Tensor, dy: &Tensor, dx: &mut Tensor) {
        let f = dy.cols();
        by_float!(x, T => activation::gated_gelu_backward::<T>(form, f, x.as_slice(), dy.as_slice(), dx.as_mut_slice()));
    }

    fn relu(&self, dropout: Option<Dropout>, x: &mut Tensor, bits: &mut Tensor) {
        let d = x.cols();
        by_float!(x, T => activation::relu::<T>(dropout, d, x.as_mut_slice(), bits.as_mut_slice()));
    }

    fn relu_backward(&self, dropout: Option<Dropout>, bits: &Tensor, dy: &mut Tensor) {
        let d = dy.cols();
        by_float!(dy, T => activation::relu_backward::<T>(dropout, d, bits.as_slice(), dy.as_mut_slice()));
    }

    fn tanh(&self, x: &mut Tensor) {
        by_float!(x, T => activation::tanh::<T>(x.as_mut_slice()));
    }

    fn tanh_backward(&self, y: &Tensor, dy: &mut Tensor) {
        by_float!(y, T => activation::tanh_backward::<T>(y.as_slice(), dy.as_mut_slice()));
    }

    fn dropout(&self, dropout: Dropout, x: &mut Tensor) {
        let d = x.cols();
        by_float!(x, T => rowwise::dropout::<T>(dropout, d, x.as_mut_slice()));
    }

    fn layer_norm(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        beta: Option<&Tensor>,
        eps: f64,
        y: &mut Tensor,
        z: &mut Tensor,
        r: &mut Tensor,
    ) {
        by_float!(x, T => rowwise::layer_norm::<T>(
            x.as_slice(), (gamma.as_slice(), beta.map(Tensor::as_slice)), eps, y.as_mut_slice(), z.as_mut_slice(), r.as_mut_slice(),
        ));
    }

    fn layer_norm_backward(&self, z: &Tensor, r: &Tensor, gamma: &Tensor, centred: bool, dy: &mut Tensor) {
        by_float!(z, T => rowwise::layer_norm_backward::<T>(
            z.as_slice(), r.as_slice(), gamma.as_slice(), centred, dy.as_mut_slice(),
        ));
    }

    fn scale_rows(&self, gamma: &Tensor, beta: Option<&Tensor>, x: &mut Tensor) {
        by_float!(x, T => rowwise::scale_rows::<T>(gamma.as_slice(), beta.map(Tensor::as_slice), x.as_mut_slice()));
    }

    fn embed(&self, ids: &Tensor, table: &Tensor, add: bool, y: &mut Tensor) {
        by_float!(table, T => rows::embed::<T>(ids.as_slice(), table.as_slice(), table.cols(), add, y.as_mut_slice()));
    }

    fn embed_backward(&self, ids: &Tensor, dy: &Tensor, dtable: &mut Tensor) {
        by_float!(dy, T => rows::embed_backward::<T>(ids.as_slice(), dy.as_slice(), dy.cols(), dtable.as_mut_slice()));
    }

    fn gather_rows(&self, x: &Tensor, index: &Tensor, scale: Option<&Tensor>, y: &mut Tensor) {
        by_float!(x, T => rows::gather::<T>(
            x.as_slice(), x.cols(), index.as_slice(), scale.map(Tensor::as_slice), y.as_mut_slice(),
        ));
    }

    fn scatter_rows(&self, x: &Tensor, index: &Tensor, y: &mut Tensor) {
        by_float!(x, T => rows::scatter::<T>(x.as_slice(), x.cols(), index.as_slice(), y.as_mut_slice()));
    }

    fn read_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) {
        let (d, c) = (x.cols(), y.cols());
        by_float!(x, T => columns::read::<T>(x.as_slice(), d, first, c, y.as_mut_slice()));
    }

    fn add_to_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) {
        let (c, d) = (x.cols(), y.cols());
        by_float!(x, T => columns::add::<T>(x.as_slice(), c, d, first, y.as_mut_slice()));
    }

    fn quantise(&self, key: Key, x: &Tensor, codes: &mut Tensor, scale: &mut Tensor) {
        let d = x.cols();
        by_float!(x, T => quant::quantise::<T>(key, d, x.as_slice(), codes.as_mut_slice(), scale.as_mut_slice()));
    }

    fn dequantise(&self, codes: &Tensor, scale: &Tensor, y: &mut Tensor) {
        let d = codes.cols();
        by_float!(scale, T => quant::dequantise::<T>(d, codes.as_slice(), scale.as_slice(), y.as_mut_slice()));
    }

    fn attention_scratch(&self, spec: &Attention, longest: usize, kv_longest: usize) -> usize {
        attention::scratch(self.threads, spec, longest, kv_longest)
    }

    fn attention(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        scratch: &mut Tensor,
        out: &mut Tensor,
        lse: &mut Tensor,
    ) {
        by_float!(out, T => attention::forward::<T>(
            spec, &attention::Input::new(spec, input), scratch.as_mut_slice(), out.as_mut_slice(), lse.as_mut_slice(),
        ));
    }

    fn attention_backward(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        lse: &Tensor,
        dout: &Tensor,
        scratch: &mut Tensor,
        AttentionGradients { q, kv, bias }: AttentionGradients<'_>,
    ) {
        by_float!(dout, T => {
            let gradients = attention::Gradients {
                dq: q.as_mut_slice(),
                dkv: kv.map(Tensor::as_mut_slice),
                dbias: bias.map(Tensor::as_mut_slice),
            };
            let input = attention::Input::<T>::new(spec, input);
            attention::backward(spec, &input, (lse.as_slice(), dout.as_slice()), scratch.as_mut_slice(), gradients);
        });
    }

    fn cross_entropy(&self, logits: &Tensor, labels: &Tensor, loss: &mut Tensor, dlogits: &mut Tensor) {
        let c = logits.cols();
        by_float!(logits, T => loss::cross_entropy::<T>(
            logits.as_slice(), c, labels.as_slice(), loss.as_mut_slice(), dlogits.as_mut_slice(),
        ));
    }

    fn mean_squared_error(&self, x: &Tensor, target: &Tensor, loss: &mut Tensor, dx: &mut Tensor) {
        by_float!(x, T => loss::mean_squared_error::<T>(
            x.as_slice(), target.as_slice(), loss.as_mut_slice(), dx.as_mut_slice(),
        ));
    }

    fn importance(&self, h: &Tensor, dz: Option<&Tensor>, uniform: f64, p: &mut Tensor) {
        by_float!(h, T => select::importance::<T>(h.as_slice(), dz.map(Tensor::as_slice), uniform, p.as_mut_slice()));
    }

    fn sample_rows(&self, estimator: Estimator, key: Key, p: &Tensor, index: &mut Tensor, scale: &mut Tensor) {
        by_float!(p, T => select::sample::<T>(estimator, key, p.as_slice(), index.as_mut_slice(), scale.as_mut_slice()));
    }

    fn sum_squares(&self, x: &Tensor) -> f64 {
        by_float!(x, T => optim::sum_squares::<T>(x.as_slice()))
    }

    fn adamw(&self, step: &AdamW, g: &Tensor, w: &mut Tensor, m: &mut Tensor, v: &mut Tensor) {
        by_float!(g, T => optim::adamw::<T>(step, g.as_slice(), w.as_mut_slice(), m.as_mut_slice(), v.as_mut_slice()));
    }
}
