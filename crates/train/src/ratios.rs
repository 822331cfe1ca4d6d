//! Ratios that follow the gradient (`keep.ratio = "auto"`).
//!
//! Every so many steps each such site tells what sampling adds to its gradient's variance, at every ratio, and what the minibatch gives it
//! anyway ([`Variances`]). Both scale with the gradient, and the second is an estimate with a skewed error, so that averages of quotients or of
//! logarithms would be off; the quotient of two running averages is not, and it is what counts: Adam's step carries both variances in that same
//! proportion. The site's ratio moves to the smallest at which the first average stays below a share of the second.

use std::collections::HashMap;
use std::sync::Arc;

use colrow_autograd::{Form, GRID, LEAST_RATIO, Ledger, Measured, Policy, RowsOf, Variances, grid, rows_of};
use colrow_tensor::{Error, Result};
use serde::{Deserialize, Serialize};

/// Where a ratio starts.
pub const START: f64 = 0.3;
/// Share of the past in the running averages: about the last nine measurements count.
const PAST: f64 = 0.8;
/// Most that a ratio is multiplied or divided by after a measurement.
const LARGEST_MOVE: f64 = 1.5;

/// What the ratios follow.
#[derive(Clone, Copy, Debug)]
pub struct AutoRatio {
    /// Steps between two measurements.
    pub every: u64,
    /// Share of the minibatch's variance that sampling may add.
    pub share: f64,
}

/// A site's ratio and what it follows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteRatio {
    /// The site.
    pub site: String,
    /// Its ratio.
    pub ratio: f64,
    /// Running average of the variance that sampling adds, by ratio of the grid.
    sampling: [f64; GRID],
    /// Running average of the minibatch's variance; 0 before the first measurement.
    minibatch: f64,
}

impl SiteRatio {
    fn record(&mut self, now: &Measured) {
        let average = |past: &mut f64, now: f64| *past = PAST * *past + (1.0 - PAST) * now;
        average(&mut self.minibatch, now.minibatch);
        self.sampling.iter_mut().zip(now.sampling).for_each(|(past, now)| average(past, now));
    }

    /// The smallest ratio at which sampling adds at most `share` of the minibatch's variance. Between ratios of the grid the variance is taken
    /// to be straight, which is above what it is: it is convex.
    fn wanted(&self, share: f64) -> f64 {
        let allowed = share * self.minibatch;
        // at ratio 1 it is 0
        match self.sampling.iter().position(|&v| v <= allowed) {
            Some(0) => LEAST_RATIO,
            Some(i) => {
                let (above, below) = (self.sampling[i - 1], self.sampling[i]);
                grid(i - 1) + (above - allowed) / (above - below) * (grid(i) - grid(i - 1))
            }
            None => 1.0,
        }
    }
}

/// Bytes that rows drawn in the forward pass may take in the largest batch.
#[derive(Clone, Debug)]
struct Budget {
    bytes: usize,
    /// By site the rows of that batch, and the bytes that one takes; 0 where rows are drawn in the backward pass.
    sites: Vec<(usize, usize)>,
}

impl Budget {
    fn of(&self, ratios: impl Iterator<Item = f64>) -> usize {
        let bytes = |(ratio, (n, bytes)): (f64, &(usize, usize))| rows_of(ratio as f32, *n) * bytes;
        ratios.zip(&self.sites).map(bytes).sum()
    }

    fn holds(&self, ratios: &[f64]) -> bool {
        self.of(ratios.iter().copied()) <= self.bytes
    }
}

/// The ratios of a run's sites.
#[derive(Debug)]
pub struct Ratios {
    settings: AutoRatio,
    variances: Arc<Variances>,
    budget: Option<Budget>,
    sites: Vec<SiteRatio>,
}

