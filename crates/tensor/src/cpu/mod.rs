//! Kernels on the processor: generic over f32 and f64, multi-threaded with rayon, vectorised for the machine found at run
//! time. Every result is the same for any number of threads: reductions run over fixed chunks, in order.

mod activation;
pub(crate) mod attention;
mod coded;
pub(crate) mod codes;
mod columns;
pub(crate) mod instructions;
mod loss;
pub(crate) mod matmul;
pub(crate) mod nf4;
mod norm;
mod optim;
mod optim8;
pub(crate) mod product;
mod rotate;
mod rows;
mod rowwise;
mod select;
mod view;

use crate::backend::{Backend, Target};
use crate::codes::{Coded, Rows, Stored, StoredMut};
use crate::error::Result;
use crate::kernels::{
    Activation, AdamW, Attention, AttentionGradients, AttentionInput, Dropout, Estimator, Kernels, Norm, Rotation,
};
use crate::memory::HostMemory;
use crate::pool::{Buffer, Pool};
use crate::profile::Profile;
use crate::rng::Key;
use crate::tensor::Tensor;
use crate::{DType, Element, Float, Precision};

/// Compiles functions once for each vector width; a call takes the widest that is used.
macro_rules! vectorised {
    ($(
        $(#[$attribute:meta])*
        $visibility:vis fn $name:ident $(<$T:ident: $Bound:ident>)? ($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block
    )*) => {$(
        $(#[$attribute])*
        #[allow(clippy::too_many_arguments, reason = "as the function that is compiled")]
        $visibility fn $name $(<$T: $Bound>)? ($($argument: $type),*) $(-> $result)? {
            #[inline(always)]
            fn portable $(<$T: $Bound>)? ($($argument: $type),*) $(-> $result)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma")]
                fn avx512 $(<$T: $Bound>)? ($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$T: $Bound>)? ($($argument: $type),*) $(-> $result)? {
                    portable($($argument),*)
                }
                match $crate::cpu::instructions::used() {
                    // SAFETY: this machine has what is used.
                    $crate::cpu::instructions::Instructions::Avx512 => return unsafe { avx512($($argument),*) },
                    // SAFETY: as above.
                    $crate::cpu::instructions::Instructions::Avx2 => return unsafe { avx2($($argument),*) },
                    $crate::cpu::instructions::Instructions::Portable => {}
                }
            }
            portable($($argument),*)
        }
    )*};
}
use codes::Reader;
use vectorised;

/// Runs `$body` with `$T` the float type of `$tensor`, on the profile under `$name` with `$flops` operations.
macro_rules! by_float {
    ($self:ident, $name:literal, $tensor:expr, $T:ident => $body:expr) => {
        by_float!($self, $name, 0, $tensor, $T => $body)
    };
    ($self:ident, $name:literal, $flops:expr, $tensor:expr, $T:ident => $body:expr) => {{
        let (dtype, flops) = ($tensor.dtype(), $flops);
        $self.profile.time($name, flops, || match dtype {
            DType::F32 => {
                type $T = f32;
                $body
            }
            DType::F64 => {
                type $T = f64;
                $body
            }
            other => panic!("this kernel is for float tensors, not {other:?}"),
        })
    }};
}

/// The processor and its memory.
#[derive(Debug)]
pub struct Host {
    target: HostTarget,
    precision: Precision,
    profile: Profile,
    pool: Pool,
}

impl Host {
    /// With room for kernels that run on `threads` threads, and products of this precision.
    pub fn new(threads: usize, precision: Precision) -> Self {
        let pool = Pool::new(Box::new(HostMemory));
        Self { target: HostTarget { threads }, precision, profile: Profile::default(), pool }
    }
}

impl Default for Host {
    /// With the threads of the current rayon pool and products in f32.
    fn default() -> Self {
        Self::new(rayon::current_num_threads(), Precision::F32)
    }
}

impl Backend for Host {
    fn allocate(&self, bytes: usize) -> Option<Buffer> {
        Some(self.pool.take(bytes).expect("the host's memory ends the program where it ends"))
    }

    fn free(&self, buffer: Buffer) {
        self.pool.give(buffer);
    }

    fn upload(&self, from: &[u8], to: &Buffer, offset: usize) {
        assert!(offset + from.len() <= to.len(), "what is written lies in the buffer");
        // SAFETY: the range lies in the buffer, which a tensor that is written to holds alone.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr().add(offset), from.len()) };
    }

    fn download(&self, from: &Buffer, offset: usize, to: &mut [u8]) {
        assert!(offset + to.len() <= from.len(), "what is read lies in the buffer");
        // SAFETY: the range lies in the buffer, which is initialised; writers need the only handle to it.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr().add(offset), to.as_mut_ptr(), to.len()) };
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn target(&self) -> &dyn Target {
        &self.target
    }

    fn profile(&self) -> &Profile {
        &self.profile
    }
}

/// A processor with so many threads, in plans.
#[derive(Clone, Copy, Debug)]
pub struct HostTarget {
    /// Threads of a kernel.
    pub threads: usize,
}

impl Target for HostTarget {
    fn attention_scratch(&self, spec: &Attention, h: usize, longest: usize, kv_longest: usize) -> usize {
        attention::scratch(self.threads, spec, h, longest, kv_longest)
    }

    fn packing(&self, m: usize, n: usize, k: usize, dtype: DType, coded: bool) -> usize {
        matmul::packing(m, n, k, dtype.size(), coded)
    }
}

/// An element of a float tensor.
fn number(x: &Tensor, i: usize) -> f64 {
    match x.dtype() {
        DType::F64 => x.as_slice::<f64>()[i],
        _ => f64::from(x.as_slice::<f32>()[i]),
    }
}

fn matmul_flops(a: &Tensor, c: &Tensor) -> u64 {
    // a has m·k elements and c has m·n, whichever of them are transposed
    2 * (a.len() as u64 * c.cols() as u64)
}

fn norm_parameters<'a, T: Float>(norm: &Norm<'a>) -> norm::Parameters<'a, T> {
    norm::Parameters { gamma: norm.gamma.as_slice(), beta: norm.beta.map(Tensor::as_slice), eps: norm.eps }
}

impl Kernels for Host {
    fn matmul(&self, a: &Tensor, ta: bool, b: &Tensor, tb: bool, beta: f64, c: &mut Tensor) {
        let (operands, flops) = ([(a, ta), (b, tb)], matmul_flops(a, c));
        by_float!(self, "matmul", flops, c, T => matmul::matmul::<T>(self.precision, operands, beta, c));
    }

    fn linear(&self, x: &Tensor, weight: &Stored<'_>, bias: Option<&Tensor>, y: &mut Tensor) {
        let flops = matmul_flops(x, y);
        by_float!(self, "matmul", flops, y, T => matmul::linear::<T>(self.precision, x, weight, bias, y));
    }

    fn linear_backward(&self, dy: &Tensor, weight: &Stored<'_>, dx: &mut Tensor) {
        let flops = matmul_flops(dy, dx);
        by_float!(self, "matmul", flops, dx, T => matmul::linear_backward::<T>(self.precision, dy, weight, dx));
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

    fn scale(&self, factor: f64, by: Option<&Tensor>, x: &mut Tensor) {
        let factor = factor * by.map_or(1.0, |by| number(by, 0));
        by_float!(self, "scale", x, T => rowwise::scale::<T>(T::of(factor), x.as_mut_slice()));
    }

    fn add(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(self, "add", x, T => rowwise::add::<T>(x.as_slice(), y.as_mut_slice()));
    }

    fn add_at(&self, x: &Tensor, first: usize, y: &mut Tensor) {
        let of = first..first + x.len();
        by_float!(self, "add", x, T => rowwise::add::<T>(x.as_slice(), &mut y.as_mut_slice()[of]));
    }

    fn add_column_sum(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(self, "add_column_sum", x, T => rowwise::add_column_sum::<T>(x.as_slice(), y.as_mut_slice()));
    }

    fn row_norms(&self, x: &Tensor, y: &mut Tensor) {
        by_float!(self, "row_norms", x, T => rowwise::row_norms::<T>(x.as_slice(), x.cols(), y.as_mut_slice()));
    }

    fn activate(&self, form: Activation, x: Option<&Rows<'_>>, y: &mut Tensor) {
        by_float!(self, "activation", y, T => activation::activate::<T>(form, x.map(Reader::new), y.as_mut_slice()));
    }

    fn activate_backward(&self, form: Activation, x: &Stored<'_>, dy: &mut Tensor) {
        by_float!(self, "activation_backward", x, T => activation::activate_backward::<T>(form, Reader::new(&(*x).into()), dy.as_mut_slice()));
    }

    fn gated(&self, form: Activation, x: &Rows<'_>, y: &mut Tensor) {
        by_float!(self, "gated", y, T => activation::gated::<T>(form, Reader::new(x), y.as_mut_slice()));
    }

    fn gated_backward(&self, form: Activation, x: &Stored<'_>, dy: &Tensor, dx: &mut Tensor) {
        by_float!(self, "gated_backward", dy, T => activation::gated_backward::<T>(
            form, Reader::new(&(*x).into()), dy.as_slice(), dx.as_mut_slice(),
        ));
    }

    fn relu(&self, dropout: Option<Dropout>, x: &mut Tensor, bits: Option<&mut Tensor>) {
        let d = x.cols();
        by_float!(self, "relu", x, T => activation::relu::<T>(dropout, d, x.as_mut_slice(), bits.map(Tensor::as_mut_slice)));
    }

    fn relu_backward(&self, dropout: Option<Dropout>, above: &Tensor, dy: &mut Tensor) {
        let d = dy.cols();
        by_float!(self, "relu_backward", dy, T => activation::relu_backward::<T>(dropout, d, above.as_slice(), dy.as_mut_slice()));
    }

    fn tanh(&self, x: &mut Tensor) {
        by_float!(self, "tanh", x, T => activation::tanh::<T>(x.as_mut_slice()));
    }

    fn tanh_backward(&self, y: &Tensor, dy: &mut Tensor) {
        by_float!(self, "tanh_backward", y, T => activation::tanh_backward::<T>(y.as_slice(), dy.as_mut_slice()));
    }

    fn dropout(&self, dropout: Dropout, index: Option<&Tensor>, x: &mut Tensor) {
        let d = x.cols();
        by_float!(self, "dropout", x, T => rowwise::dropout::<T>(dropout, index.map(Tensor::as_slice), d, x.as_mut_slice()));
    }

    fn layer_norm(&self, x: &Tensor, norm: &Norm<'_>, y: &mut Tensor, kept: Option<(StoredMut<'_>, &mut Tensor)>) {
        by_float!(self, "layer_norm", x, T => {
            let (z, r) = kept.unzip();
            let kept = match z {
                None => (norm::Kept::Nothing, None),
                Some(StoredMut::Exact(z)) => (norm::Kept::Exact(z.as_mut_slice()), None),
                Some(StoredMut::Coded(key, z)) => (norm::Kept::Coded(codes::CodesMut::new(z)), key),
            };
            norm::forward::<T>(norm_parameters(norm), x.as_slice(), y.as_mut_slice(), kept, r.map(Tensor::as_mut_slice));
        });
    }

    fn layer_norm_backward(
        &self,
        z: &Stored<'_>,
        r: &Tensor,
        norm: &Norm<'_>,
        dy: &mut Tensor,
        dx: bool,
        sums: [Option<&mut Tensor>; 2],
    ) {
        by_float!(self, "layer_norm_backward", z, T => norm::backward::<T>(
            Reader::new(&(*z).into()),
            r.as_slice(),
            norm_parameters(norm),
            dy.as_mut_slice(),
            dx,
            sums.map(|sum| sum.map(Tensor::as_mut_slice)),
        ));
    }

    fn scale_rows(&self, norm: &Norm<'_>, z: &Rows<'_>, y: &mut Tensor) {
        by_float!(self, "scale_rows", y, T => norm::scale_rows::<T>(norm_parameters(norm), Reader::new(z), y.as_mut_slice()));
    }

    fn embed(&self, ids: &Tensor, table: &Stored<'_>, add: bool, y: &mut Tensor) {
        by_float!(self, "embed", y, T => rows::embed::<T>(ids.as_slice(), &Reader::new(&(*table).into()), add, y.as_mut_slice()));
    }

    fn embed_backward(&self, ids: &Tensor, dy: &Tensor, dtable: &mut Tensor) {
        by_float!(self, "embed_backward", dy, T => rows::embed_backward::<T>(ids.as_slice(), dy.as_slice(), dy.cols(), dtable.as_mut_slice()));
    }

    fn read_rows(&self, x: &Rows<'_>, scale: Option<&Tensor>, y: &mut Tensor) {
        by_float!(self, "read_rows", y, T => codes::read_rows::<T>(Reader::new(x), scale.map(Tensor::as_slice), y.as_mut_slice()));
    }

    fn scatter_rows(&self, x: &Tensor, index: &Tensor, y: &mut Tensor) {
        fn scatter<T: Element>(x: &Tensor, index: &Tensor, y: &mut Tensor) {
            rows::scatter::<T>(x.as_slice(), x.cols(), index.as_slice(), y.as_mut_slice());
        }
        match x.dtype() {
            DType::F32 => scatter::<f32>(x, index, y),
            DType::F64 => scatter::<f64>(x, index, y),
            DType::U32 => scatter::<u32>(x, index, y),
            DType::U8 => scatter::<u8>(x, index, y),
        }
    }

    fn read_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) {
        let (d, c) = (x.cols(), y.cols());
        by_float!(self, "read_columns", x, T => columns::read::<T>(x.as_slice(), d, first, c, y.as_mut_slice()));
    }

    fn write_columns(&self, x: &Tensor, first: usize, y: &mut Tensor) {
        let (c, d) = (x.cols(), y.cols());
        by_float!(self, "write_columns", x, T => columns::write::<T>(x.as_slice(), c, d, first, y.as_mut_slice()));
    }

    fn quantise(&self, key: Option<Key>, x: &Tensor, coded: &mut Coded) {
        let d = x.cols();
        by_float!(self, "quantise", x, T => codes::quantise_whole::<T>(key, d, x.as_slice(), coded));
    }

    fn attention(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        index: Option<&Tensor>,
        scratch: &mut Tensor,
        out: &mut Tensor,
        lse: Option<&mut Tensor>,
    ) {
        by_float!(self, "attention", out, T => attention::forward::<T>(
            spec,
            &attention::Input::new(self.precision, spec, input),
            index.map(Tensor::as_slice),
            scratch.as_mut_slice(),
            out.as_mut_slice(),
            lse.map(Tensor::as_mut_slice),
        ));
    }

    fn attention_backward(
        &self,
        spec: &Attention,
        input: &AttentionInput<'_>,
        lse: Option<&Tensor>,
        dout: &Tensor,
        scratch: &mut Tensor,
        AttentionGradients { q, kv, bias }: AttentionGradients<'_>,
    ) {
        by_float!(self, "attention_backward", dout, T => {
            let gradients = attention::Gradients {
                dq: q.as_mut_slice(),
                dkv: kv.map(Tensor::as_mut_slice),
                dbias: bias.map(Tensor::as_mut_slice),
            };
            let input = attention::Input::<T>::new(self.precision, spec, input);
            let given = (lse.map(Tensor::as_slice), dout.as_slice());
            attention::backward(spec, &input, given, scratch.as_mut_slice(), gradients);
        });
    }

    fn rotate(&self, rotation: &Rotation<'_>, x: &mut Tensor) {
        let columns = x.cols();
        by_float!(self, "rotate", x, T => rotate::rotate::<T>(rotation, columns, x.as_mut_slice()));
    }

    fn cross_entropy(&self, logits: &mut Tensor, labels: &Tensor, loss: &mut Tensor, gradient: bool) {
        let c = logits.cols();
        by_float!(self, "cross_entropy", logits, T => loss::cross_entropy::<T>(
            logits.as_mut_slice(), c, labels.as_slice(), loss.as_mut_slice(), gradient,
        ));
    }

    fn mean_squared_error(&self, x: &Tensor, target: &Tensor, loss: &mut Tensor, dx: &mut Tensor) {
        by_float!(self, "mean_squared_error", x, T => loss::mean_squared_error::<T>(
            x.as_slice(), target.as_slice(), loss.as_mut_slice(), dx.as_mut_slice(),
        ));
    }

    fn importance(&self, h: &Tensor, dz: Option<&Tensor>, uniform: f64, p: &mut Tensor) {
        by_float!(self, "importance", h, T => select::importance::<T>(h.as_slice(), dz.map(Tensor::as_slice), uniform, p.as_mut_slice()));
    }

    fn sample_rows(&self, estimator: Estimator, key: Key, p: &Tensor, index: &mut Tensor, scale: &mut Tensor) {
        by_float!(self, "sample_rows", p, T => select::sample::<T>(estimator, key, p.as_slice(), index.as_mut_slice(), scale.as_mut_slice()));
    }

    fn largest(&self, x: &Tensor, index: &mut Tensor) {
        by_float!(self, "largest", x, T => select::largest::<T>(x.as_slice(), x.cols(), index.as_mut_slice()));
    }

    fn accumulate(&self, factor: f64, x: &Tensor, slot: usize, sums: &mut Tensor) {
        let sum = number(sums, slot) + factor * number(x, 0);
        match sums.dtype() {
            DType::F64 => sums.as_mut_slice::<f64>()[slot] = sum,
            _ => sums.as_mut_slice::<f32>()[slot] = sum as f32,
        }
    }

    fn sum_squares(&self, x: &Tensor, slot: usize, sums: &mut Tensor) {
        let sum = by_float!(self, "sum_squares", x, T => optim::sum_squares::<T>(x.as_slice()));
        sums.as_mut_slice::<f64>()[slot] += sum;
    }

    fn block_squares(&self, x: &Tensor, sums: &mut Tensor) {
        let blocks = by_float!(self, "sum_squares", x, T => optim::block_squares::<T>(x.as_slice()));
        sums.as_mut_slice::<f64>().copy_from_slice(&blocks);
    }

    fn clip(&self, sums: &Tensor, most: f64, factor: &mut Tensor) {
        factor.as_mut_slice::<f64>()[0] = optim::clip(sums.as_slice(), most);
    }

    fn adamw(&self, step: &AdamW, factor: &Tensor, g: &Tensor, w: StoredMut<'_>, m: &mut Tensor, v: &mut Tensor) {
        let factor = number(factor, 0);
        if factor.is_nan() {
            return;
        }
        by_float!(self, "adamw", g, T => {
            optim::adamw::<T>(step, factor, g.as_slice(), optim::Weights::new(w), m.as_mut_slice(), v.as_mut_slice());
        });
    }

    fn adamw_8bit(
        &self,
        step: &AdamW,
        factor: &Tensor,
        g: &Tensor,
        w: StoredMut<'_>,
        m: [&mut Tensor; 2],
        v: [&mut Tensor; 2],
    ) {
        fn of([codes, scale]: [&mut Tensor; 2]) -> optim8::Moment<'_> {
            optim8::Moment { codes: codes.as_mut_slice(), scale: scale.as_mut_slice() }
        }
        let factor = number(factor, 0);
        if factor.is_nan() {
            return;
        }
        by_float!(self, "adamw_8bit", g, T => optim8::adamw::<T>(step, factor, g.as_slice(), optim::Weights::new(w), of(m), of(v)));
    }
}
