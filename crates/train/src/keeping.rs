//! From `[keep]` of a recipe to what every site of a model keeps.

use colrow_autograd::{Bits, Keep, NormSource, Policy, RowsOf, Sampling, glob_matches};
use colrow_models::net::{Site, SiteKind};
use colrow_tensor::{Error, Estimator, Result};

use crate::ratios;
use crate::recipe::{self, Estimate, PolicyName, Ratio, Recipe, SiteKeep};

/// Whether a site can keep this.
fn fits(kind: SiteKind, keep: SiteKeep) -> bool {
    match keep {
        SiteKeep::Exact => true,
        SiteKeep::Int8 => kind != SiteKind::Block,
        SiteKeep::Int4 | SiteKeep::Bf16 => !matches!(kind, SiteKind::Relu | SiteKind::Block),
        SiteKeep::Recompute => kind == SiteKind::Block,
        SiteKeep::Rows => kind == SiteKind::Linear,
        SiteKeep::Rebuild => matches!(kind, SiteKind::Linear | SiteKind::Head | SiteKind::Attention | SiteKind::Block),
    }
}

/// What a site keeps by the policy alone.
fn preset(policy: PolicyName, site: &Site) -> SiteKeep {
    match (policy, site.kind) {
        // one row a sequence: next to nothing to save
        _ if site.rows == RowsOf::Sequences => SiteKeep::Exact,
        (PolicyName::Exact, _) => SiteKeep::Exact,
        (PolicyName::Paper, SiteKind::Linear) if site.in_paper => SiteKeep::Rows,
        (PolicyName::Paper, _) => SiteKeep::Exact,
        (PolicyName::Recompute, SiteKind::Block) => SiteKeep::Recompute,
        (_, SiteKind::Block) => SiteKeep::Exact,
        (_, SiteKind::Linear) => SiteKeep::Rows,
        (_, SiteKind::Head) => SiteKeep::Exact,
        (PolicyName::Leanest, SiteKind::Attention) => SiteKeep::Rebuild,
        _ => SiteKeep::Int8,
    }
}

/// What the recipe says of a site: what is kept, and for rows how they are sampled.
fn told(keep: &recipe::Keeping, site: &Site) -> (SiteKeep, Estimate, Ratio, NormSource) {
    let applies =
        |e: &recipe::SiteException| e.keep.map_or(site.kind == SiteKind::Linear, |keep| fits(site.kind, keep));
    let exception = keep.exception(&site.name, applies);
    let kind = exception.and_then(|e| e.keep).unwrap_or_else(|| preset(keep.policy, site));
    let estimator = exception.and_then(|e| e.estimator).unwrap_or(keep.estimator);
    let ratio = exception.and_then(|e| e.ratio).unwrap_or(keep.ratio);
    let norms = exception.and_then(|e| e.norms).unwrap_or(keep.norms());
    (kind, estimator, ratio, norms)
}

/// Whether the recipe has a site draw rows, by whichever estimator.
pub(crate) fn draws(keep: &recipe::Keeping, site: &Site) -> bool {
    told(keep, site).0 == SiteKeep::Rows
}

/// What one site keeps, by the recipe; where the run chooses the ratio, what it starts with.
pub fn site_keep(keep: &recipe::Keeping, site: &Site) -> Keep {
    let (kind, estimator, ratio, norms) = told(keep, site);
    let estimator = match (kind, estimator) {
        (SiteKeep::Rebuild, _) if site.kind == SiteKind::Block => return Keep::Chain,
        (SiteKeep::Rebuild, _) => return Keep::Nothing,
        (SiteKeep::Recompute, _) => return Keep::Recompute,
        (SiteKeep::Int8, _) => return Keep::Quantised(Bits::Int8),
        (SiteKeep::Int4, _) => return Keep::Quantised(Bits::Int4),
        (SiteKeep::Bf16, _) => return Keep::Quantised(Bits::Bf16),
        (SiteKeep::Exact, _) | (_, Estimate::Exact) => return Keep::Exact,
        (SiteKeep::Rows, Estimate::By(estimator)) => estimator,
    };
    let ratio = match ratio {
        Ratio::Fixed(ratio) => ratio,
        Ratio::Auto => ratios::START,
    };
    Keep::Rows(Sampling { estimator, ratio: ratio as f32, norms, uniform: keep.uniform as f32 })
}

/// The recipe's policy over a model's sites.
///
/// # Errors
/// A pattern that names no site, or none that can keep what it says.
pub fn policy(keep: &recipe::Keeping, sites: &[Site]) -> Result<Policy> {
    for exception in &keep.sites {
        let pattern = &exception.pattern;
        let named: Vec<&Site> = sites.iter().filter(|s| glob_matches(pattern, &s.name)).collect();
        if named.is_empty() {
            let names: Vec<_> = sites.iter().take(4).map(|s| s.name.as_str()).collect();
            return Err(Error::usage(format!("keep.sites: `{pattern}` names no site of this model"))
                .hint(format!("sites are {}, …", names.join(", "))));
        }
        if let Some(keep) = exception.keep.filter(|&keep| !named.iter().any(|site| fits(site.kind, keep))) {
            return Err(Error::usage(format!("keep.sites: no site that `{pattern}` names can keep `{keep}`")).hint(
                "linears keep anything, attention and a head of tokens all but `rows`, norms and activations neither `rows` nor `rebuild`, a ReLU `exact` or `int8`, \
                 a block `exact`, `recompute` or `rebuild`",
            ));
        }
    }
    Ok(Policy::new(sites.iter().map(|s| (s.name.clone(), site_keep(keep, s)))))
}

/// Sites whose ratio the run chooses, and what their rows are.
pub(crate) fn auto_sites(keep: &recipe::Keeping, sites: &[Site]) -> Vec<(String, RowsOf)> {
    let auto = |site: &&Site| matches!(told(keep, site), (SiteKeep::Rows, _, Ratio::Auto, _));
    sites.iter().filter(auto).map(|site| (site.name.clone(), site.rows)).collect()
}

/// Whether the run can choose the ratios that the recipe leaves to it.
///
/// # Errors
/// No such site, one whose estimator has no ratio to choose, one sequence a step.
pub(crate) fn check_auto(recipe: &Recipe, sites: &[Site]) -> Result<()> {
    let (keep, train) = (&recipe.keep, &recipe.train);
    if !keep.chooses_ratios() {
        return Ok(());
    }
    let estimators = sites.iter().filter_map(|site| match told(keep, site) {
        (SiteKeep::Rows, estimator, Ratio::Auto, _) => Some((site, estimator)),
        _ => None,
    });
    let mut estimators = estimators.peekable();
    if estimators.peek().is_none() {
        return Err(Error::usage(format!(
            "keep.ratio: \"auto\" has nothing to choose: under keep.policy = \"{}\" no site draws rows",
            keep.policy
        ))
        .hint("set keep.policy to lean, leanest or paper"));
    }
    for (site, estimator) in estimators {
        let why = match estimator {
            Estimate::By(Estimator::TopK) => "has a bias that it does not see",
            Estimate::Exact => "keeps all rows",
            _ => continue,
        };
        return Err(Error::usage(format!("keep.ratio: \"auto\" weighs variances; `{estimator}` {why}"))
            .at(&site.name)
            .hint("choose keep.estimator pps, wta or crs, or a number"));
    }
    if train.batch == recipe::BatchSize::Sequences(1) && train.accumulate == 1 {
        return Err(Error::usage("keep.ratio: \"auto\" compares the sequences of a step, and there is one")
            .hint("set train.batch or train.accumulate to 2 or more, or keep.ratio to a number"));
    }
    Ok(())
}
