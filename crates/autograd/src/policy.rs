//! What ops keep for the backward pass, by site.

use colrow_tensor::{Error, Estimator, Result};
use globset::{Glob, GlobMatcher};

use crate::compress::Bits;

/// What an op or a block keeps: a linear of its input to compute `dW`, a norm of ẑ, an activation of its input (a ReLU of its output), attention of q, k
/// and v.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Keep {
    /// All of it.
    Exact,
    /// A sample of its rows: linears only.
    Rows(Sampling),
    /// All of it in fewer bits. Linears and norms round stochastically, so that `dW` stays unbiased; activations and attention, which are not
    /// linear in it, to the nearest.
    Quantised(Bits),
    /// Blocks only: the block's input in int8, from which the block runs again in the backward pass; what its ops keep lives only then.
    Recompute,
    /// Nothing of its own: it is rebuilt from what the op before it keeps; linears and attention only. Where nothing can be rebuilt, the same as
    /// `Exact`.
    Nothing,
}

/// How rows are sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Who is drawn, with what weight.
    pub estimator: Estimator,
    /// Share of the rows that is kept, in (0, 1]; 1 keeps all, with weight 1.
    pub ratio: f32,
    /// Where the norms of dZ come from.
    pub norms: NormSource,
    /// Share λ of uniform probability that is mixed in when norms are estimates; at least 0.01 is used, because a remembered
    /// norm of 0 may be out of date, and a row that is never drawn would bias the gradient.
    pub uniform: f32,
}

impl Sampling {
    /// Whether rows are drawn by norms of earlier steps.
    pub fn remembers(&self) -> bool {
        matches!(self.norms, NormSource::Cached | NormSource::Running)
    }

    /// Number of rows kept of `n`, by [`rows_of()`].
    pub fn rows_of(&self, n: usize) -> usize {
        rows_of(self.ratio, n)
    }
}

/// Number of rows that a ratio keeps of `n`: round(ratio·n), at least one.
pub fn rows_of(ratio: f32, n: usize) -> usize {
    ((f64::from(ratio) * n as f64).round() as usize).clamp(n.min(1), n)
}

/// Where the norms of dZ come from when rows are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormSource {
    /// The true norms: rows are drawn in the backward pass, so the input must be at hand there.
    Current,
    /// Those of the last time this example's tokens passed this site; for unseen examples, `Running`.
    Cached,
    /// A moving average by site, position and token class; before the first step, and for rows that are not tokens, `Uniform`.
    Running,
    /// All equal.
    Uniform,
}

/// Keeps by site: the first rule whose pattern matches, else exact.
#[derive(Clone, Debug, Default)]
pub struct Policy(Vec<(GlobMatcher, Keep)>);

impl Policy {
    /// Keeps every input whole.
    pub fn exact() -> Self {
        Self::default()
    }

    /// From glob patterns over site names.
    ///
    /// # Errors
    /// A pattern that is not a valid glob.
    pub fn new(rules: impl IntoIterator<Item = (String, Keep)>) -> Result<Self> {
        let compile = |(pattern, keep): (String, Keep)| {
            let glob = Glob::new(&pattern).map_err(|e| Error::usage(format!("`{pattern}` is no site pattern: {e}")))?;
            Ok((glob.compile_matcher(), keep))
        };
        rules.into_iter().map(compile).collect::<Result<_>>().map(Self)
    }

    /// What the op at `site` keeps.
    pub fn keep(&self, site: &str) -> Keep {
        self.0.iter().find(|(glob, _)| glob.is_match(site)).map_or(Keep::Exact, |&(_, keep)| keep)
    }

    /// Sets the ratio of the rule for `site`, if it draws rows.
    pub fn set_ratio(&mut self, site: &str, ratio: f32) {
        if let Some((_, Keep::Rows(sampling))) = self.0.iter_mut().find(|(glob, _)| glob.is_match(site)) {
            sampling.ratio = ratio;
        }
    }

    /// Whether any rule draws rows by remembered norms.
    pub fn remembers_norms(&self) -> bool {
        self.0.iter().any(|(_, keep)| matches!(keep, Keep::Rows(s) if s.remembers()))
    }
}
