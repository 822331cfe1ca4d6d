//! What ops keep for the backward pass, by site.

use std::cell::RefCell;
use std::collections::HashMap;

use colrow_tensor::Estimator;
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
    /// As [`Keep::Recompute`], but where the block before runs again too nothing is kept: that one runs once more to give the input.
    Chain,
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

colrow_tensor::named! {
    /// Where the norms of dZ come from when rows are drawn, best first.
    NormSource {
        /// The true norms: rows are drawn in the backward pass, so the input must be at hand there. Where nothing can rebuild it, all of it is kept,
        /// and the norms of its rows beside it: a little more than `Exact` keeps. The ledger then says `exact`.
        Current = "current",
        /// Those of the last time this example's tokens passed this site; for unseen examples, `Running`.
        Cached = "cached",
        /// A moving average by site, position and token class; before the first step, and for rows that are not tokens, `Uniform`.
        Running = "running",
        /// All equal.
        Uniform = "uniform",
    }
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

/// What the op at each site keeps, one and the same for all that are not named.
#[derive(Clone, Debug)]
pub struct Policy {
    keeps: HashMap<String, Keep>,
    others: Keep,
}

impl Default for Policy {
    fn default() -> Self {
        Self::exact()
    }
}

impl Policy {
    /// Keeps all of everything.
    pub fn exact() -> Self {
        Self::everywhere(Keep::Exact)
    }

    /// The same at every site.
    pub fn everywhere(keep: Keep) -> Self {
        Self { keeps: HashMap::new(), others: keep }
    }

    /// What the sites that are named keep; all others keep all.
    pub fn new(keeps: impl IntoIterator<Item = (String, Keep)>) -> Self {
        Self { keeps: keeps.into_iter().collect(), ..Self::exact() }
    }

    /// What each of `sites` keeps by the first pattern that names it (see [`glob_matches`]); all that none names keep all.
    pub fn by_patterns<'s>(patterns: &[(&str, Keep)], sites: impl IntoIterator<Item = &'s str>) -> Self {
        let keep = |site: &str| patterns.iter().find(|(glob, _)| glob_matches(glob, site)).map(|(_, keep)| *keep);
        Self::new(sites.into_iter().filter_map(|site| Some((site.to_owned(), keep(site)?))))
    }

    /// What the op at `site` keeps.
    pub fn keep(&self, site: &str) -> Keep {
        self.keeps.get(site).copied().unwrap_or(self.others)
    }

    /// Sets the ratio at `site`, if it draws rows.
    pub fn set_ratio(&mut self, site: &str, ratio: f32) {
        if let Keep::Rows(sampling) = self.keep(site) {
            self.keeps.insert(site.to_owned(), Keep::Rows(Sampling { ratio, ..sampling }));
        }
    }

    fn samplings(&self) -> impl Iterator<Item = &Sampling> {
        self.keeps.values().chain([&self.others]).filter_map(|keep| match keep {
            Keep::Rows(sampling) => Some(sampling),
            _ => None,
        })
    }

    /// Whether some rows of all are drawn by remembered norms anywhere; where ratios may change, also whether all are.
    pub(crate) fn needs_memory(&self, ratios_change: bool) -> bool {
        self.samplings().any(|s| s.remembers() && (s.ratio < 1.0 || ratios_change))
    }

    /// Whether rows are drawn by remembered norms anywhere.
    pub fn remembers_norms(&self) -> bool {
        self.samplings().any(Sampling::remembers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NormSource;

    fn rows(ratio: f32) -> Keep {
        Keep::Rows(Sampling { estimator: Estimator::Pps, ratio, norms: NormSource::Uniform, uniform: 0.1 })
    }

    #[test]
    fn the_first_pattern_that_names_a_site_counts() {
        let patterns =
            [("a.b", rows(0.1)), ("a.*", rows(0.2)), ("a.c", rows(0.4)), ("[bd]", rows(0.6)), ("{a", rows(0.7))];
        let mut policy = Policy::by_patterns(&patterns, ["a.b", "a.c", "d", "e", "{a"]);
        for (site, keep) in [("a.b", rows(0.1)), ("a.c", rows(0.2)), ("d", rows(0.6))] {
            assert_eq!(policy.keep(site), keep, "{site}");
        }
        // named by none, by none that is a pattern, and unknown
        assert!(["e", "{a", "a.x"].iter().all(|site| policy.keep(site) == Keep::Exact));
        policy.set_ratio("a.c", 1.0);
        policy.set_ratio("e", 1.0);
        assert_eq!((policy.keep("a.c"), policy.keep("a.b"), policy.keep("e")), (rows(1.0), rows(0.1), Keep::Exact));
        assert!(glob_matches("a.*", "a.b.c") && !glob_matches("a.*", "b"));
    }

    #[test]
    fn what_holds_everywhere_may_be_changed_at_a_site() {
        let mut policy = Policy::everywhere(rows(0.3));
        policy.set_ratio("a", 0.5);
        assert_eq!((policy.keep("a"), policy.keep("b")), (rows(0.5), rows(0.3)));
        assert_eq!(Policy::exact().keep("a"), Keep::Exact);
    }
}
