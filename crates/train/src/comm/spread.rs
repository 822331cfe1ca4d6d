//! A step's gradients and weights between processes: each adds up the gradients of its part, in the order of the shards, updates those weights, and
//! hands them out.
//!
//! The bytes that one process sends in a step of as many shards as processes are those of the usual ring: (W − 1)/W of the gradient to the
//! others, and as much of the weights back.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use colrow_autograd::Params;
use colrow_tensor::{Class, DType, Device, Result, Tensor, UPDATE_BLOCK, Weight};

use super::cut::{Cut, Span};
use super::together::Together;

/// Elements that travel at once, from all processes to one.
const AT_ONCE: usize = 4 << 20;

/// The processes of a run, and who has which part of the weights.
#[derive(Debug)]
pub struct Spread {
    together: Together,
    cut: Cut,
    device: Device,
    dtype: DType,
    /// Elements of a process that travel at once.
    piece: usize,
    traffic: Mutex<Traffic>,
}

/// What one process sent to the others in a step, and how long it waited for them and the network.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Bytes of gradients.
    pub gradients: u64,
    /// Bytes of weights.
    pub weights: u64,
    /// Seconds, those for the slowest of a round among them.
    pub waited: f64,
}

impl Spread {
    /// The trained ones among `params` over these processes.
    pub fn new(together: Together, params: &Params) -> Self {
        let (cut, piece) = (Cut::of(params, together.size()), AT_ONCE.div_ceil(together.size()));
        let (device, dtype) = (params.device().clone(), params.dtype());
        Self { together, cut, device, dtype, piece, traffic: Mutex::default() }
    }