impl Ratios {
    /// Of `sites`, each with what its rows are, all at [`START`].
    pub fn new(settings: AutoRatio, sites: &[(String, RowsOf)]) -> Self {
        let start = |(site, _): &(String, RowsOf)| SiteRatio {
            site: site.clone(),
            ratio: START,
            sampling: [0.0; GRID],
            minibatch: 0.0,
        };
        let variances = Arc::new(Variances::new(sites.iter().cloned()));
        Self { settings, variances, budget: None, sites: sites.iter().map(start).collect() }
    }

    /// Keeps at most `limit` bytes in the largest batch, by lower ratios where need be. `ledger` is that batch's where it keeps all rows at
    /// these sites, and `rows` are their numbers by site.
    ///
    /// # Errors
    /// A limit below what the smallest ratios keep.
    pub fn limit(&mut self, limit: usize, ledger: &Ledger, rows: &[usize]) -> Result<()> {
        let mut drawn: HashMap<&str, usize> = HashMap::new();
        for entry in ledger.entries.iter().filter(|e| e.keep == Form::Rows) {
            *drawn.entry(&entry.site).or_default() += entry.bytes;
        }
        let kept: Vec<usize> = self.sites.iter().map(|s| drawn.get(s.site.as_str()).copied().unwrap_or(0)).collect();
        let fixed = ledger.total() - kept.iter().sum::<usize>();
        let sites = rows.iter().zip(kept).map(|(&n, bytes)| (n, bytes / n.max(1))).collect();
        let budget = Budget { bytes: limit.saturating_sub(fixed), sites };
        let least = fixed + budget.of(self.sites.iter().map(|_| LEAST_RATIO));
        if limit < least {
            return Err(Error::usage(format!(
                "keep.bytes: expected at least {least}, which the largest batch keeps at the smallest ratios, found {limit}"
            ))
            .hint("a smaller batch or another keep.policy keeps less; rows drawn by current norms take nothing of their own"));
        }
        let all = |ratio: f64| vec![ratio; self.sites.len()];
        let ratio = LEAST_RATIO
            + largest(|x| budget.holds(&all(LEAST_RATIO + x * (START - LEAST_RATIO)))) * (START - LEAST_RATIO);
        self.sites.iter_mut().for_each(|site| site.ratio = ratio);
        self.budget = Some(budget);
        Ok(())
    }

    /// What measures, for the passes of a step.
    pub fn variances(&self) -> &Arc<Variances> {
        &self.variances
    }

    /// Whether step number `step` (from 1) is measured.
    pub fn measures(&self, step: u64) -> bool {
        step.is_multiple_of(self.settings.every)
    }

    /// The sites with their ratios.
    pub fn sites(&self) -> &[SiteRatio] {
        &self.sites
    }

    /// Moves the ratios after a step that was measured.
    pub fn update(&mut self) {
        self.record(&self.variances.take());
    }

    fn record(&mut self, measured: &HashMap<String, Measured>) {
        for site in &mut self.sites {
            if let Some(now) = measured.get(&site.site) {
                site.record(now);
            }
        }
        let moved = |site: &SiteRatio, share: f64| match measured.contains_key(&site.site) {
            true => {
                let wanted = site.wanted(share).clamp(site.ratio / LARGEST_MOVE, site.ratio * LARGEST_MOVE);
                wanted.clamp(LEAST_RATIO, 1.0)
            }
            false => site.ratio,
        };
        // a share that grows without bound as x falls to 0, where no ratio grows: that fits, as the present ratios do
        let at = |x: f64| self.sites.iter().map(|site| moved(site, self.settings.share / x)).collect::<Vec<f64>>();
        let x = self.budget.as_ref().map_or(1.0, |budget| largest(|x| budget.holds(&at(x))));
        let ratios = at(x);
        self.sites.iter_mut().zip(ratios).for_each(|(site, ratio)| site.ratio = ratio);
    }

    /// Gives a policy these ratios.
    pub fn apply(&self, policy: &mut Arc<Policy>) {
        let policy = Arc::make_mut(policy);
        self.sites.iter().for_each(|site| policy.set_ratio(&site.site, site.ratio as f32));
    }

