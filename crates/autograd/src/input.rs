//! What an op holds of its input x (n, in) for a weight gradient `dW = dzᵀ·x`, by the policy of its site: see [`Keep`].

use std::sync::Arc;

use colrow_tensor::rng::Key;
use colrow_tensor::{Dropout, Tensor};

use crate::dropout::{Dropped, replay};
use crate::kept::Kept;
use crate::norm_memory::NormMemory;
use crate::policy::{Keep, NormSource, Sampling};
use crate::sample::{Draw, RowSample, draw_by, gather, probabilities, row_norms};
use crate::tape::{Mode, Tape, Var};
use crate::variance::Sketch;

/// Least uniform share of probabilities that rest on estimated norms.
const LEAST_UNIFORM: f32 = 0.01;

/// An input x (n, in), held until the backward pass as the policy of its site says: all of it, rows of it, or what rebuilds it. Any op whose
/// weight gradient is `dW = dzᵀ·x` may hold its input so; see [`Op`](crate::Op) for one.
pub struct HeldInput {
    kept: Kept,
    /// Set if rows are yet to be drawn, in the backward pass: how, and the norms of x's rows, which are cheap while x is at hand.
    late: Option<(Draw, Kept)>,
    /// Set if the norms of dZ at this site are to be remembered.
    norms: Option<(String, Arc<NormMemory>)>,
    /// Stands between what is kept whole and what is multiplied with dz.
    dropout: Option<Dropout>,
    /// Set on a step that measures what sampling costs here.
    sketch: Option<Sketch>,
}

impl HeldInput {
    /// Nothing: the weight is frozen.
    pub fn nothing() -> Self {
        Self::whole_of(Kept::Nothing)
    }

    fn whole_of(kept: Kept) -> Self {
        Self { kept, late: None, norms: None, dropout: None, sketch: None }
    }

    /// Of x, at `site`. Where the op reads x through dropout, `dropped` is that and its result; x itself is what is kept whole,
    /// because others may keep it too.
    pub fn new(tape: &Tape<'_>, site: &str, x: &Var, dropped: Option<(Dropout, &Tensor)>) -> Self {
        let Mode::Training { key, norms, variances, .. } = tape.mode() else { return Self::nothing() };
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
        let variances = variances.as_ref().filter(|v| v.watches(site));
        match tape.keep(site) {
            Keep::Exact | Keep::Recompute | Keep::Chain => exact(),
            Keep::Quantised(bits) => Self::whole_of(Kept::quantised(read, bits.code(), tape.rounding_key(site))),
            Keep::Nothing => source(),
            // all rows, each with weight 1
            Keep::Rows(sampling) if sampling.rows_of(n) == n && variances.is_none() => match sampling.norms {
                NormSource::Current => source(),
                _ => exact(),
            },
            Keep::Rows(sampling) => {
                let key = key.named(site).named("rows");
                let sketch = variances.and_then(|v| v.sketch(site, sampling, read));
                match sampling.norms {
                    // true norms need no uniform share
                    NormSource::Current => {
                        let late = (how(sampling, n, 0.0, key), Kept::Exact(row_norms(read)));
                        Self { late: Some(late), sketch, ..source() }
                    }
                    _ => Self::drawn(site, read, sampling, key, norms.as_ref(), sketch),
                }
            }
        }
    }

    fn drawn(
        site: &str,
        x: &Tensor,
        sampling: Sampling,
        key: Key,
        norms: Option<&Arc<NormMemory>>,
        mut sketch: Option<Sketch>,
    ) -> Self {
        let how = how(sampling, x.rows(), sampling.uniform.max(LEAST_UNIFORM), key);
        let h = row_norms(x);
        let dz = norms.and_then(|memory| memory.estimate(site, sampling.norms, &h));
        let p = probabilities(&how, &h, dz.as_ref());
        drop(dz);
        let sample = draw_by(&how, &p);
        match &mut sketch {
            Some(sketch) => sketch.drawn_by(h, p),
            None => drop((h, p)),
        }
        let rows = gather(x, &sample.index, None);
        let norms = norms.filter(|_| sampling.remembers()).map(|memory| (site.to_owned(), memory.clone()));
        Self { norms, sketch, ..Self::whole_of(Kept::Rows { rows, sample }) }
    }

    /// What is held, for the ledger.
    pub fn kept(&self) -> Vec<(&'static str, &Kept)> {
        let norms = self.late.iter().map(|(_, norms)| ("row norms", norms));
        let sketch = self.sketch.iter().flat_map(Sketch::kept);
        [("input", &self.kept)].into_iter().chain(norms).chain(sketch).collect()
    }

    /// Matrices with `dW = firstᵀ·second`, or with that expectation: all rows of dz (n, out) and of x, or the drawn ones, those of dz weighted. `None`
    /// of [`HeldInput::nothing`]. Remembers the norms of dz where the policy draws by them.
    pub fn operands(&self, dz: &Tensor) -> Option<(Tensor, Tensor)> {
        let sample = match (&self.kept, &self.late) {
            (Kept::Nothing, _) => return None,
            (Kept::Rows { rows, sample }, _) => {
                self.look_back(dz);
                return Some((weighted(dz, sample), rows.clone()));
            }
            (_, None) => return Some((dz.clone(), self.read(None))),
            (_, Some((how, h))) => {
                let (h, z) = (h.exact(), row_norms(dz));
                let p = probabilities(how, h, Some(&z));
                if let Some(sketch) = &self.sketch {
                    sketch.measure(dz, &z, h, &p);
                }
                draw_by(how, &p)
            }
        };
        Some((weighted(dz, &sample), self.read(Some(&sample.index))))
    }

    /// Tells of the norms of dz where rows were drawn without knowing them.
    fn look_back(&self, dz: &Tensor) {
        if self.norms.is_none() && self.sketch.is_none() {
            return;
        }
        let z = row_norms(dz);
        if let Some((site, memory)) = &self.norms {
            memory.record(site, &z);
        }
        if let Some(sketch) = &self.sketch {
            sketch.measure_drawn(dz, &z);
        }
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
