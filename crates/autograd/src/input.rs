//! What an op holds of its input x (n, in) for a weight gradient `dW = dzᵀ·x`, by the policy of its site: see [`Keep`].

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Dropout, Format, Tensor};

use crate::compress::{GROUP, quantised};
use crate::dropout::{Dropped, replay};
use crate::kept::Kept;
use crate::norms::NormMemory;
use crate::policy::{Keep, NormSource, Sampling};
use crate::sample::{Draw, RowSample, draw, gather, row_norms};
use crate::tape::{Mode, Tape, Var};

/// Least uniform share of probabilities that rest on estimated norms.
const LEAST_UNIFORM: f32 = 0.01;

/// An input, held until the backward pass.
pub(crate) struct HeldInput {
    kept: Kept,
    /// Set if rows are yet to be drawn, in the backward pass: how, and the norms of x's rows, which are cheap while x is at hand.
    late: Option<(Draw, Kept)>,
    /// Set if the norms of dZ at this site are to be remembered.
    norms: Option<(String, Arc<NormMemory>)>,
    /// Stands between what is kept whole and what is multiplied with dz.
    dropout: Option<Dropout>,
}

impl HeldInput {
    /// Nothing: the weight is frozen.
    pub(crate) fn nothing() -> Self {
        Self::whole_of(Kept::Nothing)
    }

    fn whole_of(kept: Kept) -> Self {
        Self { kept, late: None, norms: None, dropout: None }
    }

    /// Of x, at `site`. Where the op reads x through dropout, `dropped` is that and its result; x itself is what is kept whole,
    /// because others may keep it too.
    pub(crate) fn new(tape: &Tape<'_>, site: &str, x: &Var, dropped: Option<(Dropout, &Tensor)>) -> Self {
        let Mode::Training { key, norms, .. } = tape.mode() else { return Self::nothing() };
        if !tape.records() {
            return Self::nothing();
        }
        let read = dropped.map_or(&x.value, |(_, read)| read);
        let dropout = dropped.map(|(dropout, _)| dropout);
        let exact = || Self { dropout, ..Self::whole_of(Kept::Exact(x.value.clone())) };
        let source = || match (&x.source, dropout) {
            (Some(source), None) => Self::whole_of(Kept::Rebuild(source.clone())),
            (Some(source), Some(dropout)) => {
                Self::whole_of(Kept::Rebuild(Arc::new(Dropped { source: source.clone(), dropout })))
            }
            (None, _) => exact(),
        };
        let n = read.rows();
        match tape.keep(site) {
            Keep::Exact | Keep::Recompute => exact(),
            Keep::Quantised(bits) => {
                let format = Format { code: bits.code(), group: GROUP };
                Self::whole_of(Kept::Quantised(quantised(read, format, tape.rounding_key(site))))
            }
            Keep::Nothing => source(),
            Keep::Rows(sampling) if sampling.rows_of(n) == n => exact(),
            Keep::Rows(sampling) => {
                let key = key.named(site).named("rows");
                match sampling.norms {
                    // true norms need no uniform share
                    NormSource::Current => {
                        let late = (how(sampling, n, 0.0, key), Kept::Exact(row_norms(read)));
                        Self { late: Some(late), ..source() }
                    }
                    _ => Self::drawn(site, read, sampling, key, norms.as_ref()),
                }
            }
        }
    }

    fn drawn(site: &str, x: &Tensor, sampling: Sampling, key: Key, norms: Option<&Arc<NormMemory>>) -> Self {
        let h = row_norms(x);
        let dz = norms.and_then(|memory| memory.estimate(site, sampling.norms, &h));
        let sample = draw(&how(sampling, x.rows(), sampling.uniform.max(LEAST_UNIFORM), key), &h, dz.as_ref());
        let rows = gather(x, &sample.index, None);
        let norms = norms.filter(|_| sampling.remembers()).map(|memory| (site.to_owned(), memory.clone()));
        Self { norms, ..Self::whole_of(Kept::Rows { rows, sample }) }
    }

    /// What is held, for the ledger.
    pub(crate) fn kept(&self) -> Vec<(&'static str, &Kept)> {
        let norms = self.late.iter().map(|(_, norms)| ("row norms", norms));
        [("input", &self.kept)].into_iter().chain(norms).collect()
    }

    /// Matrices with `dW = first ᵀ·second`, or with that expectation: drawn rows of dz (n, out), weighted, and of x; or all rows.
    pub(crate) fn pair(&self, dz: &Tensor) -> Option<(Tensor, Tensor)> {
        if let Some((site, memory)) = &self.norms {
            memory.record(site, &row_norms(dz));
        }
        let sample = match (&self.kept, &self.late) {
            (Kept::Nothing, _) => return None,
            (Kept::Rows { rows, sample }, _) => return Some((weighted(dz, sample), rows.clone())),
            (_, None) => return Some((dz.clone(), self.read(None))),
            (_, Some((how, norms))) => draw(how, norms.exact(), Some(&row_norms(dz))),
        };
        Some((weighted(dz, &sample), self.read(Some(&sample.index))))
    }

    /// All rows of x, or the rows `index`.
    fn read(&self, index: Option<&Tensor>) -> Tensor {
        let rows = match (&self.kept, index) {
            (Kept::Exact(x), None) => x.clone(),
            (Kept::Rebuild(x), None) => x.whole(),
            (Kept::Rebuild(x), Some(index)) => x.rows(index),
            (kept, index) => kept.read(index),
        };
        match self.dropout {
            Some(dropout) => replay(dropout, index, rows),
            None => rows,
        }
    }
}

fn how(sampling: Sampling, n: usize, uniform: f32, key: Key) -> Draw {
    Draw { estimator: sampling.estimator, rows: sampling.rows_of(n), uniform, key }
}

fn weighted(dz: &Tensor, sample: &RowSample) -> Tensor {
    gather(dz, &sample.index, Some(&sample.scale))
}
