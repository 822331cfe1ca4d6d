//! What ops keep for the backward pass, by site.

use std::cell::RefCell;
use std::collections::HashMap;

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
    /// The true norms: rows are drawn in the backward pass, so the input must be at hand there. Where nothing can rebuild it, all of it is kept,
    /// and the norms of its rows beside it: a little more than `Exact` keeps. The ledger then says `exact`.
    Current,
    /// Those of the last time this example's tokens passed this site; for unseen examples, `Running`.
    Cached,
    /// A moving average by site, position and token class; before the first step, and for rows that are not tokens, `Uniform`.
    Running,
    /// All equal.
    Uniform,
}

/// Whether a glob (`*` also crosses dots) names `name`; one that is not valid names nothing.
pub fn glob_matches(glob: &str, name: &str) -> bool {
    thread_local! {
        // a model has tens of thousands of names, and a glob is compiled in the time of a hundred matches
        static COMPILED: RefCell<HashMap<String, Option<GlobMatcher>>> = RefCell::default();
    }
    COMPILED.with_borrow_mut(|compiled| {
        if !compiled.contains_key(glob) {
            compiled.insert(glob.to_owned(), Glob::new(glob).ok().map(|g| g.compile_matcher()));
        }
        compiled[glob].as_ref().is_some_and(|g| g.is_match(name))
    })
}

/// Keeps by site: the first rule whose pattern matches, else exact.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Keep>,
    /// The first rule of every pattern that is a name. A model's own policy has nothing else, so that a lookup takes the same time in models of
    /// any depth.
    named: HashMap<String, usize>,
    /// The other patterns with their rules.
    globs: Vec<(GlobMatcher, usize)>,
}

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
        let mut policy = Self::default();
        for (i, (pattern, keep)) in rules.into_iter().enumerate() {
            policy.rules.push(keep);
            if pattern.contains(['*', '?', '[', ']', '{', '}', '\\']) {
                let glob =
                    Glob::new(&pattern).map_err(|e| Error::usage(format!("`{pattern}` is no site pattern: {e}")))?;
                policy.globs.push((glob.compile_matcher(), i));
            } else {
                policy.named.entry(pattern).or_insert(i);
            }
        }
        Ok(policy)
    }

    fn rule(&self, site: &str) -> Option<usize> {
        let named = self.named.get(site).copied();
        let mut earlier = self.globs.iter().take_while(|(_, i)| named.is_none_or(|named| *i < named));
        earlier.find(|(glob, _)| glob.is_match(site)).map(|&(_, i)| i).or(named)
    }

    /// What the op at `site` keeps.
    pub fn keep(&self, site: &str) -> Keep {
        self.rule(site).map_or(Keep::Exact, |i| self.rules[i])
    }

    /// Sets the ratio of the rule for `site`, if it draws rows.
    pub fn set_ratio(&mut self, site: &str, ratio: f32) {
        if let Some(Keep::Rows(sampling)) = self.rule(site).map(|i| &mut self.rules[i]) {
            sampling.ratio = ratio;
        }
    }

    /// Whether any rule draws some rows of all by remembered norms; where ratios may change, also rules that draw all.
    pub(crate) fn needs_memory(&self, ratios_change: bool) -> bool {
        let draws = |s: &Sampling| s.remembers() && (s.ratio < 1.0 || ratios_change);
        self.rules.iter().any(|keep| matches!(keep, Keep::Rows(s) if draws(s)))
    }

    /// Whether any rule draws rows by remembered norms.
    pub fn remembers_norms(&self) -> bool {
        self.rules.iter().any(|keep| matches!(keep, Keep::Rows(s) if s.remembers()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NormSource;

    fn rows(ratio: f32) -> Keep {
        Keep::Rows(Sampling { estimator: Estimator::Pps, ratio, norms: NormSource::Uniform, uniform: 0.1 })
    }

    /// Names and globs count in the order in which they were given.
    #[test]
    fn the_first_rule_that_matches_counts() {
        let rules = [
            ("a.b", rows(0.1)),
            ("a.*", rows(0.2)),
            ("a.b", rows(0.3)),
            ("a.c", rows(0.4)),
            ("b", rows(0.5)),
            ("[bd]", rows(0.6)),
            ("*", Keep::Nothing),
        ];
        let mut policy = Policy::new(rules.map(|(pattern, keep)| (pattern.to_owned(), keep))).unwrap();
        for (site, keep) in [("a.b", 0.1), ("a.c", 0.2), ("b", 0.5), ("d", 0.6)] {
            assert_eq!(policy.keep(site), rows(keep), "{site}");
        }
        assert_eq!((policy.keep("e"), Policy::exact().keep("e")), (Keep::Nothing, Keep::Exact));
        policy.set_ratio("a.c", 1.0);
        policy.set_ratio("e", 1.0);
        assert_eq!((policy.keep("a.d"), policy.keep("a.b"), policy.keep("e")), (rows(1.0), rows(0.1), Keep::Nothing));
        for bad in ["[", "{a", "a}"] {
            let e = Policy::new([(bad.to_owned(), Keep::Exact)]).unwrap_err().to_string();
            assert!(e.starts_with(&format!("`{bad}` is no site pattern: ")), "{e}");
        }
        assert!(glob_matches("a.*", "a.b.c") && !glob_matches("a.*", "b") && !glob_matches("{a", "{a"));
    }
}