    /// Puts the sites of a checkpoint back.
    ///
    /// # Errors
    /// Other sites.
    pub fn restore(&mut self, sites: Vec<SiteRatio>) -> Result<()> {
        if !self.sites.iter().map(|s| &s.site).eq(sites.iter().map(|s| &s.site)) {
            return Err(Error::new("the checkpoint has ratios of other sites"));
        }
        self.sites = sites;
        Ok(())
    }
}

/// The largest x in [0, 1] that `fits`, where all smaller ones do, to 2^−50; 0 is taken to fit.
fn largest(fits: impl Fn(f64) -> bool) -> f64 {
    if fits(1.0) {
        return 1.0;
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = 0.5 * (low + high);
        if fits(middle) { low = middle } else { high = middle }
    }
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: AutoRatio = AutoRatio { every: 10, share: 0.025 };

    fn sites<const N: usize>(names: [&str; N]) -> Vec<(String, RowsOf)> {
        names.map(|name| (name.to_owned(), RowsOf::Tokens)).to_vec()
    }

    /// A site whose sampling adds `at_one_tenth` of the minibatch's variance at ratio 0.1, by V ∝ 1/r − 1, and its gradient's scale.
    fn measured(at_one_tenth: f64, scale: f64) -> Measured {
        let sampling = std::array::from_fn(|i| scale * at_one_tenth * (1.0 / grid(i) - 1.0) / 9.0);
        Measured { sampling, minibatch: scale }
    }

    fn record(ratios: &mut Ratios, now: &[(&str, Measured)]) {
        ratios.record(&now.iter().map(|(site, m)| ((*site).to_owned(), m.clone())).collect());
    }

    fn values(ratios: &Ratios) -> Vec<f64> {
        ratios.sites().iter().map(|s| s.ratio).collect()
    }

    /// V = share·minibatch where 1/r − 1 = 9·share/at_one_tenth.
    fn solution(at_one_tenth: f64) -> f64 {
        1.0 / (1.0 + 9.0 * SETTINGS.share / at_one_tenth)
    }

    #[test]
    fn the_grid_is_geometric_up_to_one() {
        assert!((grid(0) - LEAST_RATIO).abs() < 1e-15 && grid(GRID - 1) == 1.0);
        assert!((1..GRID - 1).all(|i| (grid(i) * grid(i) / (grid(i - 1) * grid(i + 1)) - 1.0).abs() < 1e-12));
    }

    /// Whatever the gradient's scale does: the quotient counts. Between points of the grid, which are 23 % apart, 1/r is above its chord by less
    /// than 1.1 % of itself.
    #[test]
    fn ratios_settle_where_sampling_adds_its_share() {
        let mut ratios = Ratios::new(SETTINGS, &sites(["small", "middle", "large", "never"]));
        let parts = [0.0002, 0.05, 0.8];
        for t in 0..12 {
            let before = values(&ratios);
            let scale = f64::from(t % 5 + 1).powi(4);
            let now = ["small", "middle", "large"].into_iter().zip(parts.map(|part| measured(part, scale)));
            record(&mut ratios, &now.collect::<Vec<_>>());
            for (before, after) in before.iter().zip(values(&ratios)) {
                assert!((1.0 / LARGEST_MOVE - 1e-12..LARGEST_MOVE + 1e-12).contains(&(after / before)));
            }
        }
        let [small, middle, large, never] = values(&ratios).try_into().unwrap();
        assert_eq!((small, never), (LEAST_RATIO, START), "no smaller, and not without a measurement");
        for (found, part) in [(middle, parts[1]), (large, parts[2])] {
            let want = solution(part);
            assert!(found >= want - 1e-12 && found < want * 1.03, "{found} is not {want}");
        }
    }

    /// Estimates of the minibatch's variance that are noisy, as squares of one normal number are, do not drive a ratio away.
    #[test]
    fn noise_averages_out() {
        let key = colrow_tensor::rng::Key::new(1);
        let mut ratios = Ratios::new(SETTINGS, &sites(["site"]));
        let mut sum = 0.0;
        for t in 0..420 {
            let noisy = Measured { minibatch: key.normal(t).powi(2), ..measured(0.2, 1.0) };
            record(&mut ratios, &[("site", noisy)]);
            sum += if t >= 20 { ratios.sites()[0].ratio } else { 0.0 };
        }
        // the average's relative deviation is √2/3; the mean of 400 correlated ones is within 10 %, the ratio's curvature adds as much
        let mean = sum / 400.0;
        assert!((mean / solution(0.2) - 1.0).abs() < 0.1, "{mean} is not {}", solution(0.2));
    }

    fn ledger(entries: &[(&str, Form, usize)]) -> Ledger {
        let entry = |&(site, keep, bytes): &(&str, Form, usize)| colrow_autograd::LedgerEntry {
            site: site.into(),
            op: "linear".into(),
            what: "input".into(),
            keep,
            bytes,
        };
        Ledger { entries: entries.iter().map(entry).collect() }
    }

    #[test]
    fn a_limit_raises_every_sites_share_until_the_rows_fit() {
        let names = ["early", "wide", "late"];
        // 1000 rows of 40 and of 100 bytes, and 7,000 bytes that no ratio changes
        let ledger = ledger(&[
            ("early", Form::Rows, 40_000),
            ("wide", Form::Rows, 100_000),
            ("late", Form::Int8, 5000),
            ("x", Form::Exact, 2000),
        ]);
        let limited = |limit| {
            let mut ratios = Ratios::new(SETTINGS, &sites(names));
            ratios.limit(limit, &ledger, &[1000; 3]).map(|()| ratios)
        };
        let kept = |ratios: &Ratios| {
            let rows = values(ratios).into_iter().map(|r| rows_of(r as f32, 1000)).collect::<Vec<_>>();
            7000 + 40 * rows[0] + 100 * rows[1]
        };
        let error = limited(9799).unwrap_err();
        assert!(error.to_string().starts_with("keep.bytes: expected at least 9800, which"), "{error}");
        // the same 20 of 1000 rows
        assert!(values(&limited(9800).unwrap())[0] < 0.0205);
        assert_eq!(values(&limited(1 << 20).unwrap()), [START; 3]);
        let mut free = limited(1 << 20).unwrap();
        let mut tight = limited(21_000).unwrap();
        assert!((20_800..=21_000).contains(&kept(&tight)), "{}", kept(&tight));
        let now = [("early", measured(0.3, 1.0)), ("wide", measured(0.05, 5.0)), ("late", measured(0.1, 2.0))];
        for _ in 0..20 {
            record(&mut free, &now);
            record(&mut tight, &now);
            assert!(kept(&tight) <= 21_000);
        }
        assert!(kept(&free) > 40_000);
        assert!(kept(&tight) > 20_800, "the limit is used: {}", kept(&tight));
        // one share for all: 1/r − 1 is the same multiple of what it is without the limit; less the chord's 1.1 % at both ends
        let odds = |r: f64| 1.0 / r - 1.0;
        let raised: Vec<f64> = values(&tight).into_iter().zip(values(&free)).map(|(t, f)| odds(t) / odds(f)).collect();
        assert!(raised.iter().all(|r| *r > 1.5 && (r / raised[0] - 1.0).abs() < 0.05), "{raised:?}");
    }

    #[test]
    fn a_checkpoint_brings_them_back() {
        let mut ratios = Ratios::new(SETTINGS, &sites(["a", "b"]));
        record(&mut ratios, &[("a", measured(0.3, 0.1)), ("b", measured(0.01, 1.0 / 3.0))]);
        let text = serde_json::to_string(ratios.sites()).unwrap();
        let mut other = Ratios::new(SETTINGS, &sites(["a", "b"]));
        other.restore(serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(other.sites(), ratios.sites());
        assert!(Ratios::new(SETTINGS, &sites(["a"])).restore(ratios.sites().to_vec()).is_err());
        assert!(!ratios.measures(9) && ratios.measures(10));
    }
}