    /// The traffic since this was asked last.
    pub fn traffic(&self) -> Traffic {
        std::mem::take(&mut *self.traffic.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is done with the others, whose time counts as waited.
    pub fn waiting<T>(&self, with: impl FnOnce(&Together) -> T) -> T {
        let clock = Instant::now();
        let done = with(&self.together);
        self.count(|traffic| traffic.waited += clock.elapsed().as_secs_f64());
        done
    }

    fn count(&self, what: impl FnOnce(&mut Traffic)) {
        what(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The processes.
    pub fn together(&self) -> &Together {
        &self.together
    }

    /// The elements of a parameter that this process has.
    pub fn part(&self, param: usize) -> Range<usize> {
        self.cut.part(self.together.rank(), param)
    }

    fn pieces(&self) -> usize {
        self.cut.lengths().into_iter().max().unwrap_or(0).div_ceil(self.piece)
    }

    /// Piece `number` of a process's elements, of the parameters that are `present`.
    fn piece(&self, rank: usize, number: usize, present: &[bool]) -> Vec<Span> {
        let (first, end) = (number * self.piece, (number + 1) * self.piece);
        let (mut done, mut piece) = (0, Vec::new());
        for span in self.cut.spans(rank) {
            let begin = done;
            done += span.elements.len();
            let within = begin.max(first)..done.min(end);
            if within.start < within.end && present[span.param] {
                let at = |place: usize| span.elements.start + place - begin;
                piece.push(Span { param: span.param, elements: at(within.start)..at(within.end) });
            }
        }
        piece
    }

    /// Adds the gradients of a round of shards, of which each process has one at most, to the sums of this process's part. `own` is of this process's
    /// shard; `present` says by shard which parameters have a gradient.
    ///
    /// # Errors
    /// Processes that are gone or do not answer.
    pub fn add_up(&self, own: &[Option<Tensor>], present: &[Vec<bool>], sums: &mut [Option<Tensor>]) -> Result<()> {
        let (rank, size) = (self.together.rank(), self.together.size());
        let first: Vec<Option<usize>> = (0..sums.len())
            .map(|param| present.iter().position(|present| present[param]).filter(|_| sums[param].is_none()))
            .collect();
        for span in self.cut.spans(rank) {
            if first[span.param].is_some() {
                let length = span.elements.len();
                sums[span.param] = Some(self.device.empty(Class::Gradients, self.dtype, &[length]));
            }
        }
        let none = vec![false; sums.len()];
        let of_shard = |rank: usize| present.get(rank).unwrap_or(&none);
        for number in 0..self.pieces() {
            let send: Vec<_> = (0..size).map(|to| self.piece(to, number, of_shard(rank))).collect();
            let received: Vec<_> = (0..size).map(|from| self.piece(rank, number, of_shard(from))).collect();
            let bytes =
                |spans: &Vec<Span>| spans.iter().map(|span| span.elements.len()).sum::<usize>() * self.dtype.size();
            let (send_lengths, lengths): (Vec<_>, Vec<_>) =
                (send.iter().map(bytes).collect(), received.iter().map(bytes).collect());
            let mut out = self.device.host_bytes(Class::Workspace, send_lengths.iter().sum());
            let mut rest = &mut out[..];
            for span in send.iter().flatten() {
                let Some(gradient) = &own[span.param] else { continue };
                gradient.read_bytes(span.elements.start, next(&mut rest, span.elements.len() * self.dtype.size()));
            }
            let mut come = self.device.host_bytes(Class::Workspace, lengths.iter().sum());
            self.waiting(|all| all.collective().exchange(&out, &send_lengths, &mut come, &lengths))?;
            let sent = send_lengths.iter().sum::<usize>() - send_lengths[rank];
            self.count(|traffic| traffic.gradients += sent as u64);
            drop(out);
            let mut rest = &come[..];
            for (shard, span) in
                received.iter().enumerate().flat_map(|(i, spans)| spans.iter().map(move |span| (i, span)))
            {
                let Some(sum) = &mut sums[span.param] else { continue };
                let length = span.elements.len() * self.dtype.size();
                let (bytes, others) = rest.split_at(length.min(rest.len()));
                rest = others;
                let at = span.elements.start - self.part(span.param).start;
                if first[span.param] == Some(shard) {
                    sum.write_bytes(at, bytes);
                } else {
                    let mut part = self.device.empty(Class::Workspace, self.dtype, &[span.elements.len()]);
                    part.write_bytes(0, bytes);
                    self.device.kernels().add_at(&part, at, sum);
                }
            }
        }
        Ok(())
    }

    /// Σg² by parameter into `sums` from element 1 on, added up in the order in which one process would: block by block.
    ///
    /// # Errors
    /// As [`Spread::add_up`].
    pub fn squares(&self, gradients: &[Option<Tensor>], sums: &mut Tensor) -> Result<()> {
        let (mut params, mut squares) = (Vec::new(), Vec::new());
        for (param, gradient) in gradients.iter().enumerate() {
            let Some(gradient) = gradient else { continue };
            let blocks = gradient.len().div_ceil(UPDATE_BLOCK);
            let mut of = self.device.empty(Class::Workspace, DType::F64, &[blocks]);
            self.device.kernels().block_squares(gradient, &mut of);
            params.push(param as u64);
            squares.push(of);
        }
        let squares = self.device.read(&squares.iter().collect::<Vec<_>>());
        // of each block its parameter and its sum
        let words = |(param, squares): (u64, Vec<f64>)| squares.into_iter().flat_map(move |x| [param, x.to_bits()]);
        let own: Vec<u8> = params.into_iter().zip(squares).flat_map(words).flat_map(u64::to_le_bytes).collect();
        let mut totals = vec![0.0; gradients.len()];
        for blocks in self.together.all(&own)? {
            let (words, _) = blocks.as_chunks::<8>();
            for block in words.chunks_exact(2) {
                let [param, square] = [block[0], block[1]].map(u64::from_le_bytes);
                totals[param as usize] += f64::from_bits(square);
            }
        }
        sums.write_range(1, &totals);
        Ok(())
    }

    /// Hands this process's part of the weights that are `present` to all others, and takes theirs.
    ///
    /// # Errors
    /// As [`Spread::add_up`].
    pub fn hand_out(&self, params: &mut Params, present: &[bool]) -> Result<()> {
        let (rank, size) = (self.together.rank(), self.together.size());
        let unit: Vec<usize> = params.iter().map(|(_, p)| bytes_of_one(&p.value)).collect();
        for number in 0..self.pieces() {
            let spans: Vec<_> = (0..size).map(|rank| self.piece(rank, number, present)).collect();
            let bytes = |span: &Span| span.elements.len() * unit[span.param];
            let lengths: Vec<usize> = spans.iter().map(|spans| spans.iter().map(bytes).sum()).collect();
            let mut own = self.device.host_bytes(Class::Workspace, lengths[rank]);
            let mut rest = &mut own[..];
            let weights: Vec<&Weight> = params.iter().map(|(_, p)| &p.value).collect();
            for span in &spans[rank] {
                let (numbers, each) = raw(weights[span.param]);
                numbers.read_bytes(span.elements.start * each, next(&mut rest, bytes(span)));
            }
            let mut all = self.device.host_bytes(Class::Workspace, lengths.iter().sum());
            self.waiting(|others| others.collective().gather(&own, &mut all, &lengths))?;
            self.count(|traffic| traffic.weights += (lengths[rank] * (size - 1)) as u64);
            drop(own);
            let mut rest = &all[..];
            let mut weights: Vec<&mut Weight> = params.iter_mut().map(|(_, p)| &mut p.value).collect();
            for (from, span) in spans.iter().enumerate().flat_map(|(i, spans)| spans.iter().map(move |span| (i, span)))
            {
                let (bytes, others) = rest.split_at(bytes(span).min(rest.len()));
                rest = others;
                if from != rank {
                    let (numbers, each) = raw_mut(weights[span.param]);
                    numbers.write_bytes(span.elements.start * each, bytes);
                }
            }
        }
        Ok(())
    }
}

/// Takes `length` bytes off the front; all that there are on the shape-only device, which has none.
fn next<'a>(rest: &mut &'a mut [u8], length: usize) -> &'a mut [u8] {
    let all = std::mem::take(rest);
    let length = length.min(all.len());
    let (part, others) = all.split_at_mut(length);
    *rest = others;
    part
}

/// The tensor that a weight's numbers or codes stand in, and how many of its elements one of them takes.
fn raw(weight: &Weight) -> (&Tensor, usize) {
    match weight {
        Weight::Dense(numbers) => (numbers, 1),
        Weight::Coded(matrix) => (&matrix.codes, matrix.format.bytes(matrix.cols) / matrix.cols.max(1)),
    }
}

fn raw_mut(weight: &mut Weight) -> (&mut Tensor, usize) {
    match weight {
        Weight::Dense(numbers) => (numbers, 1),
        Weight::Coded(matrix) => {
            let each = matrix.format.bytes(matrix.cols) / matrix.cols.max(1);
            (&mut matrix.codes, each)
        }
    }
}

fn bytes_of_one(weight: &Weight) -> usize {
    let (numbers, each) = raw(weight);
    each * numbers.dtype().size()
}
