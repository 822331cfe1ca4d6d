//! What an op holds of its input x (n, in) for a weight gradient `dW = dzᵀ·x`, by the policy of its site: see [`Keep`].

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Dropout, Tensor};

use crate::compress::Quantised;
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
    /// Set if rows are yet to be drawn, in the backward pass.
    late: Option<Draw>,
    /// Set if the norms of dZ at this site are to be remembered.
    norms: Option<(String, Arc<NormMemory>)>,
    /// Stands between what is kept whole and what is multiplied with dz.
    dropout: Option<Dropout>,
}

impl HeldInput {
    /// Nothing: the weight is frozen.
    pub(crate) fn nothing() -> Self {
        Self::whole(Kept::Nothing)
    }

    fn whole(kept: Kept) -> Self {
        Self { kept, late: None, norms: None, dropout: None }
    }

    /// Of x, at `site`. Where the op reads x through dropout, `dropped` is that and its result; x itself is what is kept whole,
    /// because others may keep it too.
    pub(crate) fn new(tape: &Tape<'_>, site: &str, x: &Var, dropped: Option<(Dropout, &Tensor)>) -> Self {
        let Mode::Training { key, policy, norms, .. } = tape.mode() else { return Self::nothing() };
        let read = dropped.map_or(&x.value, |(_, read)| read);
        let dropout = dropped.map(|(dropout, _)| dropout);
        let exact = || Self { dropout, ..Self::whole(Kept::Exact(x.value.clone())) };
        let source = || match &x.source {
            Some(source) => Self { dropout, ..Self::whole(Kept::Rebuild(source.clone())) },
            None => exact(),
        };
        let n = read.rows();
        match policy.keep(site) {
            Keep::Exact => exact(),
            Keep::Quantised => Self::whole(Kept::Quantised(Quantised::new(read, key.named(site).named("rounding")))),
            Keep::Nothing => source(),
            Keep::Rows(sampling) if sampling.rows_of(n) == n => exact(),
            Keep::Rows(sampling) => {
                let key = key.named(site).named("rows");
                match sampling.norms {
                    // true norms need no uniform share
                    NormSource::Current => Self { late: Some(how(sampling, n, 0.0, key)), ..source() },
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
        Self { norms, ..Self::whole(Kept::Rows { rows, sample }) }
    }

    /// What is held, for the ledger.
    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Matrices with `dW = first ᵀ·second`, or with that expectation: drawn rows of dz (n, out), weighted, and of x; or all rows.
    pub(crate) fn pair(&self, dz: &Tensor) -> Option<(Tensor, Tensor)> {
        if let Some((site, memory)) = &self.norms {
            memory.record(site, &row_norms(dz));
        }
        let read = |x: Tensor| match self.dropout {
            Some(dropout) => {
                let (device, mut x) = (x.device().clone(), x.into_owned());
                device.kernels().dropout(dropout, &mut x);
                x
            }
            None => x,
        };
        let late = |how: &Draw, x: &Tensor| {
            let sample = draw(how, &row_norms(x), Some(&row_norms(dz)));
            (weighted(dz, &sample), gather(x, &sample.index, None))
        };
        Some(match (&self.kept, &self.late) {
            (Kept::Nothing, _) => return None,
            (Kept::Rows { rows, sample }, _) => (weighted(dz, sample), rows.clone()),
            (Kept::Quantised(x), _) => (dz.clone(), x.whole()),
            (Kept::Exact(x), None) => (dz.clone(), read(x.clone())),
            (Kept::Rebuild(x), None) => (dz.clone(), read(x.whole())),
            (Kept::Exact(x), Some(how)) => late(how, &read(x.clone())),
            (Kept::Rebuild(x), Some(how)) if self.dropout.is_some() => late(how, &read(x.whole())),
            (Kept::Rebuild(x), Some(how)) => {
                let sample = draw(how, &x.row_norms(), Some(&row_norms(dz)));
                (weighted(dz, &sample), x.rows(&sample.index))
            }
        })
    }
}

fn how(sampling: Sampling, n: usize, uniform: f32, key: Key) -> Draw {
    Draw { estimator: sampling.estimator, rows: sampling.rows_of(n), uniform, key }
}

fn weighted(dz: &Tensor, sample: &RowSample) -> Tensor {
    gather(dz, &sample.index, Some(&sample.scale))
}
