//! The memory plan: the real step on the shape-only device, before any weight is read.

use std::sync::Arc;

use colrow_autograd::{Keep, Ledger, NormMemory, Policy, RowsOf, Store};
use colrow_models::config::Config;
use colrow_models::model::{Model, Site};
use colrow_tensor::rng::Key;
use colrow_tensor::{Bytes, DType, Device, Result};

use crate::data::{Batch, Labels};
use crate::engine::{Engine, Micro};
use crate::optim::{Optimizer, Settings};
use crate::ratios::{self, Ratios};

/// What a run is made of, as far as memory is concerned.
pub struct Shape<'a> {
    /// The model.
    pub config: &'a Config,
    /// Adapts and freezes the model.
    pub choose_trained: &'a dyn Fn(&mut Model) -> Result<()>,
    /// How it is optimised.
    pub optim: Settings,
    /// What linears keep.
    pub policy: Arc<Policy>,
    /// Sites whose ratio may change; the step is planned as one that measures them.
    pub auto: &'a [(String, RowsOf)],
    /// Lengths of each micro-batch's sequences.
    pub micros: &'a [Lengths],
    /// Tokens of the training set, targets included, if norms are cached in memory.
    pub cached_tokens: usize,
    /// Whether the target is a number.
    pub regression: bool,
    /// Threads of the processor that will run.
    pub threads: usize,
}

/// Lengths of a batch's sequences.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of each source.
    pub sources: Vec<u32>,
    /// Tokens of each target, for models that answer in text.
    pub targets: Option<Vec<u32>>,
}

/// What one linear keeps.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct SitePlan {
    /// The site.
    pub name: String,
    /// Its policy in words.
    pub policy: String,
    /// Bytes that its ops keep.
    pub kept_bytes: usize,
}

/// The plan of a step.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Plan {
    /// Bytes kept for the backward pass.
    pub kept_bytes: usize,
    /// Most bytes alive at once.
    pub peak_bytes: usize,
    /// Those by class.
    pub peak_bytes_by_class: Bytes,
    /// Every site that keeps something, or could.
    pub sites: Vec<SitePlan>,
    /// Tokens of the step.
    pub tokens: usize,
    /// Kept bytes by site and op.
    pub ledger: Ledger,
}

/// A policy in words, as reports print it; `auto` if the run chooses the ratio.
pub fn keep_name(keep: Keep, auto: bool) -> String {
    match keep {
        Keep::Exact => "exact".into(),
        Keep::Nothing => "rebuild".into(),
        Keep::Recompute => "recompute".into(),
        Keep::Quantised(bits) => format!("{bits:?}").to_lowercase(),
        Keep::Rows(s) => format!(
            "{}@{} ({} norms)",
            format!("{:?}", s.estimator).to_lowercase(),
            if auto { "auto".into() } else { s.ratio.to_string() },
            format!("{:?}", s.norms).to_lowercase()
        ),
    }
}

/// Sites of the ledger with what they keep, each once, in order; `auto` are those whose ratio the run chooses.
pub fn sites(policy: &Policy, auto: &[(String, RowsOf)], known: &[Site], ledger: &Ledger) -> Vec<SitePlan> {
    let mut sites: Vec<SitePlan> = Vec::new();
    for entry in &ledger.entries {
        match sites.iter_mut().find(|s| s.name == entry.site) {
            Some(site) => site.kept_bytes += entry.bytes,
            None => {
                let is_auto = || auto.iter().any(|(site, _)| *site == entry.site);
                let known = known.iter().any(|site| site.name == entry.site);
                let policy = if known { keep_name(policy.keep(&entry.site), is_auto()) } else { entry.keep.clone() };
                sites.push(SitePlan { name: entry.site.clone(), policy, kept_bytes: entry.bytes });
            }
        }
    }
    sites
}

/// Sites whose rows are drawn by remembered norms.
pub fn remembering_sites(policy: &Policy, model: &Model) -> Vec<(String, RowsOf)> {
    let draws = |site: &Site| matches!(policy.keep(&site.name), Keep::Rows(s) if s.remembers());
    model.sites().into_iter().filter(draws).map(|site| (site.name, site.rows)).collect()
}

/// Plans one step.
///
/// # Errors
/// Those of `choose_trained`; settings of the optimizer that exclude each other.
pub fn plan(shape: &Shape) -> Result<Plan> {
    let device = Device::meta(shape.threads);
    let mut model = Model::new(shape.config.clone(), &device, DType::F32);
    (shape.choose_trained)(&mut model)?;
    let optimizer = Optimizer::new(shape.optim, &model.registry.params);
    let norms = match shape.policy.remembers_norms() {
        true => {
            let sites = remembering_sites(&shape.policy, &model);
            Some(Arc::new(NormMemory::new(&device, &sites, shape.cached_tokens, Store::Memory)?))
        }
        false => None,
    };
    let micros: Vec<Micro> = shape.micros.iter().map(|lengths| blank(lengths, shape.regression)).collect();
    let linears = model.sites();
    let policy = shape.policy.clone();
    let ratios = Ratios::new(ratios::Settings { every: 1, share: 0.0 }, shape.auto);
    let ratios = Some(ratios).filter(|_| !shape.auto.is_empty());
    let mut engine = Engine { model, optimizer, policy, norms, ratios, probe: None, key: Key::new(0), dropout: true };
    let stats = engine.step(&micros, 0.0, 1, false)?;
    Ok(Plan {
        kept_bytes: stats.kept_bytes,
        peak_bytes: stats.peak.total(),
        peak_bytes_by_class: stats.peak,
        sites: sites(&shape.policy, shape.auto, &linears, &stats.ledger),
        tokens: stats.tokens,
        ledger: stats.ledger,
    })
}

/// A batch of sequences of these lengths, all of token 0 and label 0: what plans and benchmarks need.
pub fn blank(lengths: &Lengths, regression: bool) -> Micro {
    let Lengths { sources, targets } = lengths;
    let mut bounds = vec![0];
    bounds.extend(sources.iter().scan(0, |sum, l| {
        *sum += l;
        Some(*sum)
    }));
    let (b, n) = (sources.len(), bounds[sources.len()] as usize);
    let labels = match targets {
        Some(targets) => Labels::Text(targets.iter().map(|&l| vec![0; l as usize]).collect()),
        None if regression => Labels::Value(vec![0.0; b]),
        None => Labels::Class(vec![0; b]),
    };
    let batch = Batch {
        ids: vec![0; n],
        types: vec![0; n],
        bounds,
        special: vec![false; n],
        examples: (0..b as u32).collect(),
        labels: Some(labels),
    };
    Micro { batch, places: None, target_places: None }
}
